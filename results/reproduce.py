"""What was measured beside what was published, cell by cell, with a verdict by a stated rule.

The published figures ship as `published.csv`: entry, kind, arch, dataset, seed, best_test_acc, source. Their seeds are
not ours (another program draws other numbers from 42), so nothing is paired.
"""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich import box
from rich.table import Table

from results import schema, stats, views
from results.leaderboard import METRICS, groups, refuse_mixed, refuse_strange
from trainer import data
from trainer.printable import unprintable
from trainer.problems import RequestError, short
from trainer.text import markdown, plain

PUBLISHED = Path(__file__).parent / "published.csv"
NEEDED = ("entry", "arch", "dataset", "best_test_acc")
AGREES, DIFFERS, CANNOT_TELL = "agrees", "differs", "cannot tell"
MARGIN = 1.0  # points

RULE = (
    "Differs: the 95 % interval of the difference, measured - published, does not hold zero. Agrees: it does, and "
    "reaches no further than {margin}. Cannot tell: it reaches further, or there is none. By Welch's t; where a "
    "side is a single figure, both are taken to have the spread of the published baselines of the column."
)


@dataclass(frozen=True, slots=True)
class Cell:
    """One entry in one column, published and measured; percent."""

    entry: str
    arch: str
    dataset: str
    published: stats.Summary
    published_diverged: int
    published_flags: str
    measured: stats.Summary
    diff: float
    lo: float
    hi: float
    verdict: str


def load_published(path: Path = PUBLISHED) -> pd.DataFrame:
    """A published table: entry, kind, arch, dataset, seed (NaN: not stated), best_test_acc, source.

    Raises:
        RequestError: it cannot be read, or lacks a column.
    """
    try:
        found = pd.read_csv(io.StringIO(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise RequestError.of(f"{path} cannot be read as CSV: {error}", "--against") from None
    missing = [name for name in NEEDED if name not in found]
    if missing:
        what = f"{path} has no column {', '.join(missing)}; needed are {', '.join(NEEDED)}"
        raise RequestError.of(what, "--against")
    for name in ("seed", "kind", "source"):
        if name not in found:
            found[name] = np.nan
    values = pd.to_numeric(found["best_test_acc"], errors="coerce")
    if values.isna().any():
        row = int(values.index[values.isna()][0])
        what = f"{path}, line {row + 2}: best_test_acc is {found['best_test_acc'][row]!r}, allowed is a percentage"
        raise RequestError.of(what, "--against")
    if not values.between(0, 100).all():
        raise RequestError.of(f"{path} has a best_test_acc outside of 0 to 100; allowed are percentages", "--against")
    if len(values) and values.max() <= 1:
        raise RequestError.of(f"{path} has no best_test_acc above 1: fractions? Percentages are needed", "--against")
    if found[list(NEEDED)].isna().any(axis=None):
        raise RequestError.of(f"{path} has rows without {', '.join(NEEDED[:3])}", "--against")
    found = found.astype(dict.fromkeys(NEEDED[:3], str))
    for name in NEEDED[:3]:
        if strange := [value for value in found[name] if unprintable(value)]:
            what = (
                f"{path}, column {name}: found {short(strange[0])}, allowed is text without {unprintable(strange[0])}"
            )
            raise RequestError.of(what, "--against")
    return found.assign(best_test_acc=values)


def compare(
    trials: pd.DataFrame, published: pd.DataFrame, metric: str = METRICS[0], margin: float = MARGIN
) -> list[Cell]:
    """One for each published cell that has completed trials, baselines first.

    Args:
        trials: rows of `schema.TRIALS`; a published entry is the pool of that label.
        margin: how far an interval may reach where measured and published are said to agree, in points.

    Raises:
        RequestError: the trials are of several recipes, or of several pools under one label, or the margin is none.
    """
    if not margin > 0:
        raise RequestError.of(f"found {margin:g}, allowed is a number of points above 0", "--margin")
    refuse_strange(trials)
    refuse_mixed(trials)
    done = trials[trials["status"] == schema.COMPLETED]
    if (again := done[done.duplicated(["pool", "arch", "dataset", "seed"])]).size:
        what = f"{again['pool'].iloc[0]} stands for several pools or revisions here, with one seed twice"
        raise RequestError.of(f"{what}; give the run folder of one of them")
    cells = []
    for (arch, dataset), column in groups(published, ["arch", "dataset"]):
        collapsed = column["best_test_acc"] <= chance(dataset) + 0.005
        baselines = set(column.loc[column["kind"].isin(["baseline"]), "entry"]) or set(column["entry"])
        members = dict(groups(column[~collapsed], ["entry"]))
        values = {key[0]: rows["best_test_acc"].to_numpy(np.float64) for key, rows in members.items()}
        far = dict(zip(values, stats.outliers(list(values.values())), strict=True))
        spread = _pooled([found[~far[entry]] for entry, found in values.items() if entry in baselines])
        for entry in column["entry"].drop_duplicates():
            mine = done[(done["pool"] == entry) & (done["arch"] == arch) & (done["dataset"] == dataset)]
            ours = mine[metric].dropna().to_numpy(np.float64)
            if not len(ours):
                continue
            theirs = values.get(entry, np.array([]))
            flagged = theirs[far[entry]] if entry in far else theirs
            difference = _difference(ours, theirs, spread)
            cells.append(
                Cell(
                    entry,
                    arch,
                    dataset,
                    stats.summary(theirs),
                    int((column["entry"].eq(entry) & collapsed).sum()),
                    ", ".join(f"{value:.2f}" for value in flagged),
                    stats.summary(ours),
                    difference.diff,
                    difference.lo,
                    difference.hi,
                    verdict(difference, margin),
                )
            )
    return cells


def chance(dataset: str) -> float:
    """Accuracy of guessing, percent: what a network that has diverged is published with."""
    return 100 / data.DATASETS[dataset].classes if dataset in data.DATASETS else 0.0


def verdict(difference: stats.Difference, margin: float) -> str:
    """By `RULE`."""
    if math.isnan(difference.lo):
        return CANNOT_TELL
    if not difference.lo <= 0 <= difference.hi:
        return DIFFERS
    return AGREES if max(-difference.lo, difference.hi) <= margin else CANNOT_TELL


def _difference(ours: np.ndarray, theirs: np.ndarray, spread: tuple[float, int]) -> stats.Difference:
    if len(theirs) != 1 and len(ours) != 1:
        return stats.welch_difference(ours, theirs)
    if not len(theirs):
        return stats.Difference(0, math.nan, math.nan, math.nan, math.nan, paired=False)
    # A side of one value has no spread of its own.
    return stats.known_spread_difference(ours, theirs, *spread)


def _pooled(cells: Sequence[np.ndarray]) -> tuple[float, int]:
    """The standard deviation within cells, and its degrees of freedom."""
    several = [found for found in cells if len(found) > 1]
    degrees = sum(len(found) - 1 for found in several)
    squares = sum(float(((found - found.mean()) ** 2).sum()) for found in several)
    return (math.sqrt(squares / degrees), degrees) if degrees else (math.nan, 0)


# Views

COLUMNS = ("entry", "arch", "dataset", "published", "measured", "difference", "verdict")


def to_frame(cells: Sequence[Cell]) -> pd.DataFrame:
    """One row a cell, every digit."""
    rows = [
        {
            **{name: getattr(cell, name) for name in ("entry", "arch", "dataset")},
            **{f"published_{name}": getattr(cell.published, name) for name in ("n", "mean", "std")},
            **{name: getattr(cell, name) for name in ("published_diverged", "published_flags")},
            **{f"measured_{name}": getattr(cell.measured, name) for name in ("n", "mean", "std")},
            **{name: getattr(cell, name) for name in ("diff", "lo", "hi", "verdict")},
        }
        for cell in cells
    ]
    return pd.DataFrame(rows)


def to_text(cells: Sequence[Cell], margin: float = MARGIN) -> str:
    table = Table(box=box.SIMPLE_HEAD)
    for name in COLUMNS:
        table.add_column(name, no_wrap=True, justify="right" if name in COLUMNS[3:6] else "left")
    for cell in cells:
        table.add_row(*_spelled(cell).values())
    lines = plain(table)
    width = max(80, *map(len, lines))
    return "\n".join([*lines, *(textwrap.fill(line, width) for line in _footer(cells, margin)), ""])


def to_markdown(cells: Sequence[Cell], margin: float = MARGIN) -> str:
    lines = [
        list(COLUMNS),
        ["---"] * 3 + ["---:"] * 3 + ["---"],
        *(list(map(markdown, _spelled(cell).values())) for cell in cells),
    ]
    return "\n".join([*(f"| {' | '.join(line)} |" for line in lines), "", *_footer(cells, margin), ""])


def to_csv(cells: Sequence[Cell], *_: Any) -> str:
    return views.to_csv(to_frame(cells))


FORMATS = {"text": to_text, "markdown": to_markdown, "csv": to_csv}


def _spelled(cell: Cell) -> Mapping[str, str]:
    published = _spell(cell.published) + (f", {cell.published_diverged} diverged" if cell.published_diverged else "")
    if cell.published_flags:
        published += f", {cell.published_flags} is far off"
    interval = "" if math.isnan(cell.lo) else f" [{cell.lo:+.2f}, {cell.hi:+.2f}]"
    difference = "" if math.isnan(cell.diff) else f"{cell.diff:+.2f}{interval}"
    figures = (published.lstrip(", "), _spell(cell.measured), difference, cell.verdict)
    return dict(zip(COLUMNS, (cell.entry, cell.arch, cell.dataset, *figures), strict=True))


def _spell(summary: stats.Summary) -> str:
    if not summary.n:
        return ""
    spread = f" ± {summary.std:.2f}" if summary.n > 1 else ""
    return f"{summary.mean:.2f}{spread} ({summary.n})"


def _footer(cells: Sequence[Cell], margin: float) -> list[str]:
    counts = {name: sum(cell.verdict == name for cell in cells) for name in (AGREES, DIFFERS, CANNOT_TELL)}
    said = ", ".join(f"{count} {name}" for name, count in counts.items() if count) or "nothing to compare"
    return [
        f"{len(cells)} cells that are both published and measured: {said}.",
        RULE.format(margin=f"{margin:g} point{'s' * (margin != 1)}"),
    ]
