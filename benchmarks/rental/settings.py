"""What every stage is told, and how its results are written: as they come, and never half."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from search_spaces.kernels import SWITCH

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Sizes:
    """How large everything is that is measured.

    Attributes:
        archs: in order of worth; `checked`: those that are checked.
        batch, lasts, evaluation: images a step; in the last steps of an epoch; in a step of evaluation.
        steps: of an epoch of the checks.
        packs: trials side by side.
        images: to train on in an epoch of `packs`.
        copied: bytes of the copy of `ceilings`; `square`: rows of its matrices.
        chain: kernels in a graph of `ceilings`; `streams`: that they run on.
    """

    archs: tuple[str, ...]
    checked: tuple[str, ...]
    batch: int
    lasts: tuple[int, ...]
    evaluation: int
    steps: int
    packs: tuple[int, ...]
    images: int
    copied: int
    square: int
    chain: int
    streams: tuple[int, ...]


ARCHS = ("mobilenetv2", "mobilenetv2_2x2", "resnet56", "vgg16bn")
FULL = Sizes(
    archs=ARCHS,
    checked=ARCHS,
    batch=128,
    lasts=(80, 96),  # of CIFAR-100 and Fashion-MNIST
    evaluation=1000,
    steps=50,
    packs=(1, 2, 4, 8, 16),
    images=12_800,
    copied=2**30,
    square=8192,
    chain=500,
    streams=(1, 2, 4, 8, 16),
)
REHEARSAL = Sizes(("resnet20",), ("resnet20", "vgg11bn"), 8, (4,), 8, 3, (1, 2), 32, 2**20, 64, 10, (1, 2))


@dataclass(frozen=True, slots=True)
class Settings:
    """What a stage is told.

    Attributes:
        out: the folder of the results, `$OUT`.
        data: the folder with a folder of Parquet files for each dataset.
        run: the run folder of `train`.
        deadline: in seconds since 1970, after which nothing must run.
        train_until: the same for training, which may go on when the command is over.
        table: a `packs.json` of another day, for what this one does not measure.
        packs: `train`'s, in order of worth: "arch dataset pools seeds".
        rehearse: be small, on a CPU.
    """

    out: str
    data: str
    run: str
    deadline: float
    train_until: float
    table: str | None = None
    packs: tuple[str, ...] = ()
    rehearse: bool = False

    @property
    def sizes(self) -> Sizes:
        return REHEARSAL if self.rehearse else FULL

    @property
    def left(self) -> float:
        """Seconds until the deadline."""
        return self.deadline - time.time()

    def result(self, name: str) -> Path:
        return Path(self.out) / name

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Self:
        values = json.loads(text)
        return cls(**{**values, "packs": tuple(values["packs"])})


def from_argv() -> Settings:
    """Return the settings that a stage was started with."""
    return Settings.from_json(sys.argv[1])


def write(path: Path, text: bytes) -> None:
    """Write a file whole or not at all: whenever this process is killed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    beside.write_bytes(text)
    beside.replace(path)


def write_json(path: Path, value: Any) -> None:
    write(path, (json.dumps(value, indent=1, default=str) + "\n").encode())


def read_json(path: Path | str | None, default: Any = None) -> Any:
    """Return what a file holds; the default where there is none, or no JSON."""
    try:
        return json.loads(Path(path or "").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return default


class Rows:
    """Rows of a result, of which each is on the disk and on the terminal as soon as it is there.

    Args:
        go_on: after those that are there. Otherwise they go: they are of a stage before this one.
    """

    def __init__(self, path: Path, *, go_on: bool = False):
        if not go_on:
            path.unlink(missing_ok=True)
        self._path = path
        self._rows: list[Row] = read_json(path, [])

    def __iter__(self) -> Iterator[Row]:
        return iter(self._rows)

    def add(self, row: Mapping[str, Any]) -> None:
        self._rows.append({key: _short(value) for key, value in row.items()})
        write_json(self._path, self._rows)
        print(" ".join(f"{key}={value}" for key, value in self._rows[-1].items()), flush=True)


def _short(value: Any) -> Any:
    return float(f"{value:.5g}") if isinstance(value, float) else value


@contextmanager
def without(families: str) -> Iterator[None]:
    """Have the families of kernels, by commas, switched off within the block, beside those that are already."""
    before = os.environ.get(SWITCH, "")
    os.environ[SWITCH] = ",".join(filter(None, (before, families)))
    try:
        yield
    finally:
        os.environ[SWITCH] = before
