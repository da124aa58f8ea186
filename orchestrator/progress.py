"""What a person sees while a sweep runs: how many of how many, what runs, how fast, how long still."""

from __future__ import annotations

import statistics
import time
from collections import Counter, defaultdict, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from results.status import spell_seconds
from results.store import schema
from search_spaces.grid import Planned
from search_spaces.text import visible

PLAIN_EVERY_S = 30.0
PACE_EPOCHS = 20  # epochs of a pair, for its pace


class Progress:
    """Counts trials as they start, report and end, and shows it.

    On a terminal it redraws a few lines; elsewhere it prints one plain line for each trial that ends and, every
    `PLAIN_EVERY_S`, one for what is running.

    Args:
        todo: the trials that this sweep has to run.
        done: how many of the grid had ended before.
        console: where to.
    """

    def __init__(self, todo: Sequence[Planned], done: int, console: Console):
        self._total = len(todo) + done
        self._before = done
        self._ended: Counter[str] = Counter()
        self._running: dict[str, _Running] = {}
        self._furthest: Counter[str] = Counter()  # epoch by trial: a trial that starts again does not count twice
        self._most_at_once = 1
        self._epochs_left = Counter[_Pair]()
        for planned in todo:
            self._epochs_left[_pair(planned)] += planned.trial.recipe.epochs
        self._pace: dict[_Pair, deque[float]] = defaultdict(lambda: deque(maxlen=PACE_EPOCHS))
        self._console = console
        self._live = Live(
            get_renderable=self._render,
            console=console,
            transient=True,
            refresh_per_second=2,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._last_line = time.monotonic()

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._live.stop()

    def started(self, planned: Planned) -> None:
        self._running[planned.trial.id] = _Running(planned)
        self._most_at_once = max(self._most_at_once, len(self._running))

    def reported(self, planned: Planned, epoch: Mapping[str, Any]) -> None:
        """A trial has finished an epoch: `epoch`, `test_acc`, `epoch_s`, `images_per_s`."""
        running = self._running.setdefault(planned.trial.id, _Running(planned))
        self._advance(running, epoch["epoch"])
        running.test_acc, running.images_per_s = epoch["test_acc"], epoch["images_per_s"]
        self._pace[_pair(planned)].append(epoch["epoch_s"])
        if not self._console.is_terminal and time.monotonic() - self._last_line >= PLAIN_EVERY_S:
            self.say("; ".join(map(str, self._running.values())) + self._left())

    def ended(self, planned: Planned, result: Mapping[str, Any]) -> None:
        """A trial has ended: `status`, `best_test_acc`, `train_s`, `error`; None where there is none."""
        running = self._running.pop(planned.trial.id, _Running(planned))
        self._advance(running, planned.trial.recipe.epochs)
        status, best, seconds = result["status"], result["best_test_acc"], result["train_s"]
        self._ended[status] += 1
        facts = [status]
        if status == schema.COMPLETED and best is not None:
            facts += [f"best {best:.2f} %", spell_seconds(seconds)]
            self._pace[_pair(planned)].append(seconds / planned.trial.recipe.epochs)
        if result["error"]:
            facts.append(result["error"].splitlines()[0])
        self.say(f"{self._count()} {planned.trial}: {', '.join(facts)}{self._left()}")

    def _advance(self, running: _Running, epoch: int) -> None:
        trial_id = running.planned.trial.id
        self._epochs_left[_pair(running.planned)] -= max(0, epoch - self._furthest[trial_id])
        self._furthest[trial_id] = max(epoch, self._furthest[trial_id])
        running.epoch = epoch

    def say(self, line: str) -> None:
        self._console.print(Text(visible(line)), soft_wrap=True)
        self._last_line = time.monotonic()

    def _count(self) -> str:
        return f"[{self._before + self._ended.total():>{len(str(self._total))}}/{self._total}]"

    def _left(self) -> str:
        """`; about 12 min left`, once there is a pace to tell it from."""
        known = {pair: statistics.median(pace) for pair, pace in self._pace.items()}
        if not known or not self._epochs_left.total():
            return ""
        typical = statistics.median(known.values())  # for a pair that nothing is known of yet
        seconds = sum(epochs * known.get(pair, typical) for pair, epochs in self._epochs_left.items())
        return f"; about {spell_seconds(seconds / self._most_at_once)} left"

    def _render(self) -> Group:
        statuses = [f"{self._ended[s]} {s}" for s in schema.STATUSES[1:] if self._ended[s]]
        head = f"{self._count()} trials ended{''.join(f', {status}' for status in statuses)}{self._left()}"
        return Group(Text(head, style="bold"), *(Text(f"  {running}") for running in self._running.values()))


_Pair = tuple[str, str]


def _pair(planned: Planned) -> _Pair:
    return planned.trial.arch, planned.trial.dataset


@dataclass
class _Running:
    planned: Planned
    epoch: int = 0
    test_acc: float | None = None
    images_per_s: float | None = None

    def __str__(self) -> str:
        accuracy = "" if self.test_acc is None else f", {self.test_acc:.2f} %"
        speed = "" if self.images_per_s is None else f", {self.images_per_s:,.0f} images/s"
        return f"{self.planned.trial}: epoch {self.epoch}/{self.planned.trial.recipe.epochs}{accuracy}{speed}"
