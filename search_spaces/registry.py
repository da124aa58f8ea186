"""The architectures, datasets and built-in pools, by name. Plain data: nothing is imported or run for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from search_spaces.errors import RequestError, unknown

POOLS = Path(__file__).parents[1] / "trainer" / "pools"


@dataclass(frozen=True, slots=True)
class Arch:
    """An architecture without its pool.

    Attributes:
        family: the module of `trainer/archs` that builds it, with these `arguments`.
        feature_map: (C, H, W) of the pool's input for a 32x32 image.
    """

    family: str
    feature_map: tuple[int, int, int]
    arguments: Mapping[str, Any] = field(default_factory=dict)

    @property
    def channels(self) -> int:
        return self.feature_map[0]


ARCHS: dict[str, Arch] = {
    **{f"resnet{depth}": Arch("resnet", (64, 8, 8), {"depth": depth}) for depth in (20, 32, 44, 56, 110)},
    **{f"vgg{depth}bn": Arch("vgg", (512, 1, 1), {"depth": depth}) for depth in (11, 13, 16, 19)},
    "mobilenetv2": Arch("mobilenetv2", (1280, 4, 4)),
    # The other reading of the benchmark's, until it is measured which of the two comes to the published 94.5 %.
    "mobilenetv2_2x2": Arch("mobilenetv2", (1280, 2, 2), {"strides": (1, 2, 2, 2, 1, 2, 1)}),
    # The strides of ImageNet, 32 in all: a map of one position, and a fifteenth of the arithmetic.
    "mobilenetv2_s32": Arch("mobilenetv2", (1280, 1, 1), {"stem": 2, "strides": (1, 2, 2, 2, 1, 2, 1)}),
}


@dataclass(frozen=True, slots=True)
class DatasetSpec:
    """Where a dataset comes from, and what is fixed about it.

    Attributes:
        classes: the number of classes.
        flip: whether a horizontal flip is part of its augmentation. A mirrored digit is another digit or none.
        called: possible names of the folder with its Parquet files; the first is the one to recommend.
        labels: possible names of their column of labels; the first that exists is read.
        torchvision: its class in `torchvision.datasets`; None if there is none.
    """

    classes: int
    flip: bool = True
    called: tuple[str, ...] = ()
    labels: tuple[str, ...] = ("label",)
    torchvision: str | None = None


DATASETS: dict[str, DatasetSpec] = {
    "cifar10": DatasetSpec(10, called=("cifar10",), torchvision="CIFAR10"),
    "cifar100": DatasetSpec(100, called=("cifar100",), labels=("fine_label", "label"), torchvision="CIFAR100"),
    "fmnist": DatasetSpec(10, called=("fashion_mnist", "fmnist"), torchvision="FashionMNIST"),
    "digits": DatasetSpec(10, flip=False),
}


def arch(name: str) -> Arch:
    """Return the architecture of that name.

    Raises:
        RequestError: there is none; names the nearest and lists them all.
    """
    if name not in ARCHS:
        raise RequestError.of(unknown("architecture", name, ARCHS))
    return ARCHS[name]


def dataset(name: str) -> DatasetSpec:
    """Return what is fixed about the dataset of that name.

    Raises:
        RequestError: there is none; names the nearest and lists them all.
    """
    if name not in DATASETS:
        raise RequestError.of(unknown("dataset", name, DATASETS))
    return DATASETS[name]


@cache
def pools() -> tuple[str, ...]:
    """Return the names of the built-in pools: the files of `trainer/pools`."""
    return tuple(sorted(path.stem for path in POOLS.glob("*.py") if not path.stem.startswith("_")))
