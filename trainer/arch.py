"""Architectures by name: a feature extractor for 32x32 images, an exchangeable pool, and a classifier."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from trainer.problems import RequestError, unknown

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, slots=True)
class Arch:
    """An architecture without its pool.

    Attributes:
        family: the module of `trainer/archs` whose `features(**arguments)` and `head(...)` build it.
        feature_map: (C, H, W) of what the pool is given for a 32x32 image.
    """

    family: str
    feature_map: tuple[int, int, int]
    arguments: Mapping[str, Any] = field(default_factory=dict)

    @property
    def channels(self) -> int:
        return self.feature_map[0]

    def features(self) -> nn.Module:
        """The convolutional part, [B, 3, 32, 32] -> [B, C, H, W]; `network.build` gives it its initial weights."""
        return self._module().features(**self.arguments)

    def last(self) -> tuple[nn.Module, tuple[int, int, int]]:
        """The layer that makes the feature map, alone, and (C, H, W) of what it is given."""
        return self._module().last(self.feature_map[1])

    def head(self, classes: int) -> nn.Module:
        """The classifier, [B, C] -> [B, classes]; `network.build` gives it its initial weights."""
        return self._module().head(self.channels, classes)

    def _module(self) -> Any:
        return importlib.import_module(f"trainer.archs.{self.family}")


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
    """The architecture of that name.

    Raises:
        RequestError: there is none; names the nearest and lists them all.
    """
    if name not in ARCHS:
        raise RequestError.of(unknown("architecture", name, ARCHS))
    return ARCHS[name]
