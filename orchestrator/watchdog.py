"""The alarm that ends a worker in which a trial hangs."""

from __future__ import annotations

import faulthandler
import os
import time
from datetime import timedelta
from typing import Self, TextIO

RUNG = "Timeout ("  # how faulthandler begins, in a trial's log
SET_EVERY_S = 1.0  # to set it starts a thread, 0.1 to 0.5 ms, and a turn may be as short


class Alarm:
    """Ends this process, the stack of the trial whose turn it is in its log, if a turn or an epoch takes too long.

    A turn that does not come back is ended from a thread in C, since whatever hangs may hold Python's lock. One that
    comes back to say that the GPU is not done yet, again and again, is ended from here. No exception would do: what a
    trial hangs in cannot be relied upon to hear of it, and a GPU that hangs stays so for this process.

    Args:
        seconds: that an epoch may take; None for as long as it likes.
    """

    def __init__(self, seconds: float | None):
        self._seconds = seconds
        self._set = float("-inf")
        self._log = os.open(os.devnull, os.O_WRONLY)  # for faulthandler; each turn puts its own log behind the number

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        faulthandler.cancel_dump_traceback_later()
        os.close(self._log)

    def turn(self, log: TextIO, since: float) -> None:
        """Before a turn of a trial whose epoch began at `since` (`time.monotonic`)."""
        if self._seconds is None:
            return
        os.dup2(log.fileno(), self._log, inheritable=False)  # a microsecond
        now = time.monotonic()
        if now - since >= self._seconds:
            os.write(self._log, f"{RUNG}{timedelta(seconds=self._seconds)})!\n".encode())
            faulthandler.dump_traceback(self._log)
            os._exit(1)
        if now - self._set >= SET_EVERY_S:
            faulthandler.dump_traceback_later(self._seconds, exit=True, file=self._log)
            self._set = now
