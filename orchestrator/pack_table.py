"""How fast packs are by GPU type: the table `packs.csv`, which ships with the project, and what a row of it says.

    gpu            the GPU's name in CUDA's words; a slice of one (MIG) has a name of its own
    gpu_memory_mb  all of its memory, in MiB
    kernels        what computed: `search_spaces.kernels.used`
    torch          its version, major.minor
    arch, batch_size, precision
    size           trials side by side
    images_per_s   trained by all of them, with an evaluation on about a fifth as many
    memory_mb      of all of them at the peak, in MiB
    measured       the date
    commit         of this project

The dataset is no column: every network sees 32x32 images of three channels, however many there are, and a head of 100
classes and not 10 is a thousandth of its work. Rows come from `python -m benchmarks.packs --into-table FILE`, and from
nowhere else. Imports nothing of the project.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

Row = Mapping[str, Any]

TABLE = Path(__file__).with_name("packs.csv")
CONDITIONS = ("gpu", "gpu_memory_mb", "kernels", "torch")  # what numbers depend on beside the trial
TRIAL = ("arch", "batch_size", "precision")
KEY = CONDITIONS + TRIAL
NUMBERS = {"gpu_memory_mb": float, "batch_size": int, "size": int, "images_per_s": float, "memory_mb": float}
COLUMNS: tuple[str, ...] = (*KEY, "size", "images_per_s", "memory_mb", "measured", "commit")

SAME_MEMORY = 0.05  # drivers keep a little more or less to themselves; models of one name differ by a third at least


def read(path: Path = TABLE) -> list[dict[str, Any]]:
    with path.open(encoding="utf-8", newline="") as file:
        return [{name: NUMBERS.get(name, str)(row[name]) for name in COLUMNS} for row in csv.DictReader(file)]


def write(rows: Iterable[Row], path: Path = TABLE) -> None:
    """Write a table, in an order that does not depend on that of the rows."""
    with path.open("w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, COLUMNS, extrasaction="ignore", lineterminator="\n")
        table.writeheader()
        for row in sorted(rows, key=lambda row: (*(str(row[name]) for name in KEY), row["size"])):
            table.writerow(
                {name: round(value, 1) if isinstance(value, float) else value for name, value in row.items()}
            )


def find(rows: Iterable[Row], wanted: Row) -> list[Row]:
    """Return the rows of the GPU type, the kernels, the torch and the kind of trial that `wanted` has, by size."""
    return sorted((row for row in rows if _same(row, wanted)), key=lambda row: row["size"])


def merge(rows: Iterable[Row], new: Sequence[Row]) -> list[Row]:
    """Return a table with new rows, which replace all that it had of the same key."""
    return [*(row for row in rows if not any(_same(row, other) for other in new)), *new]


def _same(row: Row, other: Row) -> bool:
    exact = (name for name in KEY if name != "gpu_memory_mb")
    return all(row[name] == other[name] for name in exact) and math.isclose(
        row["gpu_memory_mb"], other["gpu_memory_mb"], rel_tol=SAME_MEMORY
    )
