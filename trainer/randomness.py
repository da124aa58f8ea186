"""Randomness as a pure function of (seed, purpose, epoch).

Nothing here depends on what was drawn before, so two pools with one seed see the same batches, a resumed trial goes
on as if it had not stopped, and no trial depends on its neighbours. Keys go through numpy's SeedSequence, which is made
to turn structured keys into independent streams.
"""

from __future__ import annotations

import contextlib
import enum
import random
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
def seeded(seed: int, purpose: Purpose, epoch: int = 0, device: torch.device | None = None) -> Iterator[None]:
    """Every global generator that a pool may draw from, torch's, numpy's and Python's, seeded within the block.

    They are put back as they were after it. `device` is where torch draws, beside the CPU.
    """
    key = int(generator(seed, purpose, epoch).integers(2**63))
    python, legacy_numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[device] if device and device.type == "cuda" else []):
        torch.manual_seed(key)
        random.seed(key)
        np.random.seed(key % 2**32)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(legacy_numpy)
