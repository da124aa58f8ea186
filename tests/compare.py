"""What two runs of a trial must have in common."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import pandas as pd

from results.store import schema
from results.store.folder import RunFolder
from trainer.outcome import Epoch

NOT_NUMBERS = ("epoch_s", "images_per_s", "git_commit", "kernels")
TABLE = [name for name in schema.EPOCHS.names if name not in NOT_NUMBERS]


def numbers(history: Iterable[Epoch]) -> list[dict[str, float]]:
    """All that its epochs came to, but for the time that they took and what trained them."""
    return [{k: v for k, v in dataclasses.asdict(epoch).items() if k not in NOT_NUMBERS} for epoch in history]


def epochs_of(run: RunFolder) -> pd.DataFrame:
    """The same of all trials of a run folder, in an order of their own."""
    return run.epochs.read(TABLE).to_pandas().sort_values(["trial_id", "epoch"], ignore_index=True)
