"""A pack on a worker: trains its trials side by side, and writes their logs, epochs and rows into the run folder.

Knows nothing of Ray: `report` is wherever progress goes. A trial alone is a pack of one.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import io
import platform
import socket
import time
import traceback
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import nn

from orchestrator import record
from orchestrator.packs import MOST
from orchestrator.record import Job
from results import schema
from results.store import RunFolder
from trainer import log
from trainer.augment import Images
from trainer.data import Dataset
from trainer.epoch import Epoch
from trainer.grid import Planned
from trainer.network import count_parameters
from trainer.pack import probe
from trainer.program import Program
from trainer.train import turns

# Rewriting a trial's epochs costs some 2 ms, a report to the driver as much: neither may be paid by an epoch of 10 ms.
WRITE_EVERY_S = 5.0
REPORT_EVERY_S = 0.5

Report = Callable[[Planned, Mapping[str, Any]], None]


class DeviceLostError(Exception):
    """The GPU's context is broken for this whole process: nothing more can be trained in it."""


def run_pack(
    pack: Sequence[Planned], data: Dataset, job: Job, report: Report, make_program: Callable[..., Program] = Program
) -> None:
    """Trains trials of one architecture and dataset, taking turns, each to its own end.

    A pool that raises ends its own trial as failed, with the traceback in its log. A trial for which there is no memory
    beside the others waits for them to end, and goes on from its checkpoint; the batch is never made smaller. The last
    report on a trial has its `status`, `best_test_acc`, `train_s` and `error`, and comes when its row is on record.

    Raises:
        DeviceLostError: with it, all trials of the pack are lost as far as they had come.
    """
    torch.set_num_threads(job.threads)
    run = RunFolder(job.run)
    waiting = deque[Planned]()
    for planned in pack:
        # A worker that dies between a row and its report is started again: nothing is trained twice. Where there is no
        # log there can be no row, and whoever looks for one among thousands of files pays for each of them.
        ended = run.status(planned.trial.id) if run.log_path(planned.trial.id).exists() else None
        if ended in (schema.COMPLETED, schema.DIVERGED):
            report(planned, {"status": ended, "best_test_acc": None, "train_s": None, "error": None})
        else:
            waiting.append(planned)
    images = Images(data, _device(job)) if waiting else None
    room, live = len(waiting), list[_Attempt]()
    while waiting or live:
        while waiting and len(live) < room:
            live.append(_Attempt(waiting.popleft(), images, job, report, make_program))
        for attempt in list(live):
            try:
                goes_on = attempt.turn(alone=len(live) == 1)
            except torch.OutOfMemoryError:
                goes_on = False
                room = len(live) - 1
                waiting.append(attempt.planned)
            if not goes_on:
                live.remove(attempt)
                attempt.close()
                del attempt  # and with it the memory of its program


class _Attempt:
    """One attempt at a trial: its program, its history so far, its log."""

    def __init__(self, planned: Planned, images: Any, job: Job, report: Report, make_program: Callable[..., Program]):
        self.planned = planned
        self._job = job
        self._run = RunFolder(job.run)
        self._report = functools.partial(report, planned)
        self._started = datetime.now(UTC)
        self._number = 1 + record.attempts(self._run.log_path(planned.trial.id))
        self._log = self._run.open_log(planned.trial.id)
        self._make_program = functools.partial(make_program, planned.trial, images, compiled=job.compiled, say=print)
        self._program: Program | None = None
        self._history: list[Epoch] = []
        self._turns = self._train()

    def turn(self, alone: bool) -> bool:
        """Goes on for a bit; False once the trial has ended.

        Raises:
            torch.OutOfMemoryError: unless it is alone: then it fails.
            DeviceLostError: the GPU is broken.
        """
        with _output_to(self._log):
            try:
                next(self._turns)
                return True
            except StopIteration:
                status = schema.DIVERGED if self._history[-1].diverged else schema.COMPLETED
                error = None
                print(*log.final_lines(self.planned.trial, self._history), sep="\n")
            except (Exception, SystemExit) as caught:
                traceback.print_exc()
                _raise_if_lost(_device(self._job))
                if isinstance(caught, torch.OutOfMemoryError) and not alone:
                    print("out of memory beside others; waits for them to end")
                    raise
                status = schema.FAILED
                error = "".join(traceback.format_exception_only(caught)).strip()
        self._end(status, error)
        return False

    def close(self) -> None:
        self._turns.close()
        self._log.close()

    def _train(self) -> Generator[None, None, None]:
        """Fills the history, writing it down and reporting it now and then."""
        trial = self.planned.trial
        device = _device(self._job)
        when = self._started.isoformat(timespec="seconds")
        print(f"{record.ATTEMPT}{self._number}: {trial.id} on {device_name(self._job)}, {when}")
        _reset_peak_memory(device)
        self._program = self._make_program()
        yield
        slot = self._run.checkpoint(trial.id)
        written = reported = time.monotonic()
        for epoch in turns(self._program, slot=slot, checkpoint_every=self._job.checkpoint_every):
            if epoch is None:
                yield
                continue
            self._history.append(epoch)
            if log.is_logged(epoch, trial.recipe.epochs):
                print(log.epoch_line(epoch))
            now = time.monotonic()
            if now - written >= WRITE_EVERY_S:
                self._run.write_epochs(trial.id, record.epoch_rows(trial, self._history))
                written = now
            if now - reported >= REPORT_EVERY_S:
                self._report({name: getattr(epoch, name) for name in ("epoch", "test_acc", "epoch_s", "images_per_s")})
                reported = now

    def _end(self, status: str, error: str | None) -> None:
        """Writes everything down, the row last: it is what says that the trial has ended."""
        trial, program, device = self.planned.trial, self._program, _device(self._job)
        self._run.write_epochs(trial.id, record.epoch_rows(trial, self._history))
        if self._job.keep_weights and program and status == schema.COMPLETED:
            self._run.weights(trial.id).write(_encoded(program.network))
        self._run.write_trial(
            {
                **record.row(self.planned, status, self._history, error, self._job.cost(self.planned)),
                "params": program and count_parameters(program.network),
                "pool_params_count": program and count_parameters(program.network.pool),
                "peak_memory_mb": _peak_memory_mb(device),
                "device": device_name(self._job),
                "compiled": self._job.compiled,
                "attempt": self._number,
                "host": socket.gethostname(),
                "git_commit": self._job.git_commit,
                "versions": record.versions(),
                "started_at": self._started,
                "finished_at": datetime.now(UTC),
            }
        )
        if status != schema.FAILED:  # a failed trial that is tried again goes on from there
            self._run.checkpoint(trial.id).remove()
        best = max((epoch.test_acc for epoch in self._history), default=None)
        train_s = sum(epoch.epoch_s for epoch in self._history)
        self._report({"status": status, "best_test_acc": best, "train_s": train_s, "error": error})


def _encoded(network: nn.Module) -> bytes:
    """Its state_dict, as `torch.load` reads it on a machine without a GPU too."""
    buffer = io.BytesIO()
    torch.save({name: tensor.cpu() for name, tensor in network.state_dict().items()}, buffer)
    return buffer.getvalue()


def measure(pack: Sequence[Planned], data: Dataset, job: Job) -> list[dict[str, Any]]:
    """How fast packs of such trials are, by size, as plain data."""
    found = probe([planned.trial for planned in pack], data, _device(job), MOST)
    return [dataclasses.asdict(measurement) for measurement in found]


def device_name(job: Job) -> str:
    """What trials compute on."""
    if job.gpu:
        return torch.cuda.get_device_name(_device(job))
    return f"cpu ({platform.machine()}, {torch.get_num_threads()} threads)"


@contextlib.contextmanager
def _output_to(file: Any) -> Iterator[None]:
    with contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
        yield


def _raise_if_lost(device: torch.device) -> None:
    """Whether the GPU answers no more: after an illegal access or a failed assertion no call of this process does."""
    if device.type == "cuda":
        try:
            torch.cuda.synchronize(device)
        except RuntimeError as error:
            raise DeviceLostError(str(error)) from error


def _device(job: Job) -> torch.device:
    return torch.device("cuda", torch.cuda.current_device()) if job.gpu else torch.device("cpu")


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
