"""Performance claims as commands that anyone can run: `python -m benchmarks.throughput`."""
