"""Batch norm with what follows it, an activation, a residual and a max-pool, in two Triton kernels each way, or in one.

A training step of these networks is bound by memory traffic and by the number of its kernels, and of both most are
not convolutions: batch norm, ReLU, the addition of a shortcut and the max-pool read and write the same maps again and
again. Fused, forward reads them twice and writes them once, backward reads twice and writes once; what ReLU let
through, and which of four a max-pool took, is worked out again and not stored.

Sums over a map are taken in fp32 by many programs, each of which hands in its share (`hand_in`); the last one to do so
adds the shares up in order. So the same numbers come out every time, and no second kernel is launched for them. The
kernels that make or read a map in other files hand in their sums in the same way. Maps are channels-last: a matrix
[B H W, C].
"""

# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false
# pyright: reportIndexIssue=false, reportReturnType=false
# Triton reads these functions, Python does not run them: their types are not Python's.

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

TILE = 8192  # bytes of a map that a program holds at once: twice as many spill in fp32, on an H100
WHOLE = 512  # rows up to which a program sees all of its channels' rows, and no second kernel is needed
PROGRAMS = 512
SHARES = 128  # programs that sum the rows of a block of channels: the last one adds up as many shares
BLOCK = 32  # channels whose sums a program takes at once, at least, if there are as many


def tickets(device: torch.device, channels: int = 2048) -> Tensor:
    """Return counters at 0, int32, for kernels that hand in sums of so many channels one by one, on one stream."""
    return torch.zeros(triton.cdiv(channels, BLOCK), dtype=torch.int32, device=device)


def batch_norm(
    norm: nn.BatchNorm2d, x: Tensor, tickets: Tensor, *, ceiling: float | None, shortcut: Tensor | None, pooled: bool
) -> Tensor:
    """Return `min(max(norm(x) + shortcut, 0), ceiling)` on a GPU, [B, C, H, W] as x, or max-pooled: [B, C, H/2, W/2].

    Args:
        x: [B, C, H, W], fp32 or bf16, which is what comes out too.
        tickets: see `tickets`.
        ceiling: of the activation: infinite for ReLU, 6 for ReLU6, None for no activation.
        shortcut: like x.
        pooled: take the largest of each 2x2; H and W are even, there is an activation and no shortcut.
    """
    if norm.training:
        running = norm.running_mean, norm.running_var
        settings = tickets, norm.momentum, norm.eps, ceiling, pooled
        return _BatchNorm.apply(x, norm.weight, norm.bias, shortcut, *running, *settings)
    x, shortcut = channels_last(x), None if shortcut is None else channels_last(shortcut)
    out = _output(x, pooled)
    geometry = Geometry(x, pooled)
    _normalise[geometry.all](
        x, shortcut, out, norm.weight, norm.bias, None, norm.running_mean, norm.running_var, 0.0, norm.eps,
        geometry.rows, CEILING=ceiling, SHORTCUT=shortcut is not None, TRAIN=False, WHOLE=False, **geometry.compiled,
    )  # fmt: skip
    return out


class _BatchNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, shortcut: Tensor | None, running_mean: Tensor,
        running_var: Tensor, tickets: Tensor, momentum: float, eps: float, ceiling: float | None, pooled: bool,
    ) -> Tensor:  # fmt: skip
        x = channels_last(x)
        shortcut = None if shortcut is None else channels_last(shortcut)
        out = _output(x, pooled)
        saved = torch.empty(2, x.shape[1], device=x.device)  # mean and 1/deviation
        geometry = Geometry(x, pooled)
        running = running_mean, running_var, momentum, eps
        if not geometry.whole:
            sums(x, saved, *running, tickets)
        _normalise[geometry.writing](
            x, shortcut, out, weight, bias, saved, *running, geometry.rows,
            CEILING=ceiling, SHORTCUT=shortcut is not None, TRAIN=True, WHOLE=geometry.whole, **geometry.compiled,
        )  # fmt: skip
        from_out = shortcut is not None and ceiling is not None
        ctx.save_for_backward(x, weight, bias, saved, out if from_out else None)
        ctx.tickets, ctx.ceiling, ctx.pooled, ctx.has_shortcut = tickets, ceiling, pooled, shortcut is not None
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        x, weight, bias, saved, out = ctx.saved_tensors
        gradient = channels_last(gradient)
        geometry = Geometry(x, ctx.pooled)
        inner = torch.empty_like(x)
        outer = gradient if ctx.ceiling is None else torch.empty_like(x)  # of the shortcut
        outer = outer if ctx.has_shortcut else None
        affine = torch.empty(2, x.shape[1], device=x.device)  # gradients of weight and bias
        tensors = x, gradient, out, weight, bias, saved, affine
        activation = {"CEILING": ctx.ceiling, "FROM_OUT": out is not None}
        if not geometry.whole:
            parts = torch.empty(geometry.summing[0], 2, x.shape[1], device=x.device)
            _sum_gradient[geometry.summing](
                *tensors, parts, ctx.tickets, geometry.rows, **activation, **geometry.compiled
            )
        _differentiate[geometry.writing](
            *tensors, inner, outer, geometry.rows, **activation,
            SHORTCUT=outer is not None and ctx.ceiling is not None, WHOLE=geometry.whole, **geometry.compiled,
        )  # fmt: skip
        return inner, affine[0], affine[1], outer, *(None,) * 7


def sums(
    x: Tensor, saved: Tensor, running_mean: Tensor, running_var: Tensor, momentum: float, eps: float, tickets: Tensor
) -> None:
    """Write mean and 1/deviation of x by channel into saved [2, C], and move the running statistics."""
    geometry = Geometry(x, pooled=False)
    parts = torch.empty(geometry.summing[0], 2, x.shape[1], device=x.device)
    sizes = {name: geometry.compiled[name] for name in ("CHANNELS", "ROWS", "COLUMNS", "num_warps")}
    _sum[geometry.summing](x, saved, running_mean, running_var, momentum, eps, parts, tickets, geometry.rows, **sizes)


def normalise(
    x: Tensor, saved: Tensor, weight: Tensor, bias: Tensor, *, ceiling: float | None, shortcut: Tensor | None = None
) -> Tensor:
    """Return `min(max(norm(x) + shortcut, 0), ceiling)` by statistics that are saved [2, C], as `batch_norm` does."""
    out = torch.empty_like(x)
    geometry = Geometry(x, pooled=False)
    _normalise[geometry.writing](
        x, shortcut, out, weight, bias, saved, None, None, 0.0, 0.0, geometry.rows,
        CEILING=ceiling, SHORTCUT=shortcut is not None, TRAIN=True, WHOLE=False, **geometry.compiled,
    )  # fmt: skip
    return out


def slopes(
    x: Tensor, gradient: Tensor, saved: Tensor, weight: Tensor, bias: Tensor, tickets: Tensor, *, ceiling: float | None
) -> Tensor:
    """Return affine [2, C] of a batch norm and the activation after it, by the gradient of that: see `share_slopes`."""
    geometry = Geometry(x, pooled=False)
    affine = torch.empty(2, x.shape[1], device=x.device)
    parts = torch.empty(geometry.summing[0], 2, x.shape[1], device=x.device)
    _sum_gradient[geometry.summing](
        x, gradient, None, weight, bias, saved, affine, parts, tickets, geometry.rows,
        CEILING=ceiling, FROM_OUT=False, **geometry.compiled,
    )  # fmt: skip
    return affine


def channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def empty_map(x: Tensor, channels: int, height: int, width: int) -> Tensor:
    """Return a map of as many images as x and of its type, [B, channels, height, width] channels-last."""
    shape = len(x), channels, height, width
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)


def _output(x: Tensor, pooled: bool) -> Tensor:
    if not pooled:
        return torch.empty_like(x)
    return empty_map(x, x.shape[1], x.shape[2] // 2, x.shape[3] // 2)


class Geometry:
    """How many programs share the maps, and what each of them holds.

    Attributes:
        rows: of the map that is read, or of the one that is written if that is pooled.
    """

    def __init__(self, x: Tensor, pooled: bool):
        channels = x.shape[1]
        taps = 4 if pooled else 1
        self.rows = x.numel() // channels // taps
        columns = min(BLOCK, triton.next_power_of_2(channels))
        most = TILE // x.element_size()
        tile = min(most // columns // taps, triton.next_power_of_2(self.rows))
        across = -(-channels // columns)
        tiles = -(-self.rows // tile)
        self.whole = self.rows * taps <= WHOLE
        self.summing = min(tiles, SHARES), across
        self.writing = 1 if self.whole else min(tiles, max(1, PROGRAMS // across)), across
        self.all = tiles, across
        self.compiled = {
            "CHANNELS": channels,
            "HEIGHT": x.shape[2],
            "WIDTH": x.shape[3],
            "POOLED": pooled,
            "ROWS": tile,
            "COLUMNS": columns,
            "num_warps": 8 if tile * columns * taps >= most else 4,
        }


# --- Sums that many programs share: grid (shares, blocks of channels) ------------------------------------------------


@triton.jit
def hand_in(parts, tickets, first, second, columns, CHANNELS: tl.constexpr):
    """Leave a program's two sums [COLUMNS] in parts [shares, 2, CHANNELS]; return whether it is the last to do so."""
    at = parts + tl.program_id(0) * 2 * CHANNELS + columns
    tl.store(at, first, mask=columns < CHANNELS)
    tl.store(at + CHANNELS, second, mask=columns < CHANNELS)
    tl.debug_barrier()  # all threads have stored before one of them takes the ticket, which releases and acquires
    last = tl.atomic_add(tickets + tl.program_id(1), 1, sem="acq_rel") == tl.num_programs(0) - 1
    if last:
        tl.store(tickets + tl.program_id(1), 0)  # for the next kernel
    return last


@triton.jit
def collect(parts, columns, CHANNELS: tl.constexpr):
    """The two sums over all shares, in order. Past the first cache, which does not see what others have stored."""
    shares: tl.constexpr = 2048 // columns.shape[0]  # at once: 32 would take 16 rounds of 512, twice this spills
    share = tl.arange(0, shares)
    first = tl.zeros([shares, columns.shape[0]], tl.float32)
    second = tl.zeros([shares, columns.shape[0]], tl.float32)
    for start in range(0, tl.num_programs(0), shares):
        here = (start + share < tl.num_programs(0))[:, None] & (columns < CHANNELS)[None, :]
        at = parts + (start + share)[:, None] * 2 * CHANNELS + columns[None, :]
        first += tl.load(at, mask=here, other=0.0, cache_modifier=".cg")
        second += tl.load(at + CHANNELS, mask=here, other=0.0, cache_modifier=".cg")
    return tl.sum(first, 0), tl.sum(second, 0)


@triton.jit
def finish_moments(
    first, second, pivot, saved, running_mean, running_var, momentum, eps, rows, columns, CHANNELS: tl.constexpr
):
    """From the sums of x - pivot and of its square: save mean and 1/deviation, move the running statistics."""
    inside = columns < CHANNELS
    moved = first / rows
    mean = pivot + moved
    variance = tl.maximum(second / rows - moved * moved, 0.0)
    inverse = 1.0 / tl.sqrt(variance + eps)
    tl.store(saved + columns, mean, mask=inside)
    tl.store(saved + CHANNELS + columns, inverse, mask=inside)
    old_mean = tl.load(running_mean + columns, mask=inside, other=0.0)
    old_var = tl.load(running_var + columns, mask=inside, other=0.0)
    unbiased = variance * (rows / (rows - 1.0))
    tl.store(running_mean + columns, old_mean + momentum * (mean - old_mean), mask=inside)
    tl.store(running_var + columns, old_var + momentum * (unbiased - old_var), mask=inside)
    return mean, inverse


@triton.jit
def share_moments(
    parts, tickets, first, second, pivot, saved, running_mean, running_var, momentum, eps, rows, columns,
    CHANNELS: tl.constexpr,
):  # fmt: skip
    """Hand in the sums of x - pivot and of its square; the last program saves the statistics."""
    if hand_in(parts, tickets, first, second, columns, CHANNELS):
        first, second = collect(parts, columns, CHANNELS)
        finish_moments(
            first, second, pivot, saved, running_mean, running_var, momentum, eps, rows, columns, CHANNELS
        )  # fmt: skip


@triton.jit
def share_slopes(parts, tickets, first, second, inverse, affine, columns, CHANNELS: tl.constexpr):
    """Hand in the sums of the gradient and of its product with x - mean; the last program writes affine [2, C].

    Those are the gradients of weight and bias, and all that `differentiated` needs to know of the whole map.
    """
    if hand_in(parts, tickets, first, second, columns, CHANNELS):
        first, second = collect(parts, columns, CHANNELS)
        finish_slopes(first, second, inverse, affine, columns, CHANNELS)


@triton.jit
def finish_slopes(first, second, inverse, affine, columns, CHANNELS: tl.constexpr):
    tl.store(affine + columns, second * inverse, mask=columns < CHANNELS)
    tl.store(affine + CHANNELS + columns, first, mask=columns < CHANNELS)


# --- A batch norm where a map is read: by channel, all fp32 [COLUMNS] ------------------------------------------------


@triton.jit
def statistics(saved, columns, CHANNELS: tl.constexpr):
    """Mean and 1/deviation of the batch."""
    inside = columns < CHANNELS
    mean = tl.load(saved + columns, mask=inside, other=0.0)
    return mean, tl.load(saved + CHANNELS + columns, mask=inside, other=0.0)


@triton.jit
def running_statistics(running_mean, running_var, eps, columns, CHANNELS: tl.constexpr):
    """Mean and 1/deviation in evaluation."""
    inside = columns < CHANNELS
    mean = tl.load(running_mean + columns, mask=inside, other=0.0)
    return mean, 1.0 / tl.sqrt(tl.load(running_var + columns, mask=inside, other=0.0) + eps)


@triton.jit
def affine_of(weight, bias, inverse, columns, CHANNELS: tl.constexpr):
    """Scale and shift: what is normalised is (x - mean) scale + shift."""
    inside = columns < CHANNELS
    scale = tl.load(weight + columns, mask=inside, other=0.0) * inverse
    return scale, tl.load(bias + columns, mask=inside, other=0.0)


@triton.jit
def slopes_of(affine, inverse, rows, columns, CHANNELS: tl.constexpr):
    """Level and slope: the gradient of x is (gradient - level - (x - mean) slope) scale."""
    inside = columns < CHANNELS
    slope = tl.load(affine + columns, mask=inside, other=0.0) * inverse / rows
    return tl.load(affine + CHANNELS + columns, mask=inside, other=0.0) / rows, slope


@triton.jit
def activated(value, CEILING: tl.constexpr):
    """min(max(value, 0), CEILING), NaN kept; the value itself if there is no activation."""
    if CEILING is not None:
        value = tl.maximum(value, 0.0, propagate_nan=tl.PropagateNan.ALL)
        value = tl.minimum(value, CEILING, propagate_nan=tl.PropagateNan.ALL)
    return value


@triton.jit
def passes(value, CEILING: tl.constexpr):
    """Where an activation lets a gradient through, by what goes into it or what comes out: not at 0 or the ceiling."""
    return (value > 0) & (value < CEILING)


# --- The kernels -----------------------------------------------------------------------------------------------------


@triton.jit
def _moments(x, pivot, rows, first, stride, columns, CHANNELS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Of every `stride`-th tile from `first` on, sums of x - pivot and of its square.

    Without a pivot near the mean, the variance would be a small difference of large numbers where the mean is large.
    """
    total = tl.zeros([ROWS, COLUMNS], tl.float32)
    squares = tl.zeros([ROWS, COLUMNS], tl.float32)
    for start in range(first * ROWS, rows, stride * ROWS):
        row = start + tl.arange(0, ROWS)
        here = (row < rows)[:, None] & (columns < CHANNELS)[None, :]
        value = tl.load(x + row[:, None] * CHANNELS + columns[None, :], mask=here, other=0.0).to(tl.float32)
        moved = tl.where(here, value - pivot[None, :], 0.0)
        total += moved
        squares += moved * moved
    return tl.sum(total, 0), tl.sum(squares, 0)


@triton.jit
def _sum(
    x, saved, running_mean, running_var, momentum, eps, parts, tickets, rows,
    CHANNELS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    pivot = tl.load(x + columns, mask=columns < CHANNELS, other=0.0).to(tl.float32)
    first, second = _moments(
        x, pivot, rows, tl.program_id(0), tl.num_programs(0), columns, CHANNELS, ROWS, COLUMNS
    )  # fmt: skip
    share_moments(
        parts, tickets, first, second, pivot, saved, running_mean, running_var, momentum, eps, rows, columns, CHANNELS
    )  # fmt: skip


@triton.jit
def _at(row, tap, columns, CHANNELS: tl.constexpr, HEIGHT: tl.constexpr, WIDTH: tl.constexpr, POOLED: tl.constexpr):
    """Where a row lies in the map that is read; pooled, the row is one of the pooled map, and tap one of its four."""
    if POOLED:
        image, line, column = (
            row // (HEIGHT // 2 * (WIDTH // 2)),
            row // (WIDTH // 2) % (HEIGHT // 2),
            row % (WIDTH // 2),
        )
        row = (image * HEIGHT + 2 * line + tap // 2) * WIDTH + 2 * column + tap % 2
    return row[:, None] * CHANNELS + columns[None, :]


@triton.jit
def _normalise(
    x, shortcut, out, weight, bias, saved, running_mean, running_var, momentum, eps, rows,
    CEILING: tl.constexpr, SHORTCUT: tl.constexpr, TRAIN: tl.constexpr, WHOLE: tl.constexpr,
    CHANNELS: tl.constexpr, HEIGHT: tl.constexpr, WIDTH: tl.constexpr, POOLED: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = columns < CHANNELS
    if WHOLE:
        pivot = tl.load(x + columns, mask=inside, other=0.0).to(tl.float32)
        taken = rows * 4 if POOLED else rows
        first, second = _moments(x, pivot, taken, 0, 1, columns, CHANNELS, ROWS, COLUMNS)
        mean, inverse = finish_moments(
            first, second, pivot, saved, running_mean, running_var, momentum, eps, taken, columns, CHANNELS
        )  # fmt: skip
    elif TRAIN:
        mean, inverse = statistics(saved, columns, CHANNELS)
    else:
        mean, inverse = running_statistics(running_mean, running_var, eps, columns, CHANNELS)
    scale, shift = affine_of(weight, bias, inverse, columns, CHANNELS)
    for start in range(tl.program_id(0) * ROWS, rows, tl.num_programs(0) * ROWS):
        row = start + tl.arange(0, ROWS)
        here = (row < rows)[:, None] & inside[None, :]
        largest = tl.full([ROWS, COLUMNS], float("-inf"), tl.float32)
        for tap in tl.static_range(4 if POOLED else 1):
            at = _at(row, tap, columns, CHANNELS, HEIGHT, WIDTH, POOLED)
            value = tl.load(x + at, mask=here, other=0.0).to(tl.float32)
            value = (value - mean[None, :]) * scale[None, :] + shift[None, :]
            if SHORTCUT:
                value += tl.load(shortcut + at, mask=here, other=0.0).to(tl.float32)
            value = activated(value, CEILING)
            largest = value if not POOLED else tl.where((value > largest) | (value != value), value, largest)
        tl.store(
            out + row[:, None] * CHANNELS + columns[None, :], largest.to(out.dtype.element_ty), mask=here
        )  # fmt: skip


@triton.jit
def _received(
    x, gradient, row, here, columns, mean, scale, shift, CEILING: tl.constexpr,
    CHANNELS: tl.constexpr, HEIGHT: tl.constexpr, WIDTH: tl.constexpr, POOLED: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """The gradient of each row; and pooled, which of its four it is of.

    As in torch's max-pool that is the first of the largest, as they would be stored.
    """
    given = tl.load(gradient + row[:, None] * CHANNELS + columns[None, :], mask=here, other=0.0)
    winner = tl.zeros([ROWS, COLUMNS], tl.int32)
    if POOLED:
        largest = tl.full([ROWS, COLUMNS], float("-inf"), tl.float32)
        for tap in tl.static_range(4):
            at = _at(row, tap, columns, CHANNELS, HEIGHT, WIDTH, True)
            value = tl.load(x + at, mask=here, other=0.0).to(tl.float32)
            value = activated((value - mean[None, :]) * scale[None, :] + shift[None, :], CEILING)
            value = value.to(given.dtype).to(tl.float32)
            wins = (value > largest) | (value != value)
            largest = tl.where(wins, value, largest)
            winner = tl.where(wins, tap, winner)
    return given.to(tl.float32), winner


@triton.jit
def _passed(
    x, gradient, out, at, here, mean, scale, shift, CEILING: tl.constexpr, FROM_OUT: tl.constexpr
):  # fmt: skip
    """What of the gradient the activation lets through, and x - mean."""
    centred = tl.where(here, tl.load(x + at, mask=here, other=0.0).to(tl.float32) - mean[None, :], 0.0)
    if CEILING is not None:
        if FROM_OUT:
            reached = tl.load(out + at, mask=here, other=0.0).to(tl.float32)
        else:
            reached = centred * scale[None, :] + shift[None, :]
        gradient = tl.where(passes(reached, CEILING), gradient, 0.0)
    return gradient, centred


@triton.jit
def _gradient_sums(
    x, gradient, out, mean, scale, shift, rows, first, stride, columns,
    CEILING: tl.constexpr, FROM_OUT: tl.constexpr,
    CHANNELS: tl.constexpr, HEIGHT: tl.constexpr, WIDTH: tl.constexpr, POOLED: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Of every `stride`-th tile from `first` on, sums of the gradient, and of the gradient times x - mean."""
    total = tl.zeros([ROWS, COLUMNS], tl.float32)
    products = tl.zeros([ROWS, COLUMNS], tl.float32)
    for start in range(first * ROWS, rows, stride * ROWS):
        row = start + tl.arange(0, ROWS)
        here = (row < rows)[:, None] & (columns < CHANNELS)[None, :]
        given, winner = _received(
            x, gradient, row, here, columns, mean, scale, shift, CEILING, CHANNELS, HEIGHT, WIDTH, POOLED, ROWS, COLUMNS
        )  # fmt: skip
        for tap in tl.static_range(4 if POOLED else 1):
            at = _at(row, tap, columns, CHANNELS, HEIGHT, WIDTH, POOLED)
            taken = tl.where(winner == tap, given, 0.0) if POOLED else given
            value, centred = _passed(x, taken, out, at, here, mean, scale, shift, CEILING, FROM_OUT)
            total += value
            products += value * centred
    return tl.sum(total, 0), tl.sum(products, 0)


@triton.jit
def _sum_gradient(
    x, gradient, out, weight, bias, saved, affine, parts, tickets, rows,
    CEILING: tl.constexpr, FROM_OUT: tl.constexpr,
    CHANNELS: tl.constexpr, HEIGHT: tl.constexpr, WIDTH: tl.constexpr, POOLED: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    mean, inverse = statistics(saved, columns, CHANNELS)
    scale, shift = affine_of(weight, bias, inverse, columns, CHANNELS)
    first, second = _gradient_sums(
        x, gradient, out, mean, scale, shift, rows, tl.program_id(0), tl.num_programs(0), columns,
        CEILING, FROM_OUT, CHANNELS, HEIGHT, WIDTH, POOLED, ROWS, COLUMNS,
    )  # fmt: skip
    share_slopes(parts, tickets, first, second, inverse, affine, columns, CHANNELS)


@triton.jit
def _differentiate(
    x, gradient, out, weight, bias, saved, affine, inner, outer, rows,
    CEILING: tl.constexpr, FROM_OUT: tl.constexpr, SHORTCUT: tl.constexpr, WHOLE: tl.constexpr,
    CHANNELS: tl.constexpr, HEIGHT: tl.constexpr, WIDTH: tl.constexpr, POOLED: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = columns < CHANNELS
    mean, inverse = statistics(saved, columns, CHANNELS)
    scale, shift = affine_of(weight, bias, inverse, columns, CHANNELS)
    read = rows * 4 if POOLED else rows
    if WHOLE:
        total, products = _gradient_sums(
            x, gradient, out, mean, scale, shift, rows, 0, 1, columns,
            CEILING, FROM_OUT, CHANNELS, HEIGHT, WIDTH, POOLED, ROWS, COLUMNS,
        )  # fmt: skip
        finish_slopes(total, products, inverse, affine, columns, CHANNELS)
        level, slope = total / read, products * inverse * inverse / read
    else:
        level, slope = slopes_of(affine, inverse, read, columns, CHANNELS)
    for start in range(tl.program_id(0) * ROWS, rows, tl.num_programs(0) * ROWS):
        row = start + tl.arange(0, ROWS)
        here = (row < rows)[:, None] & inside[None, :]
        given, winner = _received(
            x, gradient, row, here, columns, mean, scale, shift, CEILING, CHANNELS, HEIGHT, WIDTH, POOLED, ROWS, COLUMNS
        )  # fmt: skip
        for tap in tl.static_range(4 if POOLED else 1):
            at = _at(row, tap, columns, CHANNELS, HEIGHT, WIDTH, POOLED)
            taken = tl.where(winner == tap, given, 0.0) if POOLED else given
            value, centred = _passed(x, taken, out, at, here, mean, scale, shift, CEILING, FROM_OUT)
            if SHORTCUT:
                tl.store(outer + at, value.to(outer.dtype.element_ty), mask=here)
            result = (value - level[None, :] - centred * slope[None, :]) * scale[None, :]
            tl.store(inner + at, result.to(inner.dtype.element_ty), mask=here)
