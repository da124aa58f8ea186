raise RuntimeError("no such kernel")
