"""Depthwise 3x3 convolutions as Triton kernels: one pass forward, and one backward for both gradients.

9 products an output are little work for a GPU; reading the maps is what takes the time, and so is whatever is done to
a value as it is read, if that is done nine times. So a program walks down the lines of its columns. Of each line it
reads a tile [columns of images, channels] three times, shifted by a column, which the first cache serves twice, and
adds its products to the three lines of outputs that take part; each value is made ready three times, not nine. Lines
are read one step ahead.

The batch norms around a convolution may be folded in (see `folded`): that of x with its ReLU6, and that of the output.
All maps are channels-last, weights [C, 9] in memory; products are summed in fp32.
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

from trainer.device.kernels import norm, sgd
from trainer.device.kernels.folded import NOTHING, Folded, folded, folded_slopes

TILE = 512  # elements of a line that a program holds: 4 a thread, with 9 weights and 9 sums for each
COLUMNS = 32  # channels of it
PROGRAMS = 1024  # that a kernel should have at least, of which an H100 runs 400 to 650 at a time
SHARES = 512  # programs for a block of channels, at most: each leaves its sums
LINES = 8  # of a program, at least, if there are so many: it reads two more


def fits(conv: nn.Conv2d) -> bool:
    """Whether this convolution is one of those, with a stride of 1 or 2."""
    depthwise = conv.groups == conv.in_channels == conv.out_channels > 1
    plain = conv.bias is None and conv.padding_mode == "zeros" and conv.stride in ((1, 1), (2, 2))
    return depthwise and plain and (conv.kernel_size, conv.padding, conv.dilation) == ((3, 3), (1, 1), (1, 1))


def convolve(x: Tensor, weight: Tensor, stride: int) -> Tensor:
    """Map [B, C, H, W], by weight [C, 1, 3, 3] fp32, to [B, C, ceil(H / stride), ceil(W / stride)], channels-last."""
    return _Depthwise.apply(x, weight, stride)


class _Depthwise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, stride: int) -> Tensor:
        x = norm.channels_last(x)
        ctx.save_for_backward(x, weight)
        ctx.stride = stride
        return forward(x, weight, stride)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        x, weight = ctx.saved_tensors
        inner, parts, _ = backward(x, norm.channels_last(gradient), weight, ctx.stride)
        return inner, sgd.hand_in(weight, parts), None


def forward(
    x: Tensor, weight: Tensor, stride: int, *, before: Folded | None = None, after: Folded | None = None,
    tickets: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Convolve; with `before` its input is ReLU6 of x as normalised; with `after` the output's statistics are saved.

    Args:
        tickets: see `norm.tickets`; where statistics are saved.
    """
    batch, channels, *size = x.shape
    out = norm.empty_map(x, channels, *(triton.cdiv(side, stride) for side in size))
    saves = after is not None and after.saved is not None
    grid, sizes = _geometry(x, out, shared=saves)
    parts = torch.empty(grid[0], 2, channels, device=x.device) if saves else None
    _convolve[grid](
        x, weight, out, *(before.read if before else NOTHING),
        parts, tickets, *(after.moments if after and saves else (None, None, None, 0.0, 0.0)), batch,
        BEFORE=before is not None, SUMS=saves, STRIDE=stride, **sizes,
    )  # fmt: skip
    return out


def backward(
    x: Tensor, gradient: Tensor, weight: Tensor, stride: int, *, before: Folded | None = None,
    after: tuple[Folded, Tensor, Tensor] | None = None, tickets: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor | None]:  # fmt: skip
    """Return the gradient of the input, that of the weight in parts [n, C, 9], and `affine` of `before`.

    `affine` [2, C] is what `norm.share_slopes` writes.

    Args:
        before: as in `forward`; then the first is the gradient of x as normalised.
        after: the output's norm, the output and its `affine`; then `gradient` is that of the output as normalised.
        tickets: see `norm.tickets`; with `before`.
    """
    channels = x.shape[1]
    inner = torch.empty_like(x)
    grid, sizes = _geometry(x, gradient, shared=True)
    parts = torch.empty(grid[0], channels, 9, device=x.device)
    affine = torch.empty(2, channels, device=x.device) if before else None
    shares = torch.empty(grid[0], 2, channels, device=x.device) if before else None
    layer, out, out_affine = after or (None, None, None)
    of_out = (None, None) if layer is None else (layer.weight, layer.saved)
    kernel = _differentiate if stride == 1 else _differentiate_by_two
    kernel[grid](
        x, weight, gradient, inner, parts, *(before.read if before else NOTHING), affine, shares, tickets,
        out, *of_out, out_affine, len(x),
        BEFORE=before is not None, AFTER=after is not None, **sizes,
    )  # fmt: skip
    return inner, parts, affine


def _geometry(x: Tensor, out: Tensor, *, shared: bool) -> tuple[tuple[int, int], dict[str, int]]:
    """Return the grid (programs, blocks of channels), and what a kernel is compiled for."""
    batch, channels, height, width = out.shape
    columns = min(COLUMNS, triton.next_power_of_2(channels))
    rows = min(TILE // columns, triton.next_power_of_2(batch * width))
    tiles, across = triton.cdiv(batch * width, rows), triton.cdiv(channels, columns)
    lines = height
    while lines >= 2 * LINES and tiles * triton.cdiv(height, lines) * across < PROGRAMS:
        lines = triton.cdiv(lines, 2)
    programs = tiles * triton.cdiv(height, lines)
    sizes = {
        "CHANNELS": channels,
        "HEIGHT": x.shape[2],
        "WIDTH": x.shape[3],
        "OUT_HEIGHT": height,
        "OUT_WIDTH": width,
        "LINES": lines,
        "ROWS": rows,
        "COLUMNS": columns,
        "num_warps": 4,
    }
    return (min(programs, SHARES) if shared else programs, across), sizes


# --- What the kernels share. `left`, `middle` and `right` tell which columns of a tile there are ----------------------


@triton.jit
def _weight(weight, columns, tap: tl.constexpr, CHANNELS: tl.constexpr):
    return tl.load(weight + columns * 9 + tap, mask=columns < CHANNELS, other=0.0)[None, :]


@triton.jit
def _weights(weight, columns, CHANNELS: tl.constexpr):
    """All nine, [1, COLUMNS] each."""
    return (
        _weight(weight, columns, 0, CHANNELS),
        _weight(weight, columns, 1, CHANNELS),
        _weight(weight, columns, 2, CHANNELS),
        _weight(weight, columns, 3, CHANNELS),
        _weight(weight, columns, 4, CHANNELS),
        _weight(weight, columns, 5, CHANNELS),
        _weight(weight, columns, 6, CHANNELS),
        _weight(weight, columns, 7, CHANNELS),
        _weight(weight, columns, 8, CHANNELS),
    )


@triton.jit
def _norms(
    norm_weight, norm_bias, norm_saved, norm_mean, norm_var, norm_eps, out_weight, out_saved, out_affine, rows, columns,
    BEFORE: tl.constexpr, AFTER: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """What both backward kernels need to know of the norms around: for `_input`, for its sums, for `_slope`."""
    scale = tl.zeros(columns.shape, tl.float32)
    shift, mean, inverse, factor, other, offset = scale, scale, scale, scale, scale, scale
    if BEFORE:
        scale, shift = folded(
            norm_weight, norm_bias, norm_saved, norm_mean, norm_var, norm_eps, columns, CHANNELS
        )  # fmt: skip
        mean, inverse = norm.statistics(norm_saved, columns, CHANNELS)
    if AFTER:
        factor, other, offset = folded_slopes(out_weight, out_saved, out_affine, rows, columns, CHANNELS)
    return scale, shift, mean, inverse, factor, other, offset


@triton.jit
def _read(pointer, columns, here, CHANNELS: tl.constexpr):
    """A tile as it is stored, 0 where nothing is."""
    return tl.load(pointer, mask=here[:, None] & (columns < CHANNELS)[None, :], other=0.0)


@triton.jit
def _read_line(pointer, columns, left, middle, right, there, CHANNELS: tl.constexpr):
    """A line, shifted by a column either way."""
    return (
        _read(pointer - CHANNELS, columns, left & there, CHANNELS),
        _read(pointer, columns, middle & there, CHANNELS),
        _read(pointer + CHANNELS, columns, right & there, CHANNELS),
    )


@triton.jit
def _input(stored, here, scale, shift, BEFORE: tl.constexpr):
    """What is convolved: outside of the map there are zeros, not what a batch norm makes of them."""
    value = stored.to(tl.float32)
    if BEFORE:
        value = tl.where(here[:, None], norm.activated(value * scale[None, :] + shift[None, :], 6.0), 0.0)
    return value


@triton.jit
def _inputs(a, b, c, left, middle, right, there, scale, shift, BEFORE: tl.constexpr):
    """Those of a line."""
    return (
        _input(a, left & there, scale, shift, BEFORE),
        _input(b, middle & there, scale, shift, BEFORE),
        _input(c, right & there, scale, shift, BEFORE),
    )


@triton.jit
def _put(out, total, here, columns, pivot, first, second, SUMS: tl.constexpr, CHANNELS: tl.constexpr):
    """Store a tile of outputs; return the sums of output - pivot and of its square so far."""
    rounded = total.to(out.dtype.element_ty)
    tl.store(out, rounded, mask=here[:, None] & (columns < CHANNELS)[None, :])
    if SUMS:
        moved = tl.where(here[:, None], rounded.to(tl.float32) - pivot[None, :], 0.0)
        first += moved
        second += moved * moved
    return first, second


@triton.jit
def _slope(gradient, out, here, factor, other, offset, AFTER: tl.constexpr):
    """The gradient of the convolution's output."""
    value = gradient.to(tl.float32)
    if AFTER:
        value = value * factor[None, :] + (out.to(tl.float32) * other[None, :] + offset[None, :])
        value = tl.where(here[:, None], value, 0.0)
    return value


@triton.jit
def _read_pair(gradient, out, at, columns, here, more, there, AFTER: tl.constexpr, CHANNELS: tl.constexpr):
    """A tile of the output's gradient as it is stored, and the same of the next column; and both of the output."""
    a = _read(gradient + at, columns, here & there, CHANNELS)
    b = _read(gradient + at + CHANNELS, columns, more & there, CHANNELS)
    c, d = a, b
    if AFTER:
        c = _read(out + at, columns, here & there, CHANNELS)
        d = _read(out + at + CHANNELS, columns, more & there, CHANNELS)
    return a, b, c, d


@triton.jit
def _slopes(a, b, c, d, here, more, there, factor, other, offset, AFTER: tl.constexpr):
    """Both of a pair."""
    return (
        _slope(a, c, here & there, factor, other, offset, AFTER),
        _slope(b, d, more & there, factor, other, offset, AFTER),
    )


@triton.jit
def _give(
    inner, total, stored, value, here, columns, mean, first, second, BEFORE: tl.constexpr, CHANNELS: tl.constexpr
):
    """Store a tile of the input's gradient; return the sums of it, and of its products with x - mean, so far."""
    if BEFORE:
        total = tl.where(norm.passes(value, 6.0) & here[:, None], total, 0.0)
    rounded = total.to(inner.dtype.element_ty)
    tl.store(inner, rounded, mask=here[:, None] & (columns < CHANNELS)[None, :])
    if BEFORE:
        total = rounded.to(tl.float32)
        first += total
        second += total * (stored.to(tl.float32) - mean[None, :])
    return first, second


@triton.jit
def _leave(parts, columns, line: tl.constexpr, a, b, c, CHANNELS: tl.constexpr):
    """Leave what a program adds to the gradient of a line of weights."""
    at, channel = parts + (tl.program_id(0) * CHANNELS + columns) * 9 + line * 3, columns < CHANNELS
    tl.store(at, tl.sum(a, 0), mask=channel)
    tl.store(at + 1, tl.sum(b, 0), mask=channel)
    tl.store(at + 2, tl.sum(c, 0), mask=channel)


# --- The kernels -----------------------------------------------------------------------------------------------------


@triton.jit
def _convolve(
    x, weight, out, norm_weight, norm_bias, norm_saved, norm_mean, norm_var, norm_eps,
    parts, tickets, saved, running_mean, running_var, momentum, eps, images,
    BEFORE: tl.constexpr, SUMS: tl.constexpr,
    CHANNELS: tl.constexpr, HEIGHT: tl.constexpr, WIDTH: tl.constexpr,
    OUT_HEIGHT: tl.constexpr, OUT_WIDTH: tl.constexpr, STRIDE: tl.constexpr,
    LINES: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    scale = tl.zeros([COLUMNS], tl.float32)
    shift = scale
    pivot = scale
    if BEFORE:
        scale, shift = folded(
            norm_weight, norm_bias, norm_saved, norm_mean, norm_var, norm_eps, columns, CHANNELS
        )  # fmt: skip
    if SUMS:
        pivot = tl.load(running_mean + columns, mask=columns < CHANNELS, other=0.0)
    w0, w1, w2, w3, w4, w5, w6, w7, w8 = _weights(weight, columns, CHANNELS)
    first = tl.zeros([ROWS, COLUMNS], tl.float32)
    second = tl.zeros([ROWS, COLUMNS], tl.float32)
    bands: tl.constexpr = (OUT_HEIGHT + LINES - 1) // LINES
    step: tl.constexpr = WIDTH * CHANNELS
    out_step: tl.constexpr = OUT_WIDTH * CHANNELS
    for task in range(tl.program_id(0), tl.cdiv(images * OUT_WIDTH, ROWS) * bands, tl.num_programs(0)):
        row = task // bands * ROWS + tl.arange(0, ROWS)
        start = task % bands * LINES
        end = tl.minimum(start + LINES, OUT_HEIGHT)
        image, column = row // OUT_WIDTH, row % OUT_WIDTH
        middle = row < images * OUT_WIDTH
        left, right = middle & (column > 0), middle & (column * STRIDE + 1 < WIDTH)
        at = x + (image * (HEIGHT * WIDTH) + column * STRIDE)[:, None] * CHANNELS + columns[None, :]
        to = out + (image * (OUT_HEIGHT * OUT_WIDTH) + column)[:, None] * CHANNELS + columns[None, :]
        above = tl.zeros([ROWS, COLUMNS], tl.float32)  # what is known of a line of outputs
        if STRIDE == 1:
            below = above
            high = tl.minimum(end + 1, HEIGHT)
            a, b, c = _read_line(at + (start - 1) * step, columns, left, middle, right, start > 0, CHANNELS)
            for line in range(start - 1, end + 1):
                a, b, c = _inputs(a, b, c, left, middle, right, (line >= 0) & (line < high), scale, shift, BEFORE)
                done = above + w6 * a + w7 * b + w8 * c
                above = below + w3 * a + w4 * b + w5 * c
                below = w0 * a + w1 * b + w2 * c
                a, b, c = _read_line(at + (line + 1) * step, columns, left, middle, right, line + 1 < high, CHANNELS)
                first, second = _put(
                    to + (line - 1) * out_step, done, middle & (line > start), columns, pivot, first, second, SUMS,
                    CHANNELS,
                )  # fmt: skip
        else:
            low = start * 2
            a, b, c = _read_line(at + (low - 1) * step, columns, left, middle, right, low > 0, CHANNELS)
            a, b, c = _inputs(a, b, c, left, middle, right, low > 0, scale, shift, BEFORE)
            above = w0 * a + w1 * b + w2 * c
            a, b, c = _read_line(at + low * step, columns, left, middle, right, True, CHANNELS)
            d, e, f = _read_line(at + (low + 1) * step, columns, left, middle, right, low + 1 < HEIGHT, CHANNELS)
            for line in range(start, end):
                low = line * 2
                a, b, c = _inputs(a, b, c, left, middle, right, True, scale, shift, BEFORE)
                done = above + w3 * a + w4 * b + w5 * c
                d, e, f = _inputs(d, e, f, left, middle, right, low + 1 < HEIGHT, scale, shift, BEFORE)
                done += w6 * d + w7 * e + w8 * f
                above = w0 * d + w1 * e + w2 * f
                more = line + 1 < end
                a, b, c = _read_line(at + (low + 2) * step, columns, left, middle, right, more, CHANNELS)
                more = more & (low + 3 < HEIGHT)
                d, e, f = _read_line(at + (low + 3) * step, columns, left, middle, right, more, CHANNELS)
                first, second = _put(
                    to + line * out_step, done, middle, columns, pivot, first, second, SUMS, CHANNELS
                )  # fmt: skip
    if SUMS:
        norm.share_moments(
            parts, tickets, tl.sum(first, 0), tl.sum(second, 0), pivot, saved, running_mean, running_var,
            momentum, eps, images * (OUT_HEIGHT * OUT_WIDTH), columns, CHANNELS,
        )  # fmt: skip


@triton.jit
def _differentiate(
    x, weight, gradient, inner, parts,
    norm_weight, norm_bias, norm_saved, norm_mean, norm_var, norm_eps, affine, shares, tickets,
    out, out_weight, out_saved, out_affine, images,
    BEFORE: tl.constexpr, AFTER: tl.constexpr,
    CHANNELS: tl.constexpr, HEIGHT: tl.constexpr, WIDTH: tl.constexpr,
    OUT_HEIGHT: tl.constexpr, OUT_WIDTH: tl.constexpr,
    LINES: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Of a stride of 1: a line of the output's gradient takes part in three lines of inputs, and those in it."""
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    scale, shift, mean, inverse, factor, other, offset = _norms(
        norm_weight, norm_bias, norm_saved, norm_mean, norm_var, norm_eps,
        out_weight, out_saved, out_affine, images * (OUT_HEIGHT * OUT_WIDTH), columns, BEFORE, AFTER, CHANNELS,
    )  # fmt: skip
    w0, w1, w2, w3, w4, w5, w6, w7, w8 = _weights(weight, columns, CHANNELS)
    zeros = tl.zeros([ROWS, COLUMNS], tl.float32)
    s0, s1, s2, s3, s4, s5, s6, s7, s8 = zeros, zeros, zeros, zeros, zeros, zeros, zeros, zeros, zeros
    first, second = zeros, zeros
    bands: tl.constexpr = (HEIGHT + LINES - 1) // LINES
    step: tl.constexpr = WIDTH * CHANNELS
    for task in range(tl.program_id(0), tl.cdiv(images * WIDTH, ROWS) * bands, tl.num_programs(0)):
        row = task // bands * ROWS + tl.arange(0, ROWS)
        start = task % bands * LINES
        end = tl.minimum(start + LINES, HEIGHT)
        high = tl.minimum(end + 1, HEIGHT)
        image, column = row // WIDTH, row % WIDTH
        middle = row < images * WIDTH
        left, right = middle & (column > 0), middle & (column + 1 < WIDTH)
        at = (image * (HEIGHT * WIDTH) + column)[:, None] * CHANNELS + columns[None, :]
        total, below = zeros, zeros  # what is known of the gradient of the line above, and of this one
        # The input above this line, and of this line; 0 where it is another program's to multiply by.
        stored_above = tl.zeros([ROWS, COLUMNS], x.dtype.element_ty)
        stored = stored_above
        above, here = zeros, zeros
        ahead = at + (start - 1) * step
        a, b, c = _read_line(gradient + ahead, columns, left, middle, right, start > 0, CHANNELS)
        d, e, f = a, b, c
        if AFTER:
            d, e, f = _read_line(out + ahead, columns, left, middle, right, start > 0, CHANNELS)
        stored_below = _read(x + at + start * step, columns, middle, CHANNELS)
        for line in range(start - 1, end + 1):
            there = (line >= 0) & (line < high)
            a = _slope(a, d, left & there, factor, other, offset, AFTER)
            b = _slope(b, e, middle & there, factor, other, offset, AFTER)
            c = _slope(c, f, right & there, factor, other, offset, AFTER)
            beneath = _input(stored_below, middle & (line + 1 < end), scale, shift, BEFORE)
            done = total + w0 * c + w1 * b + w2 * a
            total = below + w3 * c + w4 * b + w5 * a
            below = w6 * c + w7 * b + w8 * a
            s0 += above * c
            s1 += above * b
            s2 += above * a
            s3 += here * c
            s4 += here * b
            s5 += here * a
            s6 += beneath * c
            s7 += beneath * b
            s8 += beneath * a
            ahead = at + (line + 1) * step
            a, b, c = _read_line(gradient + ahead, columns, left, middle, right, line + 1 < high, CHANNELS)
            if AFTER:
                d, e, f = _read_line(out + ahead, columns, left, middle, right, line + 1 < high, CHANNELS)
            first, second = _give(
                inner + at + (line - 1) * step, done, stored_above, above, middle & (line > start), columns, mean,
                first, second, BEFORE, CHANNELS,
            )  # fmt: skip
            stored_above, above = stored, here
            stored, here = stored_below, beneath
            stored_below = _read(x + ahead + step, columns, middle & (line + 2 < end), CHANNELS)
    _leave(parts, columns, 0, s0, s1, s2, CHANNELS)
    _leave(parts, columns, 1, s3, s4, s5, CHANNELS)
    _leave(parts, columns, 2, s6, s7, s8, CHANNELS)
    if BEFORE:
        norm.share_slopes(
            shares, tickets, tl.sum(first, 0), tl.sum(second, 0), inverse, affine, columns, CHANNELS
        )  # fmt: skip


@triton.jit
def _differentiate_by_two(
    x, weight, gradient, inner, parts,
    norm_weight, norm_bias, norm_saved, norm_mean, norm_var, norm_eps, affine, shares, tickets,
    out, out_weight, out_saved, out_affine, images,
    BEFORE: tl.constexpr, AFTER: tl.constexpr,
    CHANNELS: tl.constexpr, HEIGHT: tl.constexpr, WIDTH: tl.constexpr,
    OUT_HEIGHT: tl.constexpr, OUT_WIDTH: tl.constexpr,
    LINES: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Of a stride of 2: an output, the next one, and the two below take part in 2x2 inputs, by each weight once."""
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    scale, shift, mean, inverse, factor, other, offset = _norms(
        norm_weight, norm_bias, norm_saved, norm_mean, norm_var, norm_eps,
        out_weight, out_saved, out_affine, images * (OUT_HEIGHT * OUT_WIDTH), columns, BEFORE, AFTER, CHANNELS,
    )  # fmt: skip
    w0, w1, w2, w3, w4, w5, w6, w7, w8 = _weights(weight, columns, CHANNELS)
    zeros = tl.zeros([ROWS, COLUMNS], tl.float32)
    s0, s1, s2, s3, s4, s5, s6, s7, s8 = zeros, zeros, zeros, zeros, zeros, zeros, zeros, zeros, zeros
    first, second = zeros, zeros
    bands: tl.constexpr = (OUT_HEIGHT + LINES - 1) // LINES
    step: tl.constexpr = WIDTH * CHANNELS
    out_step: tl.constexpr = OUT_WIDTH * CHANNELS
    for task in range(tl.program_id(0), tl.cdiv(images * OUT_WIDTH, ROWS) * bands, tl.num_programs(0)):
        row = task // bands * ROWS + tl.arange(0, ROWS)
        start = task % bands * LINES
        end = tl.minimum(start + LINES, OUT_HEIGHT)
        high = tl.minimum(end + 1, OUT_HEIGHT)
        image, column = row // OUT_WIDTH, row % OUT_WIDTH
        here = row < images * OUT_WIDTH
        more = here & (column + 1 < OUT_WIDTH)
        odd = here & (column * 2 + 1 < WIDTH)
        at = (image * (OUT_HEIGHT * OUT_WIDTH) + column)[:, None] * CHANNELS + columns[None, :]
        of_x = (image * (HEIGHT * WIDTH) + column * 2)[:, None] * CHANNELS + columns[None, :]
        a, b, c, d = _read_pair(gradient, out, at + start * out_step, columns, here, more, True, AFTER, CHANNELS)
        this, then = _slopes(a, b, c, d, here, more, True, factor, other, offset, AFTER)
        ahead = start + 1
        a, b, c, d = _read_pair(
            gradient, out, at + ahead * out_step, columns, here, more, ahead < high, AFTER, CHANNELS
        )  # fmt: skip
        for line in range(start, end):
            below, beyond = _slopes(a, b, c, d, here, more, line + 1 < high, factor, other, offset, AFTER)
            ahead = line + 2
            a, b, c, d = _read_pair(
                gradient, out, at + ahead * out_step, columns, here, more, ahead < high, AFTER, CHANNELS
            )  # fmt: skip
            even = of_x + line * (2 * step)
            lower = line * 2 + 1 < HEIGHT
            x0 = _read(x + even, columns, here, CHANNELS)
            x1 = _read(x + even + CHANNELS, columns, odd, CHANNELS)
            x2 = _read(x + even + step, columns, here & lower, CHANNELS)
            x3 = _read(x + even + step + CHANNELS, columns, odd & lower, CHANNELS)
            value = _input(x0, here, scale, shift, BEFORE)
            s4 += value * this
            first, second = _give(
                inner + even, w4 * this, x0, value, here, columns, mean, first, second, BEFORE, CHANNELS
            )  # fmt: skip
            value = _input(x1, odd, scale, shift, BEFORE)
            s3 += value * then
            s5 += value * this
            first, second = _give(
                inner + even + CHANNELS, w3 * then + w5 * this, x1, value, odd, columns, mean,
                first, second, BEFORE, CHANNELS,
            )  # fmt: skip
            value = _input(x2, here & lower, scale, shift, BEFORE)
            s1 += value * below
            s7 += value * this
            first, second = _give(
                inner + even + step, w1 * below + w7 * this, x2, value, here & lower, columns, mean,
                first, second, BEFORE, CHANNELS,
            )  # fmt: skip
            value = _input(x3, odd & lower, scale, shift, BEFORE)
            s0 += value * beyond
            s2 += value * below
            s6 += value * then
            s8 += value * this
            first, second = _give(
                inner + even + step + CHANNELS, w0 * beyond + w2 * below + w6 * then + w8 * this, x3, value,
                odd & lower, columns, mean, first, second, BEFORE, CHANNELS,
            )  # fmt: skip
            this, then = below, beyond
    _leave(parts, columns, 0, s0, s1, s2, CHANNELS)
    _leave(parts, columns, 1, s3, s4, s5, CHANNELS)
    _leave(parts, columns, 2, s6, s7, s8, CHANNELS)
    if BEFORE:
        norm.share_slopes(
            shares, tickets, tl.sum(first, 0), tl.sum(second, 0), inverse, affine, columns, CHANNELS
        )  # fmt: skip
