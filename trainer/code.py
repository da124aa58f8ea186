"""Where this project's code is, for processes that have to find it from wherever they start, and which it is."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from trainer import process

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("orchestrator", "results", "search_spaces", "trainer")


def python_path() -> str:
    """$PYTHONPATH of a process that imports this project, and what this one was told to import."""
    return os.pathsep.join([str(ROOT), *process.named_path()])


def commit() -> str | None:
    """Its git commit, `-dirty` if files differ from it; None outside a checkout, or without git."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, encoding="utf-8", check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
