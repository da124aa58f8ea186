"""The gate: every pool of a grid examined before anything is asked of a GPU, in processes of its own.

So a candidate's code never runs in the driver, and neither does torch, which takes 2 s and 500 MiB of it; and a pool
that never returns, or ends its process, is a finding like any other.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Self, cast

from rich import box
from rich.table import Table

from trainer import code
from trainer.examination import Examination, Finding, SameFunction, same_function
from trainer.grid import Grid
from trainer.pool import Pool
from trainer.problems import Problem, RequestError
from trainer.text import plain

TIME_LIMIT_S = 30.0  # of an examination, which takes 0.3 s; what it waits for a core of a busy machine does not count


@dataclass(frozen=True, slots=True)
class Report:
    """What the gate found.

    Attributes:
        examinations: of every pool in every architecture, in that order.
        gpus: that torch finds on this machine.
        cpu_bf16: whether its CPU has instructions for bfloat16.
    """

    examinations: Sequence[Examination]
    gpus: int = 0
    cpu_bf16: bool = False

    def of(self, pool: Pool, arch: str) -> Examination:
        return next(one for one in self.examinations if one.pool == pool and one.arch == arch)

    @property
    def refused(self) -> list[Problem]:
        """Each once, however many architectures show it."""
        return self._problems(refused=True)

    @property
    def notes(self) -> list[Problem]:
        """Likewise, of pools that are refused nowhere."""
        return self._problems(refused=False)

    def _problems(self, refused: bool) -> list[Problem]:
        broken = {one.pool for one in self.examinations if one.refused}
        found: dict[tuple[Pool, str], list[tuple[str, Finding]]] = {}
        for one in self.examinations:
            for finding in one.findings:
                if finding.refused == refused and (refused or one.pool not in broken):
                    found.setdefault((one.pool, finding.check), []).append((one.arch, finding))
        problems = []
        for (pool, _), ((_, first), *others) in found.items():
            problem = first.problem(pool)
            also = f" (the same on {', '.join(arch for arch, _ in others)})" if others else ""
            problems.append(dataclasses.replace(problem, what=problem.what + also))
        return problems

    def same_function(self) -> list[SameFunction]:
        return same_function(self.examinations)

    def table(self) -> str:
        """What each pool costs in each architecture, and whether it may be trained there, as wide as it needs to be."""
        head = ("pool", "arch", "parameters", "FLOPs an image", "ms a batch of 128", "by gap", "verdict")
        table = Table(box=box.SIMPLE_HEAD)
        for name in head:
            table.add_column(name, no_wrap=True, justify="left" if name in ("pool", "arch", "verdict") else "right")
        for index, one in enumerate(self.examinations):
            last = index + 1 == len(self.examinations) or self.examinations[index + 1].pool != one.pool
            cost = one.cost
            numbers = (
                (f"{cost.parameters:,}", f"{cost.flops:,}", f"{cost.time_ms:.2f}", f"{cost.times_gap:.1f}")
                if cost
                else ("",) * 4
            )
            table.add_row(one.pool.label, one.arch, *numbers, one.verdict, end_section=last)
        return "\n".join(plain(table))

    def refuse(self) -> None:
        """Raises a RequestError if a pool is refused."""
        if self.refused:
            raise RequestError(self.refused)


class Gate:
    """Examinations under way from construction on, as many at once as there are cores."""

    def __init__(
        self, pools: Sequence[Pool], archs: Sequence[str], precision: str = "fp32", time_limit_s: float = TIME_LIMIT_S
    ):
        self._cases = list(itertools.product(pools, dict.fromkeys(archs)))
        self._precision = precision
        self._limit = time_limit_s
        self._idle: queue.SimpleQueue[_Examiner] = queue.SimpleQueue()
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        self._examiners = [_Examiner() for _ in range(max(1, min(cores, len(self._cases))))]
        for examiner in self._examiners:
            self._idle.put(examiner)
        self._threads = ThreadPoolExecutor(len(self._examiners))
        self._found = [self._threads.submit(self._examine, *case) for case in self._cases]

    @classmethod
    def over(cls, grid: Grid) -> Self:
        """Every pool in every architecture, those of hidden pairs too."""
        return cls([e.pool for e in grid.entries], [pair.arch for pair in grid.pairs], grid.recipe.precision)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        for found in self._found:
            found.cancel()
        for examiner in self._examiners:
            examiner.close()
        self._threads.shutdown()

    @functools.cached_property
    def report(self) -> Report:
        """What was found; waits for it."""
        return Report([found.result() for found in self._found], **self._examiners[0].machine)

    def _examine(self, pool: Pool, arch: str) -> Examination:
        examiner = self._idle.get()
        try:
            asked = {"pool": pool.to_dict(), "arch": arch, "precision": self._precision}
            return Examination.of(pool, arch, examiner.ask(asked, self._limit))
        except _NoAnswerError as error:
            return Examination(pool, arch, (error.finding(arch),))
        finally:
            self._idle.put(examiner)


class _NoAnswerError(Exception):
    """The process that was asked has ended, or was ended."""

    def __init__(self, check: str, what: str, mend: str):
        super().__init__(what)
        self._check, self._what, self._mend = check, what, mend

    def finding(self, arch: str) -> Finding:
        return Finding(self._check, f"{arch}'s feature map", self._what, self._mend)


class _Examiner:
    """A process that examines, started again whenever a pool has ended it."""

    def __init__(self) -> None:
        self._closing = threading.Lock()
        self._closed = False
        self._start()

    @functools.cached_property
    def machine(self) -> dict[str, Any]:
        """What torch finds here; waits until it has been imported."""
        if not (line := self._pipes[1].readline()):
            raise RequestError.of(f"pools cannot be checked: {self._last_words()}")
        return json.loads(line)

    def ask(self, case: Mapping[str, Any], limit_s: float) -> dict[str, Any]:
        """The answer to a case.

        Raises:
            _NoAnswerError: there was none.
        """
        self.machine  # noqa: B018 (its line comes before any answer)
        stdin, stdout = self._pipes
        late, answered = threading.Event(), threading.Event()
        watch = threading.Thread(target=self._end_if_late, args=(limit_s, answered, late))
        watch.start()
        try:
            stdin.write(json.dumps(case) + "\n")
            stdin.flush()
            answer = stdout.readline()
        except BrokenPipeError:
            answer = ""
        finally:
            answered.set()
            watch.join()
        if answer:
            return json.loads(answer)
        exit_code, why = self._process.wait(), self._last_words()
        self._start()
        if late.is_set():
            what = f"it has not come to an end after {limit_s:g} s"
            raise _NoAnswerError("time-limit", what, "Look for a loop that depends on values; a step has milliseconds.")
        raise _NoAnswerError("run", f"the process that runs it ended (exit code {exit_code}): {why}", "It must return.")

    def _end_if_late(self, limit_s: float, answered: threading.Event, late: threading.Event) -> None:
        began, before = time.monotonic(), _queued_s(self._process.pid)
        while not answered.wait(limit_s / 30):
            if time.monotonic() - began - (_queued_s(self._process.pid) - before) >= limit_s:
                late.set()
                self._process.kill()
                return

    def close(self) -> None:
        with self._closing:
            self._closed = True
            self._process.kill()
        self._process.wait()

    def _start(self) -> None:
        with self._closing:
            if self._closed:
                return
            self._errors = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115 (as long as the process)
            self._process = subprocess.Popen(
                [sys.executable, "-m", "trainer.examine"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                text=True,
                env=os.environ | {"PYTHONPATH": code.python_path()},
            )
            self._pipes = cast(IO[str], self._process.stdin), cast(IO[str], self._process.stdout)
            self.__dict__.pop("machine", None)

    def _last_words(self) -> str:
        self._errors.seek(0)
        return (self._errors.read().splitlines() or ["it said nothing"])[-1]


def _queued_s(pid: int) -> float:
    """Seconds in which a process could have run and had no core: see proc_pid_schedstat(5). 0 where nobody tells."""
    try:
        return int(Path(f"/proc/{pid}/schedstat").read_text().split()[1]) / 1e9
    except (OSError, IndexError, ValueError):
        return 0.0
