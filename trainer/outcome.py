"""What one epoch of a trial came to."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from search_spaces.chance import is_guessing


@dataclass(frozen=True, slots=True)
class Epoch:
    """What one epoch came to. Losses are means over images; accuracies in percent.

    Attributes:
        epoch: from 1.
        lr: as the benchmark logs it: the learning rate once the epoch is done, which the next one trains at.
        epoch_s: seconds of training and evaluation, turns of others included.
        images_per_s: of training alone, without the process's first step; None where there was no other.
        git_commit: of the code that trained it, if it is known.
        kernels: a GPU's: their version, and which were off; None on a CPU.
    """

    epoch: int
    train_loss: float
    train_acc: float
    test_loss: float
    test_acc: float
    lr: float
    epoch_s: float
    images_per_s: float | None
    git_commit: str | None = None
    kernels: str | None = None

    @property
    def diverged(self) -> bool:
        return not (math.isfinite(self.train_loss) and math.isfinite(self.test_loss))


def collapsed(history: Sequence[Epoch], classes: int, images: int) -> bool:
    """Whether a trial has ended without ever being better than guessing, though its losses are finite.

    Args:
        history: its epochs.
        images: in the test set.
    """
    return not history[-1].diverged and is_guessing(max(epoch.test_acc for epoch in history), classes, images)
