"""The gate: every pool of a grid checked before anything is asked of a GPU, in processes of its own.

So a candidate's code never runs in the driver, and neither does torch, which takes 2 s and 500 MiB of it; and a pool
that never returns, or ends its process, is a finding like any other. No process runs the code of two: each built-in
pool has its own, and each user's file three, for it is trained there too, and resumed (`trainer.gate.resume`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import json
import os
import queue
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any, NamedTuple, Self, cast

from search_spaces import machine
from search_spaces.errors import RequestError
from search_spaces.grid import Grid
from search_spaces.pool import Pool
from search_spaces.recipe import Recipe
from trainer.gate.report import Finding, Report, Validation

TIME_LIMIT_S = 30.0  # of one validation, which takes 0.3 s; what it waits for a core of a busy machine does not count
COMPILES = 10  # times as long for what torch.compile has to compile first: 20 s a function on one core


Case = tuple[Pool, str]


class Gate:
    """Validations under way from construction on, as many at once as there are cores."""

    def __init__(
        self,
        pools: Sequence[Pool],
        archs: Sequence[str],
        recipe: Recipe = Recipe(),  # noqa: B008 - frozen
        time_limit_s: float = TIME_LIMIT_S,
    ):
        self._cases = list(itertools.product(pools, dict.fromkeys(archs)))
        self._recipe = recipe
        self._limit = time_limit_s
        self._idle: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
        jobs: dict[str | Pool, list[Case]] = {}
        for pool, arch in self._cases:
            jobs.setdefault(pool.code or pool, []).append((pool, arch))
        cores = machine.cores()
        self._workers = [_Worker() for _ in range(max(1, min(cores, len(jobs))))]
        for worker in self._workers:
            self._idle.put(worker)
        self._threads = ThreadPoolExecutor(len(self._workers))
        # Built-in pools first: what costs are compared with is measured before anybody's file has run at all.
        in_order = sorted(jobs.values(), key=lambda cases: bool(cases[0][0].code))
        self._found = [self._threads.submit(self._validate, cases) for cases in in_order]

    @classmethod
    def over(cls, grid: Grid) -> Self:
        """Every pool in every architecture, those of hidden pairs too."""
        return cls([e.pool for e in grid.entries], [pair.arch for pair in grid.pairs], grid.recipe)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        for found in self._found:
            found.cancel()
        for worker in self._workers:
            worker.close()
        self._threads.shutdown()

    @functools.cached_property
    def report(self) -> Report:
        """What was found; waits for it."""
        by_case = {(one.pool, one.arch): one for found in self._found for one in found.result()}
        return Report([by_case[case] for case in self._cases], **self._workers[0].machine)

    def _validate(self, cases: Sequence[Case]) -> list[Validation]:
        """All about the cases of one code."""
        worker = self._idle.get()
        try:
            validations = {
                (pool, arch): Validation(pool, arch, (found,))
                if isinstance(found, Finding)
                else Validation.of(pool, arch, found)
                for (pool, arch), found in self._each(worker, "check", {case: {} for case in cases})
            }
            passed = [case for case in cases if not validations[case].refused]
            if cases[0][0].code and passed:
                for case, findings in self._train_and_resume(worker, passed).items():
                    validations[case] = validations[case].with_findings(findings)
            return list(validations.values())
        finally:
            self._idle.put(worker)

    def _train_and_resume(self, worker: _Worker, cases: Sequence[Case]) -> dict[Case, list[Finding]]:
        """What is found when each is trained, and then resumed in another process, the last first."""
        with tempfile.TemporaryDirectory(prefix="gate-") as folder:
            given = {case: {"place": f"{folder}/{index}.pt"} for index, case in enumerate(cases)}
            trained = dict(self._each(worker, "train", given))
            findings = {case: _findings(found) for case, found in trained.items()}
            whole = {
                case: {**given[case], "whole": trained[case]}
                for case in reversed(cases)
                if not any(finding.refused for finding in findings[case])
            }
            for case, found in self._each(worker, "resume", whole):
                findings[case] += _findings(found)
        return findings

    def _each(
        self, worker: _Worker, step: str, given: Mapping[Case, Mapping[str, Any]]
    ) -> Iterator[tuple[Case, dict[str, Any] | Finding]]:
        """The cases, each with its answer, or with a finding if there was none: the next has a process of its own."""
        waiting = list(given)
        while waiting:
            asked = [{"pool": pool.to_dict(), "arch": arch, **given[pool, arch]} for pool, arch in waiting]
            request = {"step": step, "recipe": dataclasses.asdict(self._recipe), "cases": asked}
            compiles = any("torch.compile" in pool.source.text for pool, _ in waiting if pool.source)
            try:
                for answer in worker.ask(request, self._limit * (COMPILES if compiles else 1)):
                    yield waiting.pop(0), answer
            except _NoAnswerError as error:
                case = waiting.pop(0)
                yield case, error.finding(case[1])


def _findings(answer: dict[str, Any] | Finding) -> list[Finding]:
    return [answer] if isinstance(answer, Finding) else [Finding(**each) for each in answer["findings"]]


class _NoAnswerError(Exception):
    """The process that was asked has ended, or was ended."""

    def __init__(self, check: str, what: str, mend: str):
        super().__init__(what)
        self._check, self._what, self._mend = check, what, mend

    def finding(self, arch: str) -> Finding:
        return Finding(self._check, f"{arch}'s feature map", self._what, self._mend)


class _Worker:
    """A process that validates pools in others, started again if a pool should have ended it."""

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

    def ask(self, request: Mapping[str, Any], limit_s: float) -> Iterator[dict[str, Any]]:
        """The answers to a request, one for each of its cases.

        Raises:
            _NoAnswerError: there was none to the next.
        """
        self.machine  # noqa: B018 (its line comes before any answer)
        self._errors.seek(0, os.SEEK_END)
        self._words_from = self._errors.tell()
        with contextlib.suppress(BrokenPipeError):
            self._pipes[0].write(json.dumps(request) + "\n")
            self._pipes[0].flush()
        pid, late = self._process.pid, False
        while line := self._line(pid, limit_s):
            if (said := json.loads(line.text)).get("found"):
                yield said["found"]
            elif said.get("pid"):
                pid = said["pid"]
            elif said["ended"] is None:
                return
            else:
                late, how = line.late, said["ended"]
                break
        else:
            how = f"exit code {self._process.wait()}"
            self._start()
        if late:
            what = f"it has not come to an end after {limit_s:g} s"
            raise _NoAnswerError("time-limit", what, "Look for a loop that depends on values; a step has milliseconds.")
        what = f"the process that runs it ended ({how}): {self._last_words()}"
        raise _NoAnswerError("run", what, "It must return.")

    def _line(self, pid: int, limit_s: float) -> _Line | None:
        """The next line, for which the process `pid` has so long before it is killed; None if there are no more."""
        late, answered = threading.Event(), threading.Event()
        watch = threading.Thread(target=self._end_if_late, args=(pid, limit_s, answered, late))
        watch.start()
        try:
            text = self._pipes[1].readline()
        finally:
            answered.set()
            watch.join()
        return _Line(text, late.is_set()) if text else None

    def _end_if_late(self, pid: int, limit_s: float, answered: threading.Event, late: threading.Event) -> None:
        began, before = time.monotonic(), _queued_s(pid)
        while not answered.wait(limit_s / 30):
            if time.monotonic() - began - (_queued_s(pid) - before) >= limit_s:
                late.set()
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
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
            self._errors = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115
            self._words_from = 0
            self._process = subprocess.Popen(
                machine.module("trainer.gate.worker"),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                encoding="utf-8",
                # A breakpoint() in a pool is for who trains it inline: here it would read the requests.
                env=machine.environment() | {"PYTHONBREAKPOINT": "0"},
            )
            self._pipes = cast(IO[str], self._process.stdin), cast(IO[str], self._process.stdout)
            self.__dict__.pop("machine", None)

    def _last_words(self) -> str:
        self._errors.seek(self._words_from)
        return (self._errors.read().splitlines() or ["it said nothing"])[-1]


class _Line(NamedTuple):
    text: str
    late: bool


def _queued_s(pid: int) -> float:
    """Seconds in which a process could have run and had no core: see proc_pid_schedstat(5). 0 where nobody tells."""
    try:
        return int(Path(f"/proc/{pid}/schedstat").read_text("ascii").split()[1]) / 1e9
    except (OSError, IndexError, ValueError):
        return 0.0
