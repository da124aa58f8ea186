"""What a GPU makes of a training step: eager, as a CUDA graph, and as 2, 4, 8 and 16 graphs side by side.

    python -m benchmarks.packs [--arch ...] [--precision tf32 bf16 fp32] [--time-budget SECONDS] [--output FILE]

Each row is an epoch of 100 steps of 128 images, evaluation on a fifth as many included, after an epoch that warms up,
of trials with different pools and seeds. `ms a step` is the wall time of that epoch by the steps of all trials in it:
it is what a step costs, whatever runs beside it. `trials/h` is that pace over 200 epochs of 50,000 images. What all
else is compared with comes first (a trial alone, eagerly, then as graphs in either memory layout), then packs, each
grown for as long as that pays: a budget of seconds cuts the least of it. The images are random bytes in the shape of
CIFAR-100. Runs on a CPU too, where there are no graphs and a pack gains nothing.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks import record
from benchmarks.throughput import random_images
from orchestrator.packs import GAIN
from search_spaces import pool
from search_spaces.recipe import PRECISIONS, Recipe
from search_spaces.trial import Trial
from trainer.augment import Images
from trainer.device.execution import default_device
from trainer.packs import Measurement, grow, while_it_pays

EPOCHS, TRAIN_IMAGES = 200, 50_000  # of a whole trial
POOLS = ["gap", "gem", "avg_max", "global_max"]
ALONE = [(False, True), (True, False)]  # (graphs, channels last); as graphs and channels last is a pack of one
LEADERBOARD = {"resnet56": 12, "vgg16bn": 12, "mobilenetv2": 12 * 1.2}  # trials of pools.yaml; 60,000 images are 1.2


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--arch", nargs="+", default=["resnet56", "vgg16bn", "mobilenetv2"])
    parser.add_argument("--precision", nargs="+", choices=PRECISIONS, default=["tf32", "bf16", "fp32"])
    parser.add_argument("--sizes", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    parser.add_argument("--images", type=int, default=12_800, help="training, an epoch; a fifth more to test")
    parser.add_argument("--time-budget", metavar="SECONDS", type=float, default=float("inf"), help="then no new row")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--output", type=Path, help="written after every row")
    args = parser.parse_args()

    rows: list[dict[str, Any]] = []
    settings = {name: value for name, value in vars(args).items() if name != "output"}
    for row in measured(args):
        rows.append(row)
        print(spelled(row), flush=True)
        if args.output:
            record.save(args.output, "packs", {"arguments": settings, "rows": rows})
    Console(width=120).print(to_table(rows))
    print("\n".join(forecast(rows)))


def measured(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The rows, what all others are compared with first; as many as there is time for."""
    device = default_device()
    images = Images(random_images(args.images, args.images // 5), device)
    ends = time.monotonic() + args.time_budget
    kinds = [(arch, precision) for precision in args.precision for arch in args.arch]
    packs = {"graphs": device.type == "cuda", "channels_last": True}, args.sizes
    alone = [({"graphs": graphs, "channels_last": last}, [1]) for graphs, last in ALONE if device.type == "cuda"]
    for settings, sizes in [*alone, packs]:
        for arch, precision in kinds:
            in_time = itertools.takewhile(lambda _: time.monotonic() < ends, sizes)
            growing = grow(endless(arch, precision), images, in_time, compiled=args.compile, **settings)
            for found in while_it_pays(growing, GAIN):
                yield {"arch": arch, "precision": precision, **settings, **figures(found, images)}
    if time.monotonic() > ends:
        print("the time was used up before all was measured", file=sys.stderr)


def endless(arch: str, precision: str) -> Iterator[Trial]:
    """Trials of different pools and seeds."""
    recipe = Recipe(epochs=EPOCHS, precision=precision)
    for seed, spec in enumerate(itertools.cycle(POOLS)):
        yield Trial(pool.expand(spec)[0], arch, "cifar100", seed, recipe)


def figures(found: Measurement, images: Images) -> dict[str, Any]:
    steps = found.size * -(-len(images.train_labels) // Recipe().batch_size)
    return {
        **dataclasses.asdict(found),
        "ms_a_step": 1000 * found.epoch_s / steps,
        "trials_per_hour": 3600 * found.images_per_s / (EPOCHS * TRAIN_IMAGES),
    }


def spelled(row: dict[str, Any]) -> str:
    return f"{row['arch']} {row['precision']} {_way(row)}: {row['ms_a_step']:.3f} ms a step"


def _way(row: dict[str, Any]) -> str:
    alone = ("graph" if row["graphs"] else "eager") + (", channels first" if not row["channels_last"] else "")
    return f"{row['size']} side by side" if row["size"] > 1 else alone


def to_table(rows: Sequence[dict[str, Any]]) -> Table:
    """By architecture and precision; `by eager` is how many times as fast as the first of them."""
    table = Table("arch", "precision", "", "ms a step", "by eager", "trials/h", "memory, MiB", "start, s")
    for (arch, precision), several in by_kind(rows).items():
        for row in several:
            memory = f"{row['memory_mb']:,.0f}" if row["memory_mb"] else ""
            by_eager = f"{several[0]['ms_a_step'] / row['ms_a_step']:.2f}"
            numbers = f"{row['ms_a_step']:.3f}", by_eager, f"{row['trials_per_hour']:,.1f}", memory
            table.add_row(arch, precision, _way(row), *numbers, f"{row['start_s']:.1f}")
    return table


def by_kind(rows: Sequence[dict[str, Any]]) -> dict[tuple[str, str], list[dict[str, Any]]]:
    """{(arch, precision): its rows}, in order."""
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in sorted(rows, key=lambda row: (row["arch"], row["precision"])):
        found.setdefault((row["arch"], row["precision"]), []).append(row)
    return found


def forecast(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    """What the 36 trials of pools.yaml take in each precision, each pair at its fastest: what to choose by."""
    kinds = by_kind(rows)
    for precision in dict.fromkeys(row["precision"] for row in rows):
        best = {
            arch: max(kinds[arch, precision], key=lambda row: row["images_per_s"])
            for arch in LEADERBOARD
            if (arch, precision) in kinds
        }
        if len(best) == len(LEADERBOARD):
            hours = sum(LEADERBOARD[arch] / row["trials_per_hour"] for arch, row in best.items())
            how = ", ".join(f"{arch} {_way(row)}" for arch, row in best.items())
            yield f"pools.yaml with hidden pairs, 36 trials, {precision}: {60 * hours:.1f} GPU minutes ({how})"


if __name__ == "__main__":
    main()
