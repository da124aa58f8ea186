"""The benchmark's log lines, which its own tools read."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence

from search_spaces.trial import Trial
from trainer.outcome import Epoch


def epoch_line(epoch: Epoch) -> str:
    return (
        f"TRAIN_METRICS: epoch={epoch.epoch} train_loss={epoch.train_loss:.4f} train_acc={epoch.train_acc:.2f} "
        f"test_loss={epoch.test_loss:.4f} test_acc={epoch.test_acc:.2f} lr={epoch.lr:.6f}"
    )


def is_logged(epoch: Epoch, epochs: int) -> bool:
    """Return whether it is a tenth epoch or the last."""
    return epoch.epoch % 10 == 0 or epoch.epoch == epochs or epoch.diverged


def final_lines(trial: Trial, history: Sequence[Epoch], collapsed: bool) -> Iterator[str]:
    """Yield what a trial ends with: its status if it did not complete, the benchmark's metric, and what it cost."""
    pair = f"{trial.arch}-{trial.dataset}"
    best = max(epoch.test_acc for epoch in history)
    if history[-1].diverged:
        yield f"diverged: a loss is not finite after epoch {history[-1].epoch}"
    if collapsed:
        yield f"collapsed: no epoch is better than guessing, the best has a test accuracy of {best:.2f} %"
    yield f"Final metrics ({pair}): test_acc_{pair}={best:.2f}"
    rate = images_per_s(history)
    speed = f"images_per_s={rate:.1f} " if rate is not None else ""
    yield f"{speed}train_s={sum(epoch.epoch_s for epoch in history):.1f}"


def images_per_s(history: Sequence[Epoch]) -> float | None:
    """Return the median over epochs, of training alone; None where every epoch was a single step."""
    rates = [epoch.images_per_s for epoch in history if epoch.images_per_s is not None]
    return statistics.median(rates) if rates else None
