"""Trials that have learned nothing: their accuracy never leaves what guessing comes to.

The recipe itself does that to some seeds of VGG-16-BN: the loss stays finite, and the network says the same of every
image. Such a trial says nothing of its pool's accuracy, and how often it happens is an outcome of its own.
"""

from __future__ import annotations

import functools
import math

SURE = 0.999


def is_guessing(accuracy: float, classes: int, images: int) -> bool:
    """Whether an accuracy in percent, over so many images, is no more than guesses may come to."""
    return round(accuracy / 100 * images) <= most_hits(classes, images)


@functools.lru_cache(maxsize=64)
def most_hits(classes: int, images: int) -> int:
    """The 99.9 % quantile of how many of so many images are guessed right: of the binomial with p = 1 / classes.

    132 of CIFAR-100's 10,000, and 1,094 of Fashion-MNIST's.
    """
    p = 1 / classes
    hits, below = -1, 0.0
    while below < SURE and hits < images:
        hits += 1
        ways = math.lgamma(images + 1) - math.lgamma(hits + 1) - math.lgamma(images - hits + 1)
        below += math.exp(ways + hits * math.log(p) + (images - hits) * math.log1p(-p))
    return hits
