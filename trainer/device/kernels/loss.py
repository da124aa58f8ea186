"""Cross-entropy, its gradient and the hits of a batch as one Triton kernel, where torch takes fifteen."""

# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false
# pyright: reportIndexIssue=false, reportReturnType=false
# Triton reads these functions, Python does not run them: their types are not Python's.

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

ROWS = 16  # of a batch, at once


def cross_entropy(logits: Tensor, labels: Tensor, gradient: Tensor | None) -> Tensor:
    """Return the sum of the losses and the number of hits, [2] float64; write the gradient of their mean.

    One program goes through the batch in order: [1000, 100] in some 60 turns, which is little beside a network.

    Args:
        logits: [B, K], bf16 or fp32, dense.
        labels: [B] int64.
        gradient: like the logits, or None.
    """
    found = torch.empty(2, dtype=torch.float64, device=logits.device)
    batch, classes = logits.shape
    _cross_entropy[(1,)](
        logits, labels, gradient, found, batch,
        CLASSES=classes, COLUMNS=triton.next_power_of_2(classes), ROWS=ROWS, num_warps=4,
    )  # fmt: skip
    return found


@triton.jit
def _cross_entropy(
    logits, labels, gradient, found, batch, CLASSES: tl.constexpr, COLUMNS: tl.constexpr, ROWS: tl.constexpr
):  # fmt: skip
    column = tl.arange(0, COLUMNS)
    total = tl.zeros([ROWS], tl.float32)
    hits = tl.zeros([ROWS], tl.float32)
    for start in range(0, batch, ROWS):
        row = start + tl.arange(0, ROWS)
        inside = row < batch
        here = inside[:, None] & (column < CLASSES)[None, :]
        at = row[:, None] * CLASSES + column[None, :]
        value = tl.load(logits + at, mask=here, other=float("-inf")).to(tl.float32)
        value = tl.where(inside[:, None], value, 0.0)  # rows that are not there are no NaN
        label = tl.load(labels + row, mask=inside, other=0).to(tl.int32)
        largest = tl.max(value, 1)
        powers = tl.exp(value - largest[:, None])
        sums = tl.sum(powers, 1)
        is_label = column[None, :] == label[:, None]
        of_label = tl.sum(tl.where(is_label, value, 0.0), 1)
        total += tl.where(inside, tl.log(sums) + largest - of_label, 0.0)
        hits += tl.where(inside & (tl.argmax(value, 1) == label), 1.0, 0.0)
        if gradient is not None:
            slope = (powers / sums[:, None] - tl.where(is_label, 1.0, 0.0)) / batch
            tl.store(gradient + at, slope.to(gradient.dtype.element_ty), mask=here)
    tl.store(found, tl.sum(total.to(tl.float64), 0))
    tl.store(found + 1, tl.sum(hits.to(tl.float64), 0))
