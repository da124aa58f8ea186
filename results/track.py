"""Trackers that follow a run folder: every epoch of it is in TensorBoard, MLflow or wandb while its trial runs.

    RUN/trackers/<name>.json   {place: {trial id: its end, which is logged there}}

`python -m results track` follows in the foreground. A sweep whose file names `loggers` starts one process for each,
which knows the run folder and nothing else. A follower may be killed and started again: it opens the trials whose ends
it has not logged, and each tracker goes on behind what it has.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib
import itertools
import json
import multiprocessing
import shlex
import signal
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any, Self

from filelock import FileLock, Timeout

from results.status import Row, Status, Watch, keep_up
from results.store import schema
from results.store.folder import RunFolder
from results.store.s3 import StoreError
from results.trackers import KNOWN, METRICS, OUTCOME, Point, Tracker
from search_spaces.errors import RequestError, first_line, gather, require
from search_spaces.grid import Planned
from search_spaces.messages import log, shown_by
from search_spaces.validation import from_json

EVERY_S = 5.0  # a trial's epochs are rewritten as often
PATIENCE = 3  # failures in a row, after which a look ends: each may be a minute of waiting
LOCKED_S = 10.0  # until a follower has looked once more whose sweep was killed
WAITED_S = 3.0  # for a follower at a sweep's end, until a person hears of it
AT_ONCE = 50  # trials whose epochs are read together: a folder of 10,000 is not listed for each
News = tuple[Planned, float, Row | None]  # a trial, when the last of it was done, and its row if it has ended
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)  # with which a sweep is asked to stop


def check(names: Sequence[str], run: RunFolder) -> None:
    """Check that every tracker can log trials of a run folder; ask the servers.

    Raises:
        RequestError: with what is wrong with each, at its place in the list.
    """
    gather(*((f"[{index}]", functools.partial(KNOWN[name].check, run)) for index, name in enumerate(names)))


def track(run: RunFolder, to: str, follow: bool = False, every: float = EVERY_S) -> bool:
    """Log what is on record; with `follow`, until the sweep is over, with a look every so many seconds.

    Returns:
        Whether all of it is logged. What failed was said to `search_spaces.messages.log`.

    Raises:
        RequestError: the tracker cannot be used, or no sweep has begun in the run folder.
    """
    require("tracker", to, KNOWN, "--to")
    gather(("--to", lambda: KNOWN[to].check(run)))
    try:
        with Follower(to, run) as follower:
            while not follower.look().is_over and follow:
                time.sleep(every)
    except StoreError:  # which has said what to do
        raise
    except OSError as error:
        raise RequestError.of(f"the run folder {run} cannot be written: {error.strerror or error}") from None
    return follower.is_complete


class Follower:
    """Logs a run folder's trials with one tracker, one look at a time; closed at the end of the block.

    What the tracker raises is said, once, and harms nothing: the trial is tried again at the next look.

    Attributes:
        is_complete: whether all that was there at the last look is logged.

    Raises:
        RequestError: on entering, if another process logs the same folder with the same tracker.
        OSError: nothing can be written into the run folder.
    """

    def __init__(self, name: str, run: RunFolder):
        self._name = name
        self._run = run
        self._watch = Watch(run)
        self._file = run.tracked(name)
        self._tracker: Tracker | None = None
        self._opened: dict[str, tuple[Any, int]] = {}  # what the tracker has open, and the last epoch that it has
        self._said = False
        self.is_complete = True

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as locked:
            if self._run.on_disk:
                lock = FileLock(self._run.path / "trackers" / f"{self._name}.lock", LOCKED_S)
                try:
                    with contextlib.suppress(NotImplementedError):  # on a disk that has no locks
                        locked.enter_context(lock)
                except Timeout:
                    what = f"another process logs {self._run} with {self._name}; let it do so, or end it first"
                    raise RequestError.of(what) from None
            self._memory = from_json(dict[str, dict[str, str]], self._file.read() or b"") or {}
            self._locked = locked.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        for trial_id in list(self._opened):
            self._leave(trial_id)
        self._locked.close()

    def look(self) -> Status:
        """Log what is new since the last look, and remember which ends were logged.

        Raises:
            RequestError, OSError: the run folder cannot be read, or what was logged not be written there.
        """
        status = self._watch.status()
        ended = self._memory.setdefault(f"{KNOWN[self._name].place()} {self._watch.name}", {})
        news = list(self._news(status, ended))
        self.is_complete = True
        for start in range(0, len(news), AT_ONCE):
            before = len(ended)
            goes_on = self._log_all(news[start : start + AT_ONCE], ended)
            if len(ended) > before or not goes_on:
                self._file.write(json.dumps(self._memory, indent=1).encode())
            if not goes_on:
                break
        return status

    def _log_all(self, news: Sequence[News], ended: dict[str, str]) -> bool:
        """Log what is new of some trials, and note those that have ended; whether to go on with others."""
        columns = ["trial_id", "epoch", *METRICS, "epoch_s"]
        ids = [planned.trial.id for planned, _, _ in news]
        rows: dict[str, list[Row]] = {}
        for epoch in self._run.epochs.read(columns, {"trial_id": ids}).sort_by("epoch").to_pylist():
            rows.setdefault(epoch["trial_id"], []).append(epoch)
        failures = 0
        for planned, when, row in news:
            try:
                self._log(planned, when, row, rows.get(planned.trial.id, []))
                if row:
                    ended[planned.trial.id] = str(row["finished_at"])
                failures = 0
            except Exception as error:  # a tracker may raise anything, and the sweep goes on
                failures += 1
                self.is_complete = False
                self._leave(planned.trial.id)
                if not self._said:
                    self._said = True
                    what = f"{type(error).__name__}: {first_line(error)}"
                    log.warning(f"tracker {self._name}: {what}; its trials are in the run folder all the same")
                if failures == PATIENCE:
                    return False
        return True

    def _news(self, status: Status, logged: Mapping[str, str]) -> Iterator[News]:
        """Yield the trials that have new epochs or have ended, when the last of it was done, and the rows of these.

        What the gate refused is not among them: nothing of it was trained.
        """
        for one in status.unfinished:
            _, epoch = self._opened.get(one.planned.trial.id, (None, -1))
            if one.attempt.epoch > epoch:
                yield one.planned, one.written, None
        for trial_id, planned in self._watch.planned.items():
            row = self._watch.ended.get(trial_id)
            if row and row["status"] != schema.INVALID and logged.get(trial_id) != str(row["finished_at"]):
                yield planned, row["finished_at"].timestamp() if row["finished_at"] else time.time(), row

    def _log(self, planned: Planned, when: float, row: Row | None, epochs: Sequence[Row]) -> None:
        self._tracker = self._tracker or KNOWN[self._name](self._run, self._watch.name)
        trial_id = planned.trial.id
        start, points = _curve(epochs, when)
        if trial_id not in self._opened:
            self._opened[trial_id] = self._tracker.open(planned, start)
        opened, epoch = self._opened[trial_id]
        self._tracker.log(opened, [point for point in points if point.epoch > epoch])
        last = points[-1] if points else Point(0, when, {})
        self._opened[trial_id] = opened, last.epoch
        if row:
            outcome = {name: row[name] for name in OUTCOME if row[name] is not None}
            self._tracker.end(opened, row["status"], dataclasses.replace(last, metrics=outcome))
            del self._opened[trial_id]

    def _leave(self, trial_id: str) -> None:
        opened, _ = self._opened.pop(trial_id, (None, 0))
        if self._tracker and opened:
            with contextlib.suppress(Exception):  # which it has said by another call
                self._tracker.close(opened)


def _curve(rows: Sequence[Row], end: float) -> tuple[float, list[Point]]:
    """Return when the first epoch began, and the epochs, of which the last was done at `end`."""
    seconds = [row["epoch_s"] or 0.0 for row in rows]
    start, *times = itertools.accumulate(seconds, initial=end - sum(seconds))
    return start, [
        Point(row["epoch"], time, {name: row[name] for name in METRICS if row[name] is not None})
        for row, time in zip(rows, times, strict=True)
    ]


# The followers of a sweep


@contextlib.contextmanager
def following(names: Sequence[str], run: RunFolder, every_s: float = EVERY_S) -> Iterator[None]:
    """Follow a run folder with these trackers for the length of the block, each in a process of its own.

    At the end it is waited for until all is logged; a second Ctrl-C abandons that.
    """
    with contextlib.ExitStack() as stack:
        followers = [(name, *stack.enter_context(_process(name, run, every_s))) for name in names]
        try:
            yield
        finally:
            for _, _, pipe in followers:
                with contextlib.suppress(OSError):  # it has died, which is said below
                    pipe.send("finish")
            for name, process, _ in followers:
                process.join(WAITED_S)
                if process.is_alive():
                    log.info(f"tracker {name}: the last epochs are still to be logged ...")
                process.join()
                if process.exitcode:
                    again = f"python -m results track {shlex.quote(str(run))} --to {name}"
                    log.warning(f"tracker {name}: its process died (exit code {process.exitcode}); to log all: {again}")


@contextlib.contextmanager
def _process(name: str, run: RunFolder, every_s: float) -> Iterator[tuple[BaseProcess, Connection]]:
    """Start a process that follows; kill it at the end of the block, if it has not ended."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    # What it needs goes through a pipe: the URI of a run folder may have a secret, and anybody can read a command line.
    process = context.Process(target=_follow, args=(name, run.where, every_s, theirs), name=f"track-{name}")
    resource_tracker.ensure_running()  # which the start would do itself, and unblock the signals thereby
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # they are for the sweep, which tells it when to finish
    try:
        process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    theirs.close()
    thread = threading.Thread(target=_forward, args=(ours,), name=f"track-{name}", daemon=True)
    thread.start()
    try:
        yield process, ours
    finally:
        process.kill()
        process.join()
        thread.join()
        ours.close()


def _forward(pipe: Connection) -> None:
    """Say what a follower says, until it ends."""
    with contextlib.suppress(EOFError, OSError):
        while True:
            log.info(pipe.recv())


def _follow(name: str, where: str, every_s: float, pipe: Connection) -> None:
    """Follow until the parent says so or is gone, and then look once more. The main function of a process."""
    try:
        with shown_by(pipe.send), Follower(name, RunFolder(where)) as follower:
            with contextlib.suppress(Exception):  # which the first look says
                importlib.import_module(KNOWN[name].module)  # seconds that are no look's
            keep_up(follower.look, pipe.poll, every_s, first_s=0.0)
            follower.look()
    except (RequestError, OSError) as error:
        pipe.send(f"tracker {name}: {error}")
