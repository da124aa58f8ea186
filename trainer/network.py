"""A trial's network: an architecture, with a pool in it."""

from __future__ import annotations

import torch
from torch import nn

from search_spaces import architectures
from search_spaces.architectures import Arch
from search_spaces.pool import Pool
from trainer import archs, pools
from trainer.randomness import Purpose, seeded


class Network(nn.Module):
    """`head(pool(features(x)))`: [B, 3, 32, 32] -> [B, classes]."""

    def __init__(self, features: nn.Module, pool: nn.Module, head: nn.Module):
        super().__init__()
        self.features = features
        self.pool = pool
        self.head = head

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.pool(self.features(x)))


def build(pool: Pool, arch: str, classes: int, seed: int, *, tail: bool = False) -> Network:
    """Return a network with its initial weights, on the CPU.

    The weights of features and head come from one generator and the pool's from another, so that two pools with one
    seed start from the same backbone. A pool keeps what its own constructor gave it. A dry pass brings to life the
    parameters that a pool makes in its first forward: an optimizer made before that pass would never train them.

    Args:
        tail: of the features, the last layer alone.
    """
    spec = architectures.get(arch)
    with seeded(seed, Purpose.BACKBONE):
        features = initialise(_tail(spec) if tail else archs.features(spec))
        head = initialise(archs.head(spec, classes))
    with seeded(seed, Purpose.POOL):
        module = materialise(pools.build(pool, spec.channels), spec.feature_map)
    return Network(features, module, head)


def _tail(spec: Arch) -> nn.Module:
    """Return [B, 3, 32, 32] -> [B, C, H, W], as the features are, by their last layer and next to nothing before."""
    last, (channels, *size) = archs.last(spec)
    return nn.Sequential(nn.AdaptiveAvgPool2d(tuple(size)), nn.Conv2d(3, channels, 1), last)


def initialise(module: nn.Module) -> nn.Module:
    """Return the same module with the benchmark's initial weights, drawn from torch's generator layer by layer.

    Kaiming normal for ReLU, by fan out in convolutions and by fan in in linear layers; batch norm 1 and 0, as torch
    makes it; no bias but 0. (He et al., Delving Deep into Rectifiers, ICCV 2015.)
    """
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            fan = "fan_out" if isinstance(layer, nn.Conv2d) else "fan_in"
            nn.init.kaiming_normal_(layer.weight, mode=fan, nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    return module


def materialise(pool: nn.Module, feature_map: tuple[int, int, int]) -> nn.Module:
    """Return the same pool after one pass in eval mode over a batch of two standard normal maps (C, H, W).

    Raises:
        ValueError: the pool does not map [B, C, H, W] to [B, C].
    """
    training = pool.training
    pool.eval()
    maps = torch.randn(2, *feature_map)
    with torch.no_grad():
        out = pool(maps)
    pool.train(training)
    expected = (2, feature_map[0])
    if not isinstance(out, torch.Tensor) or tuple(out.shape) != expected:
        got = tuple(out.shape) if isinstance(out, torch.Tensor) else type(out).__name__
        raise ValueError(f"expected a pool that maps {tuple(maps.shape)} to [B, C], here {expected}, got {got}")
    return pool


def count_parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
