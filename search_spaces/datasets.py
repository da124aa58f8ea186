"""The datasets that there are, by name, and what is fixed about each. Plain data: `trainer.data` reads them."""

from __future__ import annotations

from dataclasses import dataclass

from search_spaces.errors import require


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


def get(name: str) -> DatasetSpec:
    """Return the dataset of that name; raise a RequestError with the nearest if there is none."""
    return DATASETS[require("dataset", name, DATASETS)]
