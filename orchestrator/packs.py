"""Which trials share a process: the missing ones, in packs of one architecture, one dataset and one code.

One code is the built-in pools together, or a user's file by itself: whatever a file does to the process that runs
it, no trial of another code is in there.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from orchestrator import pack_table
from results.store.folder import RunFolder
from search_spaces.grid import Planned
from search_spaces.messages import log

Pack = Sequence[Planned]
PairKey = tuple[str, str]
Measurements = Sequence[Mapping[str, Any]]  # {size, images_per_s, memory_mb}, by size
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
    gpu: Mapping[str, Any],
    measure: Callable[[Pack], tuple[Mapping[str, Any], Measurements]],
    table: Iterable[Mapping[str, Any]],
) -> dict[PairKey, int]:
    """Return {(arch, dataset): the pack size that is best on a GPU}.

    What was measured in the run folder comes first, then the table that ships with the project (`pack_table`). What
    neither has is measured once, and recorded in the run folder.

    Args:
        gpu: `trainer.packs.conditions` of one that trials run on.
        measure: the conditions it measured under, and what it found of packs of the given trials, of one pair and code.
        table: the rows that ship.
    """
    known, shipped = run.pack_sizes.read(), list(table)
    sizes = {}
    for pair, trials in by_pair(todo).items():
        name, recipe = "-".join(pair), trials[0].trial.recipe
        kind = {"arch": pair[0], "batch_size": recipe.batch_size, "precision": recipe.precision}
        if (found := known.get(_key(name, kind, gpu))) is not None:
            source = "measured in this run folder"
        elif found := pack_table.find(shipped, {**gpu, **kind}):
            source = f"shipped: measured on {found[0]['measured']} at commit {found[0]['commit'][:10] or 'unknown'}"
        else:
            log.info(f"measuring how many trials of {name} to train side by side ...")
            code = trials[0].trial.pool.code
            where, found = measure([planned for planned in trials if planned.trial.pool.code == code])
            known[_key(name, kind, where)] = found
            run.pack_sizes.write(known)
            source = f"measured now on {where['gpu']}"
        sizes[pair] = best(found, gpu["free_mb"])
        rates = ", ".join(f"{m['size']}: {m['images_per_s']:,.0f}" for m in found) or "none fits"
        log.info(f"{name}: {sizes[pair]} side by side (images/s by how many: {rates}; {source})")
    return sizes


def _key(name: str, kind: Mapping[str, Any], gpu: Mapping[str, Any]) -> str:
    trial = f"{name}, batch {kind['batch_size']}, {kind['precision']}"
    return f"{trial}, {gpu['gpu']}, kernels {gpu['kernels']}, torch {gpu['torch']}"


def best(measurements: Measurements, free_mb: float = math.inf) -> int:
    """Return the pack size to take: the smallest within `GAIN` of the fastest that fits; 1 if there is none.

    Args:
        free_mb: of the GPU's memory. Close to it a pack may still be too large: then some of its trials wait.
    """
    fitting = [found for found in measurements if (found.get("memory_mb") or 0.0) <= free_mb]
    enough = max((found["images_per_s"] for found in fitting), default=0.0) / GAIN
    return min((found["size"] for found in fitting if found["images_per_s"] >= enough), default=1)


def is_whole(measurements: Measurements) -> bool:
    """Whether packs grew until it no longer paid: what was cut short says nothing of larger ones."""
    *before, last = measurements
    return last["size"] >= MOST or any(last["images_per_s"] < GAIN * found["images_per_s"] for found in before)
