"""Several run folders asked as one: which they are, and the grid that they have together."""

from __future__ import annotations

import glob
import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from results.store import s3
from results.store.folder import RunFolder
from results.store.s3 import ObjectStore, is_uri
from search_spaces.errors import Problem, RequestError
from search_spaces.grid import Entry, Grid, Pair, Planned

Place = tuple[int, int, int]


def find(asked: Sequence[str | Path]) -> dict[str, RunFolder]:
    """{path as given, or as a pattern finds it: the folder}, each folder once; for a URI, without what is secret in it.

    Raises:
        RequestError: with every path that is no run folder, and every pattern that finds none.
    """
    found: dict[str, RunFolder] = {}
    problems = []
    for path in map(str, asked):
        try:
            here = _at(path)
        except RequestError as error:
            problems += error.problems
            continue
        known = {folder.where for folder in found.values()}
        new = {one: folder for one, folder in here.items() if folder.where not in known}
        found |= {one if folder.on_disk else str(folder): folder for one, folder in new.items()}
    if problems or not found:
        raise RequestError(problems or [Problem("", "give the --out of a sweep, a pattern such as runs/*, or several")])
    return found


def is_pattern(path: str | Path) -> bool:
    """Whether to look for folders by it; one that is there is itself, whatever it is called."""
    if is_uri(path):
        return s3.is_pattern(str(path))
    return glob.has_magic(str(path)) and not Path(path).is_dir()


def union(grids: Iterable[Grid | None]) -> Grid | None:
    """What any of the grids asks for, in order; labels, roles and hidden pairs as the first has them.

    None if there is none, or if they are of several recipes or protocols, for which no one grid can stand.
    """
    all_of_them = [grid for grid in grids if grid is not None]
    if len(all_of_them) < 2:
        return all_of_them[0] if all_of_them else None
    if len({(grid.recipe, grid.protocol) for grid in all_of_them}) > 1:
        return None
    entries: dict[tuple[str, str, str], Entry] = {}
    pairs: dict[tuple[str, str], Pair] = {}
    for grid in all_of_them:
        for entry in grid.entries:
            entries.setdefault(entry.pool.key, entry)
        for pair in grid.pairs:
            pairs.setdefault((pair.arch, pair.dataset), pair)
    seeds = tuple(dict.fromkeys(seed for grid in all_of_them for seed in grid.seeds))
    entry_at = {key: at for at, key in enumerate(entries)}
    pair_at = {key: at for at, key in enumerate(pairs)}
    seed_at = {seed: at for at, seed in enumerate(seeds)}
    places: dict[Place, None] = {}
    for grid in all_of_them:
        mine = itertools.product(
            (seed_at[seed] for seed in grid.seeds),
            [pair_at[pair.arch, pair.dataset] for pair in grid.pairs],
            [entry_at[entry.pool.key] for entry in grid.entries],
        )
        places |= dict.fromkeys((entry, pair, seed) for seed, pair, entry in mine)
    first = all_of_them[0]
    parts = tuple(entries.values()), tuple(pairs.values()), seeds
    return _Union(first.name, *parts, first.recipe, first.protocol, places=tuple(places))


@dataclass(frozen=True, slots=True)
class _Union(Grid):
    """Of the product of its parts only what one of the grids asked for: nobody misses the rest."""

    places: tuple[Place, ...] = ()

    def __len__(self) -> int:
        return len(self.places)

    def __iter__(self) -> Iterator[Planned]:
        return map(self.at, self.places)


def _at(path: str) -> dict[str, RunFolder]:
    """{path: the run folder} of all that are there.

    Raises:
        RequestError: there is none.
    """
    if not is_pattern(path):
        folder = RunFolder(path)
        if not folder.exists():
            shown = folder if is_uri(path) else path
            raise RequestError.of(f"{shown} is no run folder: it has no `trials` in it; give the --out of a sweep")
        return {path: folder}
    if is_uri(path):
        like, shown = s3.find(path), ObjectStore(path).spell()
    else:
        like, shown = sorted(glob.glob(path)), path  # noqa: PTH207 - Path.glob takes no absolute one
    here = {one: folder for one in like if (folder := RunFolder(one)).exists()}
    if not here:
        raise RequestError.of(f"{shown} finds no run folder, that is one with `trials` in it")
    return here
