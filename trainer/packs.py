"""Packs: trials of one architecture and dataset, side by side on one GPU.

One trial cannot fill a large GPU: its kernels are too small. A pack is several device programs in one process, each
with a stream and graphs of its own, over the same images. No kernel changes, so a trial's numbers do not depend on its
neighbours; how many to put together is a question to the machine, and `probe` asks it.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from search_spaces import kernels
from search_spaces.errors import first_line
from search_spaces.messages import log
from search_spaces.trial import Trial
from trainer.augment import Images
from trainer.data import Dataset
from trainer.outcome import Epoch
from trainer.train import Program

PROBE_STEPS = 100


@dataclass(frozen=True, slots=True)
class Measurement:
    """Packs of one size.

    Attributes:
        start_s: seconds until those that were added could train: built, recorded, an epoch of all to warm up.
        epoch_s: seconds of an epoch of all of them, evaluation included.
        images_per_s: trained by the whole pack in it.
        memory_mb: at the peak, held by the GPU's allocator; None on a CPU.
    """

    size: int
    start_s: float
    epoch_s: float
    images_per_s: float
    memory_mb: float | None


def conditions(device: torch.device, compiled: bool = False) -> dict[str, Any]:
    """Return what measurements on a device depend on beside the trial: the GPU, its kernels, torch major.minor.

    On a CPU there is no GPU, and no kernels. `free_mb` is how much of its memory nobody has taken.
    """
    found = {"gpu": None, "gpu_memory_mb": None, "free_mb": math.inf, "kernels": None}
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        found = {
            "gpu": torch.cuda.get_device_name(device),
            "gpu_memory_mb": total / 2**20,
            "free_mb": free / 2**20,
            "kernels": kernels.used(kernels.off(), compiled=compiled),
        }
    return {**found, "torch": ".".join(torch.__version__.split(".")[:2])}


def probe(
    trials: Sequence[Trial], data: Dataset, device: torch.device, most: int, gain: float, **settings: Any
) -> list[Measurement]:
    """Measure packs of 1, 2, 4, ... `most` trials, each over an epoch of `PROBE_STEPS` steps at most.

    Stop at the first size that is not `gain` times as fast as the one before, or that does not fit.

    Args:
        trials: of one architecture and dataset; a pack takes them in turn.
        settings: of `Program`.
    """
    images = Images(data, device)
    shortened = [_shortened(trial, images) for trial in trials]
    sizes = itertools.takewhile(lambda size: size <= most, (2**power for power in itertools.count()))
    return list(while_it_pays(grow(itertools.cycle(shortened), images, sizes, **settings), gain))


def while_it_pays(measurements: Iterable[Measurement], gain: float) -> Iterator[Measurement]:
    """Yield those of ever larger packs, up to the first that is not `gain` times as fast as the one before."""
    fastest = 0.0
    for found in measurements:
        yield found
        if found.images_per_s < gain * fastest:
            return
        fastest = found.images_per_s


def take_turns(programs: Sequence[Program], epoch: int) -> list[Epoch]:
    """Run an epoch of each, side by side; return what each came to, in order."""
    running = {index: program.run(epoch) for index, program in enumerate(programs)}
    epochs: dict[int, Epoch] = {}
    while running:
        for index, turns in list(running.items()):
            try:
                next(turns)
            except StopIteration as end:
                epochs[index] = end.value
                del running[index]
    return [epochs[index] for index in range(len(programs))]


def grow(trials: Iterator[Trial], images: Images, sizes: Iterable[int], **settings: Any) -> Iterator[Measurement]:
    """Measure one pack that grows to each of these sizes, over an epoch of all after one that warms up.

    Ends early where no more trials train: they may not fit, which CUDA and its libraries have many ways to say, or a
    pool may raise, which its own trial will tell of.

    Args:
        sizes: ascending.
        settings: of `Program`.
    """
    cuda = images.device.type == "cuda"
    if cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(images.device)
    programs = list[Program]()
    for size in sizes:
        started = time.perf_counter()
        try:
            while len(programs) < size:
                programs.append(Program(next(trials), images, **settings))
            take_turns(programs, 1)
            warm = time.perf_counter()
            take_turns(programs, 2)
        except Exception as error:
            log.warning(f"no {size} side by side: {first_line(error)}")
            return
        epoch_s = time.perf_counter() - warm
        trained = sum(program.trial.recipe.train_samples or len(images.train_labels) for program in programs)
        memory = torch.cuda.max_memory_reserved(images.device) / 2**20 if cuda else None
        yield Measurement(size, warm - started, epoch_s, trained / epoch_s, memory)


def _shortened(trial: Trial, images: Images) -> Trial:
    recipe = trial.recipe
    train, test = len(images.train_labels), len(images.test_labels)
    trained, tested = min(recipe.train_samples or train, train), min(recipe.test_samples or test, test)
    samples = min(PROBE_STEPS * recipe.batch_size, trained)
    evaluated = math.ceil(tested * samples / trained)  # the part of the time that it has in a whole epoch
    recipe = dataclasses.replace(recipe, train_samples=samples, test_samples=evaluated)
    return dataclasses.replace(trial, recipe=recipe)
