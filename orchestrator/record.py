"""What a trial leaves in the run folder. Imports no torch: the driver writes here too."""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import json
import platform
import socket
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from results.store import schema
from results.store.folder import RunFolder
from search_spaces.grid import Planned
from search_spaces.trial import Trial
from trainer import log
from trainer.gate.report import Cost
from trainer.outcome import Epoch


@dataclass(frozen=True, slots=True)
class Job:
    """What every trial of a sweep shares.

    Attributes:
        run: the run folder.
        gpu: whether trials compute on CUDA.
        threads: that a trial computes with on the CPU.
        checkpoint_every: so many epochs.
        compiled: whether torch.compile makes the kernels.
        costs: {(entry of the grid, arch): what the gate measured}.
        stall_timeout: seconds without an epoch after which a trial counts as hanging; None for never.
        driver: the token of the lease under which it runs (`results.store.lease`); None for nobody's.
        interactive: whether what a trial prints is shown on the terminal, too.
    """

    run: str
    gpu: bool = False
    threads: int = 1
    checkpoint_every: int = 1
    compiled: bool = False
    git_commit: str | None = None
    costs: Mapping[tuple[int, str], Cost] = field(default_factory=dict)
    keep_weights: bool = False
    stall_timeout: float | None = None
    driver: str | None = None
    interactive: bool = False

    def cost(self, planned: Planned) -> Cost | None:
        return self.costs.get((planned.place[0], planned.trial.arch))


class StoppedError(Exception):
    """The sweep cannot go on, which is no trial's fault, and the next one would do no better. Says why."""


class FolderError(StoppedError):
    """The run folder cannot be written."""


@contextlib.contextmanager
def folder_faults() -> Iterator[None]:
    """What fails within the block, or the function that this decorates, is the run folder."""
    try:
        yield
    except OSError as error:
        what = f"the run folder cannot be written on {socket.gethostname()}: {error.strerror or error}"
        raise FolderError(what) from error


def give_up(planned: Planned, error: str, job: Job) -> None:
    """Mark a trial as failed whose worker died too often to say so itself. Its epochs stay on record.

    The first line of the error goes into the table, all of it into the log.
    """
    run, trial_id = RunFolder(job.run), planned.trial.id
    files = run.trial(trial_id)
    reason, *_ = error.splitlines()
    last = files.attempt()
    if last and last.hung:
        reason = f"it hung: no epoch for {job.stall_timeout:.0f} s (stall_timeout); the log says where"
    with files.open_log() as file:
        print(f"given up: {error}", file=file)
    failed = row(planned, schema.FAILED, (), reason, job.cost(planned))
    _write_untrained(run, {**failed, "attempt": attempts(run, trial_id)})
    files.end_attempt()


def attempts(run: RunFolder, trial_id: str) -> int:
    """Return how often a trial has been started."""
    if last := run.trial(trial_id).attempt():
        return last.number
    ended = run.trial(trial_id).ended()
    return (ended and ended.attempt) or 0


def refuse(planned: Planned, error: str, run: RunFolder) -> None:
    """Mark a trial as invalid whose pool the gate refuses."""
    _write_untrained(run, row(planned, schema.INVALID, (), error))


def _write_untrained(run: RunFolder, trial: dict[str, Any]) -> None:
    run.write_trial({**trial, "epochs": None, "finished_at": datetime.now(UTC)})


def row(
    planned: Planned, status: str, history: Sequence[Epoch], error: str | None, cost: Cost | None = None
) -> dict[str, Any]:
    """Return the part of a `schema.TRIALS` row that follows from the trial, its epochs and what its pool costs."""
    trial = planned.trial
    name, params, revision = trial.pool.key
    found: dict[str, Any] = {
        **_identity(trial),
        "pool_name": name,
        "pool_revision": revision or None,
        "pool_params": params,
        "pool_source_sha": trial.pool.source and trial.pool.source.sha,
        "role": planned.role,
        "hidden": planned.hidden,
        "status": status,
        "epochs": len(history),
        "recipe": trial.recipe.to_json(),
        "protocol": trial.protocol,
        "error": error,
        "pool_params_count": cost and cost.parameters,
        "pool_flops": cost and cost.flops,
        "pool_times_gap": cost and cost.times_gap,
        "schema_version": schema.SCHEMA_VERSION,
    }
    if history:
        best, last = max(history, key=lambda epoch: epoch.test_acc), history[-1]
        found |= {
            "best_test_acc": best.test_acc,
            "best_epoch": best.epoch,
            "final_test_acc": last.test_acc,
            "final_test_loss": last.test_loss,
            "final_train_acc": last.train_acc,
            "final_train_loss": last.train_loss,
            "train_s": sum(epoch.epoch_s for epoch in history),
            "images_per_s": log.images_per_s(history),
        }
    return found


def _identity(trial: Trial) -> dict[str, Any]:
    return {
        "trial_id": trial.id,
        "pool": trial.pool.label,
        "arch": trial.arch,
        "dataset": trial.dataset,
        "seed": trial.seed,
    }


def epoch_rows(trial: Trial, history: Sequence[Epoch]) -> list[dict[str, Any]]:
    """Return the rows of `schema.EPOCHS`."""
    identity = _identity(trial)
    columns = [name for name in schema.EPOCHS.names if name in Epoch.__dataclass_fields__]
    return [{**identity, **{name: getattr(epoch, name) for name in columns}} for epoch in history]


@functools.cache
def versions() -> str:
    """Return the versions of what numbers depend on, as JSON."""
    found = {"python": platform.python_version()}
    for name in ("torch", "torchvision", "ray", "numpy", "pyarrow"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return json.dumps(found)
