"""The table's statistics: pure functions of arrays, with scipy.special underneath.

No rank test and no percentile bootstrap: on three seeds the one cannot go below p = 0.25, and the other covers 75 %
where it says 95 %.

Holm and the power of a t test are a few lines each here, and statsmodels is only what the tests compare them with.
Importing its multiplicity and power modules imports scipy.stats: 0.7 to 0.85 s of CPU time on top of 1.2 s, and 47 MiB
more, in each command and in the driver of each sweep. And its TTestPower is NaN at large shifts (an effect of 5 with 10
pairs), so that `solve_power` answers 10.0 without a warning where 138 is right (2 pairs, 80 % power, alpha = 0.05/12).
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import optimize, special

Values = npt.NDArray[np.float64]

CONFIDENCE = 0.95
ALPHA = 1 - CONFIDENCE
POWER = 0.8


def summary(values: Values) -> dict[str, float]:
    """Return n, mean, std (n - 1), min and max of values [n], by name; NaN where n is too small to say."""
    n = len(values)
    if n == 0:
        return {"n": 0, **dict.fromkeys(("mean", "std", "min", "max"), math.nan)}
    std = float(values.std(ddof=1)) if n > 1 else math.nan
    return {"n": n, "mean": float(values.mean()), "std": std, "min": float(values.min()), "max": float(values.max())}


def mean_interval(values: Values) -> tuple[float, float]:
    """Return Student's 95 % t interval of the mean of values [n]; NaN for fewer than two."""
    n = len(values)
    if n < 2:
        return math.nan, math.nan
    half = float(values.std(ddof=1)) * mean_half_width(n)
    return float(values.mean()) - half, float(values.mean()) + half


def mean_half_width(n: int) -> float:
    """Return half the width of the interval of a mean of n values, in units of their standard deviation."""
    return _critical(n - 1) / math.sqrt(n)


@dataclass(frozen=True, slots=True)
class Difference:
    """A difference of means, its 95 % t interval and two-sided p; NaN where there are too few values to say."""

    n: int  # pairs; where the seeds do not pair, the smaller number of values
    diff: float
    lo: float = math.nan
    hi: float = math.nan
    p: float = math.nan
    std: float = math.nan  # of the pairs' differences, n - 1; NaN where the seeds do not pair
    paired: bool = True  # whether the same seeds stand on both sides


def paired_difference(ours: Values, theirs: Values) -> Difference:
    """Return the mean of ours [n] - theirs [n], paired by position, with Student's t interval.

    There is no interval for fewer than two pairs, and none either where all pairs differ by exactly the same amount, as
    accuracies counted on few images may: that shows no spread, not that there is none.
    """
    gaps = np.asarray(ours, np.float64) - np.asarray(theirs, np.float64)
    n = len(gaps)
    if n < 2:
        return Difference(n, float(gaps.mean()) if n else math.nan)
    mean, half, p, std = map(float, paired_test(gaps))
    if not std > 1e-12 * max(1.0, abs(mean)):  # equal gaps: their spread is rounding
        return Difference(n, mean, std=std)
    return Difference(n, mean, mean - half, mean + half, p, std)


def paired_test(gaps: Values) -> tuple[Values, Values, Values, Values]:
    """Return mean, half of its interval's width, two-sided p, and spread, each [...], of gaps [..., n], n from 2."""
    n = gaps.shape[-1]
    mean, std = gaps.mean(-1), gaps.std(-1, ddof=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        p = 2 * special.stdtr(n - 1, -np.abs(mean) / (std / math.sqrt(n)))
    return mean, std * mean_half_width(n), p, std


def welch_difference(ours: Values, theirs: Values) -> Difference:
    """Return the mean of ours [n] - the mean of theirs [m], which share no seed, with Welch's t interval.

    There is no interval where a side has fewer than two values. (B. L. Welch, Biometrika 34, 1947)
    """
    if min(len(ours), len(theirs)) < 2:
        return _unpaired(ours, theirs)
    a, b = float(np.var(ours, ddof=1)) / len(ours), float(np.var(theirs, ddof=1)) / len(theirs)
    if not a + b > 0:
        return _unpaired(ours, theirs)
    degrees = (a + b) ** 2 / (a**2 / (len(ours) - 1) + b**2 / (len(theirs) - 1))
    return _unpaired(ours, theirs, math.sqrt(a + b), degrees)


def known_spread_difference(ours: Values, theirs: Values, std: float, degrees: int) -> Difference:
    """Return the mean of ours [n] - the mean of theirs [m], n and m from 1, at a spread that is known from elsewhere.

    The interval is Student's for two samples of one spread; there is none where `std` is NaN or `degrees` is 0.
    """
    return _unpaired(ours, theirs, std * math.sqrt(1 / len(ours) + 1 / len(theirs)), degrees)


def _unpaired(ours: Values, theirs: Values, error: float = math.nan, degrees: float = 0.0) -> Difference:
    """Return the difference, by its standard error; without an interval where that is not known."""
    n = min(len(ours), len(theirs))
    mean = float(np.mean(ours) - np.mean(theirs)) if n else math.nan
    if not error > 0 or not degrees > 0:
        return Difference(n, mean, paired=False)
    half = error * _critical(degrees)
    p = float(2 * special.stdtr(degrees, -abs(mean) / error))
    return Difference(n, mean, mean - half, mean + half, p, paired=False)


def _critical(degrees: float, confidence: float = CONFIDENCE) -> float:
    """Return Student's t that leaves (1 - confidence) / 2 above."""
    return float(special.stdtrit(degrees, (1 + confidence) / 2))


def holm(p: Values) -> Values:
    """Adjust the p [k] of a family so that any of them below alpha is wrong with probability alpha at most.

    (S. Holm, Scandinavian Journal of Statistics 6, 1979.) NaN is no test: it stays, and does not count.
    """
    adjusted = np.full(len(p), np.nan)
    tested = np.flatnonzero(~np.isnan(p))
    order = tested[np.argsort(p[tested], kind="stable")]
    factors = np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(1, np.maximum.accumulate(factors * p[order]))
    return adjusted


def sign_flip(gaps: Values) -> float:
    """Return the two-sided p of gaps [k] having the mean zero, exact over all 2^k signs: for one pool over k cells.

    It needs no normality, only that each gap is as likely to be of either sign. (R. A. Fisher, The Design of
    Experiments, 1935.) NaN for none; beyond 20 gaps 2^20 are drawn instead of all 2^k.
    """
    k = len(gaps)
    if k == 0:
        return math.nan
    if k <= 20:
        sums = np.zeros(1)
        for gap in gaps:
            sums = np.concatenate((sums + gap, sums - gap))
    else:
        signs = np.random.default_rng(0).integers(0, 2, (2**20, k), np.int8) * 2 - 1
        sums = signs @ gaps
    observed = abs(float(np.sum(gaps)))
    return float(np.mean(np.abs(sums) >= observed * (1 - 1e-12)))


def power(difference: float, std: float, n: int, alpha: float = ALPHA) -> float:
    """Return the probability that a two-sided paired t test over n pairs with that spread finds a difference."""
    if n < 2:
        return math.nan
    critical, shift = _critical(n - 1, 1 - alpha), abs(difference) / std * math.sqrt(n)
    # scipy's NaN is a probability below 1e-60: of a shift from 37 up.
    missed, below = np.nan_to_num(special.nctdtr(n - 1, shift, [critical, -critical]))
    return float(1 - missed + below)


def detectable(std: float, n: int, alpha: float = ALPHA) -> float:
    """Return the minimum detectable difference: what n pairs with gaps of that spread find with 80 % power."""
    if n < 2 or not std > 0:
        return math.nan
    most = 1e3
    while power(most, 1.0, n, alpha) < POWER:  # two pairs in a family of 90 comparisons
        most *= 10
    effect: Any = optimize.brentq(lambda effect: power(effect, 1.0, n, alpha) - POWER, 1e-6, most, xtol=1e-12)
    return std * float(effect)


def seeds_needed(difference: float, std: float, most: int = 10_000, alpha: float = ALPHA) -> int | None:
    """Return how many pairs it takes to find a difference with 80 % power; None beyond `most`."""
    if not std > 0 or not abs(difference) > 0:
        return None
    numbers = range(2, most + 1)
    enough = bisect.bisect_left(numbers, POWER, key=lambda n: power(difference, std, n, alpha))
    return numbers[enough] if enough < len(numbers) else None


FAR = 10.0  # spreads of a column
LEAST = 1.0  # points: what seeds alone may well do


def outliers(cells: Sequence[Values]) -> list[npt.NDArray[np.bool_]]:
    """Return which values are far from their siblings, for the cells of one column, values [n] each.

    Far is more than `FAR` typical spreads from the median of the cell, and a point at least. The typical spread is the
    median over the column's cells of the median absolute deviation, made consistent with a normal's standard deviation,
    so that one runaway trial cannot hide in the spread that it makes itself. Cells of one or two values have no
    siblings to judge by.
    """
    spreads = [_robust_std(values) for values in cells if len(values) > 2]
    limit = max(LEAST, FAR * float(np.median(spreads))) if spreads else math.inf
    return [np.abs(v - np.median(v)) > limit if len(v) > 2 else np.zeros(len(v), bool) for v in cells]


def _robust_std(values: Values) -> float:
    """Return the median absolute deviation, times 1.4826 and the factor that corrects its bias for few values.

    The factors for small n are from C. Croux and P. J. Rousseeuw, Computational Statistics 1, 1992.
    """
    n = len(values)
    small = {3: 1.495, 4: 1.363, 5: 1.206, 6: 1.200, 7: 1.140, 8: 1.129, 9: 1.107}.get(n, n / (n - 0.8))
    return 1.4826 * small * float(np.median(np.abs(values - np.median(values))))


def ranks(cells: Sequence[Values]) -> list[int | None]:
    """Return for each cell of a column, values [n] each, 1 plus how many cells have an interval wholly above its own.

    So cells whose 95 % intervals overlap may share a rank. A cell with fewer than two values has none.
    """
    intervals = [mean_interval(values) for values in cells]
    return [
        None if math.isnan(lo) else 1 + sum(other > hi for (other, _) in intervals if not math.isnan(other))
        for lo, hi in intervals
    ]
