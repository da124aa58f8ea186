"""1x1 convolutions as Triton kernels: products of a map [B H W, C] with a matrix.

With the 16 to 960 channels of a MobileNetV2 they are bound by reading and writing maps, as batch norm and activation
are. So what precedes a convolution is done to its input as it is read (`before`), and what follows it is begun as its
output is stored: the sums of a batch norm, the mask of an activation, the addition of a shortcut's gradient.

A program multiplies tile after tile of rows for one block of output channels; if the input has few channels, it keeps
its weights. Weights are as a parameter lies in memory, [C', C]; products are summed in fp32.
"""

# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false
# pyright: reportIndexIssue=false, reportReturnType=false
# Triton reads these functions, Python does not run them: their types are not Python's.

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from trainer.device.kernels import norm
from trainer.device.kernels.folded import NOTHING, Folded, folded, folded_slopes

TILE = 2048  # elements of the output that a program holds at once, with two sums for each
MASKED_TILE = 1024  # where it also holds as many of the map behind, and two or three numbers for each channel of both
BLOCK = 64  # channels that a program multiplies at once
PROGRAMS = 256  # that a kernel should have at least
BOTH_ROWS = 32  # of a tile where both gradients are taken, and all channels are in it
FEWEST = 128  # programs that take both gradients at once: where there would be fewer, each is a kernel of its own
SHARES = 512  # programs for a block of channels, at most: each leaves its sums

# INPUT, what is done to a map as it is read: "normalised", then ReLU6; or "differentiated", to the gradient of what a
# batch norm read, from that of what it gave and from its map; or "as it is".
# OUTPUT, what is done to a map as it is made: "summed", for a batch norm's statistics; "masked", a gradient by ReLU6,
# and summed for the batch norm before it; "added", another map; or "as it is".


def forward(
    x: Tensor, weight: Tensor, *, before: Folded | None = None, after: Folded | None = None,
    tickets: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Map [B, C, H, W] by weight [C', C, 1, 1] to [B, C', H, W], channels-last, all of one type.

    Args:
        before: the batch norm of x, whose input is then ReLU6 of x as normalised.
        after: the batch norm of the output, whose statistics are saved in training.
        tickets: see `norm.tickets`; where statistics are saved.
    """
    out = norm.empty_map(x, len(weight), *x.shape[2:])
    saves = after is not None and after.saved is not None
    _run(x, None, weight, out, before=before, saves=after if saves else None, tickets=tickets)
    return out


def differentiate(
    x: Tensor, gradient: Tensor, weight: Tensor, after: tuple[Folded, Tensor, Tensor], *,
    before: Folded | None = None, plus: Tensor | None = None, tickets: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    """Return the gradient of the input, and `affine` [2, C] of `before` as `norm.share_slopes` writes it.

    Args:
        gradient: of the output as normalised.
        after: the output's norm, the output and its `affine`.
        before: as in `forward`; then the first is the gradient of x as normalised.
        plus: like x: is added to it.
        tickets: see `norm.tickets`; with `before`.
    """
    inner = torch.empty_like(x)
    affine = torch.empty(2, x.shape[1], device=x.device) if before else None
    of_norm = (before, x, affine) if before and affine is not None else None
    _run(gradient, after, weight, inner, masks=of_norm, plus=plus, tickets=tickets)
    return inner, affine


def both(
    x: Tensor, gradient: Tensor, weight: Tensor, after: tuple[Folded, Tensor, Tensor], *, plus: Tensor | None = None
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Return what `differentiate` and `weigh` do where x is as it is, of few channels: the wide maps are read once."""
    layer, out, affine = after
    channels, outputs = x.shape[1], gradient.shape[1]
    rows, worth = x.numel() // channels, _worth(x, outputs)
    some = triton.next_power_of_2(outputs) // 2  # 144 channels are 128 and 16
    rest = max(16, triton.next_power_of_2(outputs - some))
    tile = min(BOTH_ROWS, max(16, triton.next_power_of_2(rows)))
    splits = min(triton.cdiv(rows, tile), PROGRAMS if worth >= PROGRAMS else FEWEST)
    inner = torch.empty_like(x)
    parts = torch.empty(splits, outputs, channels, device=x.device)
    _both[(splits,)](
        x, gradient, out, weight, plus, inner, parts, layer.weight, layer.saved, affine, rows,
        PLUS=plus is not None, FROM=channels, TO=outputs, ROWS=tile, SOME=some, REST=rest,
        COLUMNS=max(16, triton.next_power_of_2(channels)), num_warps=8, num_stages=2,
    )  # fmt: skip
    return inner, parts


def takes_both(x: Tensor, outputs: int) -> bool:
    """Whether that is so, and there are rows enough for it."""
    return x.shape[1] <= 32 and outputs <= 256 and _worth(x, outputs) >= FEWEST


def _worth(x: Tensor, outputs: int) -> int:
    """Return in how many parts the gradient of a weight may come.

    They are written and read once more, in fp32: that should be a fourth of the maps at most.
    """
    return x.numel() // x.shape[1] * (x.shape[1] + outputs) // (8 * x.shape[1] * outputs)


def weigh(x: Tensor, gradient: Tensor, after: tuple[Folded, Tensor, Tensor], *, before: Folded | None = None) -> Tensor:
    """Return the gradient of the weight in parts [n, C', C]; arguments as in `differentiate`."""
    layer, out, affine = after
    rows, channels, outputs = x.numel() // x.shape[1], x.shape[1], gradient.shape[1]
    block_in, block_out = _weight_block(channels), _weight_block(outputs)
    blocks = triton.cdiv(channels, block_in) * triton.cdiv(outputs, block_out)
    tile = min(64, max(16, triton.next_power_of_2(rows)))
    least, most = triton.cdiv(PROGRAMS // 2, blocks), 2 * PROGRAMS // blocks
    splits = min(triton.cdiv(rows, tile), max(least, min(most, _worth(x, outputs))))
    parts = torch.empty(splits, outputs, channels, device=x.device)
    _weigh[(splits, triton.cdiv(outputs, block_out), triton.cdiv(channels, block_in))](
        x, gradient, out, parts, *(before.read if before else NOTHING), layer.weight, layer.saved, affine, rows,
        INPUT="normalised" if before else "as it is",
        FROM=channels, TO=outputs, ROWS=tile, INNER=block_in, COLUMNS=block_out, num_warps=4, num_stages=2,
    )  # fmt: skip
    return parts


def _weight_block(channels: int) -> int:
    return min(BLOCK, max(16, triton.next_power_of_2(channels)))


def _run(
    a: Tensor, differentiated: tuple[Folded, Tensor, Tensor] | None, weight: Tensor, out: Tensor, *,
    before: Folded | None = None, saves: Folded | None = None, masks: tuple[Folded, Tensor, Tensor] | None = None,
    plus: Tensor | None = None, tickets: Tensor | None = None,
) -> None:  # fmt: skip
    """Multiply: by the weight's columns forward, by its rows if the input is `differentiated`."""
    channels, outputs = a.shape[1], out.shape[1]
    rows = a.numel() // channels
    columns = max(16, triton.next_power_of_2(outputs)) if outputs <= BLOCK else BLOCK if outputs % BLOCK == 0 else 32
    across = triton.cdiv(outputs, columns)
    inner = max(16, triton.next_power_of_2(channels)) if channels <= BLOCK else BLOCK if channels % BLOCK == 0 else 32
    most = MASKED_TILE if masks and columns <= BLOCK // 2 else TILE
    tile = 128
    while tile > 16 and (triton.cdiv(rows, tile) * across < PROGRAMS or tile * columns > most):
        tile //= 2
    shares = min(triton.cdiv(rows, tile), SHARES)
    layer, beside, of_input = differentiated or (None, None, None)
    read = NOTHING if before is None and layer is None else (before or layer).read  # type: ignore[union-attr]
    kept, behind, affine = masks or (saves, plus, None)
    fields = (None,) * 5 + (0.0, 0.0) if kept is None else (kept.weight, kept.bias, *kept.moments)
    parts = None if kept is None else torch.empty(shares, 2, outputs, device=a.device)
    _multiply[(shares, across)](
        a, beside, weight, out, *read, of_input, behind, *fields, affine, parts, tickets, rows,
        INPUT="differentiated" if layer else "normalised" if before else "as it is",
        OUTPUT="masked" if masks else "summed" if saves else "added" if plus is not None else "as it is",
        FLIP=layer is not None, FROM=channels, TO=outputs, ROWS=tile, INNER=inner, COLUMNS=columns,
        num_warps=4, num_stages=2,
    )  # fmt: skip


@triton.jit
def _factors(
    weight, bias, saved, running_mean, running_var, eps, affine, rows, channel,
    INPUT: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """What `_ready` needs to know of the channels."""
    if INPUT == "normalised":
        factor, offset = folded(weight, bias, saved, running_mean, running_var, eps, channel, CHANNELS)
        other = offset
    elif INPUT == "differentiated":
        factor, other, offset = folded_slopes(weight, saved, affine, rows, channel, CHANNELS)
    else:
        factor = tl.zeros(channel.shape, tl.float32)
        other, offset = factor, factor
    return factor, other, offset


@triton.jit
def _ready(a, beside, at, here, factor, other, offset, INPUT: tl.constexpr):
    """A tile of the input as it is multiplied."""
    value = tl.load(a + at, mask=here, other=0.0)
    if INPUT == "normalised":
        value = norm.activated(value.to(tl.float32) * factor[None, :] + offset[None, :], 6.0).to(a.dtype.element_ty)
    elif INPUT == "differentiated":
        out = tl.load(beside + at, mask=here, other=0.0).to(tl.float32)
        value = value.to(tl.float32) * factor[None, :] + (out * other[None, :] + offset[None, :])
        value = value.to(a.dtype.element_ty)
    return value


@triton.jit
def _weights(weight, channel, columns, FLIP: tl.constexpr, FROM: tl.constexpr, TO: tl.constexpr):
    here = (channel < FROM)[:, None] & (columns < TO)[None, :]
    at = channel[:, None] * TO + columns[None, :] if FLIP else columns[None, :] * FROM + channel[:, None]
    return tl.load(weight + at, mask=here, other=0.0)


@triton.jit
def _multiply(
    a, beside, weight, out, norm_weight, norm_bias, norm_saved, norm_mean, norm_var, norm_eps, norm_affine,
    behind, kept_weight, kept_bias, saved, running_mean, running_var, momentum, eps, affine, parts, tickets, rows,
    INPUT: tl.constexpr, OUTPUT: tl.constexpr, FLIP: tl.constexpr, FROM: tl.constexpr, TO: tl.constexpr,
    ROWS: tl.constexpr, INNER: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    channel = tl.arange(0, INNER)
    if OUTPUT == "summed":
        mean = tl.load(running_mean + columns, mask=columns < TO, other=0.0)  # near the batch's: see `norm`
    elif OUTPUT == "masked":
        scale, shift = folded(kept_weight, kept_bias, saved, running_mean, running_var, eps, columns, TO)
        mean, inverse = norm.statistics(saved, columns, TO)
    if FROM <= INNER:
        weights = _weights(weight, channel, columns, FLIP, FROM, TO)
        factor, other, offset = _factors(
            norm_weight, norm_bias, norm_saved, norm_mean, norm_var, norm_eps, norm_affine, rows, channel, INPUT, FROM
        )  # fmt: skip
    first = tl.zeros([ROWS, COLUMNS], tl.float32)
    second = tl.zeros([ROWS, COLUMNS], tl.float32)
    for start in range(tl.program_id(0) * ROWS, rows, tl.num_programs(0) * ROWS):
        row = start + tl.arange(0, ROWS)
        there = (row < rows)[:, None]
        here = there & (columns < TO)[None, :]
        at = row[:, None] * TO + columns[None, :]
        if OUTPUT != "as it is" and OUTPUT != "summed":
            old = tl.load(behind + at, mask=here, other=0.0)
        if FROM <= INNER:
            values = _ready(
                a, beside, row[:, None] * FROM + channel[None, :], there & (channel < FROM)[None, :],
                factor, other, offset, INPUT,
            )  # fmt: skip
            total = tl.dot(values, weights)
        else:
            total = tl.zeros([ROWS, COLUMNS], tl.float32)
            for low in range(0, FROM, INNER):
                some = low + channel
                factor, other, offset = _factors(
                    norm_weight, norm_bias, norm_saved, norm_mean, norm_var, norm_eps, norm_affine, rows, some,
                    INPUT, FROM,
                )  # fmt: skip
                values = _ready(
                    a, beside, row[:, None] * FROM + some[None, :], there & (some < FROM)[None, :],
                    factor, other, offset, INPUT,
                )  # fmt: skip
                total = tl.dot(values, _weights(weight, some, columns, FLIP, FROM, TO), total)
        if OUTPUT == "masked":
            old = old.to(tl.float32)
            total = tl.where(norm.passes(old * scale[None, :] + shift[None, :], 6.0) & there, total, 0.0)
        elif OUTPUT == "added":
            total += old.to(tl.float32)
        rounded = total.to(out.dtype.element_ty)
        tl.store(out + at, rounded, mask=here)
        if OUTPUT == "summed":
            moved = tl.where(there, rounded.to(tl.float32) - mean[None, :], 0.0)
            first += moved
            second += moved * moved
        elif OUTPUT == "masked":
            total = rounded.to(tl.float32)
            first += total
            second += total * (old - mean[None, :])
    if OUTPUT == "summed":
        norm.share_moments(
            parts, tickets, tl.sum(first, 0), tl.sum(second, 0), mean, saved, running_mean, running_var, momentum, eps,
            rows, columns, TO,
        )  # fmt: skip
    elif OUTPUT == "masked":
        norm.share_slopes(parts, tickets, tl.sum(first, 0), tl.sum(second, 0), inverse, affine, columns, TO)


@triton.jit
def _weigh(
    x, gradient, out, parts, norm_weight, norm_bias, norm_saved, norm_mean, norm_var, norm_eps,
    out_weight, out_saved, out_affine, rows,
    INPUT: tl.constexpr, FROM: tl.constexpr, TO: tl.constexpr,
    ROWS: tl.constexpr, INNER: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """What every n-th tile of rows adds to a block of the weight's gradient."""
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    channel = tl.program_id(2) * INNER + tl.arange(0, INNER)
    factor, _, offset = _factors(
        norm_weight, norm_bias, norm_saved, norm_mean, norm_var, norm_eps, None, rows, channel, INPUT, FROM
    )  # fmt: skip
    slope, other, level = folded_slopes(out_weight, out_saved, out_affine, rows, columns, TO)
    total = tl.zeros([COLUMNS, INNER], tl.float32)
    for start in range(tl.program_id(0) * ROWS, rows, tl.num_programs(0) * ROWS):
        row = start + tl.arange(0, ROWS)
        there = (row < rows)[:, None]
        values = _ready(
            x, None, row[:, None] * FROM + channel[None, :], there & (channel < FROM)[None, :],
            factor, factor, offset, INPUT,
        )  # fmt: skip
        slopes = _ready(
            gradient, out, row[:, None] * TO + columns[None, :], there & (columns < TO)[None, :],
            slope, other, level, "differentiated",
        )  # fmt: skip
        slopes = tl.where(there, slopes, 0.0)  # or rows that do not exist would add to it
        total = tl.dot(tl.trans(slopes), values, total)
    _leave(parts, total, columns, channel, FROM, TO)


@triton.jit
def _both(
    x, gradient, out, weight, plus, inner, parts, out_weight, out_saved, out_affine, rows,
    PLUS: tl.constexpr, FROM: tl.constexpr, TO: tl.constexpr,
    ROWS: tl.constexpr, SOME: tl.constexpr, REST: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    columns, some, rest = tl.arange(0, COLUMNS), tl.arange(0, SOME), SOME + tl.arange(0, REST)
    slope, other, level = folded_slopes(out_weight, out_saved, out_affine, rows, some, TO)
    rest_slope, rest_other, rest_level = folded_slopes(out_weight, out_saved, out_affine, rows, rest, TO)
    weights = _weights(weight, some, columns, True, TO, FROM)
    rest_weights = _weights(weight, rest, columns, True, TO, FROM)
    found = tl.zeros([SOME, COLUMNS], tl.float32)
    rest_found = tl.zeros([REST, COLUMNS], tl.float32)
    for start in range(tl.program_id(0) * ROWS, rows, tl.num_programs(0) * ROWS):
        row = start + tl.arange(0, ROWS)
        there = (row < rows)[:, None]
        here = there & (columns < FROM)[None, :]
        at = row[:, None] * FROM + columns[None, :]
        values = tl.load(x + at, mask=here, other=0.0)  # and so rows that do not exist add nothing to the weight's
        slopes = _ready(
            gradient, out, row[:, None] * TO + some[None, :], there & (some < TO)[None, :], slope, other, level,
            "differentiated",
        )  # fmt: skip
        total = tl.dot(slopes, weights)
        found = tl.dot(tl.trans(slopes), values, found)
        slopes = _ready(
            gradient, out, row[:, None] * TO + rest[None, :], there & (rest < TO)[None, :],
            rest_slope, rest_other, rest_level, "differentiated",
        )  # fmt: skip
        total = tl.dot(slopes, rest_weights, total)
        rest_found = tl.dot(tl.trans(slopes), values, rest_found)
        if PLUS:
            total += tl.load(plus + at, mask=here, other=0.0).to(tl.float32)
        tl.store(inner + at, total.to(inner.dtype.element_ty), mask=here)
    _leave(parts, found, some, columns, FROM, TO)
    _leave(parts, rest_found, rest, columns, FROM, TO)


@triton.jit
def _leave(parts, found, outputs, channel, FROM: tl.constexpr, TO: tl.constexpr):
    """Leave what a program adds to a block of the weight's gradient."""
    at = (tl.program_id(0) * TO + outputs)[:, None] * FROM + channel[None, :]
    tl.store(parts + at, found, mask=(outputs < TO)[:, None] & (channel < FROM)[None, :])
