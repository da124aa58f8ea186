"""What a plan will cost, and what it can find: said before the hours are spent."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Iterator

from orchestrator.plan import Plan
from results.status import epoch_seconds
from results.store.folder import RunFolder
from results.table import published, stats
from results.table.published import Spread

WANTED = 0.5  # points


def forecast(plan: Plan, run: RunFolder) -> Iterator[str]:
    """Yield lines for a person: the hours of what is left, and the difference that the seeds of each pair find."""
    yield from _hours(plan, run)
    known = published.spreads()
    seeds: dict[tuple[str, str], set[int]] = {}
    for planned in plan.planned:
        seeds.setdefault((planned.trial.arch, planned.trial.dataset), set()).add(planned.trial.seed)
    for pair, mine in seeds.items():
        yield f"{'-'.join(pair)}: {_finds(len(mine), known.get(pair))}"
    yield "(four times of five, before any correction for many comparisons)"


def _hours(plan: Plan, run: RunFolder) -> Iterator[str]:
    """Hours of one trial after another, from the epochs that this run folder has on record."""
    if not plan.todo:
        return
    paces = epoch_seconds(run.trials.read(["trial_id", "status", "train_s", "epochs", "arch", "dataset"]).to_pylist())
    epochs = plan.todo[0].trial.recipe.epochs
    if not paces:
        yield f"{len(plan.todo)} trials of {epochs} epochs; how long that takes is known once the first has ended"
        return
    total = 0.0
    for pair, count in Counter((planned.trial.arch, planned.trial.dataset) for planned in plan.todo).items():
        pace = paces.get(pair, statistics.median(paces.values()))
        hours = count * epochs * pace / 3600
        total += hours
        how = "measured" if pair in paces else "estimated from the other pairs"
        yield f"{count} trials on {'-'.join(pair)}: {hours:.2f} h ({pace:.2f} s an epoch, {how})"
    yield f"{total:.2f} h in all for one trial after another on such a machine"


def _finds(seeds: int, spread: Spread | None) -> str:
    apart = math.sqrt(2)  # of two pools that have nothing in common, by the spread of one
    if spread is None or not spread.degrees:
        if seeds < 2:
            return "one seed finds nothing"
        ratio = stats.detectable(apart, seeds)
        return f"{seeds} seeds find a difference of {ratio:.1f} times the spread between seeds; none is published"
    needed = stats.seeds_needed(WANTED, spread.std * apart)
    known = f"{spread.std:.2f} between published runs of one function, by {spread.runs} runs"
    if seeds < 2:
        return f"one seed finds nothing, {needed} would find {WANTED:g} points ({known})"
    found = stats.detectable(spread.std * apart, seeds)
    return f"{seeds} seeds find a difference of {found:.2f} points, {needed} would find {WANTED:g} ({known})"
