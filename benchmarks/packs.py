"""Trials an hour for packs of 1, 2, 4, ... trials side by side in one process, on a GPU.

    python -m benchmarks.packs [--arch resnet56 vgg16bn mobilenetv2] [--precision fp32 bf16] [--output FILE]

An epoch of a pack of different pools and seeds, evaluation included, after one that warms up, times 200. The images are
random bytes in the shape and number of CIFAR-100. It runs on a CPU too, where a pack gains nothing.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks import record
from benchmarks.throughput import random_images
from trainer import pool
from trainer.augment import Images
from trainer.pack import measure
from trainer.program import default_device
from trainer.recipe import PRECISIONS, Recipe
from trainer.trial import Trial

EPOCHS = 200
POOLS = ["gap", "gem", "avg_max", "global_max"]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--arch", nargs="+", default=["resnet56", "vgg16bn", "mobilenetv2"])
    parser.add_argument("--precision", nargs="+", choices=PRECISIONS, default=["fp32", "tf32", "bf16"])
    parser.add_argument("--sizes", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    parser.add_argument("--images", type=int, default=50_000)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()

    device = default_device()
    images = Images(random_images(args.images, args.images // 5), device)
    rows = []
    table = Table("arch", "precision", "side by side", "epoch, s", "trials/h", "by one", "memory, MiB", "start, s")
    for arch, precision in itertools.product(args.arch, args.precision):
        one = None
        for size in args.sizes:
            try:
                row = measure_pack(arch, precision, size, images, args.compile)
            except torch.OutOfMemoryError:
                print(f"{arch} {precision}: {size} do not fit")
                break
            one = one or row["trials_per_hour"]
            rows.append(row | {"by_one": row["trials_per_hour"] / one})
            memory = f"{row['memory_mb']:,.0f}" if row["memory_mb"] else ""
            numbers = f"{row['epoch_s']:.2f}", f"{row['trials_per_hour']:,.1f}", f"{rows[-1]['by_one']:.2f}", memory
            table.add_row(arch, precision, str(size), *numbers, f"{row['start_s']:.1f}")
    Console(width=120).print(table)
    if args.output:
        settings = {name: value for name, value in vars(args).items() if name != "output"}
        record.save(args.output, "packs", {"arguments": settings, "rows": rows})


def measure_pack(arch: str, precision: str, size: int, images: Images, compiled: bool) -> dict[str, Any]:
    recipe = Recipe(epochs=EPOCHS, precision=precision)
    specs = itertools.islice(itertools.cycle(POOLS), size)
    trials = [Trial(pool.expand(spec)[0], arch, "cifar100", seed, recipe) for seed, spec in enumerate(specs)]
    found = measure(trials, images, compiled=compiled, say=print)
    hourly = size * 3600 / (found.epoch_s * EPOCHS)
    return {"arch": arch, "precision": precision, **dataclasses.asdict(found), "trials_per_hour": hourly}


if __name__ == "__main__":
    main()
