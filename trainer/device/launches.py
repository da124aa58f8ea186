"""What a step launches on a GPU, kernel by kernel, and the bytes that each one moves; found without a GPU.

The program's own code runs on fake tensors, which have shapes and no numbers, and every launch is noted. This is a
model: it counts what has to cross the memory bus if caches hold what one kernel reads twice, and nothing that one
kernel leaves there for the next.

| What is launched | Kernels | Bytes |
| --- | --- | --- |
| a Triton kernel | 1 | each of its tensors once, or what the kernel says (below) |
| views, `empty` | 0 | 0 |
| `convolution_backward` | 1 a gradient | of each: the output's gradient, what it is multiplied by, and the result |
| `*_backward` of max-pooling, `nll_loss`, `select`, `slice` | 2 | zeros first: the result once more |
| `_foreach_*`, `_fused_*` | as torch splits lists | as for all others |
| `index_select`, `gather`, `embedding` | 1 | of the first tensor as much as comes out |
| all others | 1 | what is read once, what is written once; both, what is changed in place |

An expanded tensor weighs what lies in memory. cuDNN and cuBLAS may take more kernels than one, to turn a layout or add
up parts, so that of theirs the counts are the least.

A Triton kernel that reads less of its tensors than all, or that finds them by a table of addresses, says so in Triton's
own form, which its profiler reads too, and which costs a launch nothing:

    @triton.jit(launch_metadata=_traffic)
    def kernel(table, out, ...): ...

    def _traffic(_, __, given): return {"bytes": given["out"].nbytes + given["table"].weight}

It is called with the grid, Triton's metadata (here the kernel's `name` alone) and the kernel's arguments by name:
tensors, numbers and what it is compiled for. A tensor may carry as an attribute what only its maker knows.

Of Triton it takes `JITFunction.run`, through which every launch goes, and `launch_metadata`. If they go, nothing is
counted or compiled ahead; training does not notice.
"""

from __future__ import annotations

import contextlib
import inspect
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from triton.runtime.jit import JITFunction

from trainer import compat
from trainer.device import execution
from trainer.randomness import Noise

OVERWRITES = {"copy_", "fill_", "zero_", "bernoulli_", "_foreach_copy_", "_foreach_zero_"}  # without reading
ONLY_READS = {"_fused_sgd_": "grads"}  # though it says that it may write: if they were scaled
SELECTS = {"index_select", "gather", "embedding"}
ZEROS_FIRST = {"max_pool2d_with_indices_backward", "nll_loss_backward", "select_backward", "slice_backward"}
# How torch's multi_tensor_apply splits lists: elements of a block, blocks of a kernel, and tensors by how many lists.
CHUNK, BLOCKS, TENSORS = 65536, 320, {1: 110, 2: 64, 3: 48, 4: 36, 5: 30}


@dataclass(frozen=True)
class Pointer:
    """A tensor, as far as a kernel is compiled for it.

    Attributes:
        address: where it is, modulo 16.
    """

    dtype: torch.dtype
    address: int

    def data_ptr(self) -> int:
        return self.address


@dataclass(frozen=True)
class Kernel:
    """A call of a Triton kernel that another process can compile: a function by name, and its arguments.

    Attributes:
        args: numbers, and a `Pointer` for each tensor.
        options: by name; what it is compiled for, and `num_warps` and the like.
    """

    module: str
    name: str
    args: tuple[Any, ...]
    options: tuple[tuple[str, Any], ...]

    def __str__(self) -> str:
        return f"{self.module.rpartition('.')[2]}.{self.name}"


@dataclass(frozen=True)
class Launch:
    """What one call launches.

    Attributes:
        name: `norm._sum`, `aten.mm`.
        launches: how many kernels; 1 for a Triton kernel.
        bytes: that they move.
        grid: of a Triton kernel.
        kernel: the same, to compile it.
    """

    name: str
    launches: int
    bytes: int
    grid: tuple[int, ...] = ()
    kernel: Kernel | None = None


@contextlib.contextmanager
def fake_gpu() -> Iterator[None]:
    """Within the block, programs train on a GPU that is not there; see `compat.training_on_fake_gpu`."""
    noise = Noise(torch.device("cpu"))
    with (
        compat.training_on_fake_gpu(),
        mock.patch.object(execution, "Noise", return_value=noise),
        mock.patch.object(JITFunction, "run", return_value=None),
    ):
        yield


@contextlib.contextmanager
def recorded() -> Iterator[list[Launch]]:
    """Give a list that grows by all that is launched within the block, which is within `fake_gpu`."""
    found: list[Launch] = []

    def run(function: Any, *args: Any, grid: Any, **options: Any) -> None:
        del options["warmup"]
        found.append(of_triton(function, args, grid, options))

    def note(name: str, given: dict[str, Any], changed: set[str], out: Any) -> None:
        launches, moved = _of_operator(name, given, changed, out)
        if launches:
            found.append(Launch(f"aten.{name}", launches, moved))

    with compat.operators(note), mock.patch.object(JITFunction, "run", run):
        yield found


def of_triton(function: Any, args: tuple[Any, ...], grid: Any, options: dict[str, Any]) -> Launch:
    """Return what `function[grid](*args, **options)` launches. Its tensors may be real."""
    signature = inspect.signature(function.fn)
    named = {name: value for name, value in options.items() if name in signature.parameters}
    given = signature.bind(*args, **named)
    given.apply_defaults()
    grid = grid(given.arguments) if callable(grid) else grid
    if function.launch_metadata is None:
        moved = sum(map(_weight, _distinct(_tensors(list(given.arguments.values())))))
    else:
        moved = function.launch_metadata(grid, SimpleNamespace(name=function.fn.__name__), given.arguments)["bytes"]
    stand_ins = tuple(map(_stand_in, args)), tuple((name, _stand_in(value)) for name, value in sorted(options.items()))
    kernel = Kernel(function.fn.__module__, function.fn.__name__, *stand_ins)
    return Launch(str(kernel), 1, moved, tuple(grid), kernel)


def _stand_in(value: Any) -> Any:
    return Pointer(value.dtype, value.data_ptr() % 16) if isinstance(value, Tensor) else value


def _of_operator(name: str, given: dict[str, Any], changed: set[str], out: Any) -> tuple[int, int]:
    """Return how many kernels an operator launches, and the bytes that they move; see `compat.operators`."""
    changed = changed - {ONLY_READS.get(name)}
    written = _distinct(_tensors([value for key, value in given.items() if key in changed]))
    read = _distinct(_tensors([value for key, value in given.items() if key not in changed]))
    storages = {_begins(tensor) for tensor in (*read, *written)}
    new = [tensor for tensor in _tensors(out) if _begins(tensor) not in storages]
    if name.startswith(("empty", "new_empty")) or not (written or new):
        return 0, 0
    if name == "convolution_backward":
        gradient, x, weight = read[:3]
        pairs = zip(out, ((gradient, weight), (gradient, x), (gradient,)), strict=True)
        parts = [(result, *factors) for result, factors in pairs if result is not None]
        return len(parts), sum(_weight(tensor) for part in parts for tensor in part)
    if name in SELECTS:
        read = [*new, *read[1:]]
    moved = sum(map(_weight, (*read, *written, *new, *(() if name in OVERWRITES else written))))
    if name in ZEROS_FIRST:
        return 2, moved + sum(map(_weight, new))
    if name.startswith(("_foreach_", "_fused_")):
        lists = [value for value in given.values() if isinstance(value, list) and _tensors(value)]
        return _splits([tensor.numel() for tensor in lists[0]], len(lists)), moved
    return 1, moved


def _splits(sizes: Iterable[int], lists: int) -> int:
    """Return how many kernels torch makes of lists of tensors with so many elements."""
    kernels = tensors = blocks = 0
    for size in sizes:
        tensors += 1
        for left in reversed(range(-(-size // CHUNK))):
            blocks += 1
            if blocks == BLOCKS or (tensors == TENSORS[lists] and not left):
                kernels, blocks, tensors = kernels + 1, 0, 1 if left else 0
    return kernels + (blocks > 0)


def _tensors(values: Any) -> list[Tensor]:
    """Return the tensors on the GPU, of any nest of lists."""
    if isinstance(values, Tensor):
        return [values] if values.device.type == "cuda" else []
    return [tensor for value in values for tensor in _tensors(value)] if isinstance(values, (list, tuple)) else []


def _distinct(tensors: Iterable[Tensor]) -> list[Tensor]:
    return list({(tensor.data_ptr(), _weight(tensor)): tensor for tensor in tensors}.values())


def _begins(tensor: Tensor) -> int:
    return tensor.data_ptr() - int(tensor.storage_offset()) * tensor.element_size()


def _weight(tensor: Tensor) -> int:
    """Return how many bytes of memory it covers."""
    covered = (size for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if stride)
    return math.prod(covered) * tensor.element_size()
