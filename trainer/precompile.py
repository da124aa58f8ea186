"""Compiles all Triton kernels of a trial before it starts, in as many processes as there are cores.

Kernels that are compiled as they are met cost half a second each, one after the other: half a minute for ResNet-56.
Which ones there are is found by running the program's own steps on a GPU that is not there (`device.launches`); they
land in Triton's cache, `TRITON_CACHE_DIR` or `~/.triton/cache`, where every process of this machine finds them.
"""

from __future__ import annotations

import multiprocessing
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar
from unittest import mock

import numpy as np

from search_spaces import machine, pool
from search_spaces.recipe import Recipe
from search_spaces.trial import Trial
from trainer.data import PAD, SIZE, Dataset

if TYPE_CHECKING:
    from trainer.device.compiling import Compiled
    from trainer.device.launches import Launch

Result = TypeVar("Result")

# {dataset: training images, test images, channels, classes}
SHAPES = {"cifar100": (50_000, 10_000, 3, 100), "cifar10": (50_000, 10_000, 3, 10), "fmnist": (60_000, 10_000, 1, 10)}
_CALL = """
import sys
from multiprocessing.connection import Connection
pipe = Connection(int(sys.argv[1]))
call, args = pipe.recv()
pipe.send(call(*args))
"""


@dataclass(frozen=True)
class Case:
    """What decides which kernels a trial launches.

    Its pool is not among it: pools are made of torch's own kernels.
    """

    arch: str
    precision: str
    train_images: int
    test_images: int
    channels: int
    classes: int
    batch_size: int = 128

    @classmethod
    def named(cls, arch: str, dataset: str, precision: str) -> Case:
        """Return that of all images of a dataset in `SHAPES`."""
        return cls(arch, precision, *SHAPES[dataset])

    @classmethod
    def of(cls, trial: Trial, data: Dataset) -> Case:
        recipe = trial.recipe
        train, test = len(data.train_labels), len(data.test_labels)
        train, test = min(recipe.train_samples or train, train), min(recipe.test_samples or test, test)
        channels = data.train_images.shape[-1]
        return cls(trial.arch, recipe.precision, train, test, channels, data.classes, recipe.batch_size)


def launched(cases: Iterable[Case]) -> list[dict[tuple[str, int], list[Launch]]]:
    """Return {("train" or "test", images): what such a batch launches} of each trial, for each size that it has.

    For a process of its own (`apart`): until it returns, torch takes this one to have a GPU.
    """
    return [_launched(case) for case in cases]


def _launched(case: Case) -> dict[tuple[str, int], list[Launch]]:
    import torch

    from trainer.augment import Images
    from trainer.device import launches
    from trainer.train import Program

    def split(number: int, side: int) -> tuple[Any, Any]:
        """Of zeros, which take no memory while nobody looks at them."""
        return np.zeros((number, side, side, case.channels), np.uint8), np.zeros(number, np.int64)

    train, test = split(case.train_images, SIZE + 2 * PAD), split(case.test_images, SIZE)
    statistics = (0.5,) * case.channels, (0.25,) * case.channels
    data = Dataset("no images", case.classes, True, *train, *test, *statistics)
    recipe = Recipe(precision=case.precision, batch_size=case.batch_size)
    trial = Trial(pool.expand("gap")[0], case.arch, "cifar100", 0, recipe)
    found = {}
    with launches.fake_gpu():
        program = Program(trial, Images(data, torch.device("cuda", 0)), graphs=False)
        steps = {
            "train": (program._train_batch, program._train_sizes),
            "test": (program._test_batch, program._test_sizes),
        }
        eager = mock.patch.object(torch.cuda, "is_current_stream_capturing", return_value=False)
        with launches.recorded(), eager:  # what only the first step does is no step's
            program._train_batch(program._train_sizes[0])
        for phase, (step, sizes) in steps.items():
            for size in dict.fromkeys(sizes):
                with launches.recorded() as found[phase, size]:
                    step(size)
    return found


def compiled(cases: Iterable[Case], capability: int, processes: int, resources: bool = False) -> list[Compiled]:
    """Return what has become of each kernel of these trials, compiled or in Triton's cache by now; see `apart`."""
    from trainer.device import compiling

    steps = [step for trial in launched(cases) for step in trial.values()]
    kernels = [launch.kernel for step in steps for launch in step if launch.kernel is not None]
    return compiling.compile_all(kernels, capability, processes, resources)


def precompile(cases: Sequence[Case], capability: int | None = None, processes: int | None = None) -> list[Compiled]:
    """Compile all kernels of these trials that are not in Triton's cache.

    Args:
        capability: the GPU's, 90 for (9, 0); that of this machine's.
        processes: that compile side by side; as many as there are cores.

    Raises:
        RuntimeError: it could not be found out which ones there are. What could not be compiled says so in `error`.
    """
    return apart(compiled, cases, capability or this_capability(), processes or machine.cores())


def this_capability() -> int:
    """Return the compute capability of this machine's GPU, 90 for (9, 0)."""
    import torch

    major, minor = torch.cuda.get_device_capability()
    return 10 * major + minor


def apart(call: Callable[..., Result], *args: object) -> Result:
    """Return call(*args), as a process finds it that sees no GPU and does not interpret kernels.

    Raises:
        RuntimeError: the call raised; says what.
    """
    environment = machine.environment() | {"CUDA_VISIBLE_DEVICES": ""}
    environment.pop("TRITON_INTERPRET", None)
    mine, theirs = multiprocessing.Pipe()
    with mine, tempfile.TemporaryFile() as said:
        command = [sys.executable, "-P", "-c", _CALL, str(theirs.fileno())]
        to = {"stdin": subprocess.DEVNULL, "stdout": said, "stderr": said, "pass_fds": [theirs.fileno()]}
        child = subprocess.Popen(command, env=environment, **to)
        theirs.close()
        try:
            mine.send((call, args))
            return mine.recv()
        except (EOFError, OSError):
            child.wait()
            said.seek(0)
            text = said.read().decode(errors="replace")
            raise RuntimeError(f"{call.__name__} failed in a process of its own: {text[-2000:]}") from None
        finally:
            child.kill()
            child.wait()
