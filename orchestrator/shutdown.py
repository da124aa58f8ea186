"""How a sweep ends early: Ctrl-C, SIGTERM (a machine is taken away), SIGUSR1 (SLURM's warning), or its time is up."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType, TracebackType
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

    before = _handle(interrupt)
    try:
        yield
    except Exception:
        if heard:
            raise KeyboardInterrupt(heard[-1]) from None
        raise
    finally:
        _restore(before)


class Shutdown:
    """An early end of a sweep in good order, for the length of the block.

    The first signal, or `stop_at`, asks the trials to write checkpoints and go; they have until the end of their
    epoch, and `GRACE_S` at most. A second signal is not made to wait. A KeyboardInterrupt that happens to be raised
    inside a destructor or a callback from C is printed and forgotten by Python, and the sweep would go on: so `check`
    raises it again.

    Attributes:
        asked: whether it is to end.

    Args:
        ask: tells the trials; called once.
        stop_at: when to do so without a signal, by `time.monotonic`.
        grace_s: that they have.
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
        self._before = _handle(self._heed)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        _restore(self._before)

    def insist(self) -> None:
        """Takes the signals back from whoever has taken them meanwhile: Tune takes SIGUSR1."""
        for number in self._before:
            signal.signal(number, self._heed)

    def check(self, running: int) -> None:
        """To be called now and then, outside of signal handlers.

        Args:
            running: how many processes train.

        Raises:
            KeyboardInterrupt: it is time to go.
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
    """Sets Python's handlers once more, where C++ code has set its own without Python's knowing, as Ray's does."""
    if threading.current_thread() is threading.main_thread():
        for number in SIGNALS:
            if (handler := signal.getsignal(number)) is not None:
                signal.signal(number, handler)


def _handle(handler: Callable[[int, FrameType | None], None]) -> dict[int, Any]:
    """Sets it for those signals that are not ignored (`nohup`), and gives the handlers that were there before."""
    if threading.current_thread() is not threading.main_thread():
        return {}
    before = {number: signal.getsignal(number) for number in SIGNALS}
    before = {number: old for number, old in before.items() if old not in (signal.SIG_IGN, None)}
    for number in before:
        signal.signal(number, handler)
    return before


def _restore(before: dict[int, Any]) -> None:
    for number, old in before.items():
        signal.signal(number, old)
