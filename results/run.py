"""What `results.load` gives: one run folder or several, as pandas frames."""

from __future__ import annotations

import html
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa

from results import several, submissions
from results.store.folder import RunFolder
from results.table import leaderboard, render, topup
from search_spaces.errors import RequestError

RUN = "run"  # the column that tells several folders apart


@dataclass(frozen=True)
class Run:
    """What run folders hold, as pandas frames. Reads anew at every call, so a sweep may be running.

    Attributes:
        folders: {path as given: folder}.
        tells_apart: whether frames have a column `run`, the path as given: where more than one folder was asked for.
    """

    folders: Mapping[str, RunFolder]
    tells_apart: bool = False

    @property
    def folder(self) -> RunFolder:
        """The one folder, for what is done to one.

        Raises:
            RequestError: there are several.
        """
        if len(self.folders) > 1:
            raise RequestError.of(f"give one run folder, not {len(self.folders)}: {', '.join(self.folders)}")
        (folder,) = self.folders.values()
        return folder

    def trials(self, columns: Sequence[str] | None = None, **where: Any) -> pd.DataFrame:
        """One row for each trial that has ended: the columns of `results.store.schema.TRIALS`.

        Args:
            columns: only these.
            where: a column and the value that it has, or a list of values of which it has one:
                `trials(arch="resnet56", seed=[42, 123])`. What cannot match is passed over before it is read.

        Raises:
            RequestError: a column that there is not, or a value that is none of its type.
        """
        return self._frame(RunFolder.read_trials, columns, where)

    def epochs(self, columns: Sequence[str] | None = None, **where: Any) -> pd.DataFrame:
        """One row for each epoch on record, those of running trials too: `results.store.schema.EPOCHS`; as `trials`."""
        return self._frame(RunFolder.read_epochs, columns, where)

    def leaderboard(
        self,
        metric: str = leaderboard.METRICS[0],
        allow_mixed: bool = False,
        latest: bool = False,
        **selection: Any,
    ) -> pd.DataFrame:
        """The tidy table, one row for each (pool, arch, dataset, baseline); see `results.table.leaderboard.cells`.

        Args:
            selection: `baselines`, `pools`, `pairs`, `seeds`: see `results.table.leaderboard.Selection`.

        A trial that several folders have counts once, as the first of them has it.
        """
        tables = [folder.read_trials(leaderboard.NEEDS) for folder in self.folders.values()]
        trials = pa.concat_tables(tables).to_pandas()
        if len(tables) > 1:
            trials = trials.drop_duplicates("trial_id", ignore_index=True)
        grid = several.union(folder.grid() for folder in self.folders.values())
        same = [one for folder in self.folders.values() for one in folder.equivalences()]
        chosen = leaderboard.Selection(**selection)
        return leaderboard.cells(trials, grid, metric, allow_mixed, latest, chosen, same)

    def notes(self) -> list[str]:
        """What a reader of the table should know that is not in it."""
        folders = self.folders.values()
        lines = [f"On {same}." for folder in folders for same in folder.equivalences()]
        entries = [entry for folder in folders for entry in folder.submissions().values()]
        submitted = [f"{submissions.spell(pool)} ({when})" for pool, when in entries]
        lines += [f"Submitted: {', '.join(dict.fromkeys(submitted))}."] if submitted else []
        lines += [line for folder in folders for line in topup.remark(folder)]
        return list(dict.fromkeys(lines))

    def _repr_html_(self) -> str:
        """How a Jupyter cell shows it: the leaderboard."""
        metric = leaderboard.METRICS[0]
        try:
            return render.to_html(self.leaderboard(metric), metric, self.notes())
        except RequestError as error:
            return f"<pre>{html.escape(str(error))}</pre>"

    def _frame(
        self,
        read: Callable[[RunFolder, Sequence[str] | None, Mapping[str, Any]], pa.Table],
        columns: Sequence[str] | None,
        where: Mapping[str, Any],
    ) -> pd.DataFrame:
        if not self.tells_apart:
            return read(self.folder, columns, where).to_pandas()
        columns = columns and [name for name in columns if name != RUN]  # which is there in any case
        tables = []
        for path, folder in self.folders.items():
            table = read(folder, columns, where)
            tables.append(table.add_column(0, RUN, pa.array([path] * len(table), pa.string())))
        return pa.concat_tables(tables).to_pandas()


def load(*runs: str | Path | Iterable[str | Path]) -> Run:
    """The results in a run folder, or in several: paths, patterns such as `runs/*`, or lists of these.

    Raises:
        RequestError: there is no run folder at a path, or none that a pattern finds.
    """
    asked = [path for each in runs for path in ([each] if isinstance(each, str | Path) else each)]
    return Run(several.find(asked), tells_apart=len(asked) > 1 or any(map(several.is_pattern, asked)))
