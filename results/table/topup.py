"""More seeds, only where they could settle something: where an interval still holds zero, and not too many would do.

Looking, and then adding seeds where the result is open, is a sequential test, which errs more often than its intervals
say. So the run folder remembers that it was done, and every table made from it says so.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from results.status import NO_SPACE
from results.store.folder import RunFolder
from results.table import stats
from results.table.leaderboard import ALPHA, best_baselines
from search_spaces import strict_yaml
from search_spaces.equivalence import Equivalence
from search_spaces.errors import Problem, RequestError
from search_spaces.grid import BASELINE, CANDIDATE, Grid
from search_spaces.pool import Pool

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
        needed = f"{self.seeds} are needed" if self.seeds else "more are needed than can be had (--most)"
        if self.seeds and self.seeds <= self.n:
            needed = "as many as it takes: a difference that matters would have been found four times of five"
        return f"{which}: {self.diff:+.2f} over {self.n} seeds, {needed}"


def still_open(
    frame: pd.DataFrame, target: float = TARGET, most: int = MOST, same: Sequence[Equivalence] = ()
) -> list[Open]:
    """The candidates' comparisons with the best baseline whose interval holds zero, in the visible columns.

    Args:
        frame: a leaderboard.
        target: the difference that matters, in points; it is to be marked, at the strictest step of Holm.
        same: what starts as one function: where nothing that is learned can part the two, no seeds are added.
    """
    best = best_baselines(frame)
    strictest = ALPHA / max(1, int(frame["p_holm"].notna().sum()))
    found = []
    for row in frame.to_dict("records"):
        against_best = row["baseline"] == best.get((row["arch"], row["dataset"]))
        if row["role"] == BASELINE or row["hidden"] or not against_best or row["n_pairs"] < 2:
            continue
        if not row["diff_lo"] <= 0 <= row["diff_hi"] or _is_one_function(row, same):
            continue
        n = int(row["n_pairs"])
        std = (row["diff_hi"] - row["diff"]) / stats.mean_half_width(n)
        needed = stats.seeds_needed(target, std, most=most, alpha=strictest)
        named = {name: str(row[name]) for name in ("pool", "baseline", "arch", "dataset")}
        found.append(Open(**named, n=n, diff=float(row["diff"]), std=std, seeds=needed and max(needed, n)))
    return found


def _is_one_function(row: Mapping[Any, Any], same: Sequence[Equivalence]) -> bool:
    pair = {row["pool"], row["baseline"]}
    return any(one.arch == row["arch"] and pair <= set(one.pools) and not pair & set(one.parting) for one in same)


def spaces(
    grid: Grid, pools: Sequence[Pool], seeds: Mapping[tuple[str, str], Sequence[int]], comparisons: Sequence[Open]
) -> dict[str, dict[str, Any]]:
    """{file name: space} that add the seeds: one for each column, of the pools that need them there.

    Args:
        pools: that were ever asked for, the newest revision of a label last.
        seeds: {(arch, dataset): those on record}, which the new ones go on from, so that pools stay paired.
    """
    found: dict[str, dict[str, Any]] = {}
    by_label = {pool.label: pool for pool in pools}
    for arch, dataset in dict.fromkeys((one.arch, one.dataset) for one in comparisons):
        open_here = [one for one in comparisons if (one.arch, one.dataset) == (arch, dataset)]
        here = [one for one in open_here if (one.seeds or 0) > one.n and {one.pool, one.baseline} <= by_label.keys()]
        if not here:
            continue
        known = sorted(seeds[arch, dataset])
        more = max((one.seeds or 0) - one.n for one in here)  # of the known ones, some may have given no pair
        roles = {one.baseline: BASELINE for one in here} | {one.pool: CANDIDATE for one in here}
        found[f"topup-{arch}-{dataset}.yaml"] = {
            "name": grid.name,
            "recipe": grid.to_dict()["recipe"],
            "pairs": [{"arch": arch, "dataset": dataset}],
            "pools": [_entry(by_label[label], role) for label, role in roles.items()],
            "seeds": [*known, *range(max(known) + 1, max(known) + 1 + more)],
        }
    return found


def write(
    run: RunFolder, frame: pd.DataFrame, target: float = TARGET, most: int = MOST
) -> tuple[list[Open], list[Path]]:
    """The open comparisons, and the files that were written into the run folder for those that can be settled.

    Files of an earlier time that nothing is left of are taken away. A run folder in an object store has them written
    into the working directory: a sweep reads its space from a disk.

    Raises:
        RequestError: the run folder has no space.yaml, or the target or the number of seeds makes no sense.
    """
    problems = []
    if not 0 < target < math.inf:
        problems.append(Problem("--target", f"found {target:g}, allowed is a number of points above 0"))
    if most < 2:
        problems.append(Problem("--most", f"found {most}, allowed is an integer from 2 up"))
    if problems:
        raise RequestError(problems)
    grid = run.grid()
    if grid is None:
        raise RequestError.of(NO_SPACE.format(run=run))
    comparisons = still_open(frame, target, most, run.equivalences())
    trained = run.read_trials(["arch", "dataset", "seed"]).to_pandas()
    seeds = {(str(a), str(d)): sorted(set(rows["seed"])) for (a, d), rows in trained.groupby(["arch", "dataset"])}
    folder = run.path if run.on_disk else Path()
    for stale in run.path.glob("topup-*.yaml") if run.on_disk else ():
        stale.unlink()
    paths = []
    planned: dict[str, Any] = {}
    for name, space in spaces(grid, run.pools(), seeds, comparisons).items():
        path = folder / name
        path.write_text(_HEAD.format(path=path, run=run) + strict_yaml.dump(space), encoding="utf-8")
        paths.append(path)
        pair = space["pairs"][0]
        new = sorted(set(space["seeds"]) - set(seeds[pair["arch"], pair["dataset"]]))
        planned[f"{pair['arch']}-{pair['dataset']}"] = {"target": target, "seeds": new}
    if planned:
        run.write_topups(run.topups() | planned)
    return comparisons, paths


def remark(run: RunFolder) -> list[str]:
    """For the table: on which columns seeds that were added after looking are on record."""
    asked = run.topups()
    if not asked:
        return []
    trained = run.read_trials(["arch", "dataset", "seed"]).to_pandas()
    columns = trained["arch"] + "-" + trained["dataset"]
    added = [name for name, what in asked.items() if set(what["seeds"]) & set(trained.loc[columns == name, "seed"])]
    if not added:
        return []
    return [
        f"Seeds were added after looking on {', '.join(added)}: intervals and p there err more often than they say."
    ]


_HEAD = """# Written by `python -m results topup`: seeds that were added after looking at the first ones.
#
#   python run_sweep.py --space {path} --out {run}
#
# With resources and the like at their defaults; `status` then speaks of these trials, the table of all.
"""


def _entry(pool: Pool, role: str) -> dict[str, Any]:
    what = {"name": pool.name}
    if pool.source:
        what = {"file": pool.source.path, "class": pool.source.class_name}
    params = {name: [list(value)] if isinstance(value, tuple) else value for name, value in pool.params}
    label = {} if pool.label == pool.name else {"label": pool.label}
    return {**what, **({"params": params} if params else {}), **label, "role": role}
