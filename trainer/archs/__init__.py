"""Architectures: a family a file, with `features(...)`, its `last(...)` layer and `head(channels, classes)`."""

from __future__ import annotations

import importlib
import sys
import types
from typing import TYPE_CHECKING, Any

from search_spaces.registry import Arch

if TYPE_CHECKING:
    from torch import nn


def _import_torchvision() -> None:
    """Imports torchvision without torch._dynamo, which only torch.compile needs: 0.4 s instead of 3.3 in every process.

    One of torchvision's files imports a predicate from it, which no architecture calls. A stand-in answers to that name
    while torchvision is imported, and finds the real one when it is called.
    """
    if "torch._dynamo" in sys.modules or "torchvision" in sys.modules:
        return
    package, utils = types.ModuleType("torch._dynamo"), types.ModuleType("torch._dynamo.utils")
    package.__path__ = []
    utils.is_compile_supported = _is_compile_supported  # type: ignore[attr-defined]
    stand_ins = {package.__name__: package, utils.__name__: utils}
    sys.modules.update(stand_ins)
    try:
        import torchvision  # noqa: F401
    except ImportError:  # another version, that needs more of it: imported as it is by whoever comes next
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
    finally:
        for name in stand_ins:
            sys.modules.pop(name, None)


def _is_compile_supported(device_type: str) -> bool:
    from torch._dynamo.utils import is_compile_supported

    return is_compile_supported(device_type)


_import_torchvision()


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
