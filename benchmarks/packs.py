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
from collections.abc import Iterator

from benchmarks import common
from benchmarks.common import ARCHS, Row
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
COLUMNS = {
    "arch": "{arch}",
    "precision": "{precision}",
    "": "{way}",
    "ms a step": "{ms_a_step:.3f}",
    "by eager": "{by_eager:.2f}",  # how many times as fast as the first of its kind
    "trials/h": "{trials_per_hour:,.1f}",
    "memory, MiB": "{memory_mb:,.0f}",
    "start, s": "{start_s:.1f}",
}


def main() -> None:
    parser = common.options(__doc__)
    parser.add_argument("--arch", nargs="+", default=ARCHS)
    parser.add_argument("--precision", nargs="+", choices=PRECISIONS, default=["tf32", "bf16", "fp32"])
    parser.add_argument("--sizes", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    parser.add_argument("--images", type=int, default=12_800, help="training, an epoch; a fifth more to test")
    parser.add_argument("--time-budget", metavar="SECONDS", type=float, default=float("inf"), help="then no new row")
    parser.add_argument("--compile", action="store_true")
    args = parser.parse_args()

    rows: list[Row] = []
    for row in measured(args):
        eager = next((one for one in rows if kind(one) == kind(row)), row)
        rows.append(row | {"by_eager": eager["ms_a_step"] / row["ms_a_step"]})
        print("{arch} {precision} {way}: {ms_a_step:.3f} ms a step".format(**row), flush=True)
        common.save(args, "packs", rows)  # after every row: the time may be up at any
    common.show(COLUMNS, sorted(rows, key=kind))


def kind(row: Row) -> tuple[str, str]:
    return row["arch"], row["precision"]


def measured(args: argparse.Namespace) -> Iterator[Row]:
    """Yield the rows, what all others are compared with first; as many as there is time for."""
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
                yield {"arch": arch, "precision": precision, **settings, **figures(found, images, **settings)}
    if time.monotonic() > ends:
        print("the time was used up before all was measured", file=sys.stderr)


def endless(arch: str, precision: str) -> Iterator[Trial]:
    """Yield trials of different pools and seeds."""
    recipe = Recipe(epochs=EPOCHS, precision=precision)
    for seed, spec in enumerate(itertools.cycle(POOLS)):
        yield Trial(pool.expand(spec)[0], arch, "cifar100", seed, recipe)


def figures(found: Measurement, images: Images, graphs: bool, channels_last: bool) -> Row:
    steps = found.size * -(-len(images.train_labels) // Recipe().batch_size)
    alone = ("graph" if graphs else "eager") + ("" if channels_last else ", channels first")
    return {
        **dataclasses.asdict(found),
        "way": f"{found.size} side by side" if found.size > 1 else alone,
        "ms_a_step": 1000 * found.epoch_s / steps,
        "trials_per_hour": 3600 * found.images_per_s / (EPOCHS * TRAIN_IMAGES),
    }


if __name__ == "__main__":
    main()
