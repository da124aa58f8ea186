"""Architectures: a family a file, with `features(...)`, its `last(...)` layer and `head(channels, classes)`."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from search_spaces.architectures import Arch
from trainer import compat

if TYPE_CHECKING:
    from torch import nn


compat.import_torchvision()


def features(arch: Arch) -> nn.Module:
    """Build the convolutional part, [B, 3, 32, 32] -> [B, C, H, W]; `network.build` gives it its initial weights."""
    return _family(arch).features(**arch.arguments)


def last(arch: Arch) -> tuple[nn.Module, tuple[int, int, int]]:
    """Build the layer that makes the feature map, alone; and (C, H, W) of what it is given."""
    return _family(arch).last(arch.feature_map[1])


def head(arch: Arch, classes: int) -> nn.Module:
    """Build the classifier, [B, C] -> [B, classes]; `network.build` gives it its initial weights."""
    return _family(arch).head(arch.channels, classes)


def _family(arch: Arch) -> Any:
    return importlib.import_module(f"trainer.archs.{arch.family}")
