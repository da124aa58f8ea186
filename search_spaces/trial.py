"""A trial and its id: the one identity that the sweep, the run folder and the table agree on."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from search_spaces.pool import Pool, slug
from search_spaces.recipe import Recipe

# Raised by hand whenever training semantics change, so that old and new results never mix under one id.
PROTOCOL = 2

CHANGES = {  # {protocol: what it changed}, for readers who have results of the one before
    2: (
        "the networks are the benchmark's own (MobileNetV2 with a stem of stride 1 and a 4x4 map; VGG without biases "
        "in its convolutions, and with two linear layers and dropout after the pool), initial weights are Kaiming "
        "normal everywhere, and Fashion-MNIST is enlarged to 32x32 and no longer padded"
    ),
}


@dataclass(frozen=True, slots=True)
class Trial:
    """One training run: a pool in an architecture on a dataset, from one seed, under one recipe.

    Attributes:
        protocol: what training meant when it ran. Only trials of `PROTOCOL` can be trained; others are read.
    """

    pool: Pool
    arch: str
    dataset: str
    seed: int
    recipe: Recipe
    protocol: int = PROTOCOL
    _id: str = field(default="", init=False, repr=False, compare=False)

    @property
    def id(self) -> str:
        """A readable slug, and 8 hex digits of a SHA-256 over everything that decides the result.

        Labels, roles, resources, versions and machines are not in it: they do not decide the result, or not on
        purpose, and are kept as columns. (An id from a hash of the configuration: facebookresearch/dora.)
        """
        if not self._id:  # 20 us, and a plan of 100,000 trials asks for each three times
            object.__setattr__(self, "_id", self._hashed())
        return self._id

    def _hashed(self) -> str:
        pool = json.dumps(self.pool.identity())  # as text: as a key of a cache, 1, 1.0 and True would be one
        before, after = _around_the_seed(pool, self.arch, self.dataset, self.recipe, self.protocol)
        digest = hashlib.sha256(f"{before}{self.seed}{after}".encode()).hexdigest()[:8]
        return f"{slug(self.pool.name)}-{self.arch}-{self.dataset}-s{self.seed}-{digest}"

    def __str__(self) -> str:
        return f"{self.pool.label} {self.arch}-{self.dataset} seed {self.seed}"

    def to_dict(self) -> dict[str, Any]:
        """Return the trial as plain data, in which form it travels to a worker."""
        return {
            "pool": self.pool.to_dict(),
            "arch": self.arch,
            "dataset": self.dataset,
            "seed": self.seed,
            "recipe": dataclasses.asdict(self.recipe),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Trial:
        return cls(Pool.from_dict(data["pool"]), data["arch"], data["dataset"], data["seed"], Recipe.of(data["recipe"]))


@functools.lru_cache(maxsize=1024)
def _around_the_seed(pool: str, arch: str, dataset: str, recipe: Recipe, protocol: int) -> tuple[str, str]:
    """Return the canonical JSON of an identity before and after the seed, which many trials of a grid share."""
    here = "the seed"
    identity = {
        **json.loads(pool),
        "arch": arch,
        "dataset": dataset,
        "seed": [here],
        "recipe": {name: getattr(recipe, name) for name in Recipe.__dataclass_fields__},  # `asdict` copies deeply
        "protocol": protocol,
    }
    canonical = json.dumps(identity, sort_keys=True, separators=(",", ":"), allow_nan=False)
    before, after = canonical.rsplit(f'["{here}"]', 1)  # no parameter of a pool comes after it
    return before, after
