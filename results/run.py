"""Run folders as pandas frames, and every command of `python -m results` as a method."""

from __future__ import annotations

import glob
import html
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import pandas as pd
import pyarrow as pa
from rich.console import Console

from results import status, submissions
from results.status import Status
from results.store import s3, verify
from results.store import set_aside as aside
from results.store.folder import RunFolder
from results.store.s3 import ObjectStore, is_uri
from results.store.verify import Audit
from results.table import leaderboard, published, render, reproduce, topup
from results.table.reproduce import MARGIN
from results.table.trials import METRICS, NEEDS, Selection
from search_spaces.errors import Problem, RequestError
from search_spaces.grid import Grid
from search_spaces.pool import Pool

RUN = "run"  # the column that tells several folders apart


@dataclass(frozen=True)
class Run:
    """Run folders, asked. Every call reads them anew, so a sweep may be running.

    Each command of `python -m results` is a method with the same arguments. What the command prints is the method's
    answer, or its str().

    Attributes:
        folders: {path as given: folder}.
        tells_apart: whether frames have a column `run`, the path as given: yes where more than one was asked for.
    """

    folders: Mapping[str, RunFolder]
    tells_apart: bool = False

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
        return self._frame(RunFolder.read_trials, columns, where)

    def epochs(self, columns: Sequence[str] | None = None, **where: Any) -> pd.DataFrame:
        """Return one row for each epoch on record, of running trials too: `schema.EPOCHS`; as `trials`."""
        return self._frame(RunFolder.read_epochs, columns, where)

    # What the commands do

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
        tables = [folder.read_trials(NEEDS) for folder in self.folders.values()]
        trials = pa.concat_tables(tables).to_pandas()
        if len(tables) > 1:
            trials = trials.drop_duplicates("trial_id", ignore_index=True)
        same = [one for folder in self.folders.values() for one in folder.equivalences()]
        frame = leaderboard.cells(trials, self.grids(), Selection(metric=metric, **selection), same)
        if format is None:
            return frame
        wide = render.Wide(frame, metric, self.notes(), sort, every=bool(selection.get("baselines")))
        text = render.FORMATS[format](wide)
        if output is not None:
            _write(output, text)
        return text

    def report(self, output: Path | None = None, **selection: Any) -> str:
        """Write the report, one HTML page, to `output` or into the run folder; return where it is."""
        from results.page import report  # only here, and below: matplotlib takes most of a second

        return report.write(self, output, **selection)

    def curves(self, output: Path, format: str = "png", **selection: Any) -> str:
        """Write the report's pictures into the folder `output`, as `png` or `svg`; return how many they are."""
        from results.page import figures

        return figures.save(self, output, format, **selection)

    @overload
    def reproduce(
        self, against: Path = ..., metric: str = ..., margin: float = ..., format: None = None
    ) -> pd.DataFrame: ...
    @overload
    def reproduce(self, against: Path = ..., metric: str = ..., margin: float = ..., *, format: str) -> str: ...
    def reproduce(
        self,
        against: Path = published.PUBLISHED,
        metric: str = METRICS[0],
        margin: float = MARGIN,
        format: str | None = None,
    ) -> pd.DataFrame | str:
        """Return what was measured beside what was published, one row a cell, with a verdict.

        Args:
            against: the published table, as CSV; the benchmark's unless given.
            margin: how near is agreement, in points.
            format: return it as a text of this format instead, one of `results.table.reproduce.FORMATS`.
        """
        cells = reproduce.compare(self.trials(), published.load(against), metric, margin)
        if format is None:
            return reproduce.to_frame(cells)
        source = published.BENCHMARK if against == published.PUBLISHED else ""
        return reproduce.FORMATS[format](cells, margin, source)

    def topup(self, target: float = topup.TARGET, most: int = topup.MOST) -> list[topup.Column]:
        """Return the columns that more seeds could settle, with the command that adds them, and record that it was."""
        return topup.topup(self.folder, self.leaderboard(), target, most)

    def status(self) -> Status:
        """Return how far the sweep is."""
        return status.status(self.folder)

    def watch(self, every: float = 5.0, table: bool = False, **selection: Any) -> Iterator[Status]:
        """Show the status on the terminal, as the sweep itself does, until all has ended; yield it at each look.

        Args:
            every: seconds between two looks.
            table: draw the leaderboard of this selection above it.
        """

        def above() -> str:
            return f"{self.leaderboard(format='text', **selection)}\n" if table else ""

        console = Console(markup=False, emoji=False)
        with status.Screen(self.folder, console, above) as screen:
            while not (now := screen.refresh()).is_over:
                yield now
                time.sleep(every)
            yield now
        console.print(f"{above()}{now}", highlight=False, soft_wrap=True)

    def compact(self) -> int:
        """Merge the small files of trials that have ended; return of how many."""
        return self.folder.compact()

    def verify(self, set_aside: bool = False) -> tuple[Audit, list[str]]:
        """Audit every file; return what was found, and where the files are that were moved.

        Args:
            set_aside: move what is found out of the way, so that a rerun trains it again.
        """
        audit = verify.verify(self.folder)
        found = [name for one in audit.findings for name in one.aside] if set_aside else []
        return audit, aside.set_aside(self.folder, found)

    def submit(self, pool: str) -> Pool:
        """Name the revision of a candidate, `POOL` or `POOL@REV`, that `--final` trains on the hidden pairs."""
        return submissions.submit(self.folder, pool)

    def cam(
        self,
        trial: str,
        data_dir: Path = Path("data"),
        images: int = 16,
        *,
        wrong: bool = False,
        trust: bool = False,
        output: Path | None = None,
    ) -> str:
        """Draw the class activation maps of a trial; return where the picture is: `results.page.cam.draw`."""
        from results.page import cam  # its process needs torch, which takes seconds

        return cam.draw(self.folder, trial, data_dir, images, wrong=wrong, trust=trust, output=output, say=print)

    # What they have in common

    def grids(self) -> list[Grid]:
        """Return what the newest sweep on each folder asked for; nothing if they are of several recipes."""
        found = [grid for folder in self.folders.values() if (grid := folder.grid()) is not None]
        return found if len({(grid.recipe, grid.protocol) for grid in found}) == 1 else []

    def track(self, to: str, follow: bool = False, every: float = 5.0) -> bool:
        """Log every epoch of the one folder with a tracker: `tensorboard`, `mlflow` or `wandb`; none of them twice.

        Args:
            follow: go on until the sweep is over, with a look every so many seconds.

        Returns:
            Whether all that is on record is logged.

        Raises:
            RequestError: the tracker cannot be used, or no sweep has begun there.
        """
        from results import track  # only here: processes and their pipes

        return track.track(self.folder, to, follow, every)

    def notes(self) -> list[str]:
        """Return what a reader of the table should know that is not in it."""
        folders = self.folders.values()
        lines = [f"On {same}." for folder in folders for same in folder.equivalences()]
        entries = [entry for folder in folders for entry in folder.submissions().values()]
        submitted = [f"{submissions.spell(pool)} ({when})" for pool, when in entries]
        lines += [f"Submitted: {', '.join(dict.fromkeys(submitted))}."] if submitted else []
        lines += [line for folder in folders for line in topup.remark(folder)]
        return list(dict.fromkeys(lines))

    def _repr_html_(self) -> str:
        """Show the leaderboard in a notebook's cell."""
        try:
            return self.leaderboard(format="html")
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
    """Open a run folder, or several: paths, patterns such as `runs/*`, or lists of these.

    Raises:
        RequestError: there is no run folder at a path, or none that a pattern finds.
    """
    asked = [path for each in runs for path in ([each] if isinstance(each, str | Path) else each)]
    return Run(_find([*map(str, asked)]), tells_apart=len(asked) > 1 or any(map(_is_pattern, asked)))


def _write(output: Path, text: str) -> None:
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(text, encoding="utf-8")
    except OSError as error:
        raise RequestError.of(f"{output} cannot be written: {error.strerror or error}", "--output") from None


def _find(asked: Sequence[str]) -> dict[str, RunFolder]:
    """Return {path as given, or as a pattern finds it: the folder}, each folder once; a URI without what is secret.

    Raises:
        RequestError: with every path that is no run folder, and every pattern that finds none.
    """
    found: dict[str, RunFolder] = {}
    problems = []
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
    """Return {path: the run folder} of all that are there.

    Raises:
        RequestError: there is none.
    """
    if not _is_pattern(path):
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


def _is_pattern(path: str | Path) -> bool:
    """Return whether to look for folders by it; one that is there is itself, whatever its name."""
    if is_uri(path):
        return s3.is_pattern(str(path))
    return glob.has_magic(str(path)) and not Path(path).is_dir()
