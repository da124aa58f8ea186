"""Packs: trials of one architecture and dataset, side by side on one GPU.

One trial cannot fill a large GPU: its kernels are too small. A pack is several device programs in one process, each
with a stream and graphs of its own, over the same images. No kernel changes, so a trial's numbers do not depend on its
neighbours; how many to put together is a question to the machine, and `probe` asks it.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass

import torch

from trainer.augment import Images
from trainer.data import Dataset
from trainer.program import Program
from trainer.trial import Trial

PROBE_STEPS = 100
GAIN = 1.03  # a larger pack must be worth its memory, and the trials that it takes with it when it dies


@dataclass(frozen=True, slots=True)
class Measurement:
    """Packs of one size.

    Attributes:
        images_per_s: trained by the whole pack, evaluation included.
        memory_mb: at the peak, of the GPU's allocator; None on a CPU.
    """

    size: int
    images_per_s: float
    memory_mb: float | None


def probe(trials: Sequence[Trial], data: Dataset, device: torch.device, most: int) -> list[Measurement]:
    """Packs of 1, 2, 4, ... `most` trials, each measured over an epoch of `PROBE_STEPS` steps at most.

    Stops at the first size that is no faster than the one before, or that does not fit.

    Args:
        trials: of one architecture and dataset; a pack takes them in turn.
    """
    images = Images(data, device)
    found: list[Measurement] = []
    size = 1
    while size <= most:
        try:
            found.append(_measure([trials[i % len(trials)] for i in range(size)], images))
        except torch.OutOfMemoryError:
            break
        if len(found) > 1 and found[-1].images_per_s < GAIN * found[-2].images_per_s:
            break
        size *= 2
    return found


def best(measurements: Sequence[Measurement]) -> int:
    """The pack size to take: the smallest within `GAIN` of the fastest; 1 if there is none."""
    if not measurements:
        return 1
    enough = max(m.images_per_s for m in measurements) / GAIN
    return min(m.size for m in measurements if m.images_per_s >= enough)


def take_turns(programs: Sequence[Program], epoch: int) -> None:
    """Runs an epoch of each, side by side."""
    running: list[Generator[None, None, object]] = [program.run(epoch) for program in programs]
    while running:
        running = [one for one in running if _goes_on(one)]


def _goes_on(turns: Iterator[None]) -> bool:
    ended = object()
    return next(turns, ended) is not ended


def _measure(trials: Sequence[Trial], images: Images) -> Measurement:
    cuda = images.device.type == "cuda"
    if cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(images.device)
    recipe = trials[0].recipe
    steps = min(PROBE_STEPS * recipe.batch_size, recipe.train_samples or len(images.train_labels))
    short = dataclasses.replace(recipe, train_samples=min(steps, len(images.train_labels)))
    programs = [Program(dataclasses.replace(trial, recipe=short), images) for trial in trials]
    take_turns(programs, 1)
    started = time.perf_counter()
    take_turns(programs, 2)
    seconds = time.perf_counter() - started
    memory = torch.cuda.max_memory_allocated(images.device) / 2**20 if cuda else None
    return Measurement(len(trials), len(trials) * (short.train_samples or 0) / seconds, memory)
