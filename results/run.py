"""Run folders, asked: every command of `python -m results` is a method."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, overload

import pandas as pd
from rich.console import Console

from results import frames, status, submissions
from results.frames import Frames
from results.status import Status
from results.store import set_aside as aside
from results.store import verify
from results.store.verify import Audit
from results.table import published, render, reproduce, topup
from results.table.reproduce import MARGIN
from results.table.trials import METRICS
from search_spaces.pool import Pool


class Run(Frames):
    """Run folders, asked.

    Each command of `python -m results` is a method with the same arguments. What the command prints is the method's
    answer, or its str(). `trials`, `epochs` and `leaderboard` are frames (`results.frames`).
    """

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
            format: return it as a text of this format instead, one of `results.table.render.FORMATS`.
        """
        table = published.load(against)
        frame = reproduce.compare(self.trials(), table, metric, margin)
        if format is None:
            return frame
        source = published.BENCHMARK if against == published.PUBLISHED else ""
        return render.FORMATS[format](reproduce.layout(frame, published.spreads(table), margin, source))

    def topup(self, target: float = topup.TARGET, most: int = topup.MOST) -> list[topup.Column]:
        """Return the columns that more seeds could settle, with the command that adds them, and record that it was."""
        return topup.topup(self.folder, self.leaderboard(), target, most)

    def status(self) -> Status:
        """Return how far the sweep is."""
        return status.Watch(self.folder).status()

    def watch(self, every: float = 5.0, table: bool = False, **selection: Any) -> Iterator[Status]:
        """Show the status on the terminal, as the sweep itself does, until all has ended; yield it at each look.

        There is one every so many seconds, with the leaderboard of this selection above it if `table`.
        """

        def above() -> str:
            return f"{self.leaderboard(format='text', **selection)}\n" if table else ""

        console = Console(markup=False, emoji=False)
        with status.Screen(self.folder, console, above) as screen:
            while not screen.now.is_over:
                yield screen.now
                time.sleep(every)
                screen.refresh()
            yield screen.now
        console.print(f"{above()}{screen.now}", highlight=False, soft_wrap=True)

    def compact(self) -> int:
        """Merge the small files of trials that have ended; return of how many."""
        return self.folder.compact()

    def verify(self, set_aside: bool = False) -> tuple[Audit, list[str]]:
        """Audit every file; return what was found, and where the files are that were moved.

        With `set_aside`, move what is found out of the way, so that a rerun trains it again.
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

        return cam.draw(self.folder, trial, data_dir, images, wrong=wrong, trust=trust, output=output)

    def track(self, to: str, follow: bool = False, every: float = 5.0) -> bool:
        """Log every epoch of the one folder with a tracker, `tensorboard`, `mlflow` or `wandb`; none of them twice.

        Return whether all that is on record is logged. With `follow`, go on until the sweep is over, with a look every
        so many seconds.

        Raises:
            RequestError: the tracker cannot be used, or no sweep has begun there.
        """
        from results import track  # only here: processes and their pipes

        return track.track(self.folder, to, follow, every)


def load(*runs: str | Path | Iterable[str | Path]) -> Run:
    """Open a run folder, or several: paths, patterns such as `runs/*`, or lists of these.

    Raises:
        RequestError: there is no run folder at a path, or none that a pattern finds.
    """
    asked = [path for each in runs for path in ([each] if isinstance(each, str | Path) else each)]
    several = len(asked) > 1 or any(map(frames.is_pattern, asked))
    return Run(frames.find([*map(str, asked)]), tells_apart=several)
