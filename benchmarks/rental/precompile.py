"""Stage `precompile`: the kernels of all that follows, side by side, and the images decoded meanwhile.

As they are met they cost half a second each, one after the other: a minute for three networks. First those of training
in bf16, at every size that the other stages run; then what takes their place if blocks are switched off; then those of
fp32, which only `checks` wants.
"""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks.rental import plan
from benchmarks.rental.settings import Settings, from_argv, without
from search_spaces import machine
from search_spaces.errors import RequestError
from trainer import compile_once, data
from trainer.device.compiling import compile_all
from trainer.precompile import Case, apart, launched, this_capability

REHEARSED = 4  # kernels
PHASES = (("bf16", ""), ("bf16", "inverted_residual,basic_block"), ("fp32", ""))  # (precision, families that are off)


def main() -> None:
    """Have every phase compile in a process of its own; the first is served first. Decode the images meanwhile."""
    settings = from_argv()
    if len(sys.argv) > 2:
        raise SystemExit(phase(settings, int(sys.argv[2])))
    command = [sys.executable, "-u", "-m", "benchmarks.rental.precompile", settings.to_json()]
    phases = range(1 if settings.rehearse else len(PHASES))
    running = []
    for number in phases:
        with without(PHASES[number][1]):
            running.append(subprocess.Popen([*command, str(number)]))
    decode(settings)
    codes = [child.wait() for child in running]
    if any(codes):
        raise SystemExit(1)


def phase(settings: Settings, number: int) -> int:
    """Compile all kernels of a phase; return how many are wrong."""
    os.nice(5 * number)
    began, (precision, off) = time.time(), PHASES[number]
    cases, gpu = all_cases(settings, precision), 90 if settings.rehearse else this_capability()  # 90: an H100's
    with ThreadPoolExecutor(machine.cores()) as threads:
        traced = threads.map(lambda case: apart(launched, [case]), cases)
        steps = [step for (trace,) in traced for step in trace.values()]
    kernels = [launch.kernel for step in steps for launch in step if launch.kernel is not None]
    if settings.rehearse:  # they are compiled by tests; here a few will do
        kernels = list(dict.fromkeys(kernels))[:REHEARSED]
    said = time.time() - began
    found = apart(compile_all, kernels, gpu, machine.cores())
    wrong = [f"{one.kernel}: {one.problem}" for one in found if one.problem]
    told = f"{precision} without {off or 'nothing'}: {len(found)} kernels"
    print(f"{told}, known after {said:.1f} s, compiled after {time.time() - began:.1f} s; wrong: {wrong or 'none'}")
    for case in cases:
        compile_once.for_case(case, gpu)  # so that no pack looks for its kernels again
    return len(wrong)


def all_cases(settings: Settings, precision: str) -> Sequence[Case]:
    """Return what all stages train: random images stand for those of either dataset, in batches of the same sizes."""
    sizes = settings.sizes
    if settings.rehearse:
        return [Case(sizes.archs[0], precision, sizes.batch, sizes.evaluation, 3, 100, batch_size=sizes.batch)]
    return [Case.named(arch, dataset, precision) for arch in sizes.archs for dataset in ("cifar100", "fmnist")]


def decode(settings: Settings) -> None:
    """Decode the images that are there, once for this machine."""
    for name in dict.fromkeys(pair.dataset for pair in plan.grid(settings).pairs):
        began = time.time()
        try:
            data.load(name, Path(settings.data), download=False)
            print(f"{name}: decoded in {time.time() - began:.1f} s", flush=True)
        except RequestError as error:
            print(f"{name}: {'; '.join(map(str, itertools.islice(error.problems, 3)))}", flush=True)


if __name__ == "__main__":
    main()
