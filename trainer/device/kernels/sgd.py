"""The step of SGD with momentum over all parameters as one Triton kernel, and the gradients that come to it in parts.

For each element g = gradient + decay w, m = momentum m + g, w = w - lr m: memory traffic and nothing else. The kernel
reads a gradient as it is: in fp32, in bfloat16 as cuDNN leaves it on a half weight, or in parts, which it adds up; and
it writes the half weight that the next forward pass multiplies by. So no gradient and no weight is cast or added up by
a kernel of its own, and of VGG-16's 15 million parameters each costs 20 bytes a step and not 32.

The kernel finds its tensors by a table of their addresses, which the host makes as it launches.
"""

# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false
# pyright: reportIndexIssue=false, reportReturnType=false
# Triton reads these functions, Python does not run them: their types are not Python's.

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 1024  # elements of a program whose gradient is in one piece
COLUMNS = 128  # elements of a program that adds up parts, and how many of those it reads at once
PARTS = 16
GRAPHS = 4  # that may be recorded of a step, one for each size of a batch: an epoch has two at most
# How a program reads its gradient. Where all addresses are multiples of 16, a thread reads 16 bytes at once.
WHOLE, HALF, IN_PARTS, ALIGNED = 0, 1, 2, 4
NONE = -1
FIELDS = 6  # of a row: addresses of weight, momentum, half and gradient; elements; parts

_TAKES_NONE = object()


def take_parts(parameter: Tensor) -> None:
    """Have `hand_in` keep the parts of this parameter's gradient from now on, for whoever adds them up."""
    parameter.parts = None  # type: ignore[attr-defined]


def hand_in(parameter: Tensor, parts: Tensor) -> Tensor | None:
    """Return what a backward pass gives autograd as the gradient of a parameter, which it has in parts.

    None where the optimizer takes parts: it adds them up as it reads them, which saves a kernel for each parameter and
    the gradient's way through memory. None for a frozen parameter, too. Otherwise their sum.

    Args:
        parameter: dense, fp32, the tensor itself and not a detached one; `ctx.saved_tensors` gives it back as it was.
        parts: [n, ...] fp32, contiguous, n > 0: each with as many elements as the parameter, in its order in memory.

    Raises:
        ValueError: they are not such parts.
        RuntimeError: it has parts from this step: a layer that is called twice cannot hand them in.
    """
    if not parameter.requires_grad:
        return None
    if parts.dtype != torch.float32 or not parts.is_contiguous() or parts.numel() != len(parts) * parameter.numel():
        raise ValueError(f"{tuple(parts.shape)} {parts.dtype} are no parts of a gradient of {tuple(parameter.shape)}")
    held = getattr(parameter, "parts", _TAKES_NONE)
    if held is _TAKES_NONE:
        return _added_up(parameter, parts)
    if held is not None:
        raise RuntimeError("a parameter's gradient comes in parts twice in one step")
    parameter.parts = parts  # type: ignore[attr-defined]
    return None


def _added_up(parameter: Tensor, parts: Tensor) -> Tensor:
    return parts.flatten(1).sum(0).as_strided(parameter.shape, parameter.stride())


def fits(parameter: Tensor) -> bool:
    """Whether a parameter is one of those that a `Step` can train: in fp32, and dense in memory."""
    places = sorted(
        (stride, size) for stride, size in zip(parameter.stride(), parameter.shape, strict=True) if size > 1
    )
    strides, sizes = [stride for stride, _ in places], [size for _, size in places]
    dense = strides == [math.prod(sizes[:index]) for index in range(len(sizes))]
    return parameter.dtype == torch.float32 and dense and 0 < parameter.numel() < 2**31


class Step:
    """A step of SGD over parameters that `fits` lets pass, on one device.

    Args:
        momenta: one for each parameter, in its order in memory.
        halves: {a parameter: its copy in bfloat16}, in the same order in memory. The gradient may be the copy's.
        counts: [n] int64, to each of which a step adds one.
        lr: a tensor on the device.
        decay: of every parameter.
    """

    def __init__(
        self, parameters: Sequence[Tensor], momenta: Sequence[Tensor], halves: Mapping[Tensor, Tensor],
        counts: Tensor | None, lr: Tensor, momentum: float, decay: float,
    ):  # fmt: skip
        self._parameters = [(each, _order(each), moment) for each, moment in zip(parameters, momenta, strict=True)]
        self._halves = halves
        self._counts, self._lr, self._momentum, self._decay = counts, lr, momentum, decay
        for parameter in parameters:
            take_parts(parameter)
        self._programs: dict[tuple[int, ...], Tensor] = {}  # {kinds of the gradients: what `_programs` returns}
        shape = len(parameters), FIELDS
        self._spare = [torch.empty(shape, dtype=torch.int64, device=lr.device) for _ in range(GRAPHS)]
        self._recorded: list[tuple[Tensor, Tensor]] = []
        self._replayed: list[Tensor] = []  # the tables that graphs read, which know nothing of who owns them

    def clear(self) -> None:
        """Forget the gradients that are not in `parameter.grad`."""
        for parameter, _, _ in self._parameters:
            take_parts(parameter)
        for half in self._halves.values():
            half.grad = None

    def __call__(self) -> None:
        """Take a step by the gradients that there are; parameters without one stay as they are.

        Raises:
            RuntimeError: a parameter is of another type, shape or order in memory than it was.
        """
        rows, kinds, held, moved = list[tuple[int, ...]](), list[int](), list[Tensor](), 0
        for weight, order, momentum in self._parameters:
            half = self._halves.get(weight)
            gradient, parts = _gradient(weight, half)
            if gradient is None:
                rows.append((0,) * FIELDS)
                kinds.append(NONE)
                continue
            if _order(weight) != order:
                raise RuntimeError(f"a parameter was {order} and has become {_order(weight)}")
            held.append(gradient)  # until the kernel is launched: it may be a copy
            moved += 4 * weight.nbytes + gradient.nbytes + (0 if half is None else 2 * weight.numel())
            addresses = [weight.data_ptr(), momentum.data_ptr(), 0 if half is None else half.data_ptr()]
            addresses.append(gradient.data_ptr())
            size, kind = weight.numel(), IN_PARTS if parts > 1 else HALF if gradient.dtype == torch.bfloat16 else WHOLE
            aligned = size % 8 == 0 and not any(each % 16 for each in addresses)
            rows.append((*addresses, size, parts))
            kinds.append(kind + ALIGNED * aligned)
        if held:
            self._launch(torch.tensor(rows, dtype=torch.int64), tuple(kinds), moved)

    def settle(self) -> None:
        """Give the graphs that have recorded a step their tables, before the first is replayed."""
        for table, rows in self._recorded:
            table.copy_(rows)
            self._replayed.append(table)
        self._recorded.clear()

    def _launch(self, rows: Tensor, kinds: tuple[int, ...], moved: int) -> None:
        programs = self._programs.get(kinds)
        if programs is None:
            sizes = [parameter.numel() for parameter, _, _ in self._parameters]
            # A copy that waits, which no recording takes: a step that warms up has made it before.
            programs = self._programs[kinds] = _programs(kinds, sizes).to(self._lr.device)
        table = self._table(rows)
        table.moved = moved  # type: ignore[attr-defined]
        counted = 0 if self._counts is None else len(self._counts)
        _step[(len(programs),)](
            table, programs, self._lr, table if self._counts is None else self._counts, self._momentum, self._decay,
            COUNTED=counted, COUNTS=triton.next_power_of_2(max(1, counted)), BLOCK=BLOCK, PARTS=PARTS, COLUMNS=COLUMNS,
            num_warps=4,
        )  # fmt: skip

    def _table(self, rows: Tensor) -> Tensor:
        """Return the rows on the device.

        In a graph the addresses are the same at each replay, so that it needs no copy of its own: `settle` makes one.
        """
        if self._lr.is_cuda and torch.cuda.is_current_stream_capturing():
            # Made before the recording: what is made in one shares its memory with what was freed in it before.
            self._recorded.append((self._spare.pop(), rows))
            return self._recorded[-1][0]
        return rows if self._lr.is_cpu else rows.pin_memory().to(self._lr.device, non_blocking=True)


def _order(tensor: Tensor) -> tuple[object, ...]:
    return tensor.dtype, tuple(tensor.shape), tensor.stride()


def _gradient(weight: Tensor, half: Tensor | None) -> tuple[Tensor | None, int]:
    """Return a parameter's gradient in the order of the weight that it is of, and in how many parts it is."""
    parts = getattr(weight, "parts", None)
    if parts is not None:
        return parts, len(parts)
    of, gradient = weight, weight.grad
    if gradient is None and half is not None:
        of, gradient = half, half.grad
    if gradient is None or (gradient.dtype == of.dtype and gradient.stride() == of.stride()):
        return gradient, 1
    return torch.empty_like(of).copy_(gradient), 1  # rare: 1x1 weights have two ways to spell one order


def _programs(kinds: Sequence[int], sizes: Sequence[int]) -> Tensor:
    """Return [programs, 3] int32: a row of the table, which block of it, and the kind of its gradient."""
    found: list[np.ndarray] = [np.empty((0, 3), np.int64)]
    for row, (kind, size) in enumerate(zip(kinds, sizes, strict=True)):
        if kind != NONE:
            blocks = np.arange(triton.cdiv(size, COLUMNS if kind & IN_PARTS else BLOCK))
            found.append(np.stack([np.full_like(blocks, row), blocks, np.full_like(blocks, kind)], axis=1))
    return torch.from_numpy(np.concatenate(found).astype(np.int32))


def _traffic(_: Any, __: Any, given: Any) -> dict[str, int]:
    """What the table's addresses lead to: see `trainer.device.launches`."""
    return {"bytes": given["table"].moved}


@triton.jit(launch_metadata=_traffic)
def _step(
    table, programs, lr, counts, momentum, decay,
    COUNTED: tl.constexpr, COUNTS: tl.constexpr, BLOCK: tl.constexpr, PARTS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    if tl.program_id(0) == 0:
        each = tl.arange(0, COUNTS)
        count = tl.load(counts + each, mask=each < COUNTED, other=0)
        tl.store(counts + each, count + 1, mask=each < COUNTED)
    program = programs + tl.program_id(0) * 3
    row = table + tl.load(program) * 6
    block, kind = tl.load(program + 1), tl.load(program + 2)
    rate = tl.load(lr)
    if kind == 4:
        _move(row, block, rate, momentum, decay, HALF=False, ALIGNED=True, BLOCK=BLOCK)
    elif kind == 5:
        _move(row, block, rate, momentum, decay, HALF=True, ALIGNED=True, BLOCK=BLOCK)
    elif kind == 6:
        _move_by_parts(row, block, rate, momentum, decay, ALIGNED=True, PARTS=PARTS, COLUMNS=COLUMNS)
    elif kind == 0:
        _move(row, block, rate, momentum, decay, HALF=False, ALIGNED=False, BLOCK=BLOCK)
    elif kind == 1:
        _move(row, block, rate, momentum, decay, HALF=True, ALIGNED=False, BLOCK=BLOCK)
    else:
        _move_by_parts(row, block, rate, momentum, decay, ALIGNED=False, PARTS=PARTS, COLUMNS=COLUMNS)


@triton.jit
def _address(row, field: tl.constexpr, kind: tl.constexpr, ALIGNED: tl.constexpr):
    at = tl.load(row + field).to(tl.pointer_type(kind))
    if ALIGNED:
        at = tl.multiple_of(at, 16)
    return at


@triton.jit
def _size(row, ALIGNED: tl.constexpr):
    size = tl.load(row + 4).to(tl.int32)
    if ALIGNED:
        size = tl.multiple_of(size, 8)
    return size


@triton.jit
def _move(
    row, block, rate, momentum, decay, HALF: tl.constexpr, ALIGNED: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """A block of a parameter, by a gradient in one piece."""
    at = block * BLOCK + tl.arange(0, BLOCK)
    here = at < _size(row, ALIGNED)
    kind: tl.constexpr = tl.bfloat16 if HALF else tl.float32
    gradient = tl.load(_address(row, 3, kind, ALIGNED) + at, mask=here, other=0.0).to(tl.float32)
    _descend(row, at, here, gradient, rate, momentum, decay, ALIGNED)


@triton.jit
def _move_by_parts(
    row, block, rate, momentum, decay, ALIGNED: tl.constexpr, PARTS: tl.constexpr, COLUMNS: tl.constexpr
):  # fmt: skip
    """A block of a parameter, by the sum of its gradient's parts: of every 16th in order, and then of those sums."""
    at = block * COLUMNS + tl.arange(0, COLUMNS)
    size, parts = _size(row, ALIGNED), tl.load(row + 5).to(tl.int32)
    here = at < size
    gradient = _address(row, 3, tl.float32, ALIGNED)
    total = tl.zeros([PARTS, COLUMNS], tl.float32)
    for start in range(0, parts, PARTS):
        part = start + tl.arange(0, PARTS)
        inside = (part < parts)[:, None] & here[None, :]
        total += tl.load(gradient + part[:, None] * size + at[None, :], mask=inside, other=0.0)
    _descend(row, at, here, tl.sum(total, 0), rate, momentum, decay, ALIGNED)


@triton.jit
def _descend(row, at, here, gradient, rate, momentum, decay, ALIGNED: tl.constexpr):
    weight, moment = _address(row, 0, tl.float32, ALIGNED) + at, _address(row, 1, tl.float32, ALIGNED) + at
    half = _address(row, 2, tl.bfloat16, ALIGNED) + at
    old = tl.load(weight, mask=here, other=0.0)
    moved = momentum * tl.load(moment, mask=here, other=0.0) + (gradient + decay * old)
    new = old - rate * moved
    tl.store(moment, moved, mask=here)
    tl.store(weight, new, mask=here)
    tl.store(half, new.to(tl.bfloat16), mask=here & (tl.load(row + 2) != 0))
