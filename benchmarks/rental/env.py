"""Stage `env`: what machine this is, and whether all that later stages import is there."""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import platform
import subprocess
import time
from pathlib import Path
from typing import Any

from benchmarks.rental import pieces
from benchmarks.rental.settings import from_argv, write_json
from search_spaces import machine

NEEDED = ("torch", "torchvision", "triton", "numpy", "pandas", "pyarrow", "scipy", "yaml", "rich", "filelock", "PIL")
ASKED = "name,driver_version,memory.total,clocks.max.sm,clocks.max.memory,power.limit"


def main() -> None:
    settings = from_argv()
    found: dict[str, Any] = {
        "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "python": platform.python_version(),
        "kernel": platform.release(),
        "cores": machine.cores(),
        "commit": pieces.commit(Path(settings.data).parent),
        "environment": {key: value for key, value in os.environ.items() if key.startswith(("CUDA", "TRITON", "POOL"))},
        "missing": [],
    }
    for name in NEEDED:
        try:
            found[name] = getattr(importlib.import_module(name), "__version__", "?")
        except ImportError as error:
            found["missing"].append(f"{name}: {error}")
        write_json(settings.result("env.json"), found)
    import torch

    if torch.cuda.is_available():
        gpu = torch.cuda.get_device_properties(0)
        found["gpu"] = {key: getattr(gpu, key) for key in dir(gpu) if isinstance(getattr(gpu, key), int | float | str)}
        found["cudnn"] = torch.backends.cudnn.version()
        found["cuda"] = torch.version.cuda
        found["nvidia_smi"] = _said("nvidia-smi", f"--query-gpu={ASKED}", "--format=csv,noheader")
    found["imported_s"] = round(time.process_time(), 1)
    write_json(settings.result("env.json"), found)
    print({key: found.get(key) for key in ("python", "torch", "triton", "commit", "missing", "nvidia_smi")})
    if found["missing"]:
        raise SystemExit(1)


def _said(*command: str) -> str | None:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


if __name__ == "__main__":
    main()
