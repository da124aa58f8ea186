"""The comparison of what was measured with what was published, cell by cell, with a verdict by a stated rule.

Published seeds are not ours (another program draws other numbers from 42), so nothing is paired: means are compared, at
the spread that the published runs of one function have (`results.table.published`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from results.store import schema
from results.table import published, render, stats
from results.table.published import Entry, Spread
from results.table.trials import METRICS, refuse_mixed, refuse_strange
from search_spaces.errors import RequestError

AGREES, DIFFERS, CANNOT_TELL = "agrees", "differs", "cannot tell"
MARGIN = 1.0  # points
LOST = (schema.DIVERGED, schema.COLLAPSED)  # which a published table does not tell apart

RULE = (
    "Differs: the 95 % interval of the difference, measured - published, does not hold zero. Agrees: it does, and "
    "reaches no further than {margin}. Cannot tell: it reaches further, or there is none, as between two single runs. "
    "By Student's t for two means, at the spread of the published runs of one function; by Welch's where none is known."
)


@dataclass(frozen=True, slots=True)
class Cell:
    """One entry in one column, published and measured; percent.

    Attributes:
        spread: between published runs of one function of the column.
        measured_lost: how many of our trials diverged or collapsed.
        refused: how many the gate refused.
    """

    arch: str
    dataset: str
    published: Entry
    spread: Spread
    measured: stats.Summary
    measured_lost: int
    refused: int
    difference: stats.Difference
    verdict: str

    @property
    def pair(self) -> str:
        return f"{self.arch}-{self.dataset}"


def compare(trials: pd.DataFrame, table: pd.DataFrame, metric: str = METRICS[0], margin: float = MARGIN) -> list[Cell]:
    """Return a `Cell` for each published cell in which trials have ended, baselines first.

    Args:
        trials: rows of `schema.TRIALS`; a published entry is the pool of that label.
        table: as `published.load` gives it.
        margin: how far an interval may reach where measured and published are said to agree, in points.

    Raises:
        RequestError: the trials are of several recipes, or of several pools under one label, or the margin is none.
    """
    if not margin > 0:
        raise RequestError.of(f"expected a number of points above 0, got {margin:g}", "--margin")
    refuse_strange(trials)
    refuse_mixed(trials)
    done = trials[trials["status"].isin([*schema.TRAINED, schema.INVALID])]
    if (again := done[done.duplicated(["pool", "arch", "dataset", "seed"])]).size:
        what = f"{again['pool'].iloc[0]} stands for several pools or revisions here, with one seed twice"
        raise RequestError.of(f"{what}; give the run folder of one of them")
    cells = []
    for column in published.columns(table):
        for entry in column.entries:
            mine = done[(done["pool"] == entry.name) & (done["arch"] == column.arch)]
            mine = mine[mine["dataset"] == column.dataset]
            if mine.empty:
                continue
            ours = mine.loc[mine["status"] == schema.COMPLETED, metric].dropna().to_numpy(np.float64)
            difference = _difference(ours, entry.values, column.spread)
            cells.append(
                Cell(
                    column.arch,
                    column.dataset,
                    entry,
                    column.spread,
                    stats.summary(ours),
                    int(mine["status"].isin(LOST).sum()),
                    int(mine["status"].eq(schema.INVALID).sum()),
                    difference,
                    verdict(difference, margin),
                )
            )
    return cells


def verdict(difference: stats.Difference, margin: float) -> str:
    """Return `AGREES`, `DIFFERS` or `CANNOT_TELL`, by `RULE`."""
    if math.isnan(difference.lo):
        return CANNOT_TELL
    if not difference.lo <= 0 <= difference.hi:
        return DIFFERS
    return AGREES if max(-difference.lo, difference.hi) <= margin else CANNOT_TELL


def _difference(ours: np.ndarray, theirs: np.ndarray, spread: Spread) -> stats.Difference:
    if max(len(ours), len(theirs)) > 1 and min(len(ours), len(theirs)) > 0 and spread.degrees:
        return stats.known_spread_difference(ours, theirs, spread.std, spread.degrees)
    return stats.welch_difference(ours, theirs)  # which has no interval where a side is a single run


# Views

COLUMNS = ("entry", "arch", "dataset", "published", "measured", "difference", "verdict")
_RIGHT = range(3, 6)


def to_frame(cells: Sequence[Cell]) -> pd.DataFrame:
    """Return one row a cell, every digit."""
    rows = []
    for cell in cells:
        theirs = stats.summary(cell.published.values)
        rows.append(
            {
                "entry": cell.published.name,
                "arch": cell.arch,
                "dataset": cell.dataset,
                **{f"published_{name}": getattr(theirs, name) for name in ("n", "mean", "std")},
                "published_lost": cell.published.lost,
                "published_flags": _spell_values(cell.published.far),
                "published_pooled": ", ".join(cell.published.pooled),
                **{f"measured_{name}": getattr(cell.measured, name) for name in ("n", "mean", "std")},
                "measured_lost": cell.measured_lost,
                "measured_refused": cell.refused,
                "spread": cell.spread.std,
                **{name: getattr(cell.difference, name) for name in ("diff", "lo", "hi")},
                "verdict": cell.verdict,
            }
        )
    return pd.DataFrame(rows)


def to_text(cells: Sequence[Cell], margin: float = MARGIN, source: str = "") -> str:
    """Draw plain text; `source` says whose table it is."""
    rows = [_spelled(cell) for cell in cells]
    return render.text_table(COLUMNS, rows, _RIGHT, _footer(cells, margin, source))


def to_markdown(cells: Sequence[Cell], margin: float = MARGIN, source: str = "") -> str:
    """Draw GitHub's Markdown."""
    rows = [[[text] for text in _spelled(cell)] for cell in cells]
    return render.markdown_table(COLUMNS, rows, _RIGHT, _footer(cells, margin, source))


def to_csv(cells: Sequence[Cell], *_: Any) -> str:
    """Write `to_frame`, every digit of it."""
    return render.csv(to_frame(cells))


FORMATS = {"text": to_text, "markdown": to_markdown, "csv": to_csv}


def _spelled(cell: Cell) -> Sequence[str]:
    theirs, difference = cell.published, cell.difference
    said = [_spell(stats.summary(theirs.values))]
    said += [f"{theirs.lost} diverged or collapsed"] if theirs.lost else []
    said += [f"without {_spell_values(theirs.far)}, far off"] if theirs.far else []
    measured = [_spell(cell.measured)]
    measured += [f"{cell.measured_lost} diverged or collapsed"] if cell.measured_lost else []
    measured += [f"{cell.refused} refused by the gate"] if cell.refused else []
    interval = "" if math.isnan(difference.lo) else f" [{difference.lo:+.2f}, {difference.hi:+.2f}]"
    gap = "" if math.isnan(difference.diff) else f"{difference.diff:+.2f}{interval}"
    texts = (", ".join(filter(None, said)), ", ".join(filter(None, measured)), gap, cell.verdict)
    return (theirs.name, cell.arch, cell.dataset, *texts)


def _spell(summary: stats.Summary) -> str:
    """Spell mean, standard deviation and number of runs, `72.31 ± 0.22 (3)`; a single run has no deviation."""
    if not summary.n:
        return ""
    spread = f" ± {summary.std:.2f}" if summary.n > 1 else ""
    return f"{summary.mean:.2f}{spread} ({summary.n})"


def _spell_values(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.2f}" for value in values)


def _footer(cells: Sequence[Cell], margin: float, source: str) -> list[str]:
    counts = {name: sum(cell.verdict == name for cell in cells) for name in (AGREES, DIFFERS, CANNOT_TELL)}
    said = ", ".join(f"{count} {name}" for name, count in counts.items() if count) or "nothing to compare"
    lines = [
        f"{len(cells)} cells that are both published and measured: {said}. In brackets, how many runs a mean is of.",
        RULE.format(margin=f"{margin:g} point{'s' * (margin != 1)}"),
    ]
    spreads = {cell.pair: cell.spread for cell in cells if cell.spread.degrees}
    if spreads:
        named = [f"{pair} {spread.std:.2f} ({spread.runs} runs)" for pair, spread in spreads.items()]
        lines.append(f"Spread between published runs of one function, in points: {', '.join(named)}.")
    pooled = {cell.pair: cell.published for cell in cells if cell.published.pooled}
    for pair, entry in pooled.items():
        names = sorted((entry.name, *entry.pooled))
        lines.append(
            f"On {pair} the map has one position, of which {', '.join(names[:-1])} and {names[-1]} are one function: "
            "their published runs are taken together."
        )
    return [*lines, f"Published: {source}."] if source else lines
