"""Trackers that follow a run folder: every epoch of it is in TensorBoard, MLflow or wandb while its trial runs.

    RUN/trackers/<name>.json   what a tracker was told of each trial

`python -m results track` follows in the foreground. A sweep whose file names `loggers` starts one process for each,
which knows the run folder and nothing else. A follower may be killed and started again: nothing is logged twice.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import json
import multiprocessing
import os
import shlex
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from types import TracebackType
from typing import Any, Self

from filelock import FileLock, Timeout

from results.status import NO_SPACE, Status, Unfinished, Watch
from results.store import schema
from results.store.folder import RunFolder
from results.trackers import KNOWN, METRICS, OUTCOME, Begun, Logged, Outcome, Point, Session, Tracker, first
from search_spaces.errors import RequestError, gather, require
from search_spaces.grid import Planned
from search_spaces.messages import log, shown_by
from search_spaces.validation import from_json, to_json

EVERY_S = 5.0  # a trial's epochs are rewritten as often
AT_ONCE = 50  # trials whose epochs are read together, and remembered together
MANY = 10  # trials that wait for a tracker at a sweep's end: a person should hear of it
PATIENCE = 3  # failures in a row, after which a tracker gets no more trials: each may be a minute of waiting
LOCKED_S = 5.0  # until a follower has ended whose sweep was killed
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)  # with which a sweep is asked to stop


def check(names: Sequence[str], run: RunFolder) -> None:
    """Check that every tracker can log trials of a run folder; ask the servers.

    Raises:
        RequestError: with what is wrong with each, at its place in the list.
    """
    gather(*((f"[{index}]", functools.partial(KNOWN[name].check, run)) for index, name in enumerate(names)))


def track(run: RunFolder, to: str, follow: bool = False, every: float = EVERY_S) -> bool:
    """Log what is on record; with `follow`, until the sweep is over.

    Args:
        to: the name of a tracker.
        every: seconds between two looks.

    Returns:
        Whether all of it is logged. What failed was said to `search_spaces.messages.log`.

    Raises:
        RequestError: the tracker cannot be used, or no sweep has begun in the run folder.
    """
    require("tracker", to, KNOWN, "--to")
    grid, _ = gather(("", run.space.read), ("--to", lambda: KNOWN[to].check(run)))
    if grid is None:
        raise RequestError.of(NO_SPACE.format(run=run))
    try:
        with Follower(to, run, grid.name) as follower:
            while not follower.look().is_over and follow and not follower.gave_up:
                time.sleep(follower.pause_s(every))
    except OSError as error:
        raise RequestError.of(f"the run folder {run} cannot be written: {error.strerror or error}") from None
    return follower.is_complete


# What was logged


@dataclass(slots=True)
class Memory:
    """What a tracker was told at one place: {trial id: what}."""

    where: str
    trials: dict[str, Logged] = field(default_factory=dict)

    @classmethod
    def read(cls, data: bytes | None, where: str) -> Memory:
        """Read it back; nothing is remembered of another place, or where no follower wrote the bytes."""
        found = from_json(cls, data or b"")
        return found if found and found.where == where else cls(where)


@dataclass(frozen=True, slots=True)
class _News:
    """A trial of which something is to be logged.

    Attributes:
        time: of its last epoch, in seconds since 1970.
        row: its row, once it has ended.
    """

    planned: Planned
    time: float
    row: Mapping[str, Any] | None = None

    @property
    def ended(self) -> str | None:
        return _ended(self.row) if self.row else None


class Follower:
    """Logs a run folder's trials with one tracker, one look at a time; closed at the end of the block.

    What the tracker raises is said, once, and harms nothing: the trial is tried again at the next look.

    Attributes:
        failures: in a row.
        is_complete: whether all that was there at the last look is logged.

    Raises:
        RequestError: on entering, if another process logs the same folder with the same tracker.
        OSError: nothing can be written into the run folder.
    """

    def __init__(self, name: str, run: RunFolder, project: str):
        self._name, self._run = name, run
        self._make: Callable[[], Tracker] = functools.partial(KNOWN[name], run, project)
        self._watch = Watch(run)
        self._file = run.tracked(name)
        self._lock = (
            FileLock(run.path / "trackers" / f"{name}.lock", LOCKED_S) if run.on_disk else contextlib.nullcontext()
        )
        self._tracker: Tracker | None = None
        self._memory = Memory("")
        self._sessions: dict[str, Session] = {}
        self._looked = False
        self._cpu_s = 0.0
        self._said = False
        self.failures = 0
        self.is_complete = True

    def __enter__(self) -> Self:
        try:
            with contextlib.suppress(NotImplementedError):  # on a disk that has no locks
                self._lock.__enter__()
        except Timeout:
            what = f"another process logs {self._run} with {self._name}; let it do so, or end it first"
            raise RequestError.of(what) from None
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for trial_id in list(self._sessions):
            self._leave(trial_id)
        self._lock.__exit__(kind, error, at)

    @property
    def gave_up(self) -> bool:
        """Whether the tracker has failed so often that it gets no more."""
        return self.failures >= PATIENCE

    def pause_s(self, every_s: float) -> float:
        """Return how long to wait before the next look: a follower takes a twentieth of a core at most."""
        return max(every_s, 20 * self._cpu_s)

    def look(self, last: bool = False) -> Status:
        """Log what is new since the last look, and remember it.

        Args:
            last: whether somebody waits for it, who hears if it is much.

        Raises:
            RequestError, OSError: the run folder cannot be read, or what was logged not be written there.
        """
        self.is_complete = not self.gave_up
        began = time.process_time()
        status = self._watch.status()
        if self._is_ready():
            self._log_news(status, last)
        self._cpu_s = time.process_time() - began if self._looked else 0.0  # the first one imports the library
        self._looked = True
        return status

    def _log_news(self, status: Status, last: bool) -> None:
        news = [*self._under_way(status.unfinished), *self._ended()]
        if last and len(news) > MANY:
            log.info(f"tracker {self._name}: {len(news)} trials are still to be logged ...")
        for start in range(0, len(news), AT_ONCE):
            if not self.gave_up:
                self._log_all(news[start : start + AT_ONCE])

    def _is_ready(self) -> bool:
        """Make the tracker at the first look, and read what it was told."""
        if self._tracker is None and not self.gave_up:
            with self._faults():
                self._tracker = self._make()
                self._memory = Memory.read(self._file.read(), self._tracker.where)
        return self._tracker is not None

    def _under_way(self, unfinished: Sequence[Unfinished]) -> Iterator[_News]:
        for one in unfinished:
            trial_id = one.planned.trial.id
            known = self._memory.trials.get(trial_id)
            is_new = one.runs and trial_id not in self._sessions
            if is_new or one.attempt.epoch > (known.epoch if known else 0):
                yield _News(one.planned, one.written)

    def _ended(self) -> Iterator[_News]:
        """Yield what has ended, in the order of the grid; not what the gate refused, of which nothing was trained."""
        for trial_id, planned in self._watch.planned.items():
            row = self._watch.ended.get(trial_id)
            known = self._memory.trials.get(trial_id)
            if row and row["status"] != schema.INVALID and (known is None or known.ended != _ended(row)):
                time_ = row["finished_at"].timestamp() if row["finished_at"] else time.time()
                yield _News(planned, time_, row)

    def _log_all(self, news: Sequence[_News]) -> None:
        columns = ["trial_id", "epoch", *METRICS, "epoch_s"]
        rows = self._run.epochs.read(columns, {"trial_id": [one.planned.trial.id for one in news]})
        epochs: dict[str, list[dict[str, Any]]] = {}
        for row in rows.sort_by("epoch").to_pylist():
            epochs.setdefault(row["trial_id"], []).append(row)
        for one in news:
            if not self.gave_up:
                with self._faults(one.planned.trial.id):
                    self._log(one, epochs.get(one.planned.trial.id, []))
        self._file.write(to_json(self._memory))

    def _log(self, one: _News, rows: Sequence[Mapping[str, Any]]) -> None:
        assert self._tracker  # noqa: S101 - made before
        trial_id = one.planned.trial.id
        start, points = _curve(rows, one.time)
        session = self._sessions.get(trial_id)
        if session is None:
            trial = Begun(trial_id, one.planned.role, _params(one.planned), start)
            session = self._sessions[trial_id] = self._tracker.open(trial, self._memory.trials.get(trial_id))
        session.log([point for point in points if point.epoch > session.epoch])
        if one.row:
            last = points[-1] if points else Point(0, one.time, {})
            values = {name: one.row[name] for name in OUTCOME if one.row[name] is not None}
            session.end(Outcome(one.row["status"], dataclasses.replace(last, metrics=values)))
            del self._sessions[trial_id]
        self._memory.trials[trial_id] = Logged(session.run, session.epoch, one.ended)

    @contextlib.contextmanager
    def _faults(self, trial_id: str = "") -> Iterator[None]:
        """Within the block a tracker may raise anything, and the sweep goes on."""
        try:
            yield
            self.failures = 0
        except Exception as error:
            self.failures += 1
            self.is_complete = False
            self._leave(trial_id)
            if not self._said:
                self._said = True
                log.warning(f"tracker {self._name}: {first(error)}; its trials are in the run folder all the same")

    def _leave(self, trial_id: str) -> None:
        if session := self._sessions.pop(trial_id, None):
            with contextlib.suppress(Exception):  # which it has said by another call
                session.close()


def _ended(row: Mapping[str, Any]) -> str:
    """Return which end of a trial it is: one that failed and goes on has several."""
    return row["finished_at"].isoformat() if row["finished_at"] else row["status"]


def _curve(rows: Sequence[Mapping[str, Any]], end: float) -> tuple[float, list[Point]]:
    """Return when the first epoch began, and the epochs, of which the last was done at `end`."""
    left = [*itertools.accumulate((row["epoch_s"] or 0.0 for row in reversed(rows)), initial=0.0)]
    start, *times = (end - seconds for seconds in reversed(left))
    return start, [
        Point(row["epoch"], time, {name: row[name] for name in METRICS if row[name] is not None})
        for row, time in zip(rows, times, strict=True)
    ]


def _params(planned: Planned) -> dict[str, bool | int | float | str]:
    trial = planned.trial
    named = {
        "pool": trial.pool.label,
        **{f"pool.{name}": value for name, value in trial.pool.params},
        **({"revision": trial.pool.revision} if trial.pool.revision else {}),
        "arch": trial.arch,
        "dataset": trial.dataset,
        "seed": trial.seed,
        "role": planned.role,
        **dataclasses.asdict(trial.recipe),
    }
    plain = (bool, int, float, str)
    return {name: value if isinstance(value, plain) else json.dumps(value) for name, value in named.items()}


# The followers of a sweep


@contextlib.contextmanager
def following(names: Sequence[str], run: RunFolder, project: str, every_s: float = EVERY_S) -> Iterator[None]:
    """Follow a run folder with these trackers for the length of the block, each in a process of its own.

    At the end it is waited for until all is logged; a second Ctrl-C abandons that.
    """
    with contextlib.ExitStack() as stack:
        followers = [stack.enter_context(_follower(name, run, project, every_s)) for name in names]
        try:
            yield
        finally:
            for _, pipe in followers:
                with contextlib.suppress(OSError):  # it has died, which is said below
                    pipe.send("finish")
            for name, (process, _) in zip(names, followers, strict=True):
                process.join()
                if process.exitcode:
                    again = f"python -m results track {shlex.quote(str(run))} --to {name}"
                    log.warning(f"tracker {name}: its process died (exit code {process.exitcode}); to log all: {again}")


@contextlib.contextmanager
def _follower(name: str, run: RunFolder, project: str, every_s: float) -> Iterator[tuple[BaseProcess, Connection]]:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    # What it needs goes through a pipe: the URI of a run folder may have a secret, and anybody can read a command line.
    process = context.Process(target=_follow, args=(name, run.where, project, every_s, theirs), name=f"track-{name}")
    with _signals_blocked():
        process.start()
    theirs.close()
    thread = threading.Thread(target=_forward, args=(ours,), name=f"track-{name}", daemon=True)
    thread.start()
    try:
        yield process, ours
    finally:
        if process.is_alive():
            process.kill()
            process.join()
        thread.join()
        ours.close()


@contextlib.contextmanager
def _signals_blocked() -> Iterator[None]:
    """Within the block a process is started that does not hear of Ctrl-C: its parent tells it when to finish."""
    resource_tracker.ensure_running()  # which it would do itself, and unblock them thereby
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _forward(pipe: Connection) -> None:
    """Say what a follower says, until it ends."""
    with contextlib.suppress(EOFError, OSError):
        while True:
            log.info(pipe.recv())


def _follow(name: str, where: str, project: str, every_s: float, pipe: Connection) -> None:
    """Follow until the parent says so, and then look once more. The main function of a process."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        with shown_by(pipe.send), Follower(name, RunFolder(where), project) as follower:
            asked, pause_s = False, 0.0
            while not asked:
                asked = pipe.poll(pause_s)
                with contextlib.suppress(RequestError, OSError):  # what cannot be read now may be at the next look
                    follower.look(last=asked)
                pause_s = follower.pause_s(every_s)
    except RequestError as error:
        pipe.send(f"tracker {name}: {error}")


def _end_with_parent() -> None:
    """End this process with its parent, whatever it waits for: nothing is lost thereby."""
    if parent := multiprocessing.parent_process():
        parent.join()
    os._exit(1)
