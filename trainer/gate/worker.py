"""`python -m trainer.gate.worker`: validations on request, each code's in processes that it may well break.

Answers each line of stdin, {recipe, limit_s, cases} as JSON, with a line of {machine, found}: what torch finds on this
machine, and what is found in each case. What a pool writes to stdout does not get between them.

A user's file is run in three processes. One checks its pools alone and at odd inputs (`trainer.gate.checks`), one
trains them as a trial does, and one goes on from there (`trainer.gate.resume`). This process itself runs no pool.
"""

from __future__ import annotations

import contextlib
import functools
import io
import json
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import IO, Any

import torch
import torch.utils.flop_counter

from search_spaces.pool import Pool
from search_spaces.recipe import Recipe
from search_spaces.text import last_line
from trainer import compat
from trainer.gate import checks, cost, equivalence, resume
from trainer.gate.case import Case
from trainer.gate.report import Finding, Validation
from trainer.isolation import Child, ChildDiedError

Key = tuple[Pool, str]
Step = Callable[[Pool, str], Any]

COMPILES = 10  # times as long for what torch.compile has to compile first: 20 s a function on one core
WAITS = 10  # times as long for what sleeps, or has to wait for a core that others want too


def validate(pool: Pool, arch: str, precision: str = "fp32") -> Validation:
    """Return all about a pool in an architecture; of one that is refused, only why. Runs the pool's code."""
    case = Case(pool, arch, half=precision == "bf16")
    with contextlib.redirect_stdout(io.StringIO()), torch.random.fork_rng(devices=[]):
        findings = tuple(checks.check(case))
        if any(finding.refused for finding in findings):
            return Validation(pool, arch, findings)
        outputs, parting = equivalence.function(case)
        return Validation(pool, arch, findings, cost.measure(case), tuple(outputs), tuple(parting))


def validate_all(keys: Sequence[Key], recipe: Recipe, limit_s: float) -> list[Validation]:
    """Return all about the pools of one code, each in an architecture, in the order of `keys`."""
    checking = functools.partial(validate, precision=recipe.precision)
    found = {
        key: Validation(*key, (one,)) if isinstance(one, Finding) else one
        for key, one in _each(lambda: checking, keys, limit_s).items()
    }
    passed = [key for key in keys if not found[key].refused]
    if not keys[0][0].code or not passed:
        return list(found.values())
    trained = _each(lambda: resume.Uninterrupted(recipe).run, passed, limit_s)
    for key, one in trained.items():
        found[key] = found[key].with_findings([one] if isinstance(one, Finding) else one.findings)
    going_on = [key for key in reversed(passed) if not found[key].refused]
    resumed = _each(lambda: resume.Resumed(recipe, trained).run, going_on, limit_s)
    for key, one in resumed.items():
        found[key] = found[key].with_findings([one] if isinstance(one, Finding) else one)
    return list(found.values())


def _each(prepare: Callable[[], Step], keys: Sequence[Key], limit_s: float) -> dict[Key, Any]:
    """What a step finds in each case, or why it found nothing: then the next case has a process of its own."""
    found: dict[Key, Any] = {}
    while waiting := [key for key in keys if key not in found]:
        with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as said:
            limit = limit_s * (COMPILES if any(_compiles(pool) for pool, _ in waiting) else 1)
            in_all = max(limit, WAITS * limit_s)
            child = Child(functools.partial(_serve, prepare, waiting, limit, said))
            asked = iter(waiting)
            try:
                for answer in child.ask(None, in_all):
                    found[next(asked)] = answer
                child.close()
            except ChildDiedError:
                if key := next(asked, None):
                    found[key] = _no_answer(key[1], child, f"{limit:g} s of computing, or {in_all:g} s in all", said)
    return found


def _compiles(pool: Pool) -> bool:
    return pool.source is not None and "torch.compile" in pool.source.text


def _no_answer(arch: str, child: Child, limits: str, said: IO[str]) -> Finding:
    where = f"{arch}'s feature map"
    if child.late or child.ended == "SIGPROF":
        mend = "Look for a loop that depends on values; a step has milliseconds."
        return Finding("time-limit", where, f"it has not come to an end after {limits}", mend)
    said.seek(0)
    last = last_line(said.read()) or "it said nothing"
    return Finding("run", where, f"the process that runs it ended ({child.ended}): {last}", "It must return.")


def _serve(
    prepare: Callable[[], Step], keys: Sequence[Key], limit_s: float, said: IO[str], requests: Connection
) -> None:
    """In a process of its own: takes the step with each case in turn."""
    os.dup2(said.fileno(), sys.stderr.fileno())
    torch.set_num_threads(1)
    requests.recv()
    step = prepare()
    for pool, arch in keys:
        signal.setitimer(signal.ITIMER_PROF, limit_s)  # of its own time: a busy machine is not its fault
        requests.send(step(pool, arch))
    requests.send(None)


def _machine(requests: Connection) -> None:
    """What torch finds; to ask starts CUDA, which must not happen where others are forked."""
    requests.recv()
    bf16 = torch.backends.cpu.get_cpu_capability().startswith(("AVX512", "SVE"))
    missing = [f"torch {torch.__version__} has no {lost}" for lost in compat.missing()]
    requests.send({"gpus": torch.cuda.device_count(), "cpu_bf16": bf16, "missing": missing})
    requests.send(None)


def main() -> None:
    # What fake tensors and torch.compile import, 2 s: here once, and not in every process. The first compilation also
    # wraps nn.Module.__init__, which would seem to be a pool's doing.
    torch.set_num_threads(1)
    torch.compile(torch.neg, backend="eager")(torch.ones(1))
    with (
        os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1, encoding="utf-8") as answers,
        Path(os.devnull).open("wb") as nowhere,
    ):
        os.dup2(nowhere.fileno(), sys.stdout.fileno())
        child = Child(_machine)
        (machine,) = child.ask(None)
        child.close()
        for line in sys.stdin:
            asked = json.loads(line)
            keys = [(Pool.from_dict(pool), arch) for pool, arch in asked["cases"]]
            validations = validate_all(keys, Recipe.of(asked["recipe"]), asked["limit_s"])
            answer = {"machine": machine, "found": [one.found_dict() for one in validations]}
            answers.write(json.dumps(answer) + "\n")


if __name__ == "__main__":
    main()
