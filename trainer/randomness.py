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
from typing import Any, Self

import numpy as np
import torch


class Purpose(enum.IntEnum):
    """What a stream of random numbers is for. The values are part of the protocol: never renumber them."""

    BATCHES = 0  # data order, crops and flips of an epoch
    BACKBONE = 1  # initial weights of the features and the head
    POOL = 2  # initial weights of the pool
    NOISE = 3  # what a pool draws while an epoch trains (stochastic pooling, dropout)
    DROPOUT = 4  # the masks of the head's own dropout while an epoch trains


def generator(seed: int, purpose: Purpose, epoch: int = 0) -> np.random.Generator:
    """Return a fresh generator, on the CPU, whatever the device."""
    return np.random.default_rng([seed, purpose, epoch])


def key(seed: int, purpose: Purpose, epoch: int = 0) -> int:
    """Return what to seed another kind of generator with, 0 to 2^63 - 1."""
    return int(generator(seed, purpose, epoch).integers(2**63))


class Noise:
    """A trial's own copies of the global generators that a pool may draw from: torch's, numpy's and Python's.

    Within `with noise:` they stand in for the global ones, which are put back as they were after it: trials that take
    turns in one process draw what they would draw alone. On CUDA, a graph that is recorded within the block draws from
    this trial's generator at every replay, wherever it is replayed.
    """

    def __init__(self, device: torch.device):
        self._device = device
        self._cuda = _default_cuda(device).clone_state() if device.type == "cuda" else None
        self._mine = self.host_state()

    def seed(self, seed: int, purpose: Purpose, epoch: int = 0) -> None:
        """Start them anew, outside the block."""
        value = key(seed, purpose, epoch)
        if self._cuda is not None:
            self._cuda.manual_seed(value)
        with self:
            torch.default_generator.manual_seed(value)
            random.seed(value)
            np.random.seed(value % 2**32)

    def __enter__(self) -> Self:
        self._theirs = self.host_state()
        self._set_host_state(self._mine)
        if self._cuda is not None:
            self._their_cuda = _default_cuda(self._device).graphsafe_get_state()
            _default_cuda(self._device).graphsafe_set_state(self._cuda)
        return self

    def __exit__(self, *error: object) -> None:
        self._mine = self.host_state()
        self._set_host_state(self._theirs)
        if self._cuda is not None:
            _default_cuda(self._device).graphsafe_set_state(self._their_cuda)

    @staticmethod
    def host_state() -> tuple[Any, ...]:
        """Return where the global generators of the CPU stand."""
        return torch.get_rng_state(), random.getstate(), np.random.get_state()

    @staticmethod
    def _set_host_state(state: tuple[Any, ...]) -> None:
        torch.set_rng_state(state[0])
        random.setstate(state[1])
        np.random.set_state(state[2])


def same(first: object, second: object) -> bool:
    """Whether two nests of tuples, tensors, arrays and plain values are equal."""
    if isinstance(first, tuple) and isinstance(second, tuple):
        return len(first) == len(second) and all(map(same, first, second))
    return bool((first == second).all()) if hasattr(first, "all") else first == second  # type: ignore[attr-defined]


@contextlib.contextmanager
def seeded(seed: int, purpose: Purpose) -> Iterator[None]:
    """Seed every global generator of the CPU within the block, and put it back as it was after it."""
    noise = Noise(torch.device("cpu"))
    noise.seed(seed, purpose)
    with noise:
        yield


def _default_cuda(device: torch.device) -> Any:
    torch.cuda.init()  # the default generators come into being with it
    return torch.cuda.default_generators[device.index or 0]
