"""Randomness as a pure function of (seed, purpose, epoch).

Nothing here depends on what was drawn before, so two pools with one seed see the same batches, a resumed trial goes
on as if it had not stopped, and no trial depends on its neighbours. Keys go through numpy's SeedSequence, which is made
to turn structured keys into independent streams.
"""

from __future__ import annotations

import contextlib
import enum
from collections.abc import Iterator

import numpy as np
import torch


class Purpose(enum.IntEnum):
    """What a stream of random numbers is for. The values are part of the protocol: never renumber them."""

    BATCHES = 0  # data order, crops and flips of an epoch
    BACKBONE = 1  # initial weights of the features and the linear layer
    POOL = 2  # initial weights of the pool
    NOISE = 3  # what a pool draws while an epoch trains (stochastic pooling, dropout)


def generator(seed: int, purpose: Purpose, epoch: int = 0) -> np.random.Generator:
    """A fresh generator, on the CPU, whatever the device."""
    return np.random.default_rng([seed, purpose, epoch])


@contextlib.contextmanager
def torch_seed(seed: int, purpose: Purpose, epoch: int = 0) -> Iterator[None]:
    """Torch's own generators, seeded for this purpose within the block and put back as they were after it."""
    with torch.random.fork_rng():
        torch.manual_seed(int(generator(seed, purpose, epoch).integers(2**63)))
        yield
