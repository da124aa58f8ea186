"""Asking run folders: `results.load("runs/quickstart").leaderboard()`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from results.run import Run, load

__all__ = ["Run", "load"]


def __getattr__(name: str) -> Any:
    """Only when asked for: a worker, which only writes, does without pandas and scipy, 0.8 s of CPU time."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from results import run

    return getattr(run, name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])  # what a notebook completes
