"""Which trials share a process: the missing ones, in packs of one architecture, one dataset and one code.

One code is the built-in pools together, or a user's file by itself: whatever a file does to the process that runs
it, no trial of another code is in there.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from results.store.folder import RunFolder
from search_spaces.grid import Planned
from search_spaces.messages import log

Pack = Sequence[Planned]
PairKey = tuple[str, str]
K = TypeVar("K")

MOST = 16  # trials that `auto` tries side by side
GAIN = 1.03  # a larger pack must be worth its memory, and the trials that it takes with it when it dies


def group(todo: Sequence[Planned], size_of: Callable[[PairKey], int], gpus: int = 1) -> list[list[Planned]]:
    """Return the packs of the trials that are to run, in the order in which they should start.

    Trials keep their order, seeds outermost, so that packs that have ended are whole comparisons. The packs of a pair
    and a code are of one size, give or take one: at most `size_of` the (arch, dataset), and at most a GPU's equal share
    of all trials.
    """
    fair = math.ceil(len(todo) / max(1, gpus))
    packs = []
    for pair, of_pair in by_pair(todo).items():
        for trials in _by(of_pair, lambda planned: planned.trial.pool.code).values():
            count = math.ceil(len(trials) / min(size_of(pair), fair))
            bounds = [round(i * len(trials) / count) for i in range(count + 1)]
            packs += [trials[start:end] for start, end in itertools.pairwise(bounds)]
    position = {planned.place: index for index, planned in enumerate(todo)}
    return sorted(packs, key=lambda pack: position[pack[0].place])


def by_pair(todo: Sequence[Planned]) -> dict[PairKey, list[Planned]]:
    """Return {(arch, dataset): its trials}, both in order of appearance."""
    return _by(todo, lambda planned: (planned.trial.arch, planned.trial.dataset))


def _by(todo: Sequence[Planned], key: Callable[[Planned], K]) -> dict[K, list[Planned]]:
    found: dict[K, list[Planned]] = {}
    for planned in todo:
        found.setdefault(key(planned), []).append(planned)
    return found


def measured_sizes(
    todo: Sequence[Planned],
    run: RunFolder,
    device: str,
    measure: Callable[[Pack], list[dict[str, Any]]],
) -> dict[PairKey, int]:
    """Return {(arch, dataset): the pack size that is best on a device}: measured once, recorded in the run folder.

    Args:
        measure: {size, images_per_s, memory_mb} of packs of the given trials, of one pair and code, at several sizes.
    """
    known = run.pack_sizes.read()
    sizes = {}
    for pair, trials in by_pair(todo).items():
        name, recipe = "-".join(pair), trials[0].trial.recipe
        key = f"{name}, batch {recipe.batch_size}, {recipe.precision}, {device}"
        if key not in known:
            log.info(f"measuring how many trials of {name} to train side by side ...")
            code = trials[0].trial.pool.code
            known[key] = measure([planned for planned in trials if planned.trial.pool.code == code])
            run.pack_sizes.write(known)
        sizes[pair] = best(known[key])
        rates = ", ".join(f"{m['size']}: {m['images_per_s']:,.0f}" for m in known[key]) or "none fits"
        log.info(f"{name}: {sizes[pair]} side by side (images/s by how many: {rates})")
    return sizes


def best(measurements: Sequence[Mapping[str, Any]]) -> int:
    """Return the pack size to take: the smallest within `GAIN` of the fastest; 1 if there is none."""
    enough = max((found["images_per_s"] for found in measurements), default=0.0) / GAIN
    return min((found["size"] for found in measurements if found["images_per_s"] >= enough), default=1)
