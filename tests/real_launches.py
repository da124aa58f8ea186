"""What tests of launches run in a process of its own, where kernels are not interpreted."""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F

from search_spaces import pool
from search_spaces.recipe import Recipe
from search_spaces.trial import Trial
from trainer.precompile import Case, launched

SIZES = {"train_samples": 208, "test_samples": 1000}  # steps of 128 and of 80 images, as CIFAR-100 has them


class Dies:
    """A kernel that takes its process along when it is compiled, as LLVM does where it finds itself wrong."""

    @staticmethod
    def warmup(*_: object, **__: object) -> None:
        from triton import knobs

        if knobs.runtime.jit_cache_hook is None:
            os._exit(3)
        knobs.runtime.jit_cache_hook(key="none")  # type: ignore[call-arg]


def traced(cases: Sequence[Case], operations: Sequence[str]) -> tuple[list[Any], list[Any]]:
    """Return what trials launch, and what expressions do: one process imports half of torch for both."""
    return launched(cases), costs(operations)


def costs(operations: Sequence[str]) -> list[list[tuple[str, int, int]]]:
    """Return (name, launches, bytes) of all that each expression launches, of tensors on a GPU that is not there."""
    from trainer.device import launches

    found = []
    with launches.fake_gpu():

        def new(*shape: int, dtype: torch.dtype = torch.float32, grad: bool = False) -> torch.Tensor:
            return torch.empty(shape, dtype=dtype, device="cuda").requires_grad_(grad)

        names: dict[str, Any] = {"torch": torch, "F": F, "new": new, "long": torch.int64, "half": torch.bfloat16}
        names |= {"maps": new(2, 8, 4, 4), "weight": new(16, 8, 3, 3), "backward": torch.ops.aten.convolution_backward}
        for operation in operations:
            with launches.recorded() as noted:
                eval(operation, names)  # noqa: S307
            found.append([(each.name, each.launches, each.bytes) for each in noted])
    return found


def keys(kernels: Sequence[Any], capability: int) -> list[tuple[str, str, str]]:
    """Return by what a launch finds each kernel: as recorded, with real tensors, and with tensors 8 bytes on."""
    from trainer.device import compiling
    from trainer.device.launches import Pointer

    def with_tensors(kernel: Any, make: Callable[[torch.dtype], torch.Tensor]) -> str:
        def real(value: Any) -> Any:
            return make(value.dtype) if isinstance(value, Pointer) else value

        args = tuple(map(real, kernel.args))
        options = tuple((name, real(value)) for name, value in kernel.options)
        return compiling.key(dataclasses.replace(kernel, args=args, options=options), capability)

    return [
        (
            compiling.key(kernel, capability),
            with_tensors(kernel, lambda dtype: torch.empty(64, dtype=dtype)),
            with_tensors(kernel, lambda dtype: torch.empty(64, dtype=torch.uint8)[8:].view(dtype)),
        )
        for kernel in kernels
    ]


def compiled_anew(arch: str, precision: str) -> int:
    """Return how many kernels an epoch on this machine's GPU compiles that Triton's cache lacks."""
    from triton import knobs

    from benchmarks.throughput import random_images
    from trainer.augment import Images
    from trainer.device.execution import default_device
    from trainer.train import Program, train

    missed: list[str] = []

    def note(*, src: Any, cache_hit: bool, **_: Any) -> None:
        missed.extend([] if cache_hit else [src.name])

    knobs.compilation.listener = note
    recipe = Recipe(epochs=1, precision=precision, **SIZES)
    images = Images(random_images(1000, 1000), default_device())
    assert len(list(train(Program(Trial(pool.expand("gap")[0], arch, "cifar100", 0, recipe), images)))) == 1
    return len(missed)


if __name__ == "__main__":
    print(compiled_anew(*sys.argv[1:]))
