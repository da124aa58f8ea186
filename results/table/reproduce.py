"""The comparison of what was measured with what was published, cell by cell, with a verdict by a stated rule.

Published seeds are not ours (another program draws other numbers from 42), so nothing is paired: means are compared, at
the spread that the published runs of one function have (`results.table.published`).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from results.store import schema
from results.table import published, stats
from results.table.published import Column, Entry, Pair, Spread
from results.table.render import Layout, Record
from results.table.trials import METRICS, refuse_mixed, refuse_strange
from search_spaces.errors import RequestError

AGREES, DIFFERS, CANNOT_TELL = "agrees", "differs", "cannot tell"
MARGIN = 1.0  # points

RULE = (
    "Differs: the 95 % interval of the difference, measured - published, does not hold zero. Agrees: it does, and "
    "reaches no further than {margin}. Cannot tell: it reaches further, or there is none, as between two single runs. "
    "By Student's t for two means, at the spread of the published runs of one function; by Welch's where none is known."
)


def compare(
    trials: pd.DataFrame, table: pd.DataFrame, metric: str = METRICS[0], margin: float = MARGIN
) -> pd.DataFrame:
    """Return one row for each published cell in which trials have ended, baselines first; percent, every digit.

    `spread` is that between published runs of one function. `*_lost` are the runs that diverged or collapsed,
    `published_flags` those left out as far from their siblings, and `published_pooled` the entries whose runs count as
    the same function's.

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
    measured = dict(list(done.groupby(["pool", "arch", "dataset"])))
    return pd.DataFrame(
        _row(column, entry, measured[key], metric, margin)
        for column in published.columns(table)
        for entry in column.entries
        if (key := (entry.name, column.arch, column.dataset)) in measured
    )


def _row(column: Column, entry: Entry, trials: pd.DataFrame, metric: str, margin: float) -> dict[str, Any]:
    values = trials.loc[trials["status"] == schema.COMPLETED, metric].dropna().to_numpy(np.float64)
    fewer, more = sorted((len(values), len(entry.values)))
    if fewer > 0 and more > 1 and column.spread.degrees:
        difference = stats.known_spread_difference(values, entry.values, column.spread.std, column.spread.degrees)
    else:
        difference = stats.welch_difference(values, entry.values)  # no interval where a side is a single run
    ours, theirs = stats.summary(values), stats.summary(entry.values)
    return {
        "entry": entry.name,
        "arch": column.arch,
        "dataset": column.dataset,
        **{f"published_{name}": theirs[name] for name in ("n", "mean", "std")},
        "published_lost": entry.lost,
        "published_flags": ", ".join(f"{value:.2f}" for value in entry.far),
        "published_pooled": ", ".join(entry.pooled),
        **{f"measured_{name}": ours[name] for name in ("n", "mean", "std")},
        "measured_lost": int(trials["status"].isin([schema.DIVERGED, schema.COLLAPSED]).sum()),
        "measured_refused": int(trials["status"].eq(schema.INVALID).sum()),
        "spread": column.spread.std,
        **{name: getattr(difference, name) for name in ("diff", "lo", "hi")},
        "verdict": verdict(difference.lo, difference.hi, margin),
    }


def verdict(lo: float, hi: float, margin: float) -> str:
    """Return `AGREES`, `DIFFERS` or `CANNOT_TELL` of a difference with this interval, by `RULE`."""
    if math.isnan(lo):
        return CANNOT_TELL
    if not lo <= 0 <= hi:
        return DIFFERS
    return AGREES if max(-lo, hi) <= margin else CANNOT_TELL


# As a text


def layout(frame: pd.DataFrame, spreads: Mapping[Pair, Spread], margin: float = MARGIN, source: str = "") -> Layout:
    """Lay `compare`'s frame out for `results.table.render.FORMATS`.

    Args:
        spreads: `published.spreads` of the table that it was made from.
        source: whose table that is.
    """
    head = ["entry", "arch", "dataset", "published", "measured", "difference", "verdict"]
    rows = frame.to_dict("records")
    cells = [[[text] for text in _spelled(row)] for row in rows]
    return Layout(frame, head, "lllrrrl", {"": cells}, _footer(rows, spreads, margin, source))


def _spelled(row: Record) -> Sequence[str]:
    """Spell what stands in each column."""
    published, measured = [_spell(row, "published")], [_spell(row, "measured")]
    published += [f"without {row['published_flags']}, far off"] if row["published_flags"] else []
    measured += [f"{row['measured_refused']} refused by the gate"] if row["measured_refused"] else []
    difference = "" if math.isnan(row["diff"]) else f"{row['diff']:+.2f}"
    difference += "" if math.isnan(row["lo"]) else f" [{row['lo']:+.2f}, {row['hi']:+.2f}]"
    said = [", ".join(filter(None, texts)) for texts in (published, measured)]
    return [row["entry"], row["arch"], row["dataset"], *said, difference, row["verdict"]]


def _spell(row: Record, side: str) -> str:
    """Spell mean, standard deviation and number of runs, `72.31 ± 0.22 (3)`, and how many are lost.

    A single run has no deviation.
    """
    n, mean, std, lost = (row[f"{side}_{name}"] for name in ("n", "mean", "std", "lost"))
    spread = f" ± {std:.2f}" if n > 1 else ""
    said = [f"{mean:.2f}{spread} ({n})"] if n else []
    return ", ".join([*said, f"{lost} diverged or collapsed"] if lost else said)


def _footer(rows: Sequence[Record], spreads: Mapping[Pair, Spread], margin: float, source: str) -> list[str]:
    counts = Counter(row["verdict"] for row in rows)
    verdicts = [f"{counts[name]} {name}" for name in (AGREES, DIFFERS, CANNOT_TELL) if counts[name]]
    said = ", ".join(verdicts) or "nothing to compare"
    lines = [
        f"{len(rows)} cells that are both published and measured: {said}. In brackets, how many runs a mean is of.",
        RULE.format(margin=f"{margin:g} point{'s' * (margin != 1)}"),
    ]
    known = {pair: spreads[pair] for row in rows if spreads[pair := (row["arch"], row["dataset"])].degrees}
    named = [f"{'-'.join(pair)} {spread.std:.2f} ({spread.runs} runs)" for pair, spread in known.items()]
    lines += [f"Spread between published runs of one function, in points: {', '.join(named)}."] if named else []
    pooled = {f"{row['arch']}-{row['dataset']}": row for row in rows if row["published_pooled"]}
    for pair, row in pooled.items():
        *names, last = sorted([row["entry"], *row["published_pooled"].split(", ")])
        lines.append(
            f"On {pair} the map has one position, of which {', '.join(names)} and {last} are one function: "
            "their published runs are taken together."
        )
    return [*lines, f"Published: {source}."] if source else lines
