"""Published tables: the benchmark's own, which ships as `published.csv`, or another paper's.

The benchmark is `cv-pooling-aggregation` of MLS-Bench (arXiv 2605.08678). Its rows are of four kinds: `baseline`, three
pools with three seeds each; `sister`, average pooling, which its page does not list, from sister tasks of the same
harness; `vanilla` and `agent`, one run each of what a language model proposed first and at last.

Same function and same seed do not give the same figure there: on VGG-16-BN, where average and maximum of one position
are one function, seed 42 reads 73.38, 72.55 and 74.43. So figures are compared as means, at the spread that the runs of
one function have.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from results.table import stats
from search_spaces import datasets
from search_spaces.architectures import ARCHS
from search_spaces.chance import is_guessing
from search_spaces.errors import RequestError, short
from search_spaces.text import unprintable

PUBLISHED = Path(__file__).parent / "published.csv"
BENCHMARK = "MLS-Bench, cv-pooling-aggregation (arXiv 2605.08678)"
NAMES, ACCURACY = ("entry", "arch", "dataset"), "best_test_acc"
BASELINE, SISTER = "baseline", "sister"
PROPOSED = ("vanilla", "agent")  # one entry has both, and they are two pools: `deepseek-reasoner agent`
IDENTITIES = ("gap", "avg_max", "gem", "global_max")  # of a map of one position; gem to 3e-7
IDENTITY = ""  # what they are then called together
TEST_IMAGES = 10_000

Pair = tuple[str, str]  # (arch, dataset)


@dataclass(frozen=True, slots=True)
class Spread:
    """The spread of runs of one function."""

    std: float  # the standard deviation within functions, in points; NaN if no function has two runs
    degrees: int  # of freedom
    runs: int  # that it was taken from


@dataclass(frozen=True, slots=True)
class Entry:
    """A published cell."""

    name: str  # the label that the pool must have in a sweep
    values: stats.Values  # [n] percent, of the runs of this function that learned
    far: tuple[float, ...]  # its own runs that are left out, as they are far from their siblings
    lost: int  # how many of its own diverged or collapsed, which a table of accuracies does not tell apart
    pooled: tuple[str, ...]  # the entries whose runs are in `values` too, as the same function


@dataclass(frozen=True, slots=True)
class Column:
    """The published cells of an architecture on a dataset; baselines first."""

    arch: str
    dataset: str
    entries: tuple[Entry, ...]
    spread: Spread


def load(path: Path = PUBLISHED) -> pd.DataFrame:
    """Read a published table: entry, arch, dataset, best_test_acc, and kind (NaN: not stated).

    Raises:
        RequestError: it cannot be read, or lacks a column, or has something else in it.
    """
    try:
        found = pd.read_csv(io.StringIO(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise RequestError.of(f"{path} cannot be read as CSV: {error}", "--against") from None
    if wrong := _what_is_wrong(found):
        raise RequestError.of(f"{path}{wrong}", "--against")
    unstated = {name: np.nan for name in ("kind",) if name not in found}
    return found.astype(dict.fromkeys(NAMES, str) | {ACCURACY: float}).assign(**unstated)


def _what_is_wrong(found: pd.DataFrame) -> str | None:
    if missing := [name for name in (*NAMES, ACCURACY) if name not in found]:
        return f": expected the columns {', '.join([*NAMES, ACCURACY])}, got no column {', '.join(missing)}"
    values = pd.to_numeric(found[ACCURACY], errors="coerce")
    for line, (value, number) in enumerate(zip(found[ACCURACY], values, strict=True), start=2):
        if not 0 <= number <= 100:
            return f", line {line}: expected a percentage (0 to 100) for {ACCURACY}, got {short(value)}"
    if len(values) and values.max() <= 1:
        return f": expected percentages, got no {ACCURACY} above 1: are they fractions?"
    for name in NAMES:
        if found[name].isna().any():
            return f" has rows without {name}"
        if strange := [value for value in found[name].map(str) if unprintable(value)]:
            expected = f"expected text without {unprintable(strange[0])}"
            return f", column {name}: {expected}, got {short(strange[0])}"
    return None


def columns(published: pd.DataFrame) -> Iterator[Column]:
    """Yield the table by architecture and dataset."""
    for (arch, dataset), rows in published.groupby(["arch", "dataset"], sort=False):  # type: ignore[misc]
        yield _column(str(arch), str(dataset), rows)


def spreads(published: pd.DataFrame | None = None) -> dict[Pair, Spread]:
    """Return the spread of runs of one function on each pair of a published table, the benchmark's unless given."""
    table = load() if published is None else published
    return {(column.arch, column.dataset): column.spread for column in columns(table)}


def _column(arch: str, dataset: str, rows: pd.DataFrame) -> Column:
    full = rows["entry"] + " " + rows["kind"].astype(str)
    rows = rows.assign(name=rows["entry"].where(~rows["kind"].isin(PROPOSED), full))
    rows = rows.sort_values("kind", key=lambda kind: kind.map({BASELINE: 0, SISTER: 1}).fillna(2), kind="stable")
    repeated = set(rows.loc[rows["kind"].isin([BASELINE, SISTER]), "name"])
    repeated = repeated or set(rows["name"])  # all, where a table does not tell them apart
    one_position = arch in ARCHS and ARCHS[arch].feature_map[1:] == (1, 1)
    alike = [name for name in IDENTITIES if one_position and name in repeated]
    rows["function"] = rows["name"].where(~rows["name"].isin(alike), IDENTITY)
    rows["lost"] = [_is_lost(value, dataset) for value in rows[ACCURACY]]

    runs = dict(list(rows[~rows["lost"]].groupby("function", sort=False)[ACCURACY]))
    kept: dict[object, stats.Values] = {}
    rows["far"] = False
    for (function, mine), is_far in zip(runs.items(), stats.outliers([*map(np.array, runs.values())]), strict=True):
        kept[function] = mine[~is_far].to_numpy()
        rows.loc[mine.index[is_far], "far"] = True
    entries = []
    for name, mine in rows.groupby("name", sort=False):
        values = kept.get(mine["function"].iloc[0], np.array([]))
        others = tuple(other for other in alike if other != name) if name in alike else ()
        entries.append(
            Entry(str(name), values, tuple(mine.loc[mine["far"], ACCURACY]), int(mine["lost"].sum()), others)
        )

    several = [values for function, values in kept.items() if function in {IDENTITY, *repeated} and len(values) > 1]
    degrees = sum(len(values) - 1 for values in several)
    squares = sum(float(((values - values.mean()) ** 2).sum()) for values in several)
    std = math.sqrt(squares / degrees) if degrees else math.nan
    return Column(arch, dataset, tuple(entries), Spread(std, degrees, sum(map(len, several))))


def _is_lost(value: float, dataset: str) -> bool:
    """Return whether an accuracy is no better than guessing, on the 10,000 test images of CIFAR and Fashion-MNIST."""
    return dataset in datasets.DATASETS and is_guessing(value, datasets.DATASETS[dataset].classes, TEST_IMAGES)
