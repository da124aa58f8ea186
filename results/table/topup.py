"""More seeds, only where they could settle something: where an interval still holds zero, and not too many would do.

Looking, and then adding seeds where the result is open, is a sequential test, which errs more often than its intervals
say. So the run folder remembers that it was done, and every table made from it says so.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from results.store.folder import RunFolder
from results.table import stats
from results.table.leaderboard import best_baselines, strictest_alpha
from search_spaces.equivalence import Equivalence
from search_spaces.errors import Problem, RequestError
from search_spaces.grid import BASELINE

TARGET = 0.5  # points
MOST = 20  # seeds of a cell


@dataclass(frozen=True, slots=True)
class Open:
    """A comparison that is not settled."""

    pool: str
    baseline: str
    arch: str
    dataset: str
    n: int  # the pairs so far
    diff: float
    std: float  # of their differences
    seeds: int | None  # how many it takes to detect the target with 80 % power; None: more than can be had

    @property
    def lacks(self) -> int:
        """How many more pairs it needs, of those that can be had."""
        return max(0, (self.seeds or 0) - self.n)

    def __str__(self) -> str:
        needed = "more are needed than --most allows"
        if self.seeds:
            enough = "as many as are needed: 80 % of the time they would have detected the target"
            needed = f"{self.seeds} are needed" if self.lacks else enough
        which = f"{self.pool} against {self.baseline} on {self.arch}-{self.dataset}"
        return f"{which}: {self.diff:+.2f} over {self.n} seeds, {needed}"


@dataclass(frozen=True, slots=True)
class Column:
    """The open comparisons on one architecture and dataset."""

    arch: str
    dataset: str
    comparisons: Sequence[Open]
    seeds: Sequence[int]  # those on record, and those to add: pools stay paired by them
    added: int  # how many of the last of them are new; 0 where no number that can be had would settle anything
    pools: Sequence[str]  # the baselines and candidates that need them
    run: str  # the run folder, for the command

    def __str__(self) -> str:
        """Spell the comparisons, and the one line that adds the seeds."""
        lines = [*map(str, self.comparisons)]
        if self.added:
            only = ",".join([f"arch={self.arch}", f"dataset={self.dataset}", *(f"pool={pool}" for pool in self.pools)])
            options = ["--out", self.run, "--set", f"seeds={list(self.seeds)}", "--only", only]
            lines.append(f"python run_sweep.py --space YOURS {shlex.join(options)}")
        return "\n".join(lines)


def topup(run: RunFolder, frame: pd.DataFrame, target: float = TARGET, most: int = MOST) -> list[Column]:
    """Return the columns with open comparisons, and record in the run folder which seeds were said to add.

    Args:
        frame: the leaderboard of `run`.
        target: the difference that matters, in points.
        most: how many seeds a cell may have.

    Raises:
        RequestError: the target or the number of seeds makes no sense.
    """
    problems = []
    if not 0 < target < math.inf:
        problems.append(Problem("--target", f"expected a number of points above 0, got {target:g}"))
    if most < 2:
        problems.append(Problem("--most", f"expected an integer from 2, got {most}"))
    if problems:
        raise RequestError(problems)
    open_ones: dict[tuple[str, str], list[Open]] = {}
    for one in still_open(frame, target, most, run.equivalences.read()):
        open_ones.setdefault((one.arch, one.dataset), []).append(one)
    known = _seeds(run)
    columns = [_column(pair, here, sorted(known["-".join(pair)]), str(run)) for pair, here in open_ones.items()]
    planned = {f"{c.arch}-{c.dataset}": {"target": target, "seeds": [*c.seeds[-c.added :]]} for c in columns if c.added}
    if planned:
        run.topups.write(run.topups.read() | planned)
    return columns


def _seeds(run: RunFolder) -> dict[str, set[int]]:
    """Return {arch-dataset: the seeds on record}."""
    trained = run.trials.read(["arch", "dataset", "seed"]).to_pandas()
    return trained.groupby(trained["arch"] + "-" + trained["dataset"])["seed"].agg(set).to_dict()


def still_open(
    frame: pd.DataFrame, target: float = TARGET, most: int = MOST, same: Sequence[Equivalence] = ()
) -> list[Open]:
    """Return the candidates' comparisons with the best baseline whose interval holds zero, in the visible columns.

    Args:
        frame: a leaderboard.
        target: the difference that matters, in points; it is to be marked, at the strictest step of Holm.
        same: what starts as one function: where nothing that is learned can part the two, no seeds are added.
    """
    best = best_baselines(frame)
    strictest = strictest_alpha(frame["p_holm"].to_numpy(np.float64))
    found = []
    for row in frame[(frame["role"] != BASELINE) & ~frame["hidden"] & (frame["n_pairs"] > 1)].to_dict("records"):
        pool, baseline, arch, n = str(row["pool"]), row["baseline"], row["arch"], int(row["n_pairs"])
        if baseline != best.get((arch, row["dataset"])) or not row["diff_lo"] <= 0 <= row["diff_hi"]:
            continue
        two = {pool, baseline}
        if any(one.arch == arch and two <= set(one.pools) and not two & set(one.parting) for one in same):
            continue
        std = (row["diff_hi"] - row["diff"]) / stats.mean_half_width(n)
        needed = stats.seeds_needed(target, std, most=most, alpha=strictest)
        seeds = needed and max(needed, n)
        found.append(Open(pool, baseline, arch, row["dataset"], n, float(row["diff"]), std, seeds))
    return found


def _column(pair: tuple[str, str], comparisons: Sequence[Open], known: Sequence[int], run: str) -> Column:
    """Add as many seeds as the pair that lacks most needs: not all known ones gave it a pair."""
    lacking = [one for one in comparisons if one.lacks]
    added = max((one.lacks for one in lacking), default=0)
    pools = dict.fromkeys([*(one.baseline for one in lacking), *(one.pool for one in lacking)])
    seeds = [*known, *range(known[-1] + 1, known[-1] + 1 + added)]
    return Column(*pair, comparisons, seeds, added, tuple(pools), run)


def remark(run: RunFolder) -> list[str]:
    """Return a note for the table: on which columns seeds that were added after looking are on record."""
    asked = run.topups.read()
    known = _seeds(run) if asked else {}
    added = [pair for pair, what in asked.items() if known.get(pair, set()) & set(what["seeds"])]
    said = f"Seeds were added after looking on {', '.join(added)}: intervals and p there err more often than they say."
    return [said] if added else []
