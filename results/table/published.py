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
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from results.table import stats
from results.table.leaderboard import groups
from search_spaces import datasets
from search_spaces.architectures import ARCHS
from search_spaces.chance import is_guessing
from search_spaces.errors import RequestError, short
from search_spaces.text import unprintable

PUBLISHED = Path(__file__).parent / "published.csv"
BENCHMARK = "MLS-Bench, cv-pooling-aggregation (arXiv 2605.08678)"
NEEDED = ("entry", "arch", "dataset", "best_test_acc")
BASELINE, SISTER = "baseline", "sister"
PROPOSED = ("vanilla", "agent")  # one entry has both, and they are two pools: `deepseek-reasoner agent`
IDENTITIES = ("gap", "avg_max", "gem", "global_max")  # of a map of one position; gem to 3e-7

TEST_IMAGES = 10_000

Values = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Spread:
    """The spread of runs of one function.

    Attributes:
        std: the standard deviation within functions, in points; NaN if no function has two runs.
        degrees: its degrees of freedom.
        runs: the number of runs that it was taken from.
    """

    std: float
    degrees: int
    runs: int


@dataclass(frozen=True, slots=True)
class Entry:
    """A published cell.

    Attributes:
        name: the label that the pool must have in a sweep.
        values: [n] percent, of the runs of this function that learned.
        far: its own runs that are left out, as they are far from their siblings.
        lost: how many of its own runs diverged or collapsed, which a table of accuracies does not tell apart.
        pooled: the entries whose runs are in `values` too, as the same function.
    """

    name: str
    values: Values
    far: tuple[float, ...]
    lost: int
    pooled: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Column:
    """The published cells of an architecture on a dataset; baselines first."""

    arch: str
    dataset: str
    entries: tuple[Entry, ...]
    spread: Spread


def load(path: Path = PUBLISHED) -> pd.DataFrame:
    """Read a published table: entry, kind, arch, dataset, seed (NaN: not stated), best_test_acc, source.

    Raises:
        RequestError: it cannot be read, or lacks a column.
    """
    try:
        found = pd.read_csv(io.StringIO(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise RequestError.of(f"{path} cannot be read as CSV: {error}", "--against") from None
    missing = [name for name in NEEDED if name not in found]
    if missing:
        expected = f"expected the columns {', '.join(NEEDED)}"
        raise RequestError.of(f"{path}: {expected}, got no column {', '.join(missing)}", "--against")
    for name in ("seed", "kind", "source"):
        if name not in found:
            found[name] = np.nan
    values = pd.to_numeric(found["best_test_acc"], errors="coerce")
    if values.isna().any():
        row = int(values.index[values.isna()][0])
        what = f"{path}, line {row + 2}: expected a percentage for best_test_acc, got {found['best_test_acc'][row]!r}"
        raise RequestError.of(what, "--against")
    if not values.between(0, 100).all():
        raise RequestError.of(f"{path}: expected percentages, got a best_test_acc outside of 0 to 100", "--against")
    if len(values) and values.max() <= 1:
        raise RequestError.of(
            f"{path}: expected percentages, got no best_test_acc above 1: are they fractions?", "--against"
        )
    if found[list(NEEDED)].isna().any(axis=None):
        raise RequestError.of(f"{path} has rows without {', '.join(NEEDED[:3])}", "--against")
    found = found.astype(dict.fromkeys(NEEDED[:3], str))
    for name in NEEDED[:3]:
        if strange := [value for value in found[name] if unprintable(value)]:
            expected = f"expected text without {unprintable(strange[0])}"
            raise RequestError.of(f"{path}, column {name}: {expected}, got {short(strange[0])}", "--against")
    return found.assign(best_test_acc=values)


def columns(published: pd.DataFrame) -> Iterator[Column]:
    """Yield the table by architecture and dataset."""
    for (arch, dataset), rows in groups(published, ["arch", "dataset"]):
        yield _column(arch, dataset, rows)


def spreads() -> dict[tuple[str, str], Spread]:
    """Return {(arch, dataset): the spread of runs of one function} for the benchmark's pairs and its sister tasks'."""
    return {(column.arch, column.dataset): column.spread for column in columns(load())}


def _column(arch: str, dataset: str, rows: pd.DataFrame) -> Column:
    full = rows["entry"] + " " + rows["kind"].astype(str)
    rows = rows.assign(name=rows["entry"].where(~rows["kind"].isin(PROPOSED), full))
    rows = rows.sort_values("kind", key=lambda kind: kind.map({BASELINE: 0, SISTER: 1}).fillna(2), kind="stable")
    of_baselines = rows["kind"].isin([BASELINE, SISTER])
    repeated = set(rows.loc[of_baselines, "name"]) or set(rows["name"])  # all, where a table does not tell them apart
    one_position = arch in ARCHS and ARCHS[arch].feature_map[1:] == (1, 1)
    alike = {name for name in repeated if one_position and name in IDENTITIES}
    learned = np.array([not _is_lost(float(value), dataset) for value in rows["best_test_acc"]], bool)

    runs: dict[str, list[tuple[str, float]]] = {}  # of each function
    for name, value in rows.loc[learned, ["name", "best_test_acc"]].itertuples(index=False):
        runs.setdefault("" if name in alike else name, []).append((name, value))
    flags = stats.outliers([np.array([value for _, value in mine]) for mine in runs.values()])
    far: dict[str, list[float]] = {}
    kept: dict[str, Values] = {}
    for (function, mine), is_far in zip(runs.items(), flags, strict=True):
        kept[function] = np.array([value for (_, value), out in zip(mine, is_far, strict=True) if not out])
        for (name, value), out in zip(mine, is_far, strict=True):
            far.setdefault(name, []).extend([value] * bool(out))

    entries = []
    for name in rows["name"].drop_duplicates():
        values = kept.get("" if name in alike else name, np.array([]))
        lost = int((rows["name"].eq(name) & ~learned).sum())
        others = sorted(alike - {name}, key=IDENTITIES.index) if name in alike else ()
        entries.append(Entry(name, values, tuple(far.get(name, ())), lost, tuple(others)))
    several = [values for function, values in kept.items() if function in {"", *repeated}]
    return Column(arch, dataset, tuple(entries), _spread(several))


def _is_lost(value: float, dataset: str) -> bool:
    """Return whether an accuracy is no better than guessing, on the 10,000 test images of CIFAR and Fashion-MNIST."""
    return dataset in datasets.DATASETS and is_guessing(value, datasets.DATASETS[dataset].classes, TEST_IMAGES)


def _spread(functions: Sequence[Values]) -> Spread:
    several = [values for values in functions if len(values) > 1]
    degrees = sum(len(values) - 1 for values in several)
    squares = sum(float(((values - values.mean()) ** 2).sum()) for values in several)
    return Spread(math.sqrt(squares / degrees) if degrees else math.nan, degrees, sum(map(len, several)))
