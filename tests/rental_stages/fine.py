from benchmarks.rental.settings import from_argv, write_json

write_json(from_argv().result("fine.json"), {"fine": True})
print("all is well")
