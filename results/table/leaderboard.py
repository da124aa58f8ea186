"""The leaderboard as one tidy frame; `results.table.render` shows it.

Trials become cells, cells become one row for each baseline, and some columns follow from all rows together.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pandas as pd

from results.store import schema
from results.table import stats
from results.table.trials import CELL, EVERYTHING, IDENTITY, METRICS, MISSING, Selection, select
from search_spaces.equivalence import Equivalence
from search_spaces.errors import RequestError, require
from search_spaces.grid import BASELINE, Grid

GAPS = (*schema.STATUSES[1:], MISSING)  # what no mean is made of
COLUMNS = {
    **dict.fromkeys(["pool", "revision", "role", "arch", "dataset"], "string"),
    "hidden": "bool",
    "n": "int64",
    **dict.fromkeys(["mean", "std", "min", "max"], "float64"),
    **dict.fromkeys([*schema.STATUSES, MISSING], "int64"),
    "baseline": "string",
    "n_pairs": "int64",
    **dict.fromkeys(["diff", "diff_lo", "diff_hi", "p", "p_holm"], "float64"),
    **dict.fromkeys(["paired", "alike", "better", "worse"], "bool"),
    "detectable": "float64",
    "rank": "Int64",
    **dict.fromkeys(["same_as", "flags"], "string"),
}


def cells(
    trials: pd.DataFrame,
    grids: Sequence[Grid] = (),
    selection: Selection = EVERYTHING,
    same: Sequence[Equivalence] = (),
) -> pd.DataFrame:
    """Return the tidy frame: one row for each (pool, revision, arch, dataset, baseline).

    Args:
        trials: rows of `schema.TRIALS`, of which `trials.NEEDS` are read.
        grids: what was asked. Their labels and roles win over those on record, and what they ask for and is not on
            record is counted as missing.
        selection: which trials, rows and comparisons.
        same: pools that the gate found to be one function.

    Returns:
        The columns of `COLUMNS`. `revision` is the short hash of a candidate's file, null for built-in pools. `n`,
        `mean`, `std`, `min`, `max` are over the completed trials only, in percent; those of `GAPS` are counted beside
        them. `diff` is to `baseline`, over the `n_pairs` seeds that both have, with its 95 % t interval and p; where
        they share none it is Welch's, and not `paired`. `p_holm` is p in the family of all rows of candidates, in
        which `better` and `worse` (`p_holm` < 0.05) are wrong in one table of twenty at most; a baseline's own rows
        carry its differences to the other baselines, outside of the family. `detectable` is the minimum detectable
        difference of so many pairs: with 80 % power, at the strictest step of Holm, at the spread that the column's
        pairs have. `rank` is 1 plus the number of cells of the column whose interval is wholly above. `same_as` are
        the pools that start as the same function there, `alike` whether `baseline` is one, `flags` the values far
        from their siblings. A cell with nothing to compare with has one row, its baseline null.

    Raises:
        RequestError: an unknown metric, pool, pair or seed, or trials of several recipes without `allow_mixed`.
    """
    require("metric", selection.metric, METRICS)
    keys, chosen = [*CELL, *IDENTITY], select(trials, grids, selection)
    if (again := chosen[chosen.duplicated([*keys, "seed"])]).size:
        pool, arch, dataset = again[["pool", "arch", "dataset"]].iloc[0]
        raise RequestError.of(
            f"{pool} on {arch}-{dataset} has two trials of one seed on record, which no sweep writes; move one of them "
            "away"
        )
    found = [
        _Cell(
            dict(zip(keys, key, strict=True)),
            rows[rows["status"] == schema.COMPLETED].set_index("seed")[selection.metric].dropna().astype(np.float64),
            Counter(rows["status"]),
        )
        for key, rows in groups(chosen, keys)
    ]
    frame = pd.DataFrame(_rows(found, selection.baselines, same), columns=[*COLUMNS, "std_of_pairs"])
    frame["typical"] = _typical_spread(frame)
    if selection.pools is not None:
        frame = frame[frame["pool"].isin(selection.pools)].reset_index(drop=True)
    return _judged(frame)[list(COLUMNS)].astype(COLUMNS)


def groups(frame: pd.DataFrame, keys: list[str]) -> Iterator[tuple[tuple[Any, ...], pd.DataFrame]]:
    """Yield (key, rows) in order of appearance; a null in a key is None."""
    for key, group in frame.groupby(keys, sort=False, dropna=False):
        yield tuple(None if part is pd.NA or part != part else part for part in cast("tuple[Any, ...]", key)), group


# A cell, and its rows


@dataclass(frozen=True, slots=True, eq=False)
class _Cell:
    """A pool on one architecture and dataset, under one recipe."""

    key: Mapping[str, Any]  # `CELL` and `IDENTITY`
    values: pd.Series  # [n] accuracies of the completed trials in percent, by seed
    counts: Counter[str]  # of trials, by status

    @property
    def column(self) -> tuple[Any, ...]:
        """What two cells must share to be compared."""
        return tuple(self.key[name] for name in ("arch", "dataset", "recipe", "protocol"))


def _rows(
    found: Sequence[_Cell], baselines: Sequence[str] | None, same: Sequence[Equivalence]
) -> Iterator[dict[str, Any]]:
    """Yield a row for each cell and each baseline of its column, or one without a baseline where there is none."""
    columns: dict[tuple[Any, ...], list[_Cell]] = {}
    for cell in found:
        columns.setdefault(cell.column, []).append(cell)
    beside_siblings = {}
    for members in columns.values():
        values = [cell.values.to_numpy() for cell in members]
        for cell, is_far, rank in zip(members, stats.outliers(values), stats.ranks(values), strict=True):
            flags = "; ".join(f"seed {seed}: {value:.2f}" for seed, value in cell.values[is_far].items())
            beside_siblings[cell] = {"rank": rank, "flags": flags or None}
    for cell in found:
        arch, pool = cell.key["arch"], cell.key["pool"]
        alike = [other for one in same if one.arch == arch and pool in one.pools for other in one.pools]
        about = {
            **{name: cell.key[name] for name in CELL},
            **stats.summary(cell.values.to_numpy()),
            **{status: cell.counts[status] for status in (*schema.STATUSES, MISSING)},
            **beside_siblings[cell],
            "same_as": ", ".join(other for other in alike if other != pool) or None,
        }
        others = [one for one in columns[cell.column] if one.key["role"] == BASELINE and one is not cell]
        if baselines is not None:
            others = [one for one in others if one.key["pool"] in baselines]
        for baseline in others or [None]:
            yield {**about, **_comparison(cell, baseline, alike)}


def _comparison(cell: _Cell, baseline: _Cell | None, alike: Sequence[str]) -> dict[str, Any]:
    """Compare by the seeds that both cells have; unpaired where they have none in common."""
    if baseline is None:
        return {"n_pairs": 0, "paired": True, "alike": False}
    common = cell.values.index.intersection(baseline.values.index)
    if common.empty:
        found = stats.welch_difference(cell.values.to_numpy(), baseline.values.to_numpy())
    else:
        found = stats.paired_difference(cell.values[common].to_numpy(), baseline.values[common].to_numpy())
    return {
        "baseline": baseline.key["pool"],
        "n_pairs": found.n if found.paired else 0,
        "diff": found.diff,
        "diff_lo": found.lo,
        "diff_hi": found.hi,
        "p": found.p,
        "paired": found.paired,
        "alike": baseline.key["pool"] in alike,
        "std_of_pairs": found.std,
    }


# What follows from all rows together


def _typical_spread(frame: pd.DataFrame) -> pd.Series:
    """Return for each row the median spread of the pairs' differences in its column.

    Of candidates, if there are any, and of cells without a flag, so that a runaway trial does not hide what the others
    can find.
    """
    flagged = set(frame.loc[frame["flags"].notna(), ["pool", "arch", "dataset"]].itertuples(index=False, name=None))
    sides = zip(frame["pool"], frame["baseline"], frame["arch"], frame["dataset"], strict=True)
    calm = np.array([not {(pool, arch, data), (base, arch, data)} & flagged for pool, base, arch, data in sides], bool)
    column = [frame["arch"], frame["dataset"]]
    spread = frame["std_of_pairs"].astype(float)
    ours = spread.where(calm & (frame["role"] != BASELINE).to_numpy()).groupby(column).transform("median")
    return ours.fillna(spread.where(calm).groupby(column).transform("median"))


def _judged(frame: pd.DataFrame) -> pd.DataFrame:
    """Add the p of the family, the marks, and the minimum detectable differences."""
    p_holm = stats.holm(frame["p"].where(frame["role"] != BASELINE).to_numpy(np.float64))
    sure, strictest = p_holm < stats.ALPHA, strictest_alpha(p_holm)
    gain = frame["diff"].to_numpy(np.float64)
    of_unit_spread = {n: stats.detectable(1.0, n, alpha=strictest) for n in frame["n_pairs"].unique()}
    detectable = frame["typical"].where(frame["typical"] > 0) * frame["n_pairs"].map(of_unit_spread)
    return frame.assign(p_holm=p_holm, better=sure & (gain > 0), worse=sure & (gain < 0), detectable=detectable)


# What views ask of the frame


def strictest_alpha(p_holm: npt.NDArray[np.float64]) -> float:
    """Return the level at which Holm marks the first of a family, whose other rows are NaN."""
    return stats.ALPHA / max(1, int((~np.isnan(p_holm)).sum()))


def best_baselines(frame: pd.DataFrame) -> dict[tuple[str, str], str]:
    """Return {(arch, dataset): the baseline with the highest mean, of those with the most seeds}."""
    finished = frame[(frame["role"] == BASELINE) & (frame["n"] > 0)]
    best = finished.sort_values(["n", "mean"]).drop_duplicates(["arch", "dataset"], keep="last")
    return dict(zip(zip(best["arch"], best["dataset"], strict=True), best["pool"], strict=True))


def names(frame: pd.DataFrame) -> Callable[[str, str | None], str]:
    """Return how to call a (pool, revision) of a frame: with its hash where the label stands for several revisions."""
    revisions = frame.groupby("pool")["revision"].nunique()
    crowded = set(revisions.index[revisions > 1])

    def name(pool: str, revision: str | None) -> str:
        return f"{pool} @{revision}" if pool in crowded and pd.notna(revision) and revision else pool

    return name


def across(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the mean difference over pairs of each candidate that has two or more, and whether it is chance.

    One row a candidate: pool, baseline (the one with the highest mean over the pairs), pairs, diff, p of the exact
    sign-flip test, and p_holm in the family of these rows.
    """
    finished = frame[(frame["role"] == BASELINE) & (frame["n"] > 0)].drop_duplicates(CELL)
    overall = finished.groupby("pool")["mean"].agg(["size", "mean"]).sort_values(["size", "mean"])
    against = frame[(frame["role"] != BASELINE) & frame["baseline"].isin(overall.index[-1:]) & frame["diff"].notna()]
    name_of, rows = names(against), []
    for (pool, revision), mine in groups(against, ["pool", "revision"]):
        gaps = mine["diff"].to_numpy(np.float64)
        if len(gaps) > 1:
            baseline = mine["baseline"].iloc[0]
            rows.append((name_of(pool, revision), baseline, len(gaps), gaps.mean(), stats.sign_flip(gaps)))
    found = pd.DataFrame(rows, columns=["pool", "baseline", "pairs", "diff", "p"])
    return found.assign(p_holm=stats.holm(found["p"].to_numpy(np.float64)))
