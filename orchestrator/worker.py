"""One trial on a worker: trains it, and writes its log, its epochs and its row into the run folder.

Knows nothing of Ray: `report` is wherever progress goes.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import json
import platform
import socket
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from results import schema
from results.store import RunFolder
from trainer import log
from trainer.data import Dataset
from trainer.grid import Planned
from trainer.network import count_parameters
from trainer.train import Epoch, Program, train
from trainer.trial import PROTOCOL, Trial

# Rewriting a trial's epochs costs some 2 ms, a report to the driver as much: neither may be paid by an epoch of 10 ms.
WRITE_EVERY_S = 5.0
REPORT_EVERY_S = 0.5

Report = Callable[[Mapping[str, Any]], None]


@dataclass(frozen=True, slots=True)
class Job:
    """What every trial of a sweep shares.

    Attributes:
        run: the run folder.
        gpu: whether trials compute on CUDA.
        threads: that a trial computes with on the CPU.
        git_commit: of this project, for the record.
    """

    run: Path
    gpu: bool
    threads: int
    checkpoint_every: int
    git_commit: str | None


def run_trial(planned: Planned, data: Dataset, job: Job, report: Report) -> None:
    """Trains a trial to its end. A pool that raises ends it as failed, with the traceback in its log.

    The last report has its `status`, `best_test_acc`, `train_s` and `error`, and comes when its row is on record.
    """
    torch.set_num_threads(job.threads)
    device = torch.device("cuda" if job.gpu else "cpu")
    run = RunFolder(job.run)
    trial = planned.trial
    if (ended := run.status(trial.id)) in (schema.COMPLETED, schema.DIVERGED):
        # A worker that dies between its row and its last report is started again: nothing is trained twice.
        report({"status": ended, "best_test_acc": None, "train_s": None, "error": None})
        return
    history: list[Epoch] = []
    error = program = None
    with run.log(trial.id) as file, contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
        started = datetime.now(UTC)
        attempt = 1 + _attempts(run.log_path(trial.id))
        print(f"{_ATTEMPT}{attempt}: {trial.id} on {_device_name(device)}, {started.isoformat(timespec='seconds')}")
        _reset_peak_memory(device)
        try:
            program = Program(trial, data, device)
            _train(program, run, job.checkpoint_every, history, report)
            status = schema.DIVERGED if history[-1].diverged else schema.COMPLETED
            print(*log.final_lines(trial, history), sep="\n")
        except (Exception, SystemExit) as caught:
            status = schema.FAILED
            error = "".join(traceback.format_exception_only(caught)).strip()
            traceback.print_exc()
    run.write_epochs(trial.id, _epoch_rows(trial, history))
    run.write_trial(
        {
            **_row(planned, status, history, error),
            "params": program and count_parameters(program.network),
            "pool_params_count": program and count_parameters(program.network.pool),
            "peak_memory_mb": _peak_memory_mb(device),
            "device": _device_name(device),
            "attempt": attempt,
            "host": socket.gethostname(),
            "git_commit": job.git_commit,
            "versions": _versions(),
            "started_at": started,
            "finished_at": datetime.now(UTC),
        }
    )
    if status != schema.FAILED:  # a failed trial that is tried again goes on from there
        run.checkpoint(trial.id).remove()
    best = max((epoch.test_acc for epoch in history), default=None)
    train_s = sum(epoch.epoch_s for epoch in history)
    report({"status": status, "best_test_acc": best, "train_s": train_s, "error": error})


def give_up(planned: Planned, error: str, job: Job) -> None:
    """Marks a trial as failed whose worker died too often to say so itself. Its epochs stay on record."""
    run = RunFolder(job.run)
    if run.status(planned.trial.id) in (schema.COMPLETED, schema.DIVERGED):
        return
    attempts = {"attempt": _attempts(run.log_path(planned.trial.id)), "finished_at": datetime.now(UTC)}
    run.write_trial({**_row(planned, schema.FAILED, (), error), "epochs": None, **attempts})


def _row(planned: Planned, status: str, history: Sequence[Epoch], error: str | None) -> dict[str, Any]:
    """The part of a `schema.TRIALS` row that follows from the trial and its epochs."""
    trial = planned.trial
    row: dict[str, Any] = {
        **_identity(trial),
        "pool_params": trial.pool.params_json,
        "pool_source_sha": trial.pool.source and trial.pool.source.sha,
        "role": planned.role,
        "hidden": planned.hidden,
        "status": status,
        "epochs": len(history),
        "recipe": trial.recipe.to_json(),
        "protocol": PROTOCOL,
        "error": error,
        "schema_version": schema.SCHEMA_VERSION,
    }
    if history:
        best, last = max(history, key=lambda epoch: epoch.test_acc), history[-1]
        row |= {
            "best_test_acc": best.test_acc,
            "best_epoch": best.epoch,
            "final_test_acc": last.test_acc,
            "final_test_loss": last.test_loss,
            "final_train_acc": last.train_acc,
            "final_train_loss": last.train_loss,
            "train_s": sum(epoch.epoch_s for epoch in history),
            "images_per_s": log.images_per_s(history),
        }
    return row


def _identity(trial: Trial) -> dict[str, Any]:
    return {
        "trial_id": trial.id,
        "pool": trial.pool.label,
        "arch": trial.arch,
        "dataset": trial.dataset,
        "seed": trial.seed,
    }


def _epoch_rows(trial: Trial, history: Sequence[Epoch]) -> list[dict[str, Any]]:
    identity = _identity(trial)
    return [{**identity, **{name: getattr(epoch, name) for name in _EPOCH_COLUMNS}} for epoch in history]


_EPOCH_COLUMNS = [name for name in schema.EPOCHS.names if name in Epoch.__dataclass_fields__]


def _train(program: Program, run: RunFolder, checkpoint_every: int, history: list[Epoch], report: Report) -> None:
    """Fills `history`, writing it down and reporting it now and then."""
    trial = program.trial
    written = reported = time.monotonic()
    for epoch in train(program, slot=run.checkpoint(trial.id), checkpoint_every=checkpoint_every):
        history.append(epoch)
        if log.is_logged(epoch, trial.recipe.epochs):
            print(log.epoch_line(epoch))
        now = time.monotonic()
        if now - written >= WRITE_EVERY_S:
            run.write_epochs(trial.id, _epoch_rows(trial, history))
            written = now
        if now - reported >= REPORT_EVERY_S:
            report({name: getattr(epoch, name) for name in ("epoch", "test_acc", "epoch_s", "images_per_s")})
            reported = now


_ATTEMPT = "attempt "


def _attempts(log_file: Path) -> int:
    """How often the trial has been started, by its log."""
    if not log_file.exists():
        return 0
    with log_file.open(encoding="utf-8", errors="replace") as lines:
        return sum(line.startswith(_ATTEMPT) for line in lines)


@functools.cache
def _versions() -> str:
    names = ("torch", "torchvision", "ray", "numpy", "pyarrow")
    found = {"python": platform.python_version()}
    for name in names:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return json.dumps(found)


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"cpu ({platform.machine()}, {torch.get_num_threads()} threads)"


def _reset_peak_memory(device: torch.device) -> None:
    """Workers are reused, so without this a trial would be charged with the peak of an earlier one."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # Linux: resets VmHWM, see proc_pid_clear_refs(5)


def _peak_memory_mb(device: torch.device) -> float | None:
    """Of the GPU's allocator, or of the whole process on a CPU; None where the system does not tell."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    return None
