"""Whose run folder it is: one driver at a time, and workers that know whether theirs is still the one.

    RUN/driver.json   who runs the sweep: host, process, a token, a count that goes up while it lives

Nobody has to break a lock by hand. A driver that died on this machine is known by its process, one on another machine
by a count that no longer moves; no clock is compared with another. A store of objects has no exclusive create, so a
lease is written, left to settle, and read again: of two that write at once, the later one stands.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import socket
import threading
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from results.store.folder import RunFolder
from search_spaces.errors import RequestError
from search_spaces.messages import log
from search_spaces.validation import from_json, to_json

NAME = "driver.json"
HEARTBEAT_S = 10.0
DEAD_AFTER_S = 45.0  # four heartbeats: a store that is slow, or a machine that swaps, misses one or two
SETTLE_S = {True: 0.2, False: 2.0}  # on a disk, in a store: longer than a write takes
LOOK_EVERY_S = {True: 0.5, False: 5.0}  # a look costs 0.05 ms, or a request

Order = Literal["go on", "stop", "not yours"]


@dataclass(frozen=True, slots=True)
class Driver:
    """The process that runs a sweep on a run folder.

    Attributes:
        machine: host name, boot and process namespace: where `pid` means something.
        started: the process's start, in the kernel's ticks since boot, since a pid is used again.
        since: for people.
        heartbeat: goes up every `HEARTBEAT_S`.
        stopping: whether its workers are to write checkpoints and stop.
        only, final: which part of the grid it trains (`Grid.select`).
    """

    token: str
    host: str
    machine: str
    pid: int
    started: str
    since: str
    heartbeat: int = 0
    stopping: bool = False
    only: Mapping[str, Sequence[str]] = field(default_factory=dict)
    final: bool = False

    @classmethod
    def here(cls, only: Mapping[str, Sequence[str]] | None = None, final: bool = False) -> Driver:
        return cls(
            token=uuid.uuid4().hex,
            host=socket.gethostname(),
            machine=_machine(),
            pid=os.getpid(),
            started=_started(os.getpid()) or "",
            since=datetime.now(UTC).isoformat(timespec="seconds"),
            only={key: list(values) for key, values in (only or {}).items()},
            final=final,
        )

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}, since {self.since}"


class Lease:
    """A driver's lease of a run folder, for the length of the block; this process's unless `here` is given.

    Attributes:
        token: what workers of this driver show.
        lost_to: who has taken the folder over meanwhile, which happens only to a driver that did not run for
            `DEAD_AFTER_S` (a laptop that slept).

    Raises:
        RequestError: on entering, if the folder is another driver's who lives. One on another machine is waited for,
            for `patience_s`.
    """

    def __init__(self, run: RunFolder, here: Driver | None = None, patience_s: float = DEAD_AFTER_S):
        self._run = run
        self._mine = here or Driver.here()
        self._patience_s = patience_s
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="lease", daemon=True)
        self._dead: Driver | None = None
        self.token = self._mine.token
        self.lost_to: Driver | None = None

    def check(self) -> None:
        """Look whether it would be granted, before anything that takes long; wait for a sign of another machine.

        Raises:
            RequestError: as on entering.
        """
        found = holder(self._run)
        if found is None or found == self._dead:
            return
        if found.machine != _machine():
            self._wait_for_a_sign(found)
        elif _started(found.pid) == found.started:
            raise _refusal(self._run, found)
        else:
            log.info(f"the run folder {self._run} was left by {found}, which has died; it is taken over")
        self._dead = found

    def _wait_for_a_sign(self, found: Driver) -> None:
        patience_s = self._patience_s
        log.info(f"the run folder {self._run} is held by {found}; waiting {patience_s:.0f} s for a sign of life ...")
        deadline = time.monotonic() + patience_s
        while time.monotonic() < deadline:
            time.sleep(min(1.0, patience_s / 20))
            now = holder(self._run)
            if now is None:
                return
            if now != found:
                raise _refusal(self._run, now)
        log.info("there was none; it is taken over")

    def __enter__(self) -> Self:
        self.check()
        self._write()
        time.sleep(SETTLE_S[self._run.on_disk])
        found = holder(self._run)
        if found is None or found.token != self.token:
            raise _refusal(self._run, found)
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._over.set()
        self._thread.join()
        with self._lock, contextlib.suppress(OSError):
            if (found := holder(self._run)) and found.token == self.token:
                self._run.files.remove(NAME)

    def stands(self) -> bool:
        """Look anew whether it is still this process's."""
        with self._lock, contextlib.suppress(OSError):
            if (found := holder(self._run)) and found.token != self.token:
                self.lost_to = found
        return self.lost_to is None

    def ask_to_stop(self) -> None:
        """Tell the workers of this driver to write checkpoints and go.

        Raises:
            OSError: it cannot be told.
        """
        with self._lock:
            self._mine = dataclasses.replace(self._mine, stopping=True)
            self._write()

    def _keep(self) -> None:
        while not self._over.wait(HEARTBEAT_S):
            if not self.stands():
                return
            with self._lock, contextlib.suppress(OSError):  # a disk that is full now may not be at the next
                self._mine = dataclasses.replace(self._mine, heartbeat=self._mine.heartbeat + 1)
                self._write()

    def _write(self) -> None:
        self._run.files.write(NAME, to_json(self._mine))


class LeaseView:
    """What a worker knows of its driver: `order` says whether it may go on, looking now and then.

    Args:
        token: of the driver's lease; None for a worker without one, which always goes on.
    """

    def __init__(self, run: RunFolder, token: str | None):
        self._run = run
        self._token = token
        self._order: Order = "go on"
        self._looked = float("-inf")

    def order(self) -> Order:
        """Return what to do: `stop` after writing a checkpoint; or stop, and write nothing, for it is `not yours`."""
        now = time.monotonic()
        if self._token is not None and now - self._looked >= LOOK_EVERY_S[self._run.on_disk]:
            self._looked = now
            with contextlib.suppress(OSError):  # whoever cannot read cannot write either, and hears of it there
                found = holder(self._run)
                if found is None or found.token != self._token:
                    self._order = "not yours"
                else:
                    self._order = "stop" if found.stopping else "go on"
        return self._order


def holder(run: RunFolder) -> Driver | None:
    """Return the driver that holds a run folder, alive or not; None if there is none, or the file is no lease.

    Raises:
        OSError: it cannot be read.
    """
    try:
        return from_json(Driver, run.files.read(NAME))
    except FileNotFoundError:
        return None


def _refusal(run: RunFolder, by: Driver | None) -> RequestError:
    return RequestError.of(
        f"the run folder {run} is in use by another sweep: {by or 'one that has just ended'}; wait for it to end, or "
        f"end it with Ctrl-C or SIGTERM{f' (kill {by.pid})' if by else ''}, or give another --out"
    )


def _machine() -> str:
    """Return where process numbers mean the same: a container has its own, and may have the host's name.

    Without /proc that is nowhere, and heartbeats alone tell who lives.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
        return f"{socket.gethostname()} {boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return uuid.uuid4().hex


def _started(pid: int) -> str | None:
    """Return when a process of this machine was started; None if there is none, or only its remains."""
    try:
        state, *rest = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except OSError:
        return None
    return None if state in "ZX" else rest[18]
