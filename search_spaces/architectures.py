"""The architectures that there are, by name. Plain data: `trainer.archs` builds them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from search_spaces.errors import require


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


def get(name: str) -> Arch:
    """Return the architecture of that name; raise a RequestError with the nearest if there is none."""
    return ARCHS[require("architecture", name, ARCHS)]
