"""The same network, faster on a GPU: which kernels its layers take; and streams that nobody shares.

A training step of these networks is hundreds of kernels of a few microseconds, most of which read maps that the one
before has just written. Layers change how they compute, not what: outputs and gradients agree with torch's to rounding,
and parameters are the same tensors under the same names.

`CONVOLUTIONS` and `BLOCKS` say who computes what; cuDNN and cuBLAS do all else.
"""

from __future__ import annotations

import itertools
import math
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torchvision.models.mobilenetv2 import InvertedResidual
from torchvision.models.resnet import BasicBlock

from trainer import compat
from trainer.device import kernels
from trainer.device.gpu_layers import (
    ConvolutionOfStem,
    DepthwiseConv2d,
    FusedBasicBlock,
    FusedBatchNorm2d,
    FusedInvertedResidual,
    HalfLinear,
    LibraryConv2d,
    NarrowConv2d,
    Stage,
    StemNorm2d,
)
from trainer.device.optimizer import Sgd

STREAMS = 32  # that torch has for a device; the next one it gives is the first again
CEILINGS = {nn.ReLU: math.inf, nn.ReLU6: 6.0}

# Who computes a convolution: the first whose family is on, which knows the precision, and which it fits. How large a
# map may be is for `NarrowConv2d` to say, which alone has a limit.
CONVOLUTIONS: Sequence[tuple[str, set[str], Callable[[nn.Conv2d], bool], type[nn.Conv2d]]] = (
    ("depthwise", {"fp32", "tf32", "bf16"}, kernels.depthwise.fits, DepthwiseConv2d),
    ("convolution", {"tf32", "bf16"}, kernels.convolution.fits, NarrowConv2d),
)
# Layers that are one function together, in bfloat16, if all these families are on.
BLOCKS = {
    "stem": {"stem", "norm"},
    "basic_block": {"basic_block", "norm", "convolution"},
    "inverted_residual": {"inverted_residual", "norm", "depthwise", "pointwise"},
}

_free: dict[torch.device, list[torch.cuda.Stream]] = {}


def lend_stream(device: torch.device, borrower: object) -> torch.cuda.Stream:
    """Return a stream for as long as the borrower lives, which no other of the first `STREAMS` borrowers has.

    Not `torch.cuda.Stream` each time: matrix products keep a workspace of 32 MiB a stream for good (torch 2.11), and a
    graph that ends takes that of its stream with it (2.13), from under another's graphs if torch gave them the same.
    """
    free = _free.setdefault(device, [])
    stream = free.pop() if free else torch.cuda.Stream(device)
    weakref.finalize(borrower, free.append, stream).atexit = False
    return stream


class Together:
    """What the layers of a network leave to be done for all of them in one kernel.

    Batch norms leave the count of their batches, from which nothing is computed. Layers that multiply by a copy of
    their weight in bfloat16 leave it to others to have it follow: to `FusedSgd`, which writes it as it writes the
    weight and reads the gradient of either. Of MobileNetV2 that would be 37 casts forward and 37 back in a step, and 52
    kernels that count.

    Attributes:
        counts: [norms] int64, of which each norm has one; None without norms.
        halves: {a parameter: its copy in bfloat16}, in the same order in memory.
        off: families of kernels that are left to torch.
    """

    def __init__(self, counts: Tensor | None, halves: Mapping[Tensor, Tensor], off: frozenset[str]):
        self.counts, self.halves, self.off = counts, halves, off

    def follow(self) -> None:
        """Cast the weights as they are now."""
        if self.halves:
            with torch.no_grad():
                compat.copy_all(list(self.halves.values()), list(self.halves))

    def after_backward(self) -> None:
        """Put the gradients where torch's optimizers look for them, and count a batch more."""
        pairs = [(weight, half) for weight, half in self.halves.items() if half.grad is not None]
        if pairs:
            gradients = [torch.empty_like(weight) for weight, _ in pairs]
            compat.copy_all(gradients, [cast(Tensor, half.grad) for _, half in pairs])
            for (weight, half), gradient in zip(pairs, gradients, strict=True):
                weight.grad, half.grad = gradient, None
        if self.counts is not None:
            self.counts.add_(1)

    def optimizer(self, parameters: Sequence[Tensor], lr: Tensor, momentum: float, decay: float) -> Sgd:
        """Return what trains a network with these layers; arguments as `Sgd` has them."""
        kind = LibrarySgd if "sgd" in self.off else FusedSgd
        return kind(self, parameters, lr, momentum, decay)


class LibrarySgd(Sgd):
    """Torch's SGD for a network with a GPU's layers."""

    def __init__(self, together: Together, *settings: Any):
        super().__init__(*settings)
        self._together = together

    def step(self) -> None:
        self._together.after_backward()
        super().step()
        self.follow()

    def follow(self) -> None:
        self._together.follow()


class FusedSgd(Sgd):
    """SGD as one kernel: see `kernels.sgd`. What it cannot read, a pool's parameters in float64 say, is torch's."""

    def __init__(self, together: Together, parameters: Sequence[Tensor], lr: Tensor, momentum: float, decay: float):
        super().__init__(parameters, lr, momentum, decay)
        self._together = together
        fitting = [index for index, parameter in enumerate(parameters) if kernels.sgd.fits(parameter)]
        self._others = [index for index in range(len(parameters)) if index not in fitting]
        self._fused = kernels.sgd.Step(
            [parameters[index] for index in fitting],
            [self.momenta[index] for index in fitting],
            together.halves,
            together.counts,
            lr,
            momentum,
            decay,
        )

    def clear(self) -> None:
        super().clear()
        self._fused.clear()

    def step(self) -> None:
        self._fused()
        if self._others:
            self._descend(self._others)

    def follow(self) -> None:
        self._together.follow()

    def settle(self) -> None:
        self._fused.settle()


def speed_up(
    features: nn.Module, precision: str, off: frozenset[str] = frozenset(), head: nn.Module | None = None
) -> Together:
    """Swap the layers of a network that is to train on a GPU, in place; return what they leave to be done.

    Args:
        off: families of kernels that are left to torch.
    """
    counts = None if "norm" in off else _fuse_norms(features)
    halves: dict[Tensor, Tensor] = {}
    for conv in [module for module in features.modules() if type(module) is nn.Conv2d]:
        conv.__class__ = _chosen(conv, precision, off)
        if precision == "bf16" and isinstance(conv, LibraryConv2d):
            halves[conv.weight] = conv.half_weight = _half(conv.weight)
    if precision == "bf16":
        for linear in [module for module in head.modules() if type(module) is nn.Linear] if head else ():
            linear.__class__ = HalfLinear
            for name, parameter in linear.named_parameters():
                halves[parameter] = _half(parameter)
                setattr(linear, f"half_{name}", halves[parameter])
        _join(features, {block for block, families in BLOCKS.items() if not families & off})
    return Together(counts, halves, off)


def _chosen(conv: nn.Conv2d, precision: str, off: frozenset[str]) -> type[nn.Conv2d]:
    for family, precisions, fits, layer in CONVOLUTIONS:
        if family not in off and precision in precisions and fits(conv):
            return layer
    return LibraryConv2d


def _half(parameter: Tensor) -> Tensor:
    """Return its copy in bfloat16, in the same order in memory, whose gradient autograd may find."""
    return parameter.detach().to(torch.bfloat16).requires_grad_()


def _fuse_norms(features: nn.Module) -> Tensor | None:
    """Have batch norms do what follows them, and count their batches in one tensor, which is returned."""
    norms = [module for module in features.modules() if type(module) is nn.BatchNorm2d and module.momentum is not None]
    counts = torch.stack([cast(Tensor, norm.num_batches_tracked) for norm in norms]) if norms else None
    tickets = kernels.norm.tickets(norms[0].weight.device, max(norm.num_features for norm in norms)) if norms else None
    for norm, count in zip(norms, () if counts is None else counts.unbind(), strict=True):
        norm.__class__ = FusedBatchNorm2d
        norm.num_batches_tracked = count
        cast(FusedBatchNorm2d, norm).tickets = tickets
    for module in list(features.modules()):
        if type(module) is BasicBlock:
            module.__class__ = FusedBasicBlock
            for norm in (module.bn1, module.bn2):
                cast(FusedBatchNorm2d, norm).ceiling = CEILINGS[type(module.relu)]
        elif type(module) is InvertedResidual:
            if isinstance(module.conv[-1], FusedBatchNorm2d):
                module.__class__ = FusedInvertedResidual
        elif isinstance(module, nn.Sequential):
            for index, (first, second) in enumerate(itertools.pairwise(module)):
                if isinstance(first, FusedBatchNorm2d) and type(second) in CEILINGS:
                    first.ceiling = CEILINGS[type(second)]
                    module[index + 1] = nn.Identity()
                    if index + 2 < len(module) and _halves_maps(module[index + 2]):
                        first.pooled = True
                        module[index + 2] = nn.Identity()
    return counts


def _halves_maps(module: nn.Module) -> bool:
    """Whether this is a max-pool of 2x2."""
    if type(module) is not nn.MaxPool2d:
        return False
    plain = not module.padding and module.dilation == 1 and not module.ceil_mode and not module.return_indices
    return plain and module.kernel_size in (2, (2, 2)) and module.stride in (2, (2, 2))


def _is_stem(first: nn.Module, second: nn.Module) -> bool:
    alone = type(second) is FusedBatchNorm2d and not second.pooled
    return alone and isinstance(first, nn.Conv2d) and kernels.stem.fits(first)


def _join(features: nn.Module, blocks: set[str]) -> None:
    """Make one function of layers that `BLOCKS` names, of those blocks."""
    for module in list(features.modules()):
        if isinstance(module, FusedInvertedResidual):
            module.whole = "inverted_residual" in blocks and kernels.inverted_residual.fits(module.conv)
        elif isinstance(module, nn.Sequential):
            if "basic_block" in blocks and any(map(kernels.basic_block.fits, module)):
                module.__class__ = Stage
            for first, second in itertools.pairwise(module) if "stem" in blocks else ():
                if _is_stem(first, second):
                    first.__class__, second.__class__ = ConvolutionOfStem, StemNorm2d
                    cast(StemNorm2d, second).convolution = (cast(ConvolutionOfStem, first),)
