"""The trials that stages measure, over random images."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

from benchmarks.throughput import random_images
from search_spaces import pool
from search_spaces.recipe import Recipe
from search_spaces.trial import Trial
from trainer.augment import Images


def trial(arch: str, precision: str = "bf16", **recipe: Any) -> Trial:
    return Trial(pool.expand("gap")[0], arch, "random", 0, Recipe(precision=precision, **recipe))


def images(train: int, test: int, device: torch.device) -> Images:
    return Images(random_images(train, test), device)


@contextlib.contextmanager
def searching(search: bool) -> Iterator[None]:
    """Have cuDNN time its own kernels within the block, or not."""
    torch.backends.cudnn.benchmark = search
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = False
