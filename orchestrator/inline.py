"""A sweep without Ray: one trial after another in this process, so that a debugger works in a pool."""

from __future__ import annotations

import dataclasses
import math
import threading
import time
from collections.abc import Mapping, Sequence

from orchestrator.record import Job
from results.store.lease import Lease
from search_spaces.errors import RequestError
from search_spaces.grid import Planned
from trainer.data import Dataset


def run(todo: Sequence[Planned], data: Mapping[str, Dataset], job: Job, lease: Lease, stop_at: float) -> None:
    """Train trials of one code, each alone, with what they print on this terminal and in their logs.

    No watchdog ends a trial: a person who looks at a stack has time.

    Raises:
        KeyboardInterrupt: it is `stop_at`, by `time.monotonic`; the trial that trained has written a checkpoint.
    """
    from orchestrator.worker import run_pack  # torch, which a driver does without otherwise

    alone = dataclasses.replace(job, stall_timeout=None, interactive=True)
    timer = threading.Timer(max(0.0, stop_at - time.monotonic()), lease.ask_to_stop)
    timer.daemon = True
    if math.isfinite(stop_at):
        timer.start()
    try:
        for planned in todo:
            run_pack([planned], data[planned.trial.dataset], alone)
            if time.monotonic() >= stop_at:
                raise KeyboardInterrupt("the time budget is used up")
    finally:
        timer.cancel()


def refuse_several(todo: Sequence[Planned]) -> None:
    """Raise a RequestError where trials run the code of more than one file."""
    labels: dict[str, str] = {}
    for planned in todo:
        labels.setdefault(planned.trial.pool.code, planned.trial.pool.label)
    if len(labels) > 1:
        what = f"expected trials of one file, or of built-in pools, got {', '.join(labels.values())}"
        why = "a process that has run one file runs no other; pick with --only pool=..."
        raise RequestError.of(f"{what}: {why}", "--address inline")
