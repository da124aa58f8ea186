"""The fixed trainer: what a trial is, and how it is trained. Knows neither Ray nor the run folder."""

import os

# What CUDA reads when it starts, and torch at its import. Whoever sets them otherwise has their way.
os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "32")  # hardware queues: of 8, a pack's streams 9 to 16 share some
os.environ.setdefault("TORCH_DISABLE_NATIVE_JIT", "1")  # torch 2.13 compiles some products by gcc while it runs
