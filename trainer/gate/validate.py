"""The gate: every pool of a grid checked before anything is asked of a GPU, in processes of its own.

So a candidate's code never runs in the driver, and neither does torch, which takes 2 s and 500 MiB of it; and a pool
that never returns, or ends its process, is a finding like any other. No process runs the code of two
(`trainer.gate.worker`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import json
import queue
import subprocess
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import IO, Any, Self, cast

from search_spaces import machine
from search_spaces.errors import RequestError
from search_spaces.grid import Grid
from search_spaces.pool import Pool
from search_spaces.recipe import Recipe
from search_spaces.text import last_line
from trainer.gate.report import Report, Validation

TIME_LIMIT_S = 30.0  # of its own for one validation, which takes 0.3 s

Case = tuple[Pool, str]
Answer = dict[str, Any]


class Gate:
    """Validations under way from construction on, as many at once as there are cores."""

    def __init__(
        self,
        pools: Sequence[Pool],
        archs: Sequence[str],
        recipe: Recipe = Recipe(),  # noqa: B008 - frozen
        time_limit_s: float = TIME_LIMIT_S,
    ):
        self._cases = list(itertools.product(dict.fromkeys(pools), dict.fromkeys(archs)))
        self._asked = {"recipe": dataclasses.asdict(recipe), "limit_s": time_limit_s}
        jobs: dict[str | Pool, list[Case]] = {}
        for pool, arch in self._cases:
            jobs.setdefault(pool.code or pool, []).append((pool, arch))
        # Built-in pools first: what costs are compared with is measured before anybody's file has run at all.
        self._jobs = sorted(jobs.values(), key=lambda cases: bool(cases[0][0].code))
        self._workers = [_Worker() for _ in range(max(1, min(machine.cores(), len(jobs))))]
        self._idle: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
        for worker in self._workers:
            self._idle.put(worker)
        self._threads = ThreadPoolExecutor(len(self._workers))
        self._answers = [self._threads.submit(self._ask, cases) for cases in self._jobs]

    @classmethod
    def over(cls, grid: Grid) -> Self:
        """Validate every pool in every architecture, those of hidden pairs too."""
        return cls([e.pool for e in grid.entries], [pair.arch for pair in grid.pairs], grid.recipe)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        for answer in self._answers:
            answer.cancel()
        for worker in self._workers:
            worker.close()
        self._threads.shutdown()

    @functools.cached_property
    def report(self) -> Report:
        """What was found; waits for it."""
        answers = [answer.result() for answer in self._answers]
        found = {
            case: Validation.of(*case, one)
            for cases, answer in zip(self._jobs, answers, strict=True)
            for case, one in zip(cases, answer["found"], strict=True)
        }
        return Report([found[case] for case in self._cases], **(answers[0]["machine"] if answers else {}))

    def _ask(self, cases: Sequence[Case]) -> Answer:
        """All about the cases of one code."""
        worker = self._idle.get()
        try:
            return worker.ask({**self._asked, "cases": [(pool.to_dict(), arch) for pool, arch in cases]})
        finally:
            self._idle.put(worker)


class _Worker:
    """A process that validates pools in others."""

    def __init__(self) -> None:
        self._errors = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115
        self._process = subprocess.Popen(
            machine.module("trainer.gate.worker"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            encoding="utf-8",
            # A breakpoint() in a pool is for who trains it inline: here it would read the requests.
            env=machine.environment() | {"PYTHONBREAKPOINT": "0"},
        )

    def ask(self, request: Answer) -> Answer:
        """Return the answer to a request; waits until torch has been imported.

        Raises:
            RequestError: the process has ended.
        """
        asks, answers = cast(IO[str], self._process.stdin), cast(IO[str], self._process.stdout)
        with contextlib.suppress(BrokenPipeError):
            asks.write(json.dumps(request) + "\n")
            asks.flush()
        if line := answers.readline():
            return json.loads(line)
        self._errors.seek(0)
        last = last_line(self._errors.read()) or f"their process ended with exit code {self._process.wait()}"
        raise RequestError.of(f"pools cannot be checked: {last}")

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
