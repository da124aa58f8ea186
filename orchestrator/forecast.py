"""What a plan will cost, and what it can find: said before the hours are spent."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Iterator

from orchestrator.sweep import Plan
from results import stats
from results.status import epoch_seconds
from results.store import RunFolder

SEED_STD = 0.37  # points: of a pool's seeds, published, ResNet-56 on CIFAR-100
WANTED = 0.5  # points


def forecast(plan: Plan, run: RunFolder) -> Iterator[str]:
    """Lines for a person."""
    yield from _cost(plan, run)
    yield _what_can_be_found(len({planned.trial.seed for planned in plan.planned}))


def _cost(plan: Plan, run: RunFolder) -> Iterator[str]:
    """Hours of one trial after another, from the epochs that this run folder has on record."""
    if not plan.todo:
        return
    rows = run.read_trials(["trial_id", "status", "train_s", "epochs", "arch", "dataset"]).to_pylist()
    paces = epoch_seconds({row["trial_id"]: row for row in rows})
    todo = Counter((planned.trial.arch, planned.trial.dataset) for planned in plan.todo)
    epochs = plan.todo[0].trial.recipe.epochs
    if not paces:
        yield f"{len(plan.todo)} trials of {epochs} epochs; how long that takes is known once the first has ended"
        return
    typical = statistics.median(paces.values())
    hours = 0.0
    for (arch, dataset), count in todo.items():
        pace = paces.get((arch, dataset), typical)
        hours += count * epochs * pace / 3600
        how = "measured" if (arch, dataset) in paces else "estimated from the other pairs"
        yield f"{count} trials on {arch}-{dataset}: {count * epochs * pace / 3600:.2f} h ({pace:.2f} s an epoch, {how})"
    yield f"{hours:.2f} h in all for one trial after another on such a machine"


def _what_can_be_found(seeds: int) -> str:
    spread = SEED_STD * math.sqrt(2)  # of the difference between two pools that have nothing in common
    needed = stats.seeds_needed(WANTED, spread)
    if seeds < 2:
        return f"one seed finds nothing: a difference of {WANTED:g} points takes {needed}, at the published spread"
    found = stats.detectable(spread, seeds)
    return (
        f"{seeds} seeds find a difference of {found:.2f} points four times of five, {needed} would find {WANTED:g} (at "
        f"the published spread of {SEED_STD:g} points between seeds, before any correction for many comparisons)"
    )
