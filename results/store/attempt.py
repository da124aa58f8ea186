"""What a worker knows of the trial that it trains and no other file says: `RUN/attempts/<trial id>.json`.

It is there from an attempt's start to the trial's end, so the files in `attempts` are the trials that have begun and
have not ended. The next attempt counts on from it.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Attempt:
    """An attempt at a trial, as far as it has come.

    Attributes:
        number: from 1.
        host: the machine's name.
        device: what it computes on.
        started_at: in UTC, as ISO 8601 has it.
        git_commit: of the code that trains.
        kernels: their version, and which were off; None on a CPU.
        epoch: the last one that is done; 0 before the first.
        test_acc: after that epoch, in percent.
        epoch_s: seconds of that epoch.
        images_per_s: of training alone, in that epoch.
        hung: whether the watchdog ended it.
    """

    number: int
    host: str = ""
    device: str = ""
    started_at: str = ""
    git_commit: str | None = None
    kernels: str | None = None
    epoch: int = 0
    test_acc: float | None = None
    epoch_s: float | None = None
    images_per_s: float | None = None
    hung: bool = False
