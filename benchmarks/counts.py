"""What a training step and an evaluation launch on a GPU, and the bytes that they move; found without a GPU.

    python -m benchmarks.counts [--arch ...] [--precision bf16] [--detail] [--compile 80 86 90] [--output FILE]

How it counts is in `trainer.device.launches`. `--compile` also compiles each kernel for GPUs of those capabilities,
into Triton's cache, and says which of them spill registers or take more shared memory than there is.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from benchmarks import common
from benchmarks.common import ARCHS, Row
from search_spaces import machine
from search_spaces.recipe import PRECISIONS
from trainer.device.compiling import Compiled
from trainer.device.launches import Launch
from trainer.precompile import Case, apart, compiled, launched

DATASETS = {
    "mobilenetv2": "fmnist",
    "mobilenetv2_2x2": "fmnist",
}  # that the benchmark trains an architecture on; CIFAR-100 all others
COLUMNS = {"arch": "{arch}", "precision": "{precision}", "": "{what}", "launches": "{launches:,}", "GB": "{gb:,.3f}"}
KERNELS = {"kernel": "{name}", "launches": "{launches:,}", "GB": "{gb:,.4f}"}


def main() -> None:
    parser = common.options(__doc__)
    parser.add_argument("--arch", nargs="+", default=ARCHS)
    parser.add_argument("--precision", nargs="+", choices=PRECISIONS, default=["bf16"])
    parser.add_argument("--detail", action="store_true", help="each kernel of a training step")
    parser.add_argument("--compile", metavar="CAPABILITY", nargs="+", type=int, default=[])
    parser.add_argument("--processes", type=int, default=machine.cores(), help="that compile")
    args = parser.parse_args()

    cases = [case(arch, precision) for arch in args.arch for precision in args.precision]
    traces = apart(launched, cases)
    rows = [row for one, trace in zip(cases, traces, strict=True) for row in figures(one, trace)]
    common.show(COLUMNS, rows)
    for one, trace in zip(cases, traces, strict=True) if args.detail else ():
        print(f"{one.arch} {one.precision}, a training step of {one.batch_size}")
        common.show(KERNELS, by_kernel(trace["train", one.batch_size]))
    for capability in args.compile:
        started = time.perf_counter()
        report(apart(compiled, cases, capability, args.processes, True), capability, time.perf_counter() - started)
    common.save(args, "counts", rows)


def case(arch: str, precision: str) -> Case:
    return Case.named(arch, DATASETS.get(arch, "cifar100"), precision)


def figures(one: Case, trace: dict[tuple[str, int], list[Launch]]) -> list[Row]:
    """Return a row for a step of each size, and one for an evaluation of all test images."""
    rows = [total(steps) | {"what": f"a step of {size}"} for (phase, size), steps in trace.items() if phase == "train"]
    batches = {size: steps for (phase, size), steps in trace.items() if phase == "test"}
    times = {size: one.test_images // max(batches) if size == max(batches) else 1 for size in batches}
    rows.append(total([each for size in batches for each in batches[size] * times[size]]) | {"what": "an evaluation"})
    return [{"arch": one.arch, "precision": one.precision, **row} for row in rows]


def total(steps: Sequence[Launch]) -> Row:
    return {"launches": sum(each.launches for each in steps), "gb": sum(each.bytes for each in steps) / 1e9}


def by_kernel(steps: Sequence[Launch]) -> list[Row]:
    """Return a row for each kernel, the one that moves most first."""
    names = {each.name for each in steps}
    rows = [total([each for each in steps if each.name == name]) | {"name": name} for name in names]
    return sorted(rows, key=lambda row: (-row["gb"], row["name"]))


def report(found: Sequence[Compiled], capability: int, seconds: float) -> None:
    new = [one.seconds for one in found if not one.cached]
    print(f"sm_{capability}: {len(found)} kernels in {seconds:.1f} s; {len(new)} new, which took {sum(new):.1f} s")
    for one in found:
        if one.problem:
            print(f"  {one.kernel} {one.problem}")


if __name__ == "__main__":
    main()
