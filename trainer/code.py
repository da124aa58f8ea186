"""Where this project's code is, for processes that have to find it from wherever they start."""

from __future__ import annotations

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def python_path() -> str:
    """$PYTHONPATH of a process that imports this project, and what this one was told to import."""
    return os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
