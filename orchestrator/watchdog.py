"""The watchdog, which ends a worker's process when a trial of it hangs."""

from __future__ import annotations

import faulthandler
import math
import mmap
import os
import struct
import time
from datetime import timedelta
from typing import Self, TextIO

SET_EVERY_S = 1.0  # to set it starts a thread, 0.1 to 0.5 ms, and a turn may be as short


class Heartbeat:
    """When the epoch that trains now began, in memory that a process and those that it forks share.

    A process that hangs cannot say so, and one that was killed may not have hung: its parent looks here.
    """

    def __init__(self) -> None:
        self._shared = mmap.mmap(-1, struct.calcsize("dq"))
        self.stop()

    def beat(self, member: int, since: float) -> None:
        """Trial `member` of a pack is at an epoch that began at `since` (`time.monotonic`, one clock a machine)."""
        struct.pack_into("dq", self._shared, 0, since, member)

    def stop(self) -> None:
        """Nothing trains."""
        self.beat(0, math.inf)

    def silent(self) -> tuple[int, float]:
        """Return which trial of a pack trains, and for how many seconds its epoch has."""
        since, member = struct.unpack_from("dq", self._shared, 0)
        return member, time.monotonic() - since


class Watchdog:
    """Ends this process, with the stack of the trial whose turn it is in its log, if an epoch takes too long.

    A turn that does not come back is ended from a thread in C, since whatever hangs may hold Python's lock. One that
    comes back to say that the GPU is not done yet, again and again, is ended from here. No exception would do: what a
    trial hangs in cannot be relied upon to hear of it, and a GPU that hangs stays so for this process.

    Args:
        seconds: that an epoch may take; None for as long as it likes.
        heartbeat: where the parent of this process sees what trains.
    """

    def __init__(self, seconds: float | None, heartbeat: Heartbeat):
        self._seconds = seconds
        self._heartbeat = heartbeat
        self._set = float("-inf")
        self._log = os.open(os.devnull, os.O_WRONLY)  # for faulthandler; each turn puts its own log behind the number

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        faulthandler.cancel_dump_traceback_later()
        self._heartbeat.stop()
        os.close(self._log)

    def turn(self, log: TextIO, member: int, since: float) -> None:
        """Start a turn of trial `member` of the pack, whose epoch began at `since` (`time.monotonic`)."""
        if self._seconds is None:
            return
        self._heartbeat.beat(member, since)
        os.dup2(log.fileno(), self._log, inheritable=False)  # a microsecond
        now = time.monotonic()
        if now - since >= self._seconds:
            os.write(self._log, f"Timeout ({timedelta(seconds=self._seconds)})!\n".encode())
            faulthandler.dump_traceback(self._log)
            os._exit(1)
        if now - self._set >= SET_EVERY_S:
            faulthandler.dump_traceback_later(self._seconds, exit=True, file=self._log)
            self._set = now
