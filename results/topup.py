"""More seeds, only where they could settle something: where an interval still holds zero, and not too many would do.

Looking, and then adding seeds where the result is open, is a sequential test, which errs more often than its intervals
say. So the run folder remembers that it was done, and every table made from it says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from results import stats
from results.leaderboard import best_baselines
from results.store import RunFolder
from trainer.grid import BASELINE, Entry, Grid
from trainer.problems import RequestError

TARGET = 0.5  # points
MOST = 20  # seeds of a cell


@dataclass(frozen=True, slots=True)
class Open:
    """A comparison that is not settled.

    Attributes:
        std: of the pairs' differences, so far.
        seeds: how many it takes to find the target four times of five; None: more than can be had.
    """

    pool: str
    baseline: str
    arch: str
    dataset: str
    n: int
    diff: float
    std: float
    seeds: int | None

    def __str__(self) -> str:
        which = f"{self.pool} against {self.baseline} on {self.arch}-{self.dataset}"
        needed = f"{self.seeds} are needed" if self.seeds else "more are needed than can be had"
        return f"{which}: {self.diff:+.2f} over {self.n} seeds, {needed}"


def still_open(frame: pd.DataFrame, target: float = TARGET, most: int = MOST) -> list[Open]:
    """The candidates' comparisons with the best baseline whose interval holds zero, by column.

    Args:
        frame: a leaderboard.
        target: the difference that matters, in points.
    """
    best = best_baselines(frame)
    found = []
    for row in frame.to_dict("records"):
        against_best = row["baseline"] == best.get((row["arch"], row["dataset"]))
        if row["role"] == BASELINE or not against_best or row["n_pairs"] < 2 or row["alike"]:
            continue
        if not row["diff_lo"] <= 0 <= row["diff_hi"]:
            continue
        n = int(row["n_pairs"])
        std = (row["diff_hi"] - row["diff"]) / stats.mean_half_width(n)
        needed = stats.seeds_needed(target, std, most=most)
        named = {name: str(row[name]) for name in ("pool", "baseline", "arch", "dataset")}
        found.append(Open(**named, n=n, diff=float(row["diff"]), std=std, seeds=needed and max(needed, n)))
    return found


def spaces(grid: Grid, comparisons: Sequence[Open]) -> dict[str, dict[str, Any]]:
    """{file name: space} that add the seeds: one for each column, of the pools that need them there.

    Seeds go on from the grid's own, so that a pool and its baseline stay paired.
    """
    found: dict[str, dict[str, Any]] = {}
    entries = {entry.pool.label: entry for entry in grid.entries}
    for arch, dataset in dict.fromkeys((one.arch, one.dataset) for one in comparisons):
        here = [one for one in comparisons if (one.arch, one.dataset) == (arch, dataset) and one.seeds]
        wanted = max((one.seeds or 0 for one in here), default=0)
        more = wanted - len(grid.seeds)
        if more <= 0:
            continue
        labels = [one for label in here for one in (label.baseline, label.pool)]
        first = max(grid.seeds) + 1
        found[f"topup-{arch}-{dataset}.yaml"] = {
            "name": grid.name,
            "recipe": grid.to_dict()["recipe"],
            "pairs": [{"arch": arch, "dataset": dataset}],
            "pools": [_entry(entries[label]) for label in dict.fromkeys(labels) if label in entries],
            "seeds": [*grid.seeds, *range(first, first + more)],
        }
    return found


def write(
    run: RunFolder, frame: pd.DataFrame, target: float = TARGET, most: int = MOST
) -> tuple[list[Open], list[Path]]:
    """The open comparisons, and the files that were written into the run folder for those that can be settled.

    Raises:
        RequestError: the run folder has no space.yaml.
    """
    grid = run.grid()
    if grid is None:
        raise RequestError.of(f"{run} has no space.yaml: no sweep has begun there")
    comparisons = still_open(frame, target, most)
    paths = []
    for name, space in spaces(grid, comparisons).items():
        path = run.path / name
        path.write_text(_HEAD.format(name=name, run=run) + yaml.safe_dump(space, sort_keys=False), encoding="utf-8")
        paths.append(path)
    if paths:
        columns = [path.stem.removeprefix("topup-") for path in paths]
        when = datetime.now(UTC).isoformat(timespec="seconds")
        run.write_topups([*run.topups(), {"when": when, "target": target, "columns": columns}])
    return comparisons, paths


_HEAD = """# Written by `python -m results topup`: seeds that were added after looking at the first ones.
#
#   python run_sweep.py --space {run}/{name} --out {run}
"""


def _entry(entry: Entry) -> dict[str, Any]:
    pool = entry.pool
    what = {"name": pool.name}
    if pool.source:
        what = {"file": pool.source.path, "class": pool.source.class_name}
    params = {name: [list(value)] if isinstance(value, tuple) else value for name, value in pool.params}
    label = {} if pool.label == pool.name else {"label": pool.label}
    return {**what, **({"params": params} if params else {}), **label, "role": entry.role}
