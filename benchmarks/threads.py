"""Whether a CPU's cores serve more images as one trial with many threads, or as many trials with one thread each.

    python -m benchmarks.threads [--arch resnet56 vgg16bn mobilenetv2] [--cores 2] [--output FILE]

An epoch of each arrangement in turn, several rounds. `resources.cpus_per_trial` defaults to what is better here.
"""

from __future__ import annotations

import argparse
import os
import statistics

from benchmarks import common
from benchmarks.common import Row
from benchmarks.throughput import Contender, ours


def main() -> None:
    parser = common.options(__doc__)
    parser.add_argument("--arch", nargs="+", default=common.ARCHS)
    parser.add_argument("--cores", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, default=768)
    args = parser.parse_args()
    rows = [measure(arch, args) for arch in args.arch]
    columns = {
        "arch": "{arch}",
        f"1 trial, {args.cores} threads": "{threads:,.0f} images/s",
        f"{args.cores} trials, 1 thread": "{trials:,.0f} images/s",
        "ratio (min-max)": "{ratio}",
    }
    common.show(columns, rows)
    common.save(args, "threads", rows)


def measure(arch: str, args: argparse.Namespace) -> Row:
    def team(trials: int, threads: int) -> list[Contender]:
        settings = argparse.Namespace(images=args.images, rounds=args.rounds, compile=False, threads=threads)
        return [Contender(ours, arch, "fp32", settings) for _ in range(trials)]

    teams = {"threads": team(1, args.cores), "trials": team(args.cores, 1)}
    rates: dict[str, list[float]] = {name: [] for name in teams}
    for _ in range(args.rounds + 1):
        for name, contenders in teams.items():
            for contender in contenders:
                contender.start("epoch")
            seconds = max([contender.finish() for contender in contenders])
            rates[name].append(len(contenders) * args.images / seconds)
    for contender in (*teams["threads"], *teams["trials"]):
        contender.stop()
    rates = {name: found[1:] for name, found in rates.items()}  # the first round warms up
    ratios = common.ratios(rates["trials"], rates["threads"])
    medians = {name: statistics.median(found) for name, found in rates.items()}
    return {"arch": arch, **medians, "ratios": ratios, "ratio": common.spread(ratios)}


if __name__ == "__main__":
    main()
