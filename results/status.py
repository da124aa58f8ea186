"""How far a sweep is, from its run folder alone: what the sweep shows, and what any other machine can see."""

from __future__ import annotations

import contextlib
import statistics
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from rich.console import Console
from rich.live import Live
from rich.text import Text

from results.store import lease, schema
from results.store.attempt import Attempt
from results.store.folder import RunFolder
from search_spaces.errors import RequestError
from search_spaces.grid import FILTERS, Planned
from search_spaces.text import duration, first_line, visible

ALIVE_S = 120.0  # a trial says every 5 s how far it is, or after each epoch if one takes longer
PLAIN_EVERY_S = 30.0  # a line on what runs
EPOCHS = 3  # that it may be silent for, where they are known to be long

Row = Mapping[str, Any]
Pair = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Unfinished:
    """A trial that has begun and has not ended.

    Attributes:
        written: when it last said how far it is, in seconds since 1970.
        silent_s: seconds since.
    """

    planned: Planned
    attempt: Attempt
    written: float
    silent_s: float

    @property
    def runs(self) -> bool:
        """Whether it runs, as far as can be seen; if not it was probably stopped, and goes on next time."""
        return self.silent_s <= max(ALIVE_S, EPOCHS * (self.attempt.epoch_s or 0.0))

    def __str__(self) -> str:
        last = self.attempt
        accuracy = "" if last.test_acc is None else f", {last.test_acc:.2f} %"
        speed = "" if last.images_per_s is None or not self.runs else f", {last.images_per_s:,.0f} images/s"
        silent = "" if self.runs else f", silent for {duration(self.silent_s)}"
        return f"{self.planned.trial}: epoch {last.epoch}/{self.planned.trial.recipe.epochs}{accuracy}{speed}{silent}"


@dataclass(frozen=True, slots=True)
class Status:
    """How far a sweep is.

    Attributes:
        counts: {status: trials}; those that have not begun as `to do`, those that run as `running`, those that fell
            silent as `stopped`, hidden ones that have not begun as `withheld`.
        unfinished: those that run or were stopped.
        failures: (trial, first line of the error) of those that failed or were refused.
        left_s: seconds until all is done, if as many run at once as do now; None where nothing is left, or nothing is
            known of how long an epoch takes.
    """

    counts: Counter[str]
    unfinished: Sequence[Unfinished]
    failures: Sequence[tuple[str, str]]
    left_s: float | None

    @property
    def is_over(self) -> bool:
        """Whether nothing runs, and nothing is left to run."""
        return not (self.counts["running"] or self.counts["to do"])

    @property
    def left(self) -> str:
        """`; about 12 min left`, or nothing."""
        return "" if self.left_s is None else f"; about {duration(self.left_s)} left"

    def __str__(self) -> str:
        total = self.counts.total()
        counts = ", ".join(f"{count} {name}" for name, count in self.counts.items())
        head = f"{total} trial{'s' * (total != 1)}: {counts}{self.left}"
        failures = (f"  {trial}: {error}" for trial, error in self.failures)
        return "\n".join([head, *(f"  {one}" for one in self.unfinished), *failures])


class Watch:
    """Reads how far a sweep is, again and again: of rows only those that are new.

    Attributes:
        name: of the newest sweep's grid.
        planned: {trial id: trial} of it.
        ended: {trial id: its row} of the trials on record at the last look.
    """

    def __init__(self, run: RunFolder):
        self._run = run
        self._version: object = None  # of what was asked for
        self._withheld: set[str] = set()
        self._read: set[str] = set()  # names of files
        self.name = ""
        self.planned: dict[str, Planned] = {}
        self.ended: dict[str, Row] = {}

    def status(self) -> Status:
        """Look anew.

        Raises:
            RequestError: no sweep has begun there, or its files cannot be read.
        """
        self._read_planned()
        begun = self._read_trials()
        states = {trial_id: self._state(trial_id, begun) for trial_id in self.planned}
        counts = Counter(states.values())
        failures = [
            (visible(trial_id), visible(first_line(row["error"] or "")))
            for trial_id, row in self.ended.items()
            if row["status"] in (schema.FAILED, schema.INVALID)
        ]
        in_order = Counter({name: counts[name] for name in _ORDER if counts[name]})
        left_s = self._left_s([trial_id for trial_id, state in states.items() if state in _OPEN], begun)
        return Status(in_order, list(begun.values()), failures, left_s and left_s / max(1, counts["running"]))

    def _state(self, trial_id: str, begun: Mapping[str, Unfinished]) -> str:
        if trial_id in self.ended:
            return self.ended[trial_id]["status"]
        if trial_id in begun:
            return "running" if begun[trial_id].runs else "stopped"
        return "withheld" if trial_id in self._withheld else "to do"

    def _read_planned(self) -> None:
        """Read what was asked, if it is another than at the last look."""
        driver = lease.holder(self._run)
        version = self._run.files.modified(self._run.space.name), driver and driver.token
        if version == self._version:
            return
        grid = self._run.space.read()
        if grid is None:
            what = f"{self._run} has no space.yaml: no sweep has begun there, or it was deleted"
            raise RequestError.of(f"{what}; the sweep's command writes it again, and trains nothing that has ended")
        only = {name: value for name, value in driver.only.items() if name in FILTERS} if driver else {}
        submitted = {pool.key for pool, _ in self._run.submissions.read().values()}
        asked = grid.select(only, final=bool(driver and driver.final), submitted=submitted)
        hidden = () if only else (one for one in grid if one.hidden)
        self._version, self.name = version, grid.name
        self.planned = {one.trial.id: one for one in (*asked, *hidden)}
        self._withheld = self.planned.keys() - {one.trial.id for one in asked}

    def _read_trials(self) -> dict[str, Unfinished]:
        """Read the rows that are new, and how far the trials are that have begun and have not ended."""
        begun = self._run.under_way()
        self.ended |= {row["trial_id"]: row for row in self._run.trials.read_new(_COLUMNS, self._read)}
        for trial_id in begun:  # a failed trial that runs again has not ended
            if trial_id in self.ended and self.ended[trial_id]["status"] not in schema.TRAINED:
                del self.ended[trial_id]
        self._read -= {f"trials/{trial_id}.parquet" for trial_id in begun}  # which are written anew
        now = time.time()
        return {
            trial_id: Unfinished(planned, *begun[trial_id], now - begun[trial_id][1])
            for trial_id, planned in self.planned.items()
            if trial_id in begun and trial_id not in self.ended
        }

    def _left_s(self, trial_ids: Sequence[str], begun: Mapping[str, Unfinished]) -> float | None:
        """Return how long these take, one after another; None if nobody knows how long an epoch is."""
        so_far = ((_pair(one.planned), one.attempt.epoch_s) for one in begun.values())
        paces = epoch_seconds(self.ended.values()) or _medians(so_far)
        typical = statistics.median(paces.values()) if paces else 0.0  # of a pair that nothing is known of yet
        epochs: Counter[Pair] = Counter()
        for trial_id in trial_ids:
            done = begun[trial_id].attempt.epoch if trial_id in begun else 0
            epochs[_pair(self.planned[trial_id])] += self.planned[trial_id].trial.recipe.epochs - done
        return sum(count * paces.get(pair, typical) for pair, count in epochs.items()) or None


_COLUMNS = ("trial_id", "status", "error", "train_s", "epochs", "arch", "dataset")
_COLUMNS += ("best_test_acc", "final_test_acc", "finished_at")
_ORDER = ("completed", "running", "to do", "stopped", "diverged", "collapsed", "failed", "invalid", "withheld")
_OPEN = ("running", "to do", "stopped")


def epoch_seconds(rows: Iterable[Row]) -> dict[Pair, float]:
    """Return {(arch, dataset): the median seconds of an epoch} of trials that were trained to their ends."""
    return _medians(
        ((row["arch"], row["dataset"]), row["train_s"] / row["epochs"])
        for row in rows
        if row["status"] in schema.TRAINED and row["epochs"] and row["train_s"]
    )


def _pair(planned: Planned) -> Pair:
    return planned.trial.arch, planned.trial.dataset


def _medians(found: Iterable[tuple[Pair, float | None]]) -> dict[Pair, float]:
    by_pair: dict[Pair, list[float]] = {}
    for pair, seconds in found:
        if seconds is not None:
            by_pair.setdefault(pair, []).append(seconds)
    return {pair: statistics.median(values) for pair, values in by_pair.items()}


def keep_up(
    look: Callable[[], object], is_over: Callable[[float], bool], every_s: float, first_s: float | None = None
) -> None:
    """Look at a run folder every so many seconds until it is over; `is_over` waits as long as it is told.

    The first look is after `first_s`, or `every_s`. To look takes long in a folder of many trials: it takes a twentieth
    of a core at most, as far as this thread computes. What cannot be read now may
    be at the next look.
    """
    pause_s = every_s if first_s is None else first_s
    while not is_over(pause_s):
        began = time.thread_time()
        with contextlib.suppress(RequestError, OSError):
            look()
        pause_s = max(every_s, 20 * (time.thread_time() - began))


class Screen:
    """Shows how far a sweep is, for the length of the block, as its run folder has it.

    A line is printed for each trial that ends. On a terminal the status stands below and is drawn again; elsewhere a
    line says every `PLAIN_EVERY_S` what runs. `now` is the status at the last look.

    Args:
        console: where to.
        above: what to draw above the status, such as a table.
    """

    def __init__(self, run: RunFolder, console: Console, above: Callable[[], str] = lambda: ""):
        self._watch = Watch(run)
        self._console = console
        self._above = above
        self._shown: set[str] | None = None
        self._said_at = time.monotonic()
        self._live = Live(
            console=console,
            auto_refresh=False,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
            vertical_overflow="visible",
        )

    def __enter__(self) -> Self:
        self.refresh()
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(RequestError, OSError):
            self.refresh()
        self._live.stop()

    def refresh(self) -> None:
        """Look anew, and show it.

        Raises:
            RequestError, OSError: the run folder cannot be read.
        """
        self.now = now = self._watch.status()
        ended = [trial_id for trial_id in self._watch.ended if trial_id in self._watch.planned]
        if self._shown is None:
            self._shown = set(ended)  # what has ended before the first look is no news
        new = [trial_id for trial_id in ended if trial_id not in self._shown]
        self._shown = set(self._watch.ended)
        total = now.counts.total() - now.counts["withheld"]
        for number, trial_id in enumerate(new, len(ended) - len(new) + 1):
            left = now.left if number == len(ended) else ""
            self._print(f"[{number:>{len(str(total))}}/{total}] {self._spell(trial_id)}{left}")
        if self._console.is_terminal:
            shown = Text(f"{self._above()}{now}")  # before the cursor is hidden: it may be refused
            self._live.start()
            self._live.update(shown, refresh=True)
        elif time.monotonic() - self._said_at >= PLAIN_EVERY_S and now.counts["running"]:
            self._print("; ".join(str(one) for one in now.unfinished if one.runs) + now.left)

    @contextlib.contextmanager
    def follow(self, every_s: float) -> Iterator[None]:
        """Refresh in a thread for the length of the block."""
        over = threading.Event()
        thread = threading.Thread(target=keep_up, args=(self.refresh, over.wait, every_s), name="screen", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def _spell(self, trial_id: str) -> str:
        row = self._watch.ended[trial_id]
        facts = [row["status"]]
        if row["status"] == schema.COMPLETED:
            facts += [f"best {row['best_test_acc']:.2f} %", duration(row["train_s"])]
        if row["error"]:
            facts.append(first_line(row["error"]))
        return f"{self._watch.planned[trial_id].trial}: {', '.join(facts)}"

    def _print(self, line: str) -> None:
        self._console.print(Text(visible(line)), soft_wrap=True)
        self._said_at = time.monotonic()
