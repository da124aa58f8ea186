"""What two runs of a trial must have in common."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from trainer.outcome import Epoch

NOT_NUMBERS = ("epoch_s", "images_per_s", "git_commit", "kernels")


def numbers(history: Iterable[Epoch]) -> list[dict[str, float]]:
    """All that its epochs came to, but for the time that they took and what trained them."""
    return [{k: v for k, v in dataclasses.asdict(epoch).items() if k not in NOT_NUMBERS} for epoch in history]
