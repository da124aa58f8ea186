"""What two runs of a trial must have in common."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from trainer.outcome import Epoch

TIMES = ("epoch_s", "images_per_s")


def numbers(history: Iterable[Epoch]) -> list[dict[str, float]]:
    """All that its epochs came to, but for the time that they took."""
    return [{k: v for k, v in dataclasses.asdict(epoch).items() if k not in TIMES} for epoch in history]
