"""How a sweep ends early: Ctrl-C, SIGTERM (a machine is taken away), SIGUSR1 (SLURM's warning), or its time is up."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, Self

SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name)]
GRACE_S = 20.0  # Kubernetes kills 30 s after SIGTERM, and Ray takes some to end


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Within the block each of the signals raises KeyboardInterrupt, as Ctrl-C does; it says which it was.

    Whatever else it comes to then: Ray, interrupted while it starts, says that it cannot start.
    """
    heard = []

    def interrupt(number: int, _frame: FrameType | None) -> None:
        heard.append(f"interrupted by {signal.Signals(number).name}")
        raise KeyboardInterrupt(heard[-1])

    with _handled_by(interrupt):
        try:
            yield
        except Exception:
            if heard:
                raise KeyboardInterrupt(heard[-1]) from None
            raise


class Shutdown:
    """An early end of a sweep in good order, for the length of the block.

    The first signal, or `stop_at`, asks the trials to write checkpoints and go; they have until the end of their
    epoch, and `grace_s` at most. A second signal is not made to wait. A KeyboardInterrupt that happens to be raised
    inside a destructor or a callback from C is printed and forgotten by Python, and the sweep would go on: so `check`
    raises it again.

    Attributes:
        asked: whether it is to end.

    Args:
        ask: tells the trials; called once.
        stop_at: when to do so without a signal, by `time.monotonic`.
    """

    def __init__(self, ask: Callable[[], None], stop_at: float = float("inf"), grace_s: float = GRACE_S):
        self._ask = ask
        self._stop_at = stop_at
        self._grace_s = grace_s
        self._deadline = float("inf")
        self._why = ""
        self._told = False
        self.asked = False

    def __enter__(self) -> Self:
        self._handling = _handled_by(self._heed)  # anew: a sweep comes here once a round
        self._handled = self._handling.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._handling.__exit__(*error)

    def insist(self) -> None:
        """Take the signals back from whoever has taken them meanwhile: Tune takes SIGUSR1."""
        for number in self._handled:
            signal.signal(number, self._heed)

    def check(self, running: int) -> None:
        """Look whether it is time to go; to be called now and then, outside of signal handlers.

        Args:
            running: how many processes train.

        Raises:
            KeyboardInterrupt: it is.
        """
        if not self.asked and time.monotonic() >= self._stop_at:
            self._begin("the time budget is used up")
        if self.asked and not self._told:
            self._told = True
            self._ask()
        if self.asked and (not running or time.monotonic() >= self._deadline):
            raise KeyboardInterrupt(self._why)

    def _heed(self, number: int, _frame: FrameType | None) -> None:
        if self.asked:
            self._deadline = 0.0
            raise KeyboardInterrupt(self._why)
        self._begin(f"interrupted by {signal.Signals(number).name}")

    def _begin(self, why: str) -> None:
        self.asked, self._why, self._deadline = True, why, time.monotonic() + self._grace_s


def reinstate() -> None:
    """Set Python's handlers once more, where C++ code has set its own without Python's knowing, as Ray's does."""
    if threading.current_thread() is threading.main_thread():
        for number in SIGNALS:
            if (handler := signal.getsignal(number)) is not None:
                signal.signal(number, handler)


@contextlib.contextmanager
def _handled_by(handler: Callable[[int, FrameType | None], None]) -> Iterator[list[int]]:
    """Within the block it handles those signals that are not ignored (`nohup`): in the main thread, which may."""
    in_main = threading.current_thread() is threading.main_thread()
    before = {number: signal.getsignal(number) for number in SIGNALS if in_main}
    taken = [number for number, old in before.items() if old not in (signal.SIG_IGN, None)]
    for number in taken:
        signal.signal(number, handler)
    try:
        yield taken
    finally:
        for number in taken:
            signal.signal(number, before[number])
