"""Asking a run folder: `results.load("runs/quickstart").leaderboard()`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from results import leaderboard, submissions
from results.store import RunFolder
from trainer.problems import RequestError

__all__ = ["Run", "load"]


@dataclass(frozen=True)
class Run:
    """What a run folder holds, as pandas frames. Reads anew at every call, so a sweep may be running."""

    folder: RunFolder

    def trials(self) -> pd.DataFrame:
        """One row for each trial that has ended: the columns of `results.schema.TRIALS`."""
        return self.folder.read_trials().to_pandas()

    def epochs(self) -> pd.DataFrame:
        """One row for each epoch on record, those of running trials too: `results.schema.EPOCHS`."""
        return self.folder.read_epochs().to_pandas()

    def leaderboard(
        self, metric: str = "best_test_acc", allow_mixed: bool = False, latest: bool = False
    ) -> pd.DataFrame:
        """The tidy table, one row for each (pool, arch, dataset, baseline); see `results.leaderboard.cells`."""
        trials = self.folder.read_trials(leaderboard.NEEDS).to_pandas()
        return leaderboard.cells(trials, self.folder.grid(), metric, allow_mixed, latest)

    def notes(self) -> list[str]:
        """What a reader of the table should know that is not in it."""
        lines = [f"On {same}." for same in self.folder.same_functions()]
        submitted = [f"{submissions.spell(pool)} ({when})" for pool, when in self.folder.submissions().values()]
        return lines + ([f"Submitted: {', '.join(submitted)}."] if submitted else [])


def load(run: str | Path) -> Run:
    """The results in a run folder.

    Raises:
        RequestError: there is no run folder at that path.
    """
    folder = RunFolder(run)
    if not (folder.path / "trials").is_dir():
        raise RequestError.of(f"{run} is no run folder: it has no `trials` in it; give the --out of a sweep")
    return Run(folder)
