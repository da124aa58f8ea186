"""The contract, run over a space's pools in a process of its own.

So a candidate's code never runs in the driver, and neither does torch, which takes 2 s and 500 MiB of it.
"""

from __future__ import annotations

import functools
import itertools
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from typing import Self

from orchestrator import code
from trainer.grid import Grid
from trainer.problems import Problem, RequestError


@dataclass(frozen=True, slots=True)
class Examined:
    """What is wrong with the pools, and what torch finds on this machine.

    Attributes:
        gpus: how many.
        cpu_bf16: whether its CPU has instructions for bfloat16.
    """

    problems: tuple[Problem, ...]
    gpus: int = 0
    cpu_bf16: bool = False

    def refuse(self) -> None:
        """Raises a RequestError if there are problems."""
        if self.problems:
            raise RequestError(self.problems)


class PoolChecks:
    """Checks of every pool on every architecture, those of hidden pairs too, under way from construction on."""

    def __init__(self, grid: Grid):
        archs = dict.fromkeys(pair.arch for pair in grid.pairs)
        self._cases = list(itertools.product((entry.pool for entry in grid.entries), archs))
        self._process = subprocess.Popen(
            [sys.executable, "-m", "trainer.contract"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": code.python_path()},
        )
        self._request = json.dumps([{"pool": pool.to_dict(), "arch": arch} for pool, arch in self._cases])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.communicate()

    @functools.cached_property
    def examined(self) -> Examined:
        """What the checks came to; waits for them."""
        said, errors = self._process.communicate(self._request)
        answers = [json.loads(line) for line in said.splitlines()]
        if len(answers) <= len(self._cases):  # after one for each, how many GPUs there are
            pool, arch = self._cases[min(len(answers), len(self._cases) - 1)]
            why = (errors.splitlines() or ["it said nothing"])[-1]
            what = (
                f"on {arch}'s feature map the process that runs it ended (exit code {self._process.returncode}): {why}"
            )
            return Examined((Problem(f"pool {pool.label}, check run", what),))
        *findings, machine = answers
        return Examined(tuple(Problem(**problem) for found in findings for problem in found), **machine)
