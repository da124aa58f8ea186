"""How far a sweep is, from its run folder alone: while it runs, from another terminal or another machine."""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from results.store import schema
from results.store.folder import RunFolder
from search_spaces.errors import RequestError
from search_spaces.grid import Grid, Planned
from search_spaces.text import visible

NO_SPACE = (
    "{run} has no space.yaml: no sweep has begun there, or it was deleted: the sweep's command writes it again, and "
    "trains nothing that has ended"
)
ALIVE_S = 120.0  # a trial writes its epochs every 5 s, or after each if one takes longer
EPOCHS = 3  # that it may be silent for, where they are known to be long


@dataclass(frozen=True, slots=True)
class Running:
    """A trial that has begun and has not ended.

    Attributes:
        epoch: the last one on record; 0 before the first.
        test_acc: of that epoch, percent.
        silent_s: seconds since it last wrote.
        patience_s: beyond which it was probably stopped, and goes on next time.
    """

    planned: Planned
    epoch: int
    test_acc: float | None
    silent_s: float
    patience_s: float = ALIVE_S

    @property
    def alive(self) -> bool:
        return self.silent_s <= self.patience_s

    def __str__(self) -> str:
        accuracy = "" if self.test_acc is None else f", {self.test_acc:.2f} %"
        silent = "" if self.alive else f", silent for {spell_seconds(self.silent_s)}"
        return f"{self.planned.trial}: epoch {self.epoch}/{self.planned.trial.recipe.epochs}{accuracy}{silent}"


@dataclass(frozen=True, slots=True)
class Status:
    """How far a sweep is.

    Attributes:
        counts: {status: trials}; those that have not begun as `to do`, those that run as `running`, those that fell
            silent as `stopped`, hidden ones that have not begun as `withheld`.
        unfinished: those that run or were stopped.
        failures: (trial, first line of the error) of those that failed or were refused.
        left_s: seconds until what is to do and runs is done, if as many run at once as do now; None where nothing is
            left, or nothing has ended to tell it from.
    """

    counts: Counter[str]
    unfinished: Sequence[Running]
    failures: Sequence[tuple[str, str]]
    left_s: float | None

    def __str__(self) -> str:
        total = self.counts.total()
        head = ", ".join(f"{count} {name}" for name, count in self.counts.items() if count)
        left = "" if self.left_s is None else f"; about {spell_seconds(self.left_s)} left"
        lines = [f"{total} trials: {head}{left}"]
        lines += [f"  {running}" for running in self.unfinished]
        lines += [f"  {trial}: {error}" for trial, error in self.failures]
        return "\n".join(lines)


def status(run: RunFolder) -> Status:
    """How far the newest sweep on a run folder is.

    Raises:
        RequestError: no sweep has begun there.
    """
    grid = run.grid()
    if grid is None:
        raise RequestError.of(NO_SPACE.format(run=run))
    columns = ["trial_id", "status", "error", "train_s", "epochs", "arch", "dataset"]
    ended = {row["trial_id"]: row for row in run.read_trials(columns).to_pylist()}
    begun = _begun(run, [planned for planned in grid if planned.trial.id not in ended])
    live = [one for one in begun if one.alive]
    ids = {one.planned.trial.id for one in begun}
    counts: Counter[str] = Counter()
    for planned in grid:
        if row := ended.get(planned.trial.id):
            counts[row["status"]] += 1
        elif planned.trial.id not in ids:
            counts["withheld" if planned.hidden else "to do"] += 1
    counts |= Counter({"running": len(live), "stopped": len(begun) - len(live)})
    failures = [
        (visible(trial_id), visible((row["error"] or "").partition("\n")[0]))
        for trial_id, row in ended.items()
        if row["status"] in (schema.FAILED, schema.INVALID)
    ]
    order = ["completed", "running", "to do", "stopped", "diverged", "collapsed", "failed", "invalid", "withheld"]
    in_order = Counter({name: counts[name] for name in order if counts[name]})
    return Status(in_order, begun, failures, _left_s(grid, ended, begun, max(1, len(live))))


def _begun(run: RunFolder, open_trials: Sequence[Planned]) -> list[Running]:
    """The trials that have a log, with their last epoch."""
    logs = run.logs()
    begun = [planned for planned in open_trials if planned.trial.id in logs]
    columns = ["trial_id", "epoch", "test_acc", "epoch_s"]
    rows: dict[str, list[dict[str, Any]]] = {planned.trial.id: [] for planned in begun}
    for row in run.read_epochs(columns, {"trial_id": list(rows)}).to_pylist():
        rows[row["trial_id"]].append(row)
    found = []
    for planned in begun:
        mine = rows[planned.trial.id]
        last = max(mine, key=lambda row: row["epoch"], default={"epoch": 0, "test_acc": None})
        silent = time.time() - run.last_written(planned.trial.id)
        longest = max((row["epoch_s"] for row in mine), default=0.0)
        found.append(Running(planned, last["epoch"], last["test_acc"], silent, max(ALIVE_S, EPOCHS * longest)))
    return found


def epoch_seconds(ended: Mapping[str, Mapping[str, object]]) -> dict[tuple[str, str], float]:
    """{(arch, dataset): the median seconds of an epoch} of trials that were trained to their ends."""
    paces: dict[tuple[str, str], list[float]] = {}
    for row in ended.values():
        if row["status"] in schema.TRAINED and row["epochs"] and row["train_s"]:
            pace = float(str(row["train_s"])) / int(str(row["epochs"]))
            paces.setdefault((str(row["arch"]), str(row["dataset"])), []).append(pace)
    return {pair: statistics.median(found) for pair, found in paces.items()}


def _left_s(
    grid: Grid, ended: Mapping[str, Mapping[str, object]], begun: Sequence[Running], at_once: int
) -> float | None:
    paces = epoch_seconds(ended)
    if not paces:
        return None
    typical = statistics.median(paces.values())  # of a pair that nothing is known of yet
    done = {one.planned.trial.id: one.epoch for one in begun}
    seconds = 0.0  # of one after the other
    for planned in grid:
        trial = planned.trial
        if trial.id not in ended and not (planned.hidden and trial.id not in done):
            epochs = trial.recipe.epochs - done.get(trial.id, 0)
            seconds += epochs * paces.get((trial.arch, trial.dataset), typical)
    return seconds / at_once if seconds else None


def spell_seconds(seconds: float) -> str:
    """`45 s`, `12 min`, `3 h 05 min`."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02} min"
