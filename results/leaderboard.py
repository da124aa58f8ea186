"""The leaderboard: one tidy frame, and the text, Markdown and CSV views of it."""

from __future__ import annotations

import json
import math
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import StringIO
from typing import Any, cast

import numpy as np
import pandas as pd
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from results import schema, stats
from trainer.grid import BASELINE, Grid
from trainer.pool import slug
from trainer.problems import RequestError, unknown
from trainer.trial import PROTOCOL

METRICS = ("best_test_acc", "final_test_acc")
GAPS = ("diverged", "failed", "invalid", "missing")  # what no mean is made of
CELL = ["pool", "revision", "role", "arch", "dataset", "hidden"]
NEEDS = [
    *("trial_id", "pool", "pool_params", "pool_source_sha", "role", "arch", "dataset", "hidden", "seed", "status"),
    *(*METRICS, "recipe", "protocol"),
]
COLUMNS = {
    **dict.fromkeys(["pool", "revision", "role", "arch", "dataset"], "string"),
    "hidden": "bool",
    "n": "int64",
    **dict.fromkeys(["mean", "std", "min", "max"], "float64"),
    **dict.fromkeys([*schema.STATUSES, "missing"], "int64"),
    "baseline": "string",
    "n_pairs": "int64",
    **dict.fromkeys(["diff", "diff_lo", "diff_hi", "p"], "float64"),
}


def cells(
    trials: pd.DataFrame,
    grid: Grid | None,
    metric: str = "best_test_acc",
    allow_mixed: bool = False,
    latest: bool = False,
) -> pd.DataFrame:
    """The tidy frame: one row for each (pool, revision, arch, dataset, baseline).

    Args:
        trials: rows of `schema.TRIALS`, of which `NEEDS` are read.
        grid: what was asked; its labels and roles win over those on record, and what it asks for and is not on
            record is counted as missing.
        metric: `best_test_acc`, the benchmark's, or `final_test_acc`; percent.
        allow_mixed: let trials of different recipes or protocols stand in one table, each in rows of its own.
        latest: of a candidate with several revisions, only those that the grid asks for.

    Returns:
        The columns of `COLUMNS`. `revision` is the short hash of a candidate's file, null for the shelf. `n`, `mean`,
        `std`, `min`, `max` are over the completed trials only; diverged, failed and missing ones are counted beside
        them. `diff` is to `baseline`, paired by seed, with its 95 % t interval and p. A baseline's own rows carry its
        differences to the other baselines; a cell without any to compare with has one row, its baseline null.

    Raises:
        RequestError: an unknown metric, or trials of several recipes without `allow_mixed`.
    """
    if metric not in METRICS:
        raise RequestError.of(unknown("metric", metric, METRICS))
    if not allow_mixed:
        _refuse_mixed(trials)
    summaries, values = [], {}
    everything = _with_planned(trials, grid)
    if latest and grid is not None:
        everything = _without_older(everything, grid)
    for key, group in _groups(everything, [*CELL, *_IDENTITY]):
        cell = _Cell(*key)
        if group["seed"].duplicated().any():
            raise AssertionError(f"two trials of one seed in {cell}")
        completed = group[group["status"] == schema.COMPLETED].set_index("seed")[metric].dropna()
        values[cell] = completed
        counts = group["status"].value_counts()
        summaries.append((cell, stats.summary(completed.to_numpy(np.float64)), counts))

    rows = []
    for cell, summary, counts in summaries:
        mine = {
            **{name: getattr(cell, name) for name in CELL},
            **{name: getattr(summary, name) for name in ("n", "mean", "std", "min", "max")},
            **{status: int(counts.get(status, 0)) for status in (*schema.STATUSES, "missing")},
        }
        others = [c for c in values if c.role == BASELINE and c.column == cell.column and c != cell]
        for baseline in others or [None]:
            difference = _difference(values[cell], values[baseline]) if baseline else _NO_DIFFERENCE
            rows.append(
                {
                    **mine,
                    "baseline": baseline and baseline.pool,
                    "n_pairs": difference.n,
                    "diff": difference.diff,
                    "diff_lo": difference.lo,
                    "diff_hi": difference.hi,
                    "p": difference.p,
                }
            )
    return pd.DataFrame(rows, columns=list(COLUMNS)).astype(COLUMNS)


def best_baselines(frame: pd.DataFrame) -> dict[tuple[str, str], str]:
    """{(arch, dataset): the baseline with the highest mean}; a pair without a finished baseline has none."""
    finished = frame[(frame["role"] == BASELINE) & (frame["n"] > 0)]
    if finished.empty:
        return {}
    best = finished.loc[finished.groupby(["arch", "dataset"])["mean"].idxmax()]
    return dict(zip(zip(best["arch"], best["dataset"], strict=True), best["pool"], strict=True))


def to_text(frame: pd.DataFrame, metric: str, notes: Sequence[str] = ()) -> str:
    """The wide table as plain text, as wide as it needs to be, and its footer and notes under it."""
    wide = _Wide(frame)
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("pool")
    for pair in wide.pairs:
        table.add_column("-".join(pair), justify="right", no_wrap=True)
    for row, below in zip(wide.rows, [*wide.rows[1:], None], strict=False):
        last_of_role = below is not None and row.role != below.role
        table.add_row(Text(row.name), *(Text("\n".join(cell)) for cell in row.cells), end_section=last_of_role)
    sink = StringIO()
    console = Console(file=sink, width=1000, color_system=None)
    console.print(table)
    lines = [line.rstrip() for line in sink.getvalue().splitlines()]
    width = max(80, *map(len, lines))
    footer = [textwrap.fill(line, width) for line in _footer(frame, metric, notes).splitlines()]
    return "\n".join([*lines, *footer, ""])


def to_markdown(frame: pd.DataFrame, metric: str, notes: Sequence[str] = ()) -> str:
    """The wide table as GitHub's Markdown, with its footer and notes."""
    wide = _Wide(frame)
    lines = [["pool", "role", *map("-".join, wide.pairs)], ["---", "---", *["---:"] * len(wide.pairs)]]
    lines += [[row.name, row.role, *("<br>".join(cell) for cell in row.cells)] for row in wide.rows]
    table = "\n".join("| " + " | ".join(text.replace("|", "\\|") for text in line) + " |" for line in lines)
    return f"{table}\n\n{_footer(frame, metric, notes)}\n"


def to_csv(frame: pd.DataFrame) -> str:
    """The tidy frame, every digit of it."""
    sink = StringIO()
    frame.to_csv(sink, index=False, lineterminator="\n")
    return sink.getvalue()


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


def _groups(frame: pd.DataFrame, keys: list[str]) -> Iterator[tuple[tuple[Any, ...], pd.DataFrame]]:
    """Groups in order of appearance; a null in a key is None."""
    for key, group in frame.groupby(keys, sort=False, dropna=False):
        yield tuple(None if part is pd.NA or part != part else part for part in cast("tuple[Any, ...]", key)), group


def _difference(ours: pd.Series, theirs: pd.Series) -> stats.Difference:
    """By the seeds that both have."""
    common = ours.index.intersection(theirs.index)
    return stats.paired_difference(ours.loc[common].to_numpy(np.float64), theirs.loc[common].to_numpy(np.float64))


def _with_planned(trials: pd.DataFrame, grid: Grid | None) -> pd.DataFrame:
    """Every trial on record or asked for: CELL, _IDENTITY, seed, status (`missing` if it has not ended), metrics.

    What the newest grid calls a pool, and the part it gives it, hold for all its trials, whenever they ran.
    """
    recorded = trials[["trial_id", *CELL[:1], *CELL[2:], "seed", "status", *METRICS, *_IDENTITY[1:]]].assign(
        revision=trials["pool_source_sha"].str[:8], pool_name=trials["trial_id"].str.split("-").str[0]
    )
    if grid is not None:
        planned = pd.DataFrame(_planned_rows(grid), columns=["trial_id", *CELL, "seed", *_IDENTITY])
        measured = recorded[["trial_id", "status", *METRICS]]
        asked = planned.merge(measured, on="trial_id", how="left").fillna({"status": "missing"})
        beyond = recorded[~recorded["trial_id"].isin(planned["trial_id"])]
        recorded = pd.concat([asked, _renamed(beyond, grid)], ignore_index=True) if len(beyond) else asked
    return _tell_apart(recorded)


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
        yield (trial.id, *cell, trial.seed, name, params, recipe, PROTOCOL)


def _spell_recipes(kinds: pd.DataFrame) -> list[str]:
    """Each (recipe, protocol) by the fields in which they differ."""
    recipes = [json.loads(recipe) | {"protocol": protocol} for recipe, protocol in kinds.itertuples(index=False)]
    differing = sorted(key for key in recipes[0] if len({str(recipe.get(key)) for recipe in recipes}) > 1)
    return [", ".join(f"{key}={recipe.get(key)}" for key in differing) for recipe in recipes]


def _refuse_mixed(trials: pd.DataFrame) -> None:
    """One table, one recipe: accuracies of different recipes cannot be compared."""
    kinds = trials[["recipe", "protocol"]].drop_duplicates()
    if len(kinds) > 1:
        found = "; ".join(_spell_recipes(kinds))
        raise RequestError.of(
            f"the run folder holds trials of {len(kinds)} recipes ({found}), which one table must not mix; "
            f"keep each recipe in a run folder of its own, or pass --allow-mixed to see them side by side"
        )


@dataclass(frozen=True, slots=True)
class _Row:
    name: str
    role: str
    cells: tuple[tuple[str, ...], ...]  # a cell is its lines


class _Wide:
    """Rows are pools, baselines first and the best of each role on top; columns are pairs."""

    def __init__(self, frame: pd.DataFrame):
        self.pairs = list(frame[["arch", "dataset"]].drop_duplicates().itertuples(index=False, name=None))
        best = best_baselines(frame)
        revisions = frame.groupby("pool")["revision"].nunique()
        crowded = set(revisions.index[revisions > 1])
        rows = []
        for (pool, revision, role), mine in _groups(frame, ["pool", "revision", "role"]):
            shown = [_cell_lines(mine, pair, best.get(pair)) for pair in self.pairs]
            means = mine.drop_duplicates(["arch", "dataset"]).set_index(["arch", "dataset"])["mean"]
            rank = means.sum()  # over the pairs that it has finished: a pool with the easy half only is not ahead
            name = f"{pool} @{revision}" if pool in crowded and revision else pool
            order = (role != BASELINE, -rank)
            rows.append((order, _Row(name, role, tuple(shown))))
        self.rows: Sequence[_Row] = [row for _, row in sorted(rows, key=lambda item: item[0])]


def _cell_lines(mine: pd.DataFrame, pair: tuple[str, str], best: str | None) -> tuple[str, ...]:
    """`72.31 ± 0.22 (3)`, the difference to the best baseline, and what is not in the mean."""
    here = mine[(mine["arch"] == pair[0]) & (mine["dataset"] == pair[1])]
    if here.empty:
        return ("",)
    row: Any = here.iloc[0]
    lines = []
    if row.n:
        spread = f" ± {row['std']:.2f}" if row.n > 1 else ""
        lines.append(f"{row['mean']:.2f}{spread} ({row.n})")
        if row.pool == best:
            lines.append("best baseline")
        elif (against := here[here["baseline"] == best]).size and against.iloc[0]["n_pairs"]:
            lines.append(_spell_difference(against.iloc[0]))
    if _is_withheld(row):
        lines.append("withheld")
    else:
        gaps = [f"{row[status]} {status}" for status in GAPS if row[status]]
        lines += [", ".join(gaps)] if gaps else []
    return tuple(lines)


def _is_withheld(row: Any) -> bool:
    """Whether a hidden cell has not been started: nothing in it has ended."""
    return bool(row.hidden and row.missing and not (row.completed or row.diverged or row.failed or row.invalid))


def _spell_difference(row: Any) -> str:
    if math.isnan(row["diff_lo"]):
        return f"{row['diff']:+.2f}"
    return f"{row['diff']:+.2f} [{row['diff_lo']:+.2f}, {row['diff_hi']:+.2f}]"


def _footer(frame: pd.DataFrame, metric: str, notes: Sequence[str]) -> str:
    """What a reader has to know before believing the table, and every gap in it by name."""
    one = frame.drop_duplicates(CELL)
    picked = "best epoch on the test set, as the benchmark publishes it" if metric == METRICS[0] else "last epoch"
    lines = [
        f"{metric} in percent ({picked}): mean ± standard deviation (seeds).",
        "Below it, the difference to the best baseline of the column, paired by seed, with its 95 % t interval; "
        "a single seed has no interval, and says nothing about the next one.",
    ]
    for status in GAPS:
        named = [
            f"{row.pool} on {row.arch}-{row.dataset} ({getattr(row, status)})"
            for row in one.itertuples()
            if getattr(row, status) and not _is_withheld(row)
        ]
        if named:
            lines.append(f"{status.capitalize()}, not in any mean: {'; '.join(named)}.")
    withheld = dict.fromkeys(f"{row.arch}-{row.dataset}" for row in one.itertuples() if _is_withheld(row))
    if withheld:
        lines.append(f"Withheld until the final run (--final): {', '.join(withheld)}.")
    return "\n".join([*lines, *notes])
