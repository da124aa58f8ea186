"""The set of trials that a run was asked for, as plain data.

The search space writes it into the run folder and the table reads it back, so that both mean the same trials without
knowing each other.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from trainer.pool import Pool
from trainer.recipe import Recipe
from trainer.trial import Trial

BASELINE = "baseline"
CANDIDATE = "candidate"
ROLES = (BASELINE, CANDIDATE)


@dataclass(frozen=True, slots=True)
class Pair:
    """An architecture on a dataset; a hidden one is trained for final submissions only."""

    arch: str
    dataset: str
    hidden: bool = False

    def __str__(self) -> str:
        return f"{self.arch}-{self.dataset}"


@dataclass(frozen=True, slots=True)
class Entry:
    """A pool and the part that it plays in the table: `baseline` or `candidate`."""

    pool: Pool
    role: str = CANDIDATE


@dataclass(frozen=True, slots=True)
class Planned:
    """A trial, with what the table has to know about it beyond its identity.

    Attributes:
        place: where it stands in the grid, (entry, pair, seed) by position: `grid.at(place)` gives it back.
    """

    trial: Trial
    role: str
    hidden: bool
    place: tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Grid:
    """Pools x pairs x seeds under one recipe."""

    name: str
    entries: tuple[Entry, ...]
    pairs: tuple[Pair, ...]
    seeds: tuple[int, ...]
    recipe: Recipe

    def __len__(self) -> int:
        return len(self.entries) * len(self.pairs) * len(self.seeds)

    def __iter__(self) -> Iterator[Planned]:
        """Seeds outermost: a sweep that is cut short leaves whole comparisons behind, not half a table."""
        for seed, pair, entry in itertools.product(*map(range, map(len, (self.seeds, self.pairs, self.entries)))):
            yield self.at((entry, pair, seed))

    def at(self, place: tuple[int, int, int]) -> Planned:
        """The trial at (entry, pair, seed), by position."""
        entry, pair, seed = self.entries[place[0]], self.pairs[place[1]], self.seeds[place[2]]
        trial = Trial(entry.pool, pair.arch, pair.dataset, seed, self.recipe)
        return Planned(trial, entry.role, pair.hidden, place)

    def with_candidates(self, pools: Iterable[Pool]) -> Grid:
        """The same, and these pools after the others where it does not have them."""
        mine = {entry.pool.key for entry in self.entries}
        more = (Entry(pool) for pool in pools if pool.key not in mine)
        return dataclasses.replace(self, entries=(*self.entries, *more))

    def to_dict(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "recipe": dataclasses.asdict(self.recipe),
            "pairs": [dataclasses.asdict(pair) for pair in self.pairs],
            "pools": [{"role": entry.role, **entry.pool.to_dict()} for entry in self.entries],
            "seeds": list(self.seeds),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Grid:
        return cls(
            data["name"],
            tuple(Entry(Pool.from_dict(pool), pool["role"]) for pool in data["pools"]),
            tuple(Pair(**pair) for pair in data["pairs"]),
            tuple(data["seeds"]),
            Recipe.of(data["recipe"]),
        )
