"""Triton kernels beside torch's own layers: on a GPU where there is one, else interpreted on the CPU."""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from search_spaces import pool
from trainer import network
from trainer.augment import Images, epoch_draws
from trainer.data import Dataset
from trainer.device import gpu

pytest.importorskip("triton")
from trainer.device.kernels import convolution, crops, depthwise, norm

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def maps(shape: tuple[int, ...], seed: int, mean: float = 0.0) -> Tensor:
    """Normal, channels-last."""
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed)) + mean
    return values.to(DEVICE).to(memory_format=torch.channels_last)


def parameter(shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE).requires_grad_()


def assert_close(found: Tensor, expected: Tensor, error: float) -> None:
    """To a relative error, over all elements."""
    assert torch.linalg.norm(found.double() - expected.double()) <= error * torch.linalg.norm(expected.double())


@pytest.mark.parametrize("shape", [(2, 16, 32, 32), (6, 48, 10, 10), (16, 40, 1, 1)], ids=str)
@pytest.mark.parametrize("ceiling", [None, math.inf, 6.0])
@pytest.mark.parametrize("has_shortcut", [False, True])
@pytest.mark.parametrize(("kind", "error"), [(torch.float32, 2e-5), (torch.bfloat16, 8e-3)], ids=["fp32", "bf16"])
def test_batch_norm_with_what_follows_it(
    shape: tuple[int, ...], ceiling: float | None, has_shortcut: bool, kind: torch.dtype, error: float
) -> None:
    """Beside fp64: in fp32 torch's own rounds one of 32,768 values, 2e-6 from zero, to the other side of ReLU."""
    channels = shape[1]
    plain = nn.BatchNorm2d(channels).to(DEVICE)
    with torch.no_grad():
        plain.weight.copy_(parameter((channels,), 1))
        plain.bias.copy_(parameter((channels,), 2))
    fused, plain = copy.deepcopy(plain), plain.double()
    gradient = maps(shape, 4).to(kind)

    def expected(x: Tensor, shortcut: Tensor | None) -> Tensor:
        out = plain(x.double())
        out = out if shortcut is None else out + shortcut.double()
        return out if ceiling is None else F.hardtanh(out, 0.0, ceiling)  # at 0 nothing passes, as in ReLU

    def found(x: Tensor, shortcut: Tensor | None) -> Tensor:
        return norm.batch_norm(fused, x, ceiling=ceiling, shortcut=shortcut)

    results = []
    for layer, function in ((plain, expected), (fused, found)):
        x = maps(shape, 5, mean=3.0).to(kind).requires_grad_()
        shortcut = maps(shape, 6).to(kind).requires_grad_() if has_shortcut else None
        out = function(x, shortcut)
        out.backward(gradient.to(out.dtype))
        slopes = [x.grad, layer.weight.grad, layer.bias.grad, *([shortcut.grad] if shortcut is not None else [])]
        results.append([out, *slopes, layer.running_mean, layer.running_var])
    assert results[1][0].dtype == kind
    for ours, theirs in zip(results[1], results[0], strict=True):
        assert_close(ours, theirs, error)
    plain.eval()
    fused.eval()
    with torch.inference_mode():
        x, shortcut = maps(shape, 7).to(kind), maps(shape, 8).to(kind) if has_shortcut else None
        assert_close(found(x, shortcut), expected(x, shortcut), error)


def check_convolution(
    ours: Callable[[Tensor, Tensor], Tensor], x: Tensor, weight: Tensor, stride: int = 1, groups: int = 1
) -> None:
    """Beside torch's in fp64: outputs and gradients, each of the kind that it should be."""
    x, weight = x.requires_grad_(), weight.requires_grad_()
    out = ours(x, weight)
    gradient = maps(tuple(out.shape), 3).to(x.dtype)
    out.backward(gradient)
    # A kernel that multiplies matrices casts its weights to the kind of the maps.
    multiplied = weight.detach() if groups > 1 else weight.detach().to(x.dtype)
    exact = x.detach().double().requires_grad_(), multiplied.double().requires_grad_()
    expected = F.conv2d(*exact, stride=stride, padding=1, groups=groups)
    expected.backward(gradient.double())
    assert out.dtype == x.dtype
    assert weight.grad is not None
    assert weight.grad.dtype == torch.float32
    rounding = 4e-3 if x.dtype == torch.bfloat16 else 2e-6
    for mine, theirs in ((out, expected), (x.grad, exact[0].grad), (weight.grad, exact[1].grad)):
        assert_close(mine, theirs, rounding)  # type: ignore[arg-type]


@pytest.mark.parametrize(("channels", "outputs", "size"), [(16, 16, 32), (32, 32, 16), (64, 64, 8), (16, 64, 7)])
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_a_convolution_of_few_channels(channels: int, outputs: int, size: int, layout: torch.memory_format) -> None:
    kind = torch.bfloat16 if DEVICE.type == "cuda" else torch.float32  # interpreted, products of bfloat16 are wrong
    weight = parameter((outputs, channels, 3, 3), 2).detach().contiguous(memory_format=layout)
    check_convolution(convolution.convolve, maps((2, channels, size, size), 1).to(kind), weight)


@pytest.mark.parametrize(("channels", "size"), [(32, 16), (24, 7), (40, 2), (96, 1)])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16], ids=str)
def test_a_depthwise_convolution(channels: int, size: int, stride: int, kind: torch.dtype) -> None:
    ours = functools.partial(depthwise.convolve, stride=stride)
    x, weight = maps((3, channels, size, size), 1).to(kind), parameter((channels, 1, 3, 3), 2)
    check_convolution(ours, x, weight, groups=channels, stride=stride)


@pytest.mark.parametrize("channels", [1, 3])
def test_crops_are_those_of_the_cpu(channels: int) -> None:
    random = np.random.default_rng(0)
    pixels = [random.integers(0, 256, (30, size, size, channels), np.uint8) for size in (40, 32)]
    labels = random.integers(0, 10, 30)
    statistics = (0.3, 0.4, 0.5)[:channels], (0.2, 0.25, 0.3)[:channels]
    images = Images(Dataset("random", 10, True, pixels[0], labels, pixels[1], labels, *statistics), torch.device("cpu"))
    draws = epoch_draws(1, 1, np.arange(30), True)
    source = [tensor.to(DEVICE) for tensor in (images._pixels, draws, images._shift, images._scale)]
    found = crops.crops(*source, area=images._area, row=images._row, size=32)
    assert found.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(found.cpu(), images.crops(draws), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("arch", "images", "size"),
    [
        ("resnet20", 2, 16),
        pytest.param("resnet56", 128, 32, marks=pytest.mark.gpu),
        pytest.param("vgg16bn", 128, 32, marks=pytest.mark.gpu),
        pytest.param("mobilenetv2", 128, 32, marks=pytest.mark.gpu),
    ],
)
@pytest.mark.parametrize("precision", ["fp32", "tf32"])
def test_a_network_computes_what_it_did(
    arch: str, images: int, size: int, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = network.build(pool.expand("gap")[0], arch, 10, 1).to(DEVICE)
    plain.head.eval()  # or dropout would draw other masks for each
    fast = copy.deepcopy(plain)
    after_backward = gpu.speed_up(fast.features, precision)
    monkeypatch.setattr(gpu, "_by_kernel", lambda _: True)
    x, labels = maps((images, 3, size, size), 1), torch.arange(images, device=DEVICE) % 10
    losses = []
    for net in (plain, fast):
        losses.append(F.cross_entropy(net(x), labels))
        losses[-1].backward()
    after_backward()
    exact = DEVICE.type == "cpu" or precision == "fp32"
    assert_close(losses[1].detach(), losses[0].detach(), 1e-4 if exact else 1e-2)
    for (name, ours), theirs in zip(fast.named_parameters(), plain.parameters(), strict=True):
        assert ours.grad is not None, name
        assert theirs.grad is not None, name
        if exact:  # rounding decides what a ReLU lets through of almost nothing: 1 % after 55 of them
            assert_close(ours.grad, theirs.grad, 2e-2)
