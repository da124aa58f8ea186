"""The leaderboard as one tidy frame; `results.table.render` shows it."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import pandas as pd

from results.store import schema
from results.table import stats
from search_spaces.equivalence import Equivalence
from search_spaces.errors import Problem, RequestError, did_you_mean, short, unknown
from search_spaces.grid import BASELINE, ROLES, Grid
from search_spaces.pool import slug
from search_spaces.text import unprintable

METRICS = ("best_test_acc", "final_test_acc")
GAPS = (*schema.STATUSES[1:], "missing")  # what no mean is made of
CELL = ["pool", "revision", "role", "arch", "dataset", "hidden"]
NEEDS = [
    *("trial_id", "pool", "pool_name", "pool_revision", "pool_params", "role", "arch", "dataset", "hidden", "seed"),
    *("status", *METRICS, "recipe", "protocol"),
]
COLUMNS = {
    **dict.fromkeys(["pool", "revision", "role", "arch", "dataset"], "string"),
    "hidden": "bool",
    "n": "int64",
    **dict.fromkeys(["mean", "std", "min", "max"], "float64"),
    **dict.fromkeys([*schema.STATUSES, "missing"], "int64"),
    "baseline": "string",
    "n_pairs": "int64",
    **dict.fromkeys(["diff", "diff_lo", "diff_hi", "p", "p_holm"], "float64"),
    **dict.fromkeys(["paired", "alike", "better", "worse"], "bool"),
    "detectable": "float64",
    "rank": "Int64",
    **dict.fromkeys(["same_as", "flags"], "string"),
}
ALPHA = 1 - stats.CONFIDENCE


@dataclass(frozen=True, slots=True)
class Selection:
    """Which part of a run stands in the table; None is all of it.

    Attributes:
        baselines: the labels of the baselines that others are compared with. The family of tests shrinks with them.
        pools: whose rows are shown; baselines are compared with all the same.
        pairs: `arch-dataset` each.
        seeds: that count.
    """

    baselines: Sequence[str] | None = None
    pools: Sequence[str] | None = None
    pairs: Sequence[str] | None = None
    seeds: Sequence[int] | None = None


EVERYTHING = Selection()


def cells(
    trials: pd.DataFrame,
    grid: Grid | None,
    metric: str = "best_test_acc",
    allow_mixed: bool = False,
    latest: bool = False,
    selection: Selection = EVERYTHING,
    same: Sequence[Equivalence] = (),
) -> pd.DataFrame:
    """The tidy frame: one row for each (pool, revision, arch, dataset, baseline).

    Args:
        trials: rows of `schema.TRIALS`, of which `NEEDS` are read.
        grid: what was asked; its labels and roles win over those on record, and what it asks for and is not on
            record is counted as missing.
        metric: `best_test_acc`, the benchmark's, or `final_test_acc`; percent.
        allow_mixed: let trials of different recipes or protocols stand in one table, each in rows of its own.
        latest: of a candidate with several revisions, only those that the grid asks for.
        same: what the gate found to be one function.

    Returns:
        The columns of `COLUMNS`. `revision` is the short hash of a candidate's file, null for built-in pools. `n`,
        `mean`, `std`, `min`, `max` are over the completed trials only; those of `GAPS` are counted beside them. `diff`
        is to `baseline`, over the `n_pairs` seeds that both have, with its 95 % t interval and p; where they share none
        it is Welch's, and not `paired`. `p_holm` is p in the family of all rows of candidates, in which `better` and
        `worse` (`p_holm` < 0.05) are wrong in one table of twenty at most; a baseline's own rows carry its differences
        to the other baselines, outside of the family. `detectable` is what so many pairs would mark with 80 % power at
        the strictest step of Holm, at the spread that the column's pairs have. `rank` is 1 and how many cells of the
        column have an interval wholly above. `same_as` are the pools that start as the same function there, `alike`
        whether `baseline` is one, `flags` the values far from their siblings. A cell with nothing to compare with has
        one row, its baseline null.

    Raises:
        RequestError: an unknown metric, pool, pair or seed, or trials of several recipes without `allow_mixed`.
    """
    if metric not in METRICS:
        raise RequestError.of(unknown("metric", metric, METRICS))
    refuse_strange(trials)
    if not allow_mixed:
        refuse_mixed(trials)
    everything = with_planned(trials, grid)
    if latest and grid is not None:
        everything = _without_older(everything, grid)
    everything = _selected(everything, selection)
    summaries, values = [], {}
    for key, group in groups(everything, [*CELL, *_IDENTITY]):
        cell = _Cell(*key)
        if group["seed"].duplicated().any():
            what = (
                f"{cell.pool} on {cell.arch}-{cell.dataset} has two trials of one seed on record, which no sweep makes"
            )
            raise RequestError.of(f"{what}; move one of them away")
        completed = group[group["status"] == schema.COMPLETED].set_index("seed")[metric].dropna()
        values[cell] = completed
        counts = group["status"].value_counts()
        summaries.append((cell, stats.summary(completed.to_numpy(np.float64)), counts))

    columns: dict[Any, list[_Cell]] = {}
    for cell in values:
        columns.setdefault(cell.column, []).append(cell)
    flags, ranks = {}, {}
    for members in columns.values():
        found = [values[cell].to_numpy(np.float64) for cell in members]
        flags |= dict(zip(members, stats.outliers(found), strict=True))
        ranks |= dict(zip(members, stats.ranks(found), strict=True))

    rows = []
    for cell, summary, counts in summaries:
        alike = [one.pools for one in same if one.arch == cell.arch and cell.pool in one.pools]
        far = values[cell][flags[cell]]
        mine = {
            **{name: getattr(cell, name) for name in CELL},
            **{name: getattr(summary, name) for name in ("n", "mean", "std", "min", "max")},
            **{status: int(counts.get(status, 0)) for status in (*schema.STATUSES, "missing")},
            "rank": ranks[cell],
            "same_as": ", ".join(pool for pools in alike for pool in pools if pool != cell.pool) or None,
            "flags": "; ".join(f"seed {seed}: {value:.2f}" for seed, value in far.items()) or None,
        }
        others = [c for c in columns[cell.column] if c.role == BASELINE and c != cell]
        if selection.baselines is not None:
            others = [c for c in others if c.pool in selection.baselines]
        for baseline in others or [None]:
            difference = _difference(values[cell], values[baseline]) if baseline else _NO_DIFFERENCE
            rows.append(
                {
                    **mine,
                    "baseline": baseline and baseline.pool,
                    "n_pairs": difference.n if difference.paired else 0,
                    "diff": difference.diff,
                    "diff_lo": difference.lo,
                    "diff_hi": difference.hi,
                    "p": difference.p,
                    "paired": difference.paired,
                    "alike": baseline is not None and any(baseline.pool in pools for pools in alike),
                    "std_of_pairs": difference.std,
                }
            )
    frame = pd.DataFrame(rows, columns=[*COLUMNS, "std_of_pairs"])
    typical = _typical_spread(frame)
    if selection.pools is not None:
        kept = frame["pool"].isin(selection.pools)
        frame, typical = frame[kept].reset_index(drop=True), typical[kept].reset_index(drop=True)
    return _judged(frame, typical)[list(COLUMNS)].astype(COLUMNS)


def _typical_spread(frame: pd.DataFrame) -> pd.Series:
    """The median spread of the pairs' differences in each row's column: of candidates, if there are any, and of cells
    without a flag, so that a runaway trial does not hide what the others can find."""
    flagged = set(frame.loc[frame["flags"].notna(), ["pool", "arch", "dataset"]].itertuples(index=False, name=None))
    sides = zip(frame["pool"], frame["baseline"], frame["arch"], frame["dataset"], strict=True)
    calm = np.array([not {(pool, arch, data), (base, arch, data)} & flagged for pool, base, arch, data in sides], bool)
    column = [frame["arch"], frame["dataset"]]
    spread = frame["std_of_pairs"].astype(float)
    ours = spread.where(calm & (frame["role"] != BASELINE).to_numpy()).groupby(column).transform("median")
    return ours.fillna(spread.where(calm).groupby(column).transform("median"))


def _judged(frame: pd.DataFrame, typical: pd.Series) -> pd.DataFrame:
    """Adds what follows from all rows together: the family's p, the marks, and what the seeds can find."""
    family = frame["role"] != BASELINE
    p_holm = np.full(len(frame), np.nan)
    p_holm[family] = stats.holm(frame.loc[family, "p"].to_numpy(np.float64))
    sure = p_holm < ALPHA
    gain = frame["diff"].to_numpy(np.float64)
    strictest = ALPHA / max(1, int((~np.isnan(p_holm)).sum()))
    found = [stats.detectable(std, n, alpha=strictest) for std, n in zip(typical, frame["n_pairs"], strict=True)]
    return frame.assign(p_holm=p_holm, better=sure & (gain > 0), worse=sure & (gain < 0), detectable=found)


def best_baselines(frame: pd.DataFrame) -> dict[tuple[str, str], str]:
    """{(arch, dataset): the baseline with the highest mean, of those with the most seeds}, where one has finished."""
    finished = frame[(frame["role"] == BASELINE) & (frame["n"] > 0)]
    best = finished.sort_values(["n", "mean"]).drop_duplicates(["arch", "dataset"], keep="last")
    return dict(zip(zip(best["arch"], best["dataset"], strict=True), best["pool"], strict=True))


def names(frame: pd.DataFrame) -> Callable[[str, str | None], str]:
    """How to call a (pool, revision) of a frame: with its short hash where the label stands for several revisions."""
    revisions = frame.groupby("pool")["revision"].nunique()
    crowded = set(revisions.index[revisions > 1])

    def name(pool: str, revision: str | None) -> str:
        return f"{pool} @{revision}" if pool in crowded and pd.notna(revision) and revision else pool

    return name


def across(frame: pd.DataFrame) -> pd.DataFrame:
    """One row for each candidate with two pairs and more: its mean difference over them, and whether that is chance.

    Returns:
        pool, baseline (the one with the highest mean over the pairs), pairs, diff, p of the exact sign-flip test, and
        p_holm in the family of these rows.
    """
    finished = frame[(frame["role"] == BASELINE) & (frame["n"] > 0)].drop_duplicates(CELL)
    rows = []
    if not finished.empty:
        overall = finished.groupby("pool")["mean"].agg(["size", "mean"])
        baseline = str(overall.sort_values(["size", "mean"]).index[-1])
        against = frame[(frame["role"] != BASELINE) & (frame["baseline"] == baseline) & frame["diff"].notna()]
        name_of = names(against)
        for (pool, revision), mine in groups(against, ["pool", "revision"]):
            gaps = mine["diff"].to_numpy(np.float64)
            if len(gaps) > 1:
                rows.append((name_of(pool, revision), baseline, len(gaps), float(gaps.mean()), stats.sign_flip(gaps)))
    found = pd.DataFrame(rows, columns=["pool", "baseline", "pairs", "diff", "p"])
    return found.assign(p_holm=stats.holm(found["p"].to_numpy(np.float64)))


# What makes a pool that pool, and a trial comparable to another, whatever it is called.
_IDENTITY = ["pool_name", "pool_params", "recipe", "protocol"]


@dataclass(frozen=True, slots=True)
class _Cell:
    pool: str
    revision: str | None
    role: str
    arch: str
    dataset: str
    hidden: bool
    pool_name: str
    pool_params: str
    recipe: str
    protocol: int

    @property
    def column(self) -> tuple[str, str, str, int]:
        """What two cells must share to be compared."""
        return self.arch, self.dataset, self.recipe, self.protocol


_NO_DIFFERENCE = stats.Difference(0, math.nan, math.nan, math.nan, math.nan)


def groups(frame: pd.DataFrame, keys: list[str]) -> Iterator[tuple[tuple[Any, ...], pd.DataFrame]]:
    """(key, rows) in order of appearance; a null in a key is None."""
    for key, group in frame.groupby(keys, sort=False, dropna=False):
        yield tuple(None if part is pd.NA or part != part else part for part in cast("tuple[Any, ...]", key)), group


def _difference(ours: pd.Series, theirs: pd.Series) -> stats.Difference:
    """By the seeds that both have; unpaired where they have none in common."""
    common = ours.index.intersection(theirs.index)
    if common.empty:
        return stats.welch_difference(ours.to_numpy(np.float64), theirs.to_numpy(np.float64))
    return stats.paired_difference(ours.loc[common].to_numpy(np.float64), theirs.loc[common].to_numpy(np.float64))


def with_planned(trials: pd.DataFrame, grid: Grid | None) -> pd.DataFrame:
    """Every trial on record or asked for: CELL, _IDENTITY, seed, status (`missing` if it has not ended), metrics.

    What the newest grid calls a pool, and the part it gives it, hold for all its trials, whenever they ran.
    """
    kept = ["trial_id", *CELL, "seed", "status", *METRICS, *_IDENTITY]
    recorded = trials.rename(columns={"pool_revision": "revision"})[kept]
    if grid is not None:
        planned = pd.DataFrame(_planned_rows(grid), columns=["trial_id", *CELL, "seed", *_IDENTITY])
        measured = recorded[["trial_id", "status", *METRICS]]
        asked = planned.merge(measured, on="trial_id", how="left").fillna({"status": "missing"})
        beyond = recorded[~recorded["trial_id"].isin(planned["trial_id"])]
        recorded = pd.concat([asked, _renamed(beyond, grid)], ignore_index=True) if len(beyond) else asked
    return _tell_apart(recorded)


def _selected(everything: pd.DataFrame, selection: Selection) -> pd.DataFrame:
    """The trials of the pairs and seeds that were chosen, once all that was chosen is known to be there."""
    pairs = everything["arch"] + "-" + everything["dataset"]
    baselines = everything.loc[everything["role"] == BASELINE, "pool"]
    chosen = {
        "--pools": (selection.pools, set(everything["pool"])),
        "--baseline": (selection.baselines, set(baselines)),
        "--pairs": (selection.pairs, set(pairs)),
        "--seeds": (selection.seeds, set(everything["seed"])),
    }
    candidates = set(everything["pool"]) - set(baselines)
    problems = [
        Problem(
            option,
            f"{value!r} is a candidate, and no baseline; {did_you_mean(value, there)}"
            if option == "--baseline" and value in candidates
            else f"{value!r} is not in this table; {did_you_mean(value, map(str, there))}",
        )
        for option, (values, there) in chosen.items()
        for value in values or ()
        if value not in there
    ]
    if problems:
        raise RequestError(problems)
    kept = pd.Series(data=True, index=everything.index)
    if selection.pairs is not None:
        kept &= pairs.isin(selection.pairs)
    if selection.seeds is not None:
        kept &= everything["seed"].isin(selection.seeds)
    return everything[kept]


def _without_older(everything: pd.DataFrame, grid: Grid) -> pd.DataFrame:
    asked = {(slug(entry.pool.name), entry.pool.revision) for entry in grid.entries}
    names = {name for name, _ in asked}
    mine = zip(everything["pool_name"], everything["revision"].fillna(""), strict=True)
    return everything[[key[0] not in names or key in asked for key in mine]]


def _renamed(recorded: pd.DataFrame, grid: Grid) -> pd.DataFrame:
    """Trials that the grid no longer asks for, under the labels and parts that it gives their pools and pairs."""
    entries = {entry.pool.key: (entry.pool.label, entry.role) for entry in grid.entries}
    pairs = {(pair.arch, pair.dataset): pair.hidden for pair in grid.pairs}
    rows = []
    for row in recorded.to_dict("records"):
        key = (row["pool_name"], row["pool_params"], "" if pd.isna(row["revision"]) else row["revision"])
        label, role = entries.get(key, (row["pool"], row["role"]))
        hidden = pairs.get((row["arch"], row["dataset"]), row["hidden"])
        rows.append({**row, "pool": label, "role": role, "hidden": hidden})
    return pd.DataFrame(rows, columns=recorded.columns)


def _tell_apart(everything: pd.DataFrame) -> pd.DataFrame:
    """Adds to a label what parts two pools, or two recipes, that it stands for."""
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


def _planned_rows(grid: Grid) -> Iterator[tuple[Any, ...]]:
    recipe = grid.recipe.to_json()
    for planned in grid:
        trial = planned.trial
        name, params, revision = trial.pool.key
        cell = (trial.pool.label, revision or None, planned.role, trial.arch, trial.dataset, planned.hidden)
        yield (trial.id, *cell, trial.seed, name, params, recipe, trial.protocol)


def _spell_recipes(kinds: pd.DataFrame) -> list[str]:
    """Each (recipe, protocol) by the fields in which they differ."""
    recipes = [json.loads(recipe) | {"protocol": protocol} for recipe, protocol in kinds.itertuples(index=False)]
    differing = sorted(key for key in recipes[0] if len({str(recipe.get(key)) for recipe in recipes}) > 1)
    return [", ".join(f"{key}={recipe.get(key)}" for key in differing) for recipe in recipes]


def refuse_strange(trials: pd.DataFrame) -> None:
    """Rows that no sweep writes: a table of them would be wrong, and what they are called may be made to mislead."""
    problems = []
    for column, is_fine in _FINE.items():
        if strange := [value for value in trials[column].drop_duplicates() if pd.isna(value) or not is_fine(value)]:
            problems.append(Problem(f"trials, column {column}", f"found {short(strange[0])}, which no sweep writes"))
    if problems:
        raise RequestError([*problems, Problem("", "move what is no file of this run away")])


def _is_name(text: str) -> bool:
    return unprintable(text) is None


def _is_recipe(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False


_FINE: Mapping[str, Callable[[Any], object]] = {
    **dict.fromkeys(["trial_id", "pool", "pool_name", "pool_params"], _is_name),
    **dict.fromkeys(["arch", "dataset"], lambda name: re.fullmatch("[a-z0-9_]+", name)),  # parts of files' names
    "role": ROLES.__contains__,
    "status": schema.STATUSES.__contains__,
    "recipe": _is_recipe,
    **dict.fromkeys(["hidden", "seed", "protocol"], lambda _: True),
}


def refuse_mixed(trials: pd.DataFrame) -> None:
    """One table, one recipe: accuracies of different recipes cannot be compared."""
    kinds = trials[["recipe", "protocol"]].drop_duplicates()
    if len(kinds) > 1:
        found = "; ".join(_spell_recipes(kinds))
        raise RequestError.of(
            f"the run folder holds trials of {len(kinds)} recipes ({found}), which one table must not mix; "
            f"keep each recipe in a run folder of its own, or pass --allow-mixed to see them side by side"
        )
