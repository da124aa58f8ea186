"""The set of trials that a run was asked for, as plain data.

The search space writes it into the run folder and the table reads it back, so that both mean the same trials without
knowing each other.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from search_spaces import plain
from search_spaces.errors import RequestError, gather, short, unknown
from search_spaces.pool import Pool
from search_spaces.recipe import Recipe
from search_spaces.trial import PROTOCOL, Trial

BASELINE = "baseline"
CANDIDATE = "candidate"
ROLES = (BASELINE, CANDIDATE)
MOST_TRIALS = 1_000_000  # of a grid: a plan of as many takes 9 s and 820 MiB


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


PoolKey = tuple[str, str, str]

FILTERS: Mapping[str, Callable[[Planned], str]] = {
    "pool": lambda planned: planned.trial.pool.label,
    "arch": lambda planned: planned.trial.arch,
    "dataset": lambda planned: planned.trial.dataset,
    "seed": lambda planned: str(planned.trial.seed),
    "role": lambda planned: planned.role,
}


@dataclass(frozen=True, slots=True)
class Grid:
    """Pools x pairs x seeds under one recipe, and one protocol."""

    name: str
    entries: tuple[Entry, ...]
    pairs: tuple[Pair, ...]
    seeds: tuple[int, ...]
    recipe: Recipe
    protocol: int = PROTOCOL

    def __len__(self) -> int:
        return len(self.entries) * len(self.pairs) * len(self.seeds)

    def __iter__(self) -> Iterator[Planned]:
        """Seeds outermost: a sweep that is cut short leaves whole comparisons behind, not half a table."""
        for seed, pair, entry in itertools.product(*map(range, map(len, (self.seeds, self.pairs, self.entries)))):
            yield self.at((entry, pair, seed))

    def at(self, place: tuple[int, int, int]) -> Planned:
        """The trial at (entry, pair, seed), by position."""
        entry, pair, seed = self.entries[place[0]], self.pairs[place[1]], self.seeds[place[2]]
        trial = Trial(entry.pool, pair.arch, pair.dataset, seed, self.recipe, self.protocol)
        return Planned(trial, entry.role, pair.hidden, place)

    def select(
        self, only: Mapping[str, str] | None = None, *, final: bool = False, submitted: Collection[PoolKey] = ()
    ) -> list[Planned]:
        """Return the trials of a part of the grid, in order.

        Args:
            only: {key of `FILTERS`: value}; trials that differ in any are left out.
            final: take those on hidden pairs too, of baselines and of candidates that were submitted.
            submitted: the keys of these candidates' pools.
        """
        return [
            planned
            for planned in self
            if (not planned.hidden or (final and (planned.role == BASELINE or planned.trial.pool.key in submitted)))
            and all(FILTERS[key](planned) == value for key, value in (only or {}).items())
        ]

    def with_candidates(self, pools: Iterable[Pool]) -> Grid:
        """The same, and these pools after the others where it does not have them."""
        mine = {entry.pool.key for entry in self.entries}
        more = (Entry(pool) for pool in pools if pool.key not in mine)
        return dataclasses.replace(self, entries=(*self.entries, *more))

    def to_dict(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "protocol": self.protocol,
            "recipe": dataclasses.asdict(self.recipe),
            "pairs": [dataclasses.asdict(pair) for pair in self.pairs],
            "pools": [{"role": entry.role, **entry.pool.to_dict()} for entry in self.entries],
            "seeds": list(self.seeds),
        }

    @classmethod
    def from_dict(cls, data: Any) -> Grid:
        """From `to_dict`, as it comes back from a file.

        Raises:
            RequestError: it is nothing that `to_dict` makes; with every problem.
        """
        name, protocol, entries, pairs, seeds, recipe = gather(
            ("", lambda: plain.name(data, "name")),
            ("", lambda: _protocol_from(data)),
            ("", lambda: plain.each(plain.take(data, "pools", list), _entry_from, "pools")),
            ("", lambda: plain.each(plain.take(data, "pairs", list), _pair_from, "pairs")),
            ("", lambda: plain.each(plain.take(data, "seeds", list), _seed_from, "seeds")),
            ("recipe", lambda: Recipe.of(plain.take(data, "recipe", Mapping))),
        )
        grid = cls(name, tuple(entries), tuple(pairs), tuple(seeds), recipe, protocol)
        if len(grid) > MOST_TRIALS:
            raise RequestError.of(f"found {len(grid):,} trials, allowed are {MOST_TRIALS:,}")
        return grid


def _protocol_from(data: Any) -> int:
    """Of a file that says nothing of it: 1, under which it was not written down."""
    protocol = plain.take(data, "protocol", int) if isinstance(data, Mapping) and "protocol" in data else 1
    if protocol < 1:
        raise RequestError.of(f"found {protocol}, allowed is an integer from 1", "protocol")
    return protocol


def _entry_from(data: Any) -> Entry:
    role = plain.take(data, "role", str)
    if role not in ROLES:
        raise RequestError.of(unknown("role", role, ROLES), "role")
    return Entry(Pool.from_dict(data), role)


def _pair_from(data: Any) -> Pair:
    """Its names become part of files' names, so they must be such as architectures and datasets have."""
    names = [plain.take(data, key, str) for key in ("arch", "dataset")]
    for key, name in zip(("arch", "dataset"), names, strict=True):
        if not re.fullmatch("[a-z0-9_]+", name):
            raise RequestError.of(f"found {short(name)}, allowed are lower-case letters, digits and underscores", key)
    return Pair(*names, hidden=plain.take(data, "hidden", bool))


def _seed_from(data: Any) -> int:
    seed = plain.expect(data, int)
    if not 0 <= seed < 2**63:
        raise RequestError.of(f"found {seed}, allowed is an integer from 0 to 2^63 - 1")
    return seed
