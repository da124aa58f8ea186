"""The trials that stages measure, over random images."""

from __future__ import annotations

from typing import Any

import torch

from benchmarks.throughput import random_images
from search_spaces import pool
from search_spaces.recipe import Recipe
from search_spaces.trial import Trial
from trainer.augment import Images

POOLS = ("gap", "gem", "avg_max", "global_max")  # that packs take in turn


def trial(arch: str, spec: str = "gap", seed: int = 0, precision: str = "bf16", **recipe: Any) -> Trial:
    return Trial(pool.expand(spec)[0], arch, "random", seed, Recipe(precision=precision, **recipe))


def images(train: int, test: int, device: torch.device) -> Images:
    return Images(random_images(train, test), device)
