"""A pack on a worker: trains its trials side by side, and writes their logs, epochs and rows into the run folder.

Knows nothing of Ray. A trial alone is a pack of one.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import platform
import socket
import sys
import time
import traceback
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO

import torch
from torch import nn

from orchestrator import record
from orchestrator.packs import GAIN, MOST
from orchestrator.record import FolderError, Job, attempts, folder_faults
from orchestrator.watchdog import Heartbeat, Watchdog
from results.store import schema
from results.store.attempt import Attempt
from results.store.folder import RunFolder
from results.store.lease import LeaseView
from search_spaces import kernels
from search_spaces.grid import Planned
from search_spaces.messages import shown_by
from search_spaces.trial import Trial
from trainer import compile_once, log
from trainer.augment import Images
from trainer.checkpoint import Slot
from trainer.data import Dataset
from trainer.network import count_parameters
from trainer.outcome import Epoch
from trainer.packs import conditions, probe
from trainer.train import Program, turns

WRITE_EVERY_S = 5.0  # to rewrite a trial's epochs costs some 2 ms, which no epoch of 10 ms may pay


class DeviceLostError(Exception):
    """The GPU's context is broken for this whole process: nothing more can be trained in it."""


def run_pack(
    pack: Sequence[Planned],
    data: Dataset,
    job: Job,
    heartbeat: Heartbeat | None = None,
    make_program: Callable[..., Program] = Program,
) -> None:
    """Train trials of one architecture and dataset, taking turns, each to its own end.

    A pool that raises ends its own trial as failed, with the traceback in its log. A trial for which there is no memory
    beside the others waits for them to end, and goes on from its checkpoint; the batch is never made smaller. When the
    driver asks for it, or is gone, trials stop at the end of their epoch, and have no row.

    Raises:
        DeviceLostError: with it, all trials of the pack are lost as far as they had come.
        FolderError: they are lost as far as their checkpoints do not hold them.
    """
    torch.set_num_threads(job.threads)
    run = RunFolder(job.run)
    lease = LeaseView(run, job.driver)
    with folder_faults():  # a worker that died after a row is started again: nothing is trained twice
        waiting = deque(planned for planned in pack if not _is_trained(run, planned.trial.id))
    images = Images(data, _device(job)) if waiting else None
    room, live = len(waiting), list[_Live]()
    with shown_by(print), Watchdog(job.stall_timeout, heartbeat or Heartbeat()) as watchdog:
        while waiting or live:
            if lease.order() != "go on":
                waiting.clear()
            while waiting and len(live) < room:
                live.append(_Live(waiting.popleft(), data, images, job, run, lease, make_program))
            for attempt in list(live):
                watchdog.turn(attempt.log, pack.index(attempt.planned), attempt.epoch_began)
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


def _is_trained(run: RunFolder, trial_id: str) -> bool:
    # Without a log there is no row, and to look for one among thousands of files costs milliseconds.
    return run.trial(trial_id).has_log() and run.status(trial_id) in schema.TRAINED


@dataclass(eq=False)
class _Live:
    """A trial under way: its program, its history so far, its log."""

    planned: Planned
    data: Dataset
    images: Any
    job: Job
    run: RunFolder
    lease: LeaseView
    make_program: Callable[..., Program]

    @folder_faults()
    def __post_init__(self) -> None:
        self._files = self.run.trial(self.planned.trial.id)
        self._started = datetime.now(UTC)
        number = 1 + attempts(self.run, self.planned.trial.id)
        started_at = self._started.isoformat(timespec="seconds")
        used = kernels.used(kernels.off(), compiled=self.job.compiled) if self.job.gpu else None
        where = socket.gethostname(), device_name(self.job)
        self._attempt = Attempt(number, *where, started_at, self.job.git_commit, used)
        self._files.write_attempt(self._attempt)
        self.log = self._files.open_log()
        self._program: Program | None = None
        self._history: list[Epoch] = []
        self._stopped = False
        self._turns = self._train()
        self.epoch_began = time.monotonic()

    def turn(self, alone: bool) -> bool:
        """Go on for a bit; False once the trial has ended.

        Raises:
            torch.OutOfMemoryError: unless it is alone: then it fails.
            DeviceLostError: the GPU is broken.
            FolderError: nothing can be written.
        """
        with _output_to(self.log, shown=self.job.interactive):
            try:
                next(self._turns)
                return True
            except FolderError:
                raise
            except StopIteration:
                if self._stopped:
                    return False
                status, error = self._status(), None
                print(*log.final_lines(self.planned.trial, self._history, status == schema.COLLAPSED), sep="\n")
            except (Exception, SystemExit) as caught:
                traceback.print_exc()
                _raise_if_lost(_device(self.job))
                if isinstance(caught, torch.OutOfMemoryError) and not alone:
                    print("out of memory beside others; waits for them to end")
                    raise
                status = schema.FAILED
                error = "".join(traceback.format_exception_only(caught)).strip()
            self._end(status, error)
        return False

    def _status(self) -> str:
        """How a trial ended that was trained to its end."""
        if self._history[-1].diverged:
            return schema.DIVERGED
        return schema.COLLAPSED if self._program and self._program.collapsed(self._history) else schema.COMPLETED

    def close(self) -> None:
        self._turns.close()
        self._program = None  # and its memory, for whoever waits for some
        with contextlib.suppress(OSError):  # what it could not write before it cannot write now
            self.log.close()

    def _train(self) -> Generator[None, None, None]:
        """Fill the history, and write it down now and then."""
        trial = self.planned.trial
        print(f"attempt {self._attempt.number}: {trial.id} on {self._attempt.device}, {self._attempt.started_at}")
        _compile_ahead(trial, self.data, self.job)
        _reset_peak_memory(_device(self.job))
        self._program = self.make_program(trial, self.images, compiled=self.job.compiled)
        yield
        slot = _Slot(self._files.checkpoint)
        written = time.monotonic()
        trains = False  # epochs behind a checkpoint come first, each at once: between those there is nothing to leave
        by = {"git_commit": self._attempt.git_commit, "kernels": self._attempt.kernels}
        epochs = turns(self._program, slot=slot, checkpoint_every=self.job.checkpoint_every, **by)
        for epoch in epochs:
            if epoch is None:
                trains = True
                yield
                continue
            self._history.append(epoch)
            if log.is_logged(epoch, trial.recipe.epochs):
                print(log.epoch_line(epoch))
            now = self.epoch_began = time.monotonic()
            if now - written >= WRITE_EVERY_S:
                self._write_progress()
                written = now
            if trains and epoch.epoch < trial.recipe.epochs and not epoch.diverged and self.lease.order() != "go on":
                self._stop(epochs, slot)
                return

    def _stop(self, epochs: Generator[Epoch | None, None, None], slot: _Slot) -> None:
        """Stop between two epochs, for a driver that asked for it: nothing is lost. For a lost one nothing is done."""
        self._stopped = True
        slot.closed = self.lease.order() == "not yours"
        epochs.close()  # which writes a checkpoint
        if not slot.closed:
            self._write_progress()
            print(f"stopped after epoch {len(self._history)}, as the sweep was asked to; to go on, run it again")

    @folder_faults()
    def _write_progress(self) -> None:
        if self._ended_elsewhere() is not None:
            return
        trial_id, last = self.planned.trial.id, self._history[-1]
        self.run.epochs.write(trial_id, record.epoch_rows(self.planned.trial, self._history))
        self.log.save()
        shown = {name: getattr(last, name) for name in ("epoch", "test_acc", "epoch_s", "images_per_s")}
        self._files.write_attempt(dataclasses.replace(self._attempt, **shown))

    def _ended_elsewhere(self) -> str | None:
        """How another attempt has ended this trial, if one has.

        A machine that was cut off trains on, and may come back when its trials have long been trained elsewhere.
        """
        ended = self._files.ended()
        return ended.status if ended and ended.status in schema.TRAINED else None

    @folder_faults()
    def _end(self, status: str, error: str | None) -> None:
        """Write everything down, the row last: it is what says that the trial has ended."""
        if (ended := self._ended_elsewhere()) is not None:
            print(f"another attempt has ended this trial as {ended}; this one is dropped")
            return
        trial, program = self.planned.trial, self._program
        self.run.epochs.write(trial.id, record.epoch_rows(trial, self._history))
        if self.job.keep_weights and program and status == schema.COMPLETED:
            self._files.weights.write(_encoded(program.network))
        self.log.save()
        self.run.write_trial(
            {
                **record.row(self.planned, status, self._history, error, self.job.cost(self.planned)),
                "test_images": program and program.test_images,
                "params": program and count_parameters(program.network),
                "pool_params_count": program and count_parameters(program.network.pool),
                "peak_memory_mb": _peak_memory_mb(_device(self.job)),
                "device": self._attempt.device,
                "compiled": self.job.compiled,
                "kernels": self._attempt.kernels,
                "attempt": self._attempt.number,
                "host": self._attempt.host,
                "git_commit": self._attempt.git_commit,
                "versions": record.versions(),
                "started_at": self._started,
                "finished_at": datetime.now(UTC),
            }
        )
        if status != schema.FAILED:  # a failed trial that is tried again goes on from there
            self._files.checkpoint.remove()
        self._files.end_attempt()


class _Slot:
    """A checkpoint's place, whose faults are the run folder's and not the trial's; once `closed` it takes no more."""

    def __init__(self, place: Slot):
        self._place = place
        self.closed = False

    @folder_faults()
    def read(self) -> bytes | None:
        return self._place.read()

    @folder_faults()
    def write(self, data: bytes) -> None:
        if not self.closed:
            self._place.write(data)


def _encoded(network: nn.Module) -> bytes:
    """Its state_dict, as `torch.load` reads it on a machine without a GPU too."""
    buffer = io.BytesIO()
    torch.save({name: tensor.cpu() for name, tensor in network.state_dict().items()}, buffer)
    return buffer.getvalue()


def measure(pack: Sequence[Planned], data: Dataset, job: Job) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return how fast packs of such trials are, by size, as plain data, and on what: `gpu`."""
    trials = [planned.trial for planned in pack]
    with shown_by(print):
        _compile_ahead(trials[0], data, job)
        found = probe(trials, data, _device(job), MOST, GAIN, compiled=job.compiled)
    return gpu(job), [dataclasses.asdict(measurement) for measurement in found]


def _compile_ahead(trial: Trial, data: Dataset, job: Job) -> None:
    if not job.compiled:  # torch.compile makes kernels of its own
        compile_once.for_trial(trial, data, _device(job))


def gpu(job: Job) -> dict[str, Any]:
    """Return `trainer.packs.conditions` of the GPU that a trial would get here."""
    return conditions(_device(job), job.compiled)


def device_name(job: Job) -> str:
    """Return the name of what trials compute on."""
    if job.gpu:
        return torch.cuda.get_device_name(_device(job))
    return f"cpu ({platform.machine()}, {torch.get_num_threads()} threads)"


@contextlib.contextmanager
def _output_to(file: TextIO, shown: bool) -> Iterator[None]:
    """What is printed within the block goes there; and where it went before, if it is to be shown."""
    streams: list[Any] = [_Forgiving(file, stream if shown else None) for stream in (sys.stdout, sys.stderr)]
    with contextlib.redirect_stdout(streams[0]), contextlib.redirect_stderr(streams[1]):
        yield


class _Forgiving:
    """A file that drops what it cannot take: no trial fails because its log is on a disk that is full."""

    def __init__(self, file: TextIO, shown: TextIO | None = None):
        self._file = file
        self._shown = shown

    def write(self, text: str) -> int:
        if self._shown is not None:
            self._shown.write(text)
            self._shown.flush()
        with contextlib.suppress(OSError):
            self._file.write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            self._file.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


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
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # resets VmHWM: see proc_pid_clear_refs(5)


def _peak_memory_mb(device: torch.device) -> float | None:
    """Of the GPU's allocator, or of the whole process on a CPU; None where the system does not tell."""
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device) / 2**20  # what graphs hold is not allocated all the time
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    return None
