"""MobileNetV2's inverted residual as one autograd function: Sandler et al., CVPR 2018, figure 4.

A 1x1 convolution makes 6 times the channels, a depthwise one moves them, a 1x1 makes few of them again; a batch norm
follows each, and ReLU6 the first two. Layer by layer the wide maps are read and written 27 times a step, most of it for
batch norm. Here only what the convolutions give is stored, once: batch norm and ReLU6 are done where it is read, and
their gradients likewise, which is 4 passes over wide maps forward and 9 or 11 backward.

    forward   expand: x -> y1; depthwise: y1 -> y2; project: y2 -> y3; y3 + x -> out
    backward  sums of y3's norm; project: (g, y3) -> g2, and the weight's; depthwise: (g2, y2) -> g1, both at once;
              expand: (g1, y1) + g -> g of x, and the weight's

Maps keep their type, bf16 or fp32; all sums are in fp32.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from trainer.device.kernels import depthwise, norm, pointwise, sgd
from trainer.device.kernels.folded import Folded


def fits(layers: nn.Sequential) -> bool:
    """Whether these are the layers of such a block, `InvertedResidual.conv`, whose activations all are ReLU6."""
    convs, norms = _parts(layers)
    if len(convs) not in (2, 3) or len(norms) != len(convs) or any(layer.momentum is None for layer in norms):
        return False
    *wide, moving, project = convs
    ones = [conv for conv in (*wide, project) if conv.kernel_size == (1, 1) and conv.stride == (1, 1)]
    plain = all(conv.bias is None and conv.groups == 1 and conv.padding == (0, 0) for conv in ones)
    eights = not any(conv.in_channels % 8 or conv.out_channels % 8 for conv in convs)
    return len(ones) == len(convs) - 1 and plain and eights and depthwise.fits(moving)


def run(layers: nn.Sequential, x: Tensor, tickets: Tensor, *, shortcut: bool) -> Tensor:
    """Return `layers(x)`, or `layers(x) + x`, on a GPU; running statistics move as torch's do.

    Args:
        layers: which `fits`. Where x is bf16, a 1x1 convolution multiplies by its `half_weight`, if it has one.
        x: [B, C, H, W], fp32 or bf16, which is what comes out too.
        tickets: see `norm.tickets`.
    """
    convs, norms = _parts(layers)
    halves = [_multiplied(conv, x) for conv in convs]
    if not layers.training:
        folded = [Folded.of(layer) for layer in norms]
        last, _ = _forward(norm.channels_last(x), halves, folded, convs[-2].stride[0], tickets)
        return norm.batch_norm(norms[-1], last, tickets, ceiling=None, shortcut=x if shortcut else None, pooled=False)
    parameters = [parameter for pair in zip(convs, norms, strict=True) for layer in pair for parameter in _own(layer)]
    return _InvertedResidual.apply(x, tickets, shortcut, convs[-2].stride[0], halves, norms, *parameters)


def _parts(layers: nn.Sequential) -> tuple[list[nn.Conv2d], list[nn.BatchNorm2d]]:
    modules = list(layers.modules())
    convs = [module for module in modules if isinstance(module, nn.Conv2d)]
    return convs, [module for module in modules if isinstance(module, nn.BatchNorm2d)]


def _own(layer: nn.Conv2d | nn.BatchNorm2d) -> list[Tensor]:
    return [layer.weight] if isinstance(layer, nn.Conv2d) else [layer.weight, layer.bias]


def _multiplied(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """The weight that a convolution multiplies by: 1x1 in the type of the map, depthwise in fp32."""
    if conv.groups > 1:
        return conv.weight.detach()
    half = getattr(conv, "half_weight", None)
    return (conv.weight if half is None else half).detach().to(x.dtype)


def _forward(
    x: Tensor, weights: list[Tensor], norms: list[Folded], stride: int, tickets: Tensor
) -> tuple[Tensor, list[Tensor]]:
    """Return the map before the last batch norm, and the input of each convolution."""
    inputs = []
    before = None
    for weight, after in zip(weights, norms, strict=True):
        inputs.append(x)
        if weight.shape[2] == 1:
            x = pointwise.forward(x, weight, before=before, after=after, tickets=tickets)
        else:
            x = depthwise.forward(x, weight, stride, before=before, after=after, tickets=tickets)
        before = after
    return x, inputs


def _of_last(norms: list[Folded]) -> tuple[Tensor, Tensor, Tensor]:
    """Of the norm that nothing follows, what is saved, weight and bias."""
    return cast(Tensor, norms[-1].saved), norms[-1].weight, norms[-1].bias


class _InvertedResidual(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, tickets: Tensor, shortcut: bool, stride: int, weights: list[Tensor],
        norms: list[nn.BatchNorm2d], *parameters: Tensor,
    ) -> Tensor:  # fmt: skip
        x = norm.channels_last(x)
        folded = [Folded.of(layer) for layer in norms]
        last, inputs = _forward(x, weights, folded, stride, tickets)
        ctx.save_for_backward(*inputs, last, *parameters)
        ctx.tickets, ctx.shortcut, ctx.stride = tickets, shortcut, stride
        ctx.weights, ctx.folded = weights, folded
        return norm.normalise(last, *_of_last(folded), ceiling=None, shortcut=x if shortcut else None)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        count, tickets = len(ctx.weights), ctx.tickets
        *inputs, last = ctx.saved_tensors[: count + 1]
        parameters = ctx.saved_tensors[count + 1 :]  # of each layer its weight, and those of its norm
        outer = gradient = norm.channels_last(gradient)
        affine: Tensor | None = norm.slopes(last, gradient, *_of_last(ctx.folded), tickets, ceiling=None)
        found: list[Tensor | None] = []
        for index in reversed(range(count)):
            x, weight = inputs[index], ctx.weights[index]
            after = ctx.folded[index], last, cast(Tensor, affine)  # all but the first have a norm before them
            before = ctx.folded[index - 1] if index else None
            of_norm = after[-1].unbind()
            if weight.shape[2] == 1:
                plus = outer if ctx.shortcut and not index else None
                if before is None and pointwise.takes_both(x, len(weight)):
                    gradient, parts = pointwise.both(x, gradient, weight, after, plus=plus)
                else:
                    parts = pointwise.weigh(x, gradient, after, before=before)
                    gradient, affine = pointwise.differentiate(
                        x, gradient, weight, after, before=before, plus=plus, tickets=tickets
                    )  # fmt: skip
            else:
                gradient, parts, affine = depthwise.backward(
                    x, gradient, weight, ctx.stride, before=before, after=after, tickets=tickets
                )  # fmt: skip
                if ctx.shortcut and not index:  # a block without expansion: no network here has one with a shortcut
                    gradient += outer
            found = [sgd.hand_in(parameters[3 * index], parts), *of_norm, *found]
            last = x
        return gradient, *(None,) * 5, *found
