"""What a pool must be, checked on the CPU before any GPU is asked for.

A pool maps [B, C, H, W] to [B, C] with finite values and gradients, at the feature map of every architecture of its
space. Each check is named, says which input showed a fault, why it matters and how it is usually mended.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from trainer import arch as archs
from trainer import pool as pools
from trainer.pool import Pool
from trainer.problems import Problem

BATCH = 4


@dataclass(frozen=True, slots=True)
class Finding:
    """A check that a pool failed: its name, the input that showed it, what was seen, and the usual mend."""

    check: str
    shown_by: str
    what: str
    mend: str

    def problem(self, pool: Pool) -> Problem:
        return Problem(f"pool {pool.label}, check {self.check}", f"on {self.shown_by}: {self.what}. {self.mend}")


def check(pool: Pool, arch: str) -> list[Finding]:
    """What is wrong with a pool in an architecture; nothing, if it may be trained. Runs the pool's code."""
    shape = archs.get(arch).feature_map
    where = f"{arch}'s feature map {_spell((BATCH, *shape))}"
    maps = torch.randn(BATCH, *shape, generator=torch.Generator().manual_seed(0)).relu_()
    with contextlib.redirect_stdout(io.StringIO()), torch.random.fork_rng(devices=[]):
        try:
            module = pools.build(pool, shape[0])
        except (Exception, SystemExit) as error:
            mend = "The file must import, and the class be built from its params alone."
            return [Finding("build", "construction", _spell_error(error), mend)]
        try:
            return _check_shape(module, maps, where) or _check_finite(module, maps, where)
        except (Exception, SystemExit) as error:
            return [Finding("run", where, _spell_error(error), "Forward and backward must work at this size.")]


def _check_shape(module: nn.Module, maps: Tensor, where: str) -> list[Finding]:
    module.eval()
    with torch.no_grad():
        out = module(maps.clone())
    wanted = maps.shape[:2]
    if not isinstance(out, Tensor):
        return [Finding("shape", where, f"it returns a {type(out).__name__}", "Return one tensor, [B, C].")]
    if out.shape != wanted:
        what = f"it returns {_spell(out.shape)}, and [B, C] is {_spell(wanted)}"
        return [Finding("shape", where, what, "Reduce both spatial dimensions and keep the channels: .flatten(1).")]
    if out.dtype != maps.dtype:
        return [Finding("dtype", where, f"float32 comes back as {out.dtype}", "End with .to(x.dtype).")]
    return _check_finite_output(out, f"{where} in eval mode")


def _check_finite(module: nn.Module, maps: Tensor, where: str) -> list[Finding]:
    module.train()
    inputs = maps.clone().requires_grad_()
    out = module(inputs * 1)  # a leaf cannot be changed in place, and a pool's input in the network is none
    if findings := _check_finite_output(out, where):
        return findings
    out.sum().backward()
    named: list[tuple[str, Tensor | None]] = [("input", inputs.grad)]
    named += [(f"parameter {name}", parameter.grad) for name, parameter in module.named_parameters()]
    broken = [name for name, gradient in named if gradient is not None and not gradient.isfinite().all()]
    if broken:
        mend = "A root has no gradient at zero and x/|x| none at the origin: add an epsilon inside."
        return [Finding("finite-gradient", where, f"the gradient of {', '.join(broken)} is not finite", mend)]
    return []


def _check_finite_output(out: Tensor, where: str) -> list[Finding]:
    if out.isfinite().all():
        return []
    mend = "Over one position std(unbiased) is NaN: use correction=0; under roots and logarithms, add an epsilon."
    return [Finding("finite-output", where, "its output is not finite", mend)]


def _spell(shape: tuple[int, ...] | torch.Size) -> str:
    return f"[{', '.join(map(str, shape))}]"


def _spell_error(error: BaseException) -> str:
    return f"it raises {type(error).__name__}: {(str(error).splitlines() or [''])[0]}"


def main() -> None:
    """Checks what stands on stdin, [{pool, arch}, ...], in a process that a candidate may well break.

    Writes a line of JSON for each as soon as it is known, [problem, ...], and at the end what torch finds here. What a
    candidate writes to stdout does not get between them.
    """
    with os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1) as answers, Path(os.devnull).open("w") as nowhere:
        os.dup2(nowhere.fileno(), sys.stdout.fileno())
        for case in json.load(sys.stdin):
            pool = Pool.from_dict(case["pool"])
            problems = [dataclasses.asdict(finding.problem(pool)) for finding in check(pool, case["arch"])]
            answers.write(json.dumps(problems) + "\n")
        bf16 = torch.ops.mkldnn._is_mkldnn_bf16_supported()
        answers.write(json.dumps({"gpus": torch.cuda.device_count(), "cpu_bf16": bf16}) + "\n")


if __name__ == "__main__":
    main()
