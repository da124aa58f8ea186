"""The trials that a table is made of: those on record and those that were asked for, under the names of the grid."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from results.store import schema
from search_spaces.errors import Problem, RequestError, did_you_mean, short
from search_spaces.grid import BASELINE, ROLES, Grid
from search_spaces.pool import slug
from search_spaces.text import unprintable

METRICS = ("best_test_acc", "final_test_acc")
MISSING = "missing"  # asked for, and not ended
CELL = ["pool", "revision", "role", "arch", "dataset", "hidden"]
# What makes a pool that pool, and a trial comparable to another, whatever it is called.
IDENTITY = ["pool_name", "pool_params", "recipe", "protocol"]
NEEDS = [
    *("trial_id", "pool", "pool_name", "pool_revision", "pool_params", "role", "arch", "dataset", "hidden", "seed"),
    *("status", *METRICS, "recipe", "protocol"),
]


@dataclass(frozen=True, slots=True)
class Selection:
    """What of a run stands in a table; None is all of it."""

    metric: str = METRICS[0]  # `best_test_acc`, the benchmark's, or `final_test_acc`
    allow_mixed: bool = False  # let trials of several recipes or protocols stand in one table, each in rows of its own
    latest: bool = False  # of a candidate's revisions, keep only those that the newest sweep asks for
    baselines: Sequence[str] | None = None  # compare with these only; the family of tests shrinks with them
    pools: Sequence[str] | None = None  # show these rows only; baselines are compared with all the same
    pairs: Sequence[str] | None = None  # keep these columns only, `arch-dataset` each
    seeds: Sequence[int] | None = None  # keep these only


EVERYTHING = Selection()


def select(trials: pd.DataFrame, grids: Sequence[Grid], selection: Selection) -> pd.DataFrame:
    """Return the rows of `on_record_and_planned` that a selection keeps.

    Raises:
        RequestError: trials of several recipes without `allow_mixed`, rows that no sweep writes, or something that
            was selected and is not there.
    """
    refuse_strange(trials)
    if not selection.allow_mixed:
        refuse_mixed(trials)
    everything = on_record_and_planned(trials, grids)
    if selection.latest and grids:
        everything = _without_older(everything, grids)
    pairs = everything["arch"] + "-" + everything["dataset"]
    _refuse_unknown(everything, pairs, selection)
    kept = pd.Series(data=True, index=everything.index)
    if selection.pairs is not None:
        kept &= pairs.isin(selection.pairs)
    if selection.seeds is not None:
        kept &= everything["seed"].isin(selection.seeds)
    return everything[kept]


def on_record_and_planned(trials: pd.DataFrame, grids: Sequence[Grid]) -> pd.DataFrame:
    """Return one row for each trial on record or asked for: CELL, IDENTITY, seed, status, metrics.

    What the grid calls a pool, and the role it gives it, hold for all trials of that pool, whenever they ran. Of
    several grids the first has the say. A trial that a grid asks for and that has not ended is `missing`.
    """
    kept = ["trial_id", *CELL, "seed", "status", *METRICS, *IDENTITY]
    found = trials.rename(columns={"pool_revision": "revision"})[kept]
    if grids:
        planned = pd.DataFrame(_planned_rows(grids), columns=["trial_id", *CELL, "seed", *IDENTITY])
        planned = planned.drop_duplicates("trial_id", ignore_index=True)
        asked = planned.merge(found[["trial_id", "status", *METRICS]], on="trial_id", how="left")
        beyond = found[~found["trial_id"].isin(planned["trial_id"])]
        found = asked.fillna({"status": MISSING})
        if len(beyond):
            found = pd.concat([found, beyond], ignore_index=True)
        found = _renamed(found, grids)
    return _with_distinct_labels(found)


def _planned_rows(grids: Sequence[Grid]) -> Iterator[tuple[Any, ...]]:
    for grid in grids:
        recipe = grid.recipe.to_json()
        for planned in grid:
            trial, (name, params, revision) = planned.trial, planned.trial.pool.key
            cell = (trial.pool.label, revision or None, planned.role, trial.arch, trial.dataset, planned.hidden)
            yield (trial.id, *cell, trial.seed, name, params, recipe, trial.protocol)


def _renamed(found: pd.DataFrame, grids: Sequence[Grid]) -> pd.DataFrame:
    """Give all trials the labels and roles that the first grid with their pools has for them; and pairs, if hidden."""
    entries = {entry.pool.key: (entry.pool.label, entry.role) for grid in reversed(grids) for entry in grid.entries}
    hidden = {(pair.arch, pair.dataset): pair.hidden for grid in reversed(grids) for pair in grid.pairs}
    pools = zip(found["pool_name"], found["pool_params"], found["revision"].fillna(""), strict=True)
    labels = [entries.get(key, own) for key, *own in zip(pools, found["pool"], found["role"], strict=True)]
    pairs = zip(found["arch"], found["dataset"], found["hidden"], strict=True)
    return found.assign(
        pool=[label for label, _ in labels],
        role=[role for _, role in labels],
        hidden=[bool(hidden.get((arch, dataset), own)) for arch, dataset, own in pairs],
    )


def _without_older(everything: pd.DataFrame, grids: Sequence[Grid]) -> pd.DataFrame:
    asked = {(slug(entry.pool.name), entry.pool.revision) for grid in grids for entry in grid.entries}
    names = {name for name, _ in asked}
    mine = zip(everything["pool_name"], everything["revision"].fillna(""), strict=True)
    return everything[[key[0] not in names or key in asked for key in mine]]


def _with_distinct_labels(everything: pd.DataFrame) -> pd.DataFrame:
    """Add to a label that stands for two pools, or two recipes, what tells them apart."""
    label = everything["pool"].astype(object)
    groups = everything.groupby("pool")
    several = groups["pool_params"].nunique().gt(1) | groups["pool_name"].nunique().gt(1)
    crowded = everything["pool"].map(several).astype(bool)
    label = label.where(~crowded, label + " = " + everything["pool_name"] + " " + everything["pool_params"])
    recipes = everything[["recipe", "protocol"]].drop_duplicates()
    if len(recipes) > 1:
        spelled = dict(zip(recipes.itertuples(index=False, name=None), _spell_recipes(recipes), strict=True))
        kinds = zip(everything["recipe"], everything["protocol"], strict=True)
        label = label + pd.Series([f" [{spelled[kind]}]" for kind in kinds], index=everything.index)
    return everything.assign(pool=label)


def _spell_recipes(kinds: pd.DataFrame) -> list[str]:
    """Spell each (recipe, protocol) by the fields in which they differ."""
    recipes = [json.loads(recipe) | {"protocol": protocol} for recipe, protocol in kinds.itertuples(index=False)]
    differing = sorted(key for key in recipes[0] if len({str(recipe.get(key)) for recipe in recipes}) > 1)
    return [", ".join(f"{key}={recipe.get(key)}" for key in differing) for recipe in recipes]


# What is refused


def refuse_strange(trials: pd.DataFrame) -> None:
    """Refuse rows that no sweep writes: a table of them would be wrong, and a name may be made to mislead.

    Raises:
        RequestError: with one problem for each column.
    """
    problems = []
    for column, is_fine in _FINE.items():
        if strange := [value for value in trials[column].drop_duplicates() if pd.isna(value) or not is_fine(value)]:
            problems.append(Problem(f"trials, column {column}", f"got {short(strange[0])}, which no sweep writes"))
    if problems:
        raise RequestError([*problems, Problem("", "move the files that do not belong to this run away")])


def _is_recipe(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False


_FINE: Mapping[str, Callable[[Any], object]] = {
    **dict.fromkeys(["trial_id", "pool", "pool_params"], lambda text: unprintable(text) is None),
    **dict.fromkeys(["arch", "dataset"], lambda name: re.fullmatch("[a-z0-9_]+", name)),  # parts of files' names
    "role": ROLES.__contains__,
    "status": schema.STATUSES.__contains__,
    "recipe": _is_recipe,
    **dict.fromkeys(["hidden", "seed", "protocol"], lambda _: True),
}


def refuse_mixed(trials: pd.DataFrame) -> None:
    """Refuse trials of several recipes: their accuracies cannot be compared.

    Raises:
        RequestError: there are several; it names the fields in which they differ.
    """
    kinds = trials[["recipe", "protocol"]].drop_duplicates()
    if len(kinds) > 1:
        raise RequestError.of(
            f"expected trials of one recipe, got {len(kinds)} recipes ({'; '.join(_spell_recipes(kinds))}); keep each "
            "recipe in a run folder of its own, or pass --allow-mixed to see them side by side"
        )


def _refuse_unknown(everything: pd.DataFrame, pairs: pd.Series, selection: Selection) -> None:
    baselines = set(everything.loc[everything["role"] == BASELINE, "pool"])
    candidates = set(everything["pool"]) - baselines
    chosen = {
        "--pools": (selection.pools, set(everything["pool"])),
        "--baseline": (selection.baselines, baselines),
        "--pairs": (selection.pairs, set(pairs)),
        "--seeds": (selection.seeds, set(everything["seed"])),
    }
    problems = []
    for option, (values, there) in chosen.items():
        for value in values or ():
            if value not in there:
                is_candidate = option == "--baseline" and value in candidates
                what = "expected a baseline, got the candidate" if is_candidate else "not in this table:"
                problems.append(Problem(option, f"{what} {value!r}; {did_you_mean(value, map(str, there))}"))
    if problems:
        raise RequestError(problems)
