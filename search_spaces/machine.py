"""This machine: where the project's code is, its version, the cache folder, and the number of CPU cores."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from search_spaces import process

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("orchestrator", "results", "search_spaces", "trainer")


def python_path() -> str:
    """Return the $PYTHONPATH of a process that imports this project and what this process was told to import."""
    return os.pathsep.join([str(ROOT), *process.named_path()])


def module(name: str, *args: str) -> list[str]:
    """Return the command that runs a module of this project, in `environment()`."""
    return [sys.executable, "-P", "-m", name, *args]  # -P: nothing of the working directory is imported


def environment() -> dict[str, str]:
    """Return the variables of a process that imports what this one does."""
    return os.environ | {"PYTHONPATH": python_path()}


def commit() -> str | None:
    """Return the project's git commit, with `-dirty` if files differ; None outside a checkout or without git."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, encoding="utf-8", check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def cache() -> Path:
    """Return the folder for what can be made again: $POOLSWEEP_CACHE, or `poolsweep` in the user's cache folder."""
    if given := os.environ.get("POOLSWEEP_CACHE"):
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "poolsweep"


def cores() -> int:
    """Return how many CPU cores this process may use, by its affinity mask."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
