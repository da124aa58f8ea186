"""`python -m trainer.gate.worker`: validations on request, each code's in processes that it may well break.

Says in a line of JSON what torch finds on this machine, then answers each line of stdin, {step, cases, ...}, with a
line for the process that it is given (`pid`), one for each case (`found`), and one for how that process ended (`ended`,
null if all is well). What a pool writes to stdout does not get between them. This process itself runs no pool.

The steps are `check`, alone and at odd inputs (`trainer.gate.checks`); `train`, as a trial does, and `resume`, which
goes on from there in another process (`trainer.gate.resume`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import os
import sys
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, TextIO

import torch
import torch.utils.flop_counter

from search_spaces.pool import Pool
from search_spaces.recipe import Recipe
from trainer import compat
from trainer.gate import checks, cost, equivalence, resume
from trainer.gate.case import Case
from trainer.gate.report import Validation
from trainer.isolation import Child, ChildDiedError

Answer = dict[str, Any]
Validate = Callable[[Pool, str, Mapping[str, Any]], Answer]


def validate(pool: Pool, arch: str, precision: str = "fp32") -> Validation:
    """All about a pool in an architecture; of one that is refused, only why. Runs the pool's code."""
    case = Case(pool, arch, half=precision == "bf16")
    with contextlib.redirect_stdout(io.StringIO()), torch.random.fork_rng(devices=[]):
        findings = tuple(checks.check(case))
        if any(finding.refused for finding in findings):
            return Validation(pool, arch, findings)
        outputs, parting = equivalence.function(case)
        return Validation(pool, arch, findings, cost.measure(case), tuple(outputs), tuple(parting))


def _step(asked: Mapping[str, Any]) -> Validate:
    """What a request asks to be done with each of its cases."""
    recipe = Recipe.of(asked["recipe"])
    if asked["step"] == "check":
        return lambda pool, arch, _: validate(pool, arch, recipe.precision).found_dict()
    if asked["step"] == "train":
        uninterrupted = resume.Uninterrupted(recipe)
        return lambda pool, arch, case: uninterrupted.run(pool, arch, Path(case["place"]))
    setup = resume.Setup(recipe)

    def resumed(pool: Pool, arch: str, case: Mapping[str, Any]) -> Answer:
        found = resume.resume(setup, pool, arch, Path(case["place"]), case["whole"])
        return {"findings": [dataclasses.asdict(finding) for finding in found]}

    return resumed


def _serve(requests: Connection) -> None:
    """In a process of its own: answers one request, with the cases in their order."""
    torch.set_num_threads(1)
    while (asked := requests.recv()) is not None:
        step = _step(asked)
        for case in asked["cases"]:
            requests.send(step(Pool.from_dict(case["pool"]), case["arch"], case))
        requests.send(None)


def _machine(requests: Connection) -> None:
    """What torch finds; to ask starts CUDA, which must not happen where others are forked."""
    requests.recv()
    bf16 = torch.backends.cpu.get_cpu_capability().startswith(("AVX512", "SVE"))
    missing = [f"torch {torch.__version__} has no {lost}" for lost in compat.missing()]
    requests.send({"gpus": torch.cuda.device_count(), "cpu_bf16": bf16, "missing": missing})
    requests.send(None)


def _answer(asked: Mapping[str, Any], answers: TextIO) -> None:
    def say(**line: Any) -> None:
        answers.write(json.dumps(line) + "\n")

    child = Child(_serve)
    say(pid=child.pid)
    try:
        for found in child.ask(asked):
            say(found=found)
        child.close()
        say(ended=None)
    except ChildDiedError:
        say(ended=child.ended)


def main() -> None:
    torch.set_num_threads(1)
    # What fake tensors and torch.compile import, 2 s: here once, and not in every process. The first compilation also
    # wraps nn.Module.__init__, which would seem to be a pool's doing.
    torch.compile(torch.neg, backend="eager")(torch.ones(1))
    with (
        os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1, encoding="utf-8") as answers,
        Path(os.devnull).open("wb") as nowhere,
    ):
        os.dup2(nowhere.fileno(), sys.stdout.fileno())
        child = Child(_machine)
        (machine,) = child.ask({})
        child.close()
        answers.write(json.dumps(machine) + "\n")
        for line in sys.stdin:
            _answer(json.loads(line), answers)


if __name__ == "__main__":
    main()
