"""Looks at what other processes do to a run folder: until they are so far, and whether anything was done twice."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import TypeVar

import pandas as pd

from results.store import schema

T = TypeVar("T")


def wait_until(done: Callable[[], T], seconds: float = 300.0, said: Callable[[], object] = str) -> T:
    """Return the first result of `done` that is true; fail with what was `said` if none is in that time."""
    deadline = time.monotonic() + seconds
    while not (found := done()):
        assert time.monotonic() < deadline, f"not within {seconds} s; {said()}"
        time.sleep(0.02)
    return found


def remount(disk: Path, options: str) -> None:
    """Change the file system of the fixture `small_disk`."""
    subprocess.run(["mount", "-o", f"remount,{options}", str(disk)], check=True)


def written(run: Path) -> dict[str, int]:
    """Return {file of a trial's row: when it was written}, of all trials that have ended so far."""
    return {path.name: path.stat().st_mtime_ns for path in (run / "trials").glob("[!.]*")}


def trained_once(run: Path, epochs: Collection[int], before: dict[str, int]) -> pd.DataFrame:
    """Return the rows of trials, after making sure that each was trained to its end, and none that had ended again."""
    after = written(run)
    assert {name: after[name] for name in before} == before, "a finished trial was trained again"
    trials = pd.read_parquet(run / "trials")
    assert set(trials["status"]) <= {*schema.TRAINED}
    of_each = pd.read_parquet(run / "epochs").groupby("trial_id")["epoch"].apply(list)
    assert set(of_each.index) == set(trials["trial_id"])
    assert of_each.map(lambda found: found == list(epochs)).all()
    return trials
