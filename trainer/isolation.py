"""A process for each code, forked from one that has imported torch and computed nothing.

A user's file can do anything to the process that runs it: set a default, wrap a method of torch, start a thread. So
what has run one file runs nothing else, and the next code gets a process that has not run any. It is forked: a fork is
there in 20 ms, where a fresh interpreter imports torch for 3 s, and it maps what its parent mapped, a dataset above
all. The parent must not have used torch's threads or a GPU, neither of which a fork takes along.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import gc
import math
import os
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any

Serve = Callable[[Connection], None]

PATIENCE_S = 5.0  # with a child that has nothing more to do
POLL_S = 0.1
_PR_SET_PDEATHSIG = 1  # see prctl(2)
# A parent, to Linux, is the thread that forked: this one lives as long as its process.
_forker = ThreadPoolExecutor(1, thread_name_prefix="forker")
_last: list[tuple[str, Child]] = []


class ChildDiedError(Exception):
    """A child ended before it had answered; says how."""


class Child:
    """A forked process that answers requests, and ends with its parent.

    Args:
        serve: what the child does with its end of a pipe: receives requests, None when no more will come, and sends
            answers to each, None after the last.

    Attributes:
        pid: of the process.
        ended: how it ended: `exit code 1`, `SIGKILL`; None while it lives.
        late: whether it was killed because an answer took too long.
    """

    def __init__(self, serve: Serve):
        self._pipe, theirs = Pipe()
        self.ended: str | None = None
        self.late = False
        self.pid = _forker.submit(self._fork, serve, theirs).result()
        theirs.close()

    def ask(self, request: Any, limit_s: float = math.inf) -> Iterator[Any]:
        """Yield the answers to a request, as they come. A caller that does not take them all ends the child.

        Raises:
            ChildDiedError: it ended before the last, or was killed because one took more than `limit_s`.
        """
        answered = False
        try:
            self._pipe.send(request)
            while (answer := self._receive(limit_s)) is not None:
                yield answer
            answered = True
        except (EOFError, OSError):
            raise ChildDiedError(f"the process that runs it has ended: {self.close()}") from None
        finally:
            if not answered:
                self.kill()

    def kill(self) -> None:
        if self.ended is None:
            os.kill(self.pid, signal.SIGKILL)
            self.close()

    def close(self) -> str:
        """Have it end, and whatever it has started; return how it did."""
        if self.ended is None:
            with contextlib.suppress(OSError):
                self._pipe.send(None)
            self._pipe.close()
            deadline = time.monotonic() + PATIENCE_S
            while not self._has_ended():
                if time.monotonic() > deadline:
                    os.kill(self.pid, signal.SIGKILL)
                time.sleep(0.002)
            with contextlib.suppress(OSError):  # its number is nobody else's until it is waited for
                os.killpg(self.pid, signal.SIGKILL)
            code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
            self.ended = f"exit code {code}" if code >= 0 else signal.Signals(-code).name
        return self.ended

    def _receive(self, limit_s: float) -> Any:
        """The next answer. A process that it has started may hold its pipe open when it has ended, hence the polls."""
        deadline = time.monotonic() + limit_s
        while not self._pipe.poll(POLL_S):
            if time.monotonic() > deadline:
                self.late = True
                os.kill(self.pid, signal.SIGKILL)
                raise EOFError
            if self._has_ended() and not self._pipe.poll():
                raise EOFError
        return self._pipe.recv()

    def _has_ended(self) -> bool:
        return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is not None

    def _fork(self, serve: Serve, theirs: Connection) -> int:
        parent = os.getpid()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # the parent has threads, which the child does without
            pid = os.fork()
        if pid:
            return pid
        code = 1
        try:
            self._pipe.close()
            os.setpgid(0, 0)  # what it starts can be ended with it
            _end_with(parent)
            if hasattr(atexit, "_run_exitfuncs"):  # what the parent has registered is the parent's, as in every fork
                atexit._clear()
            gc.freeze()  # what the parent holds, of Ray's store for one, is the parent's to give back
            serve(theirs)
            code = 0
        except (EOFError, BrokenPipeError):
            pass  # nobody is left to ask
        except BaseException:
            traceback.print_exc()
        finally:
            with contextlib.suppress(BaseException):  # without it a user's folder is left to the next process
                atexit._run_exitfuncs()
            for stream in (sys.stdout, sys.stderr):
                with contextlib.suppress(Exception):
                    stream.flush()
            os._exit(code)


def child(code: str, serve: Serve) -> Child:
    """Return the process that runs a code: the last one, if that runs the same and lives, or else a new one."""
    if _last and (_last[0][0] != code or _last[0][1].ended):
        _last.pop()[1].close()
    if not _last:
        _last.append((code, Child(serve)))
    return _last[0][1]


def _end_with(parent: int) -> None:
    """The signals of a process like any other; and SIGKILL when the parent ends, where the system can."""
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the driver's to act on, and the terminal tells everybody
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)
