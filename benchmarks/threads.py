"""Whether a CPU's cores serve more images as one trial with many threads, or as many trials with one thread each.

    python -m benchmarks.threads [--arch resnet56 vgg16bn mobilenetv2] [--cores 2] [--output FILE]

An epoch of each arrangement in turn, several rounds. `resources.cpus_per_trial` defaults to what is better here.
"""

from __future__ import annotations

import argparse
import os
import statistics
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks import record
from benchmarks.throughput import Contender, ours


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--arch", nargs="+", default=["resnet56", "vgg16bn", "mobilenetv2"])
    parser.add_argument("--cores", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, default=768)
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()

    rows = [measure(arch, args) for arch in args.arch]
    table = Table("arch", f"1 trial, {args.cores} threads", f"{args.cores} trials, 1 thread", "ratio (min-max)")
    for row in rows:
        spread = f"{min(row['ratios']):.2f}-{max(row['ratios']):.2f}"
        rates = f"{row['threads']:,.0f} images/s", f"{row['trials']:,.0f} images/s"
        table.add_row(row["arch"], *rates, f"{statistics.median(row['ratios']):.2f} ({spread})")
    Console().print(table)
    if args.output:
        record.save(args.output, "threads", rows)


def measure(arch: str, args: argparse.Namespace) -> dict[str, Any]:
    teams = {"threads": (1, args.cores), "trials": (args.cores, 1)}
    shared = {"images": args.images, "rounds": args.rounds, "compile": False}
    contenders = {
        name: [Contender(ours, arch, "fp32", argparse.Namespace(**shared, threads=threads)) for _ in range(trials)]
        for name, (trials, threads) in teams.items()
    }
    rates: dict[str, list[float]] = {name: [] for name in teams}
    for number in range(args.rounds + 1):
        for name, team in contenders.items():
            for contender in team:
                contender.start("epoch")
            seconds = max([contender.finish() for contender in team])
            if number:
                rates[name].append(len(team) * args.images / seconds)
    for contender in (contender for team in contenders.values() for contender in team):
        contender.stop()
    ratios = [many / one for many, one in zip(rates["trials"], rates["threads"], strict=True)]
    return {"arch": arch, **{name: statistics.median(found) for name, found in rates.items()}, "ratios": ratios}


if __name__ == "__main__":
    main()
