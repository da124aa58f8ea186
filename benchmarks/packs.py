"""What a GPU makes of a training step: eager, as a CUDA graph, and as 2, 4, 8 and 16 graphs side by side.

    python -m benchmarks.packs [--arch ...] [--precision tf32 bf16 fp32] [--time-budget SECONDS] [--output FILE]
    python -m benchmarks.packs --into-table FILE ...

Each row is an epoch of 100 steps of 128 images, evaluation on a fifth as many included, after an epoch that warms up,
of trials with different pools and seeds. `ms a step` is the wall time of that epoch by the steps of all trials in it:
it is what a step costs, whatever runs beside it. `trials/h` is that pace over 200 epochs of 50,000 images. What all
else is compared with comes first (a trial alone, eagerly, then as graphs in either memory layout), then packs, each
grown for as long as that pays: a budget of seconds cuts the least of it. The images are random bytes in the shape of
CIFAR-100. Runs on a CPU too, where there are no graphs and a pack gains nothing.

`--into-table` measures nothing: it takes the packs of such files, as the rental writes them too, into the table that
`trials_per_gpu: auto` starts from (`orchestrator.pack_table`).
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import sys
import time
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path

from benchmarks import common
from benchmarks.common import ARCHS, Row
from benchmarks.throughput import random_images
from orchestrator import pack_table
from orchestrator.packs import GAIN, is_whole
from search_spaces import machine, pool
from search_spaces.recipe import PRECISIONS, Recipe
from search_spaces.trial import Trial
from trainer.augment import Images
from trainer.device.execution import default_device
from trainer.packs import Measurement, conditions, grow, while_it_pays

EPOCHS, TRAIN_IMAGES, BATCH_SIZE = 200, 50_000, 128  # of a whole trial
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
    parser.add_argument("--into-table", metavar="FILE", type=Path, nargs="+", help="take in what these have; no more")
    args = parser.parse_args()

    if args.into_table:
        for path in args.into_table:
            found = json.loads(path.read_text(encoding="utf-8"))
            print(*into_table(found if isinstance(found, list) else found["results"]), sep="\n")
        return
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
            recipe = Recipe(epochs=EPOCHS, batch_size=BATCH_SIZE, precision=precision)
            growing = grow(endless(arch, recipe), images, in_time, compiled=args.compile, **settings)
            for found in while_it_pays(growing, GAIN):
                row = figures(found, images, compiled=args.compile, **settings)
                yield {"arch": arch, "precision": precision, **row}
    if time.monotonic() > ends:
        print("the time was used up before all was measured", file=sys.stderr)


def endless(arch: str, recipe: Recipe) -> Iterator[Trial]:
    """Yield trials of different pools and seeds."""
    for seed, spec in enumerate(itertools.cycle(POOLS)):
        yield Trial(pool.expand(spec)[0], arch, "cifar100", seed, recipe)


def figures(
    found: Measurement,
    images: Images,
    graphs: bool,
    channels_last: bool,
    compiled: bool = False,
    batch_size: int = BATCH_SIZE,
) -> Row:
    """Return a measurement as a row, with all that it depends on but the architecture and the precision."""
    steps = found.size * -(-len(images.train_labels) // batch_size)
    alone = ("graph" if graphs else "eager") + ("" if channels_last else ", channels first")
    depends_on = conditions(images.device, compiled)
    return {
        "graphs": graphs,
        "channels_last": channels_last,
        "batch_size": batch_size,
        **{name: depends_on[name] for name in pack_table.CONDITIONS},
        "measured": datetime.now(UTC).date().isoformat(),
        "commit": machine.commit(),
        **dataclasses.asdict(found),
        "way": f"{found.size} side by side" if found.size > 1 else alone,
        "ms_a_step": 1000 * found.epoch_s / steps,
        "trials_per_hour": 3600 * found.images_per_s / (EPOCHS * TRAIN_IMAGES),
    }


def into_table(rows: Iterable[Row], table: Path = pack_table.TABLE) -> Iterator[str]:
    """Write the packs among these rows into a table, where they replace older ones of their key; yield what was done.

    A pack that was cut short, by its time or by its GPU's memory, stays out: `auto` would take it for all there is. So
    do packs of which a size was measured twice: where one measurement ends and the other begins nobody can tell.
    """
    packs: dict[tuple[object, ...], list[Row]] = {}
    for row in rows:
        if row.get("graphs") and row["channels_last"] and not row.get("cudnn_benchmark"):
            packs.setdefault(tuple(row[name] for name in pack_table.KEY), []).append(row)
    known = pack_table.read(table)
    for key, found in packs.items():
        what = ", ".join(map(str, key))
        if len({row["size"] for row in found}) < len(found):
            yield f"left out, for a size was measured twice: {what}"
        elif is_whole(found):
            known = pack_table.merge(known, found)
            yield f"taken in: {what}: packs of {', '.join(str(row['size']) for row in found)}"
        else:
            yield f"left out, for larger packs were not measured: {what}"
    pack_table.write(known, table)


if __name__ == "__main__":
    main()
