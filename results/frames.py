"""Run folders as pandas frames: the trials, the epochs and the table."""

from __future__ import annotations

import glob
import html
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import pandas as pd
import pyarrow as pa

from results import submissions
from results.store import s3
from results.store.folder import RunFolder
from results.store.s3 import ObjectStore, StoreError, is_uri
from results.store.tables import Table
from results.store.trial_files import StoredFile
from results.table import leaderboard, render, topup
from results.table.trials import METRICS, NEEDS, Selection
from search_spaces.equivalence import Equivalence
from search_spaces.errors import Problem, RequestError
from search_spaces.grid import Grid

RUN = "run"  # the column that tells several folders apart


@dataclass(frozen=True)
class Frames:
    """What run folders hold. Every call reads them anew, so a sweep may be running."""

    folders: Mapping[str, RunFolder]  # by the path as given
    tells_apart: bool = False  # whether frames have a column `run`, that path: yes where several were asked for

    @property
    def folder(self) -> RunFolder:
        """Return the one folder, for what is done to one.

        Raises:
            RequestError: there are several.
        """
        if len(self.folders) > 1:
            raise RequestError.of(f"give one run folder, not {len(self.folders)}: {', '.join(self.folders)}")
        (folder,) = self.folders.values()
        return folder

    def trials(self, columns: Sequence[str] | None = None, **where: Any) -> pd.DataFrame:
        """Return one row for each trial that has ended: the columns of `results.store.schema.TRIALS`.

        Args:
            columns: return these only.
            where: a column and its value, or a list of values: `trials(arch="resnet56", seed=[42, 123])`. Files that
                cannot match are not opened.

        Raises:
            RequestError: there is no such column, or a value has another type.
        """
        return self._frame(lambda folder: folder.trials, columns, where)

    def epochs(self, columns: Sequence[str] | None = None, **where: Any) -> pd.DataFrame:
        """Return one row for each epoch on record, of running trials too: `schema.EPOCHS`; as `trials`."""
        return self._frame(lambda folder: folder.epochs, columns, where)

    @overload
    def leaderboard(
        self, metric: str = ..., *, format: None = None, sort: str = ..., output: None = None, **selection: Any
    ) -> pd.DataFrame: ...
    @overload
    def leaderboard(
        self, metric: str = ..., *, format: str, sort: str = ..., output: Path | None = None, **selection: Any
    ) -> str: ...
    def leaderboard(
        self,
        metric: str = METRICS[0],
        *,
        format: str | None = None,
        sort: str = render.SORTS[0],
        output: Path | None = None,
        **selection: Any,
    ) -> pd.DataFrame | str:
        """Return the tidy table, one row for each (pool, arch, dataset, baseline): `results.table.leaderboard.cells`.

        A trial that several folders have counts once, as the first of them has it.

        Args:
            format: return it as a text of this format instead, one of `results.table.render.FORMATS`.
            sort: how the rows of that text are ordered, one of `results.table.render.SORTS`.
            output: write that text there, too.
            selection: the rest of `results.table.trials.Selection`.

        Raises:
            RequestError: something is selected that is not there, or the text cannot be written.
        """
        tables = [folder.trials.read(NEEDS) for folder in self.folders.values()]
        trials = pa.concat_tables(tables).to_pandas()
        if len(tables) > 1:
            trials = trials.drop_duplicates("trial_id", ignore_index=True)
        same = self._equivalences()
        frame = leaderboard.cells(trials, self.grids(), Selection(metric=metric, **selection), same)
        if format is None:
            return frame
        wide = render.Wide(frame, metric, self.notes(same), sort, every=bool(selection.get("baselines")))
        text = render.FORMATS[format](wide)
        if output is not None:
            write_output(output, text.encode())
        return text

    def grids(self) -> list[Grid]:
        """Return what the newest sweep on each folder asked for; nothing if they are of several recipes."""
        found = [grid for folder in self.folders.values() if (grid := folder.space.read()) is not None]
        return found if len({(grid.recipe, grid.protocol) for grid in found}) == 1 else []

    def notes(self, same: Sequence[Equivalence] | None = None) -> list[str]:
        """Return what a reader of the table should know that is not in it; `same` are its equivalences, if read."""
        entries = [entry for folder in self.folders.values() for entry in folder.submissions.read().values()]
        submitted = dict.fromkeys(f"{submissions.spell(pool)} ({when})" for pool, when in entries)
        lines = [f"On {one}." for one in (self._equivalences() if same is None else same)]
        lines += [f"Submitted: {', '.join(submitted)}."] if submitted else []
        lines += [line for folder in self.folders.values() for line in topup.remark(folder)]
        return list(dict.fromkeys(lines))

    def _equivalences(self) -> list[Equivalence]:
        return [one for folder in self.folders.values() for one in folder.equivalences.read()]

    def _repr_html_(self) -> str:
        """Show the leaderboard in a notebook's cell."""
        try:
            return self.leaderboard(format="html")
        except RequestError as error:
            return f"<pre>{html.escape(str(error))}</pre>"

    def _frame(
        self,
        table_of: Callable[[RunFolder], Table],
        columns: Sequence[str] | None,
        where: Mapping[str, Any],
    ) -> pd.DataFrame:
        if not self.tells_apart:
            return table_of(self.folder).read(columns, where).to_pandas()
        columns = columns and [name for name in columns if name != RUN]  # which is there in any case
        tables = []
        for path, folder in self.folders.items():
            table = table_of(folder).read(columns, where)
            tables.append(table.add_column(0, RUN, pa.array([path] * len(table), pa.string())))
        return pa.concat_tables(tables).to_pandas()


def write_output(to: Path | StoredFile, data: bytes) -> str:
    """Write what a command makes to its `--output`, in a folder that is made if need be, or into the run folder.

    Returns:
        Where it is.

    Raises:
        RequestError: it cannot be written.
    """
    try:
        if isinstance(to, Path):
            to.parent.mkdir(parents=True, exist_ok=True)
            to.write_bytes(data)
        else:
            to.write(data)
    except StoreError:  # which has said what to do
        raise
    except OSError as error:
        what = f"{to} cannot be written: {error.strerror or error}; give another --output"
        raise RequestError.of(what) from None
    return str(to)


def find(asked: Sequence[str]) -> dict[str, RunFolder]:
    """Return {path as given, or as a pattern finds it: the folder}, each folder once; a URI without what is secret.

    Raises:
        RequestError: with every path that is no run folder, and every pattern that finds none.
    """
    found: dict[str, RunFolder] = {}
    problems: list[Problem] = []
    for path in asked:
        try:
            here = _at(path)
        except RequestError as error:
            problems += error.problems
            continue
        known = {folder.where for folder in found.values()}
        new = {one: folder for one, folder in here.items() if folder.where not in known}
        found |= {one if folder.on_disk else str(folder): folder for one, folder in new.items()}
    if problems or not found:
        raise RequestError(problems or [Problem("", "give the --out of a sweep, a pattern such as runs/*, or several")])
    return found


def _at(path: str) -> dict[str, RunFolder]:
    if not is_pattern(path):
        folder = RunFolder(path)
        if not folder.exists():
            shown = folder if is_uri(path) else path
            raise RequestError.of(f"{shown} is no run folder: it has no `trials` in it; give the --out of a sweep")
        return {path: folder}
    if is_uri(path):
        like, shown = s3.find(path), ObjectStore(path).spell()
    else:
        like, shown = sorted(glob.glob(path)), path  # noqa: PTH207 - Path.glob takes no absolute one
    here = {one: folder for one in like if (folder := RunFolder(one)).exists()}
    if not here:
        raise RequestError.of(f"{shown} finds no run folder, that is one with `trials` in it")
    return here


def is_pattern(path: str | Path) -> bool:
    """Return whether to look for folders by it; one that is there is itself, whatever its name."""
    if is_uri(path):
        return s3.is_pattern(str(path))
    return glob.has_magic(str(path)) and not Path(path).is_dir()
