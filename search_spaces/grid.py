"""The set of trials that a run was asked for, as plain data.

The search space writes it into the run folder and the table reads it back, so both mean the same trials without knowing
each other.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_args

from pydantic import ConfigDict, Field, Strict

from search_spaces.errors import RequestError
from search_spaces.pool import Pool, PoolForm
from search_spaces.recipe import Recipe
from search_spaces.trial import PROTOCOL, Trial
from search_spaces.validation import Form, Line, Name, Seed, validate

BASELINE = "baseline"
CANDIDATE = "candidate"
Role = Literal["baseline", "candidate"]
ROLES = get_args(Role)
MOST_TRIALS = 1_000_000  # of a grid: a plan of as many takes 9 s and 820 MiB


@dataclass(frozen=True, slots=True)
class Pair:
    """An architecture on a dataset; a hidden one is trained for final submissions only."""

    arch: Name  # which become part of files' names
    dataset: Name
    hidden: Annotated[bool, Strict()] = False

    __pydantic_config__ = ConfigDict(strict=False)  # a form's strictness would let no mapping be a pair

    def __str__(self) -> str:
        return f"{self.arch}-{self.dataset}"


@dataclass(frozen=True, slots=True)
class Entry:
    """A pool and the part that it plays in the table: `baseline` or `candidate`."""

    pool: Pool
    role: str = CANDIDATE


@dataclass(frozen=True, slots=True)
class Planned:
    """A trial, with what the table has to know beyond its identity.

    Attributes:
        place: its position in the grid, as indices (entry, pair, seed): `grid.at(place)` returns it.
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
        """Yield every trial, seeds outermost: a sweep that is cut short leaves whole comparisons, not half a table."""
        for seed, pair, entry in itertools.product(*map(range, map(len, (self.seeds, self.pairs, self.entries)))):
            yield self.at((entry, pair, seed))

    def at(self, place: tuple[int, int, int]) -> Planned:
        """Return the trial at these indices (entry, pair, seed)."""
        entry, pair, seed = self.entries[place[0]], self.pairs[place[1]], self.seeds[place[2]]
        trial = Trial(entry.pool, pair.arch, pair.dataset, seed, self.recipe, self.protocol)
        return Planned(trial, entry.role, pair.hidden, place)

    def select(
        self,
        only: Mapping[str, Sequence[str]] | None = None,
        *,
        final: bool = False,
        submitted: Collection[PoolKey] = (),
    ) -> list[Planned]:
        """Return the trials of a part of the grid, in order.

        Args:
            only: {key of `FILTERS`: values}; trials that have none of them for any key are left out.
            final: take those on hidden pairs too, of baselines and of candidates that were submitted.
            submitted: the keys of these candidates' pools.
        """
        return [
            planned
            for planned in self
            if (not planned.hidden or (final and (planned.role == BASELINE or planned.trial.pool.key in submitted)))
            and all(FILTERS[key](planned) in values for key, values in (only or {}).items())
        ]

    def with_candidates(self, pools: Iterable[Pool]) -> Grid:
        """Return this grid with those of the pools that it lacks added as candidates."""
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
        """Return the grid that `to_dict` wrote; raise a RequestError with every problem if it did not."""
        form = validate(_Form, data, {"recipe": Recipe})
        entries = tuple(Entry(entry.pool(), entry.role) for entry in form.pools)
        grid = cls(form.name, entries, tuple(form.pairs), tuple(form.seeds), form.recipe, form.protocol)
        if len(grid) > MOST_TRIALS:
            raise RequestError.of(f"expected at most {MOST_TRIALS:,} trials, got {len(grid):,}")
        return grid


class _Entry(PoolForm):
    role: Role


class _Form(Form):
    name: Line
    protocol: Annotated[int, Field(ge=1)] = 1  # under which it was not written down
    recipe: Recipe
    pairs: list[Pair]
    pools: list[_Entry]
    seeds: list[Seed]
