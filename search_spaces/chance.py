"""Trials that have learned nothing: their accuracy stays at what guessing gets.

The recipe does that to some seeds of VGG-16-BN: the loss stays finite, and the network gives every image one answer.
Such a trial says nothing about its pool's accuracy, and how often it happens is an outcome of its own.
"""

from __future__ import annotations

import functools
import math

SURE = 0.999


def is_guessing(accuracy: float, classes: int, images: int) -> bool:
    """Return whether an accuracy in percent over this many images is no more than guessing may get."""
    return round(accuracy / 100 * images) <= most_hits(classes, images)


@functools.lru_cache(maxsize=64)
def most_hits(classes: int, images: int) -> int:
    """Return how many images are guessed right at most: the 99.9 % quantile of the binomial with p = 1 / classes.

    It is 132 of the 10,000 of CIFAR-100, and 1,094 of those of Fashion-MNIST.
    """
    p = 1 / classes
    hits, below = -1, 0.0
    while below < SURE and hits < images:
        hits += 1
        ways = math.lgamma(images + 1) - math.lgamma(hits + 1) - math.lgamma(images - hits + 1)
        below += math.exp(ways + hits * math.log(p) + (images - hits) * math.log1p(-p))
    return hits
