"""A pool where an architecture puts it: fresh modules, and maps to give them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from search_spaces import architectures
from search_spaces.pool import Pool
from trainer import pools
from trainer.network import materialise
from trainer.randomness import Purpose, seeded

Shape = tuple[int, int, int]
BATCH = 4


@dataclass(frozen=True)
class Case:
    """A pool under validation.

    Attributes:
        pool: from the registry or a file; or, instead, a function that makes the module, given `channels` if it takes
            that.
        half: whether the recipe trains under bf16 autocast.
    """

    pool: Pool | Callable[..., nn.Module]
    arch: str
    half: bool = False
    _built: dict[tuple[int, Shape], nn.Module] = field(default_factory=dict)

    @property
    def shape(self) -> Shape:
        """(C, H, W) of the architecture's feature map."""
        return architectures.get(self.arch).feature_map

    def construct(self) -> nn.Module:
        """Return a fresh one, before the dry pass."""
        with seeded(0, Purpose.POOL):
            return pools.build(self.pool, self.shape[0])

    def build(self, seed: int = 0, shape: Shape | None = None) -> nn.Module:
        """Return a fresh one, as a trial gets it: after the dry pass in which late parameters come to life."""
        key = seed, shape or self.shape
        if key not in self._built:
            with seeded(seed, Purpose.POOL):
                self._built[key] = materialise(pools.build(self.pool, self.shape[0]), key[1])
        try:
            made = copy.deepcopy(self._built[key])  # initial weights take longer: 60 ms for attention at 1280 channels
        except Exception:  # some modules cannot be copied, which no trial needs
            return self._built.pop(key)
        # A scripted module's copy has parameters that no gradient reaches.
        return made if all(parameter.is_leaf for parameter in made.parameters()) else self._built.pop(key)

    def maps(self, kind: str = "random", shape: Shape | None = None, batch: int = BATCH) -> Tensor:
        """Return [B, C, H, W] as a ReLU leaves it, channels last; `large` is a thousand times `random`."""
        size = (batch, *(shape or self.shape))
        random = torch.randn(size, generator=torch.Generator().manual_seed(0)).relu_()
        made = {"random": random, "constant": torch.full(size, 0.7), "zero": torch.zeros(size), "large": 1e3 * random}
        return made[kind].to(memory_format=torch.channels_last)


def forward(module: nn.Module, maps: Tensor) -> tuple[Tensor, Tensor]:
    """Return the output, and the input that its gradient goes to."""
    inputs = maps.clone(memory_format=torch.preserve_format).requires_grad_()
    return module(inputs * 1), inputs  # a leaf cannot be changed in place, and a pool's input in the network is none
