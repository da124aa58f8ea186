"""What a GPU wants beside the network: streams that nobody shares, and fewer kernels for the same numbers."""

from __future__ import annotations

import weakref
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

STREAMS = 32  # that torch has for a device; the next one it gives is the first again

_free: dict[torch.device, list[torch.cuda.Stream]] = {}


def lend_stream(device: torch.device, borrower: object) -> torch.cuda.Stream:
    """A stream for as long as the borrower lives, which no other of the first `STREAMS` borrowers has.

    Not `torch.cuda.Stream` each time: matrix products keep a workspace of 32 MiB a stream for good (torch 2.11), and a
    graph that ends takes that of its stream with it (2.13), from under another's graphs if torch gave them the same.
    """
    free = _free.setdefault(device, [])
    stream = free.pop() if free else torch.cuda.Stream(device)
    weakref.finalize(borrower, free.append, stream).atexit = False
    return stream


def speed_up(features: nn.Module) -> Tensor:
    """Lets batch norms, of which there are some, leave the count of their batches to whoever steps: one kernel for all.

    ResNet-56 has 55 of them in a training step of some 600 kernels. Nothing is computed from the counts, which stay
    buffers of the same names.

    Returns:
        the counts [norms] int64, of which each norm has one; to be raised by 1 in a training step.
    """
    norms = [module for module in features.modules() if type(module) is nn.BatchNorm2d and module.momentum is not None]
    counts = torch.stack([cast(Tensor, norm.num_batches_tracked) for norm in norms])
    for norm, count in zip(norms, counts.unbind(), strict=True):
        norm.__class__ = UncountedBatchNorm2d
        norm.num_batches_tracked = count
    return counts


class UncountedBatchNorm2d(nn.BatchNorm2d):
    """Batch norm that does not count its batches."""

    def forward(self, input: Tensor) -> Tensor:
        statistics, weights = (self.running_mean, self.running_var), (self.weight, self.bias)
        return F.batch_norm(input, *statistics, *weights, self.training, self.momentum or 0.0, self.eps)
