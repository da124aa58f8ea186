"""The table's statistics: pure functions of arrays, with scipy underneath."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import special  # and not scipy.stats, whose import takes 1.5 s of every command

Values = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Summary:
    """Of values [n]: NaN where n is too small to say (std needs two)."""

    n: int
    mean: float
    std: float
    min: float
    max: float


def summary(values: Values) -> Summary:
    """Mean, sample standard deviation (n - 1) and range of values [n]."""
    n = len(values)
    if n == 0:
        return Summary(0, math.nan, math.nan, math.nan, math.nan)
    std = float(values.std(ddof=1)) if n > 1 else math.nan
    return Summary(n, float(values.mean()), std, float(values.min()), float(values.max()))


@dataclass(frozen=True, slots=True)
class Difference:
    """A mean paired difference, its 95 % t interval and two-sided p; NaN where there are too few pairs to say."""

    n: int
    diff: float
    lo: float
    hi: float
    p: float


def paired_difference(ours: Values, theirs: Values, confidence: float = 0.95) -> Difference:
    """The mean of ours [n] - theirs [n], paired by position, with Student's t interval.

    No interval for fewer than two pairs. A t interval and not a percentile bootstrap, which covers 75 % at n = 3; a t
    test and not a rank test, which cannot go below p = 0.25 there. No interval either where all pairs differ by exactly
    the same amount, as accuracies counted on few images may: that shows no spread, not that there is none.
    """
    gaps = np.asarray(ours, np.float64) - np.asarray(theirs, np.float64)
    n = len(gaps)
    if n < 2:
        return Difference(n, float(gaps.mean()) if n else math.nan, math.nan, math.nan, math.nan)
    mean = float(gaps.mean())
    error = float(gaps.std(ddof=1)) / math.sqrt(n)
    if error == 0:
        return Difference(n, mean, math.nan, math.nan, math.nan)
    half = error * float(special.stdtrit(n - 1, (1 + confidence) / 2))
    return Difference(n, mean, mean - half, mean + half, float(2 * special.stdtr(n - 1, -abs(mean) / error)))
