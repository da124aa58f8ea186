"""Triton kernels beside torch's own layers: on a GPU where there is one, else interpreted on the CPU."""

from __future__ import annotations

import copy
import functools
import itertools
import math
from collections.abc import Callable
from typing import cast

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from search_spaces import pool
from search_spaces.recipe import PRECISIONS
from trainer import network
from trainer.augment import Images, epoch_draws
from trainer.data import Dataset
from trainer.device import gpu, gpu_layers, objective

pytest.importorskip("triton")
from trainer.device.kernels import convolution, depthwise, norm, stem

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


AFTER = [*itertools.product([None, math.inf, 6.0], ["", "shortcut"]), (math.inf, "pooled"), (6.0, "pooled")]
SHAPES = [(2, 16, 32, 32), (6, 48, 10, 10), (16, 40, 1, 1)]


@pytest.mark.parametrize(
    ("shape", "ceiling", "with_it"),
    [(shape, *after) for shape, after in itertools.product(SHAPES, AFTER) if "pooled" not in after or shape[2] > 1],
    ids=str,
)
@pytest.mark.parametrize(("kind", "error"), [(torch.float32, 2e-5), (torch.bfloat16, 8e-3)], ids=["fp32", "bf16"])
def test_batch_norm_with_what_follows_it(
    shape: tuple[int, ...], ceiling: float | None, with_it: str, kind: torch.dtype, error: float
) -> None:
    """Beside fp64: in fp32 torch's own rounds one of 32,768 values, 2e-6 from zero, to the other side of ReLU."""
    channels, has_shortcut, pooled = shape[1], with_it == "shortcut", with_it == "pooled"
    tickets = norm.tickets(DEVICE)
    plain = nn.BatchNorm2d(channels).to(DEVICE)
    with torch.no_grad():
        plain.weight.copy_(parameter((channels,), 1))
        plain.bias.copy_(parameter((channels,), 2))
    fused, plain = copy.deepcopy(plain), plain.double()
    gradient = maps((*shape[:2], shape[2] // 2, shape[3] // 2) if pooled else shape, 4).to(kind)

    def expected(x: Tensor, shortcut: Tensor | None) -> Tensor:
        out = plain(x.double())
        out = out if shortcut is None else out + shortcut.double()
        out = out if ceiling is None else F.hardtanh(out, 0.0, ceiling)  # at 0 nothing passes, as in ReLU
        if not pooled:
            return out
        stored = out + (out.to(kind).double() - out).detach()  # of two that are stored as one number the first is taken
        return F.max_pool2d(stored, 2)

    def found(x: Tensor, shortcut: Tensor | None) -> Tensor:
        return norm.batch_norm(fused, x, tickets, ceiling=ceiling, shortcut=shortcut, pooled=pooled)

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
    assert not tickets.any(), "the next kernel takes them from 0"
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
def test_a_convolution_of_few_channels(channels: int, outputs: int, size: int) -> None:
    kind = torch.bfloat16 if DEVICE.type == "cuda" else torch.float32  # interpreted, products of bfloat16 are wrong
    weight = maps((outputs, channels, 3, 3), 2)
    half = weight.to(kind) if kind == torch.bfloat16 else None
    ours = functools.partial(convolution.convolve, half=half)
    check_convolution(ours, maps((2, channels, size, size), 1).to(kind), weight)


def test_a_convolution_of_few_channels_wants_its_weight_channels_last() -> None:
    x, weight = maps((1, 16, 4, 4), 1), parameter((16, 16, 3, 3), 2)
    with pytest.raises(ValueError, match="channels-last"):
        convolution.convolve(x, weight)
    conv = nn.Conv2d(16, 16, 3, padding=1, bias=False)
    assert not convolution.fits(conv)
    assert convolution.fits(conv.to(memory_format=torch.channels_last))  # pyright: ignore[reportCallIssue]


@pytest.mark.parametrize(("channels", "size"), [(32, 16), (24, 7), (40, 2), (96, 1)])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.usefixtures("poisoned")
def test_a_depthwise_convolution(
    channels: int, size: int, stride: int, kind: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(depthwise, "SHARES", 2)  # so that a program has more than one band of lines
    ours = functools.partial(depthwise.convolve, stride=stride)
    x, weight = maps((3, channels, size, size), 1).to(kind), parameter((channels, 1, 3, 3), 2)
    check_convolution(ours, x, weight, groups=channels, stride=stride)


@pytest.mark.parametrize(("outputs", "stride", "ceiling"), [(16, 1, math.inf), (32, 2, 6.0), (64, 1, None)])
@pytest.mark.usefixtures("poisoned")
def test_the_first_layer(outputs: int, stride: int, ceiling: float | None) -> None:
    """Convolution, batch norm and activation as one function, beside torch's in fp64: gradients, running statistics."""
    conv = nn.Conv2d(3, outputs, 3, stride, padding=1, bias=False).to(DEVICE).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    layer, tickets = nn.BatchNorm2d(outputs).to(DEVICE), norm.tickets(DEVICE)
    with torch.no_grad():
        for index, each in enumerate((conv.weight, layer.weight, layer.bias)):
            each.copy_(parameter(tuple(each.shape), index))
    plain = copy.deepcopy(nn.Sequential(conv, layer)).double()
    images = maps((5, 3, 9, 9), 3)

    def expected(x: Tensor) -> Tensor:
        out = plain(x.double())
        return out if ceiling is None else F.hardtanh(out, 0.0, ceiling)

    out = stem.run(conv, layer, images, tickets, ceiling=ceiling)
    gradient = maps(tuple(out.shape), 4)
    out.backward(gradient)
    theirs = expected(images)
    theirs.backward(gradient.double())
    assert_close(out, theirs, 2e-6)
    for ours, other in zip((conv.weight, layer.weight, layer.bias), plain.parameters(), strict=True):
        assert_close(ours.grad, other.grad, 2e-6)  # type: ignore[arg-type]
    for ours, other in zip(layer.buffers(), plain[1].buffers(), strict=True):
        if other.dtype == torch.float64:
            assert_close(ours, other, 2e-6)
    assert not tickets.any()
    layer.eval()
    plain.eval()
    with torch.inference_mode():
        assert_close(stem.run(conv, layer, images, tickets, ceiling=ceiling), expected(images), 2e-6)


@pytest.mark.parametrize(("batch", "classes"), [(128, 100), (37, 10), (1, 2)])
@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16], ids=str)
def test_the_loss_is_torchs(batch: int, classes: int, kind: torch.dtype) -> None:
    """Its sum, its gradient and the hits; a logit that is no number makes the loss none."""
    random = torch.Generator().manual_seed(batch)
    logits = (3 * torch.randn(batch, classes, generator=random)).to(DEVICE, kind).requires_grad_()
    labels = torch.randint(classes, (batch,), generator=random).to(DEVICE)
    (ours, gradient), (theirs, expected) = (objective.cross_entropy(logits, labels, fused=f) for f in (True, False))
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=0)
    assert gradient is not None
    assert expected is not None
    assert gradient.dtype == expected.dtype == kind
    assert_close(gradient, expected, 2**-7 if kind == torch.bfloat16 else 1e-6)  # interpreted, a cast cuts off
    plain, none = objective.cross_entropy(logits.detach(), labels, fused=True)
    assert torch.equal(plain, ours)
    assert none is None
    with torch.no_grad():
        logits[0, 0] = math.nan
    assert objective.cross_entropy(logits, labels, fused=True)[0][0].isnan()


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("half", [False, True])
def test_batches_are_those_of_the_cpu(channels: int, half: bool) -> None:
    random = np.random.default_rng(0)
    pixels = [random.integers(0, 256, (30, size, size, channels), np.uint8) for size in (40, 32)]
    labels = [random.integers(0, 10, 30) for _ in pixels]
    statistics = (0.3, 0.4, 0.5)[:channels], (0.2, 0.25, 0.3)[:channels]
    data = Dataset("random", 10, True, pixels[0], labels[0], pixels[1], labels[1], *statistics)
    plain, fast = Images(data, torch.device("cpu")), Images(data, DEVICE)
    fast._fast = True
    draws, index, cursor = epoch_draws(1, 1, np.arange(30), True), torch.randperm(30), torch.tensor(3)
    for name, rows in (("training", draws), ("testing", index)):
        expected, classes = getattr(plain, name)(rows, cursor, 7, half=half)
        found, their_classes = getattr(fast, name)(rows.to(DEVICE), cursor.to(DEVICE), 7, half=half)
        assert found.is_contiguous(memory_format=torch.channels_last)
        assert found.dtype == (torch.bfloat16 if half else torch.float32)
        # Interpreted, a cast to bfloat16 cuts off what a GPU rounds.
        torch.testing.assert_close(found.float().cpu(), expected, rtol=2**-7 if half else 0, atol=1e-6)
        assert torch.equal(classes, their_classes.cpu())


NETWORKS = [
    *((arch, 128, 32, kind, "gpu") for arch in ("resnet56", "vgg16bn", "mobilenetv2") for kind in PRECISIONS),
    *(("resnet20", 2, 16, kind, "") for kind in PRECISIONS),
    ("vgg11bn", 2, 32, "bf16", ""),
    ("resnet20", 3, 32, "bf16", "soak"),
    ("vgg16bn", 3, 32, "bf16", "soak"),
    ("mobilenetv2", 4, 16, "bf16", "soak"),
]


@pytest.mark.parametrize(
    ("arch", "images", "size", "precision"),
    [pytest.param(*case, marks=[getattr(pytest.mark, when)] if when else []) for *case, when in NETWORKS],
)
def test_a_network_computes_what_it_did(
    arch: str, images: int, size: int, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the kernels of each precision, all on fp32 maps: those of a step in bf16 are the same, of another type."""
    plain = network.build(pool.expand("gap")[0], arch, 10, 1).to(DEVICE).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    plain.head.eval()  # or dropout would draw other masks for each
    fast = copy.deepcopy(plain)
    after_backward = gpu.speed_up(fast.features, precision).after_backward
    for module in fast.features.modules():
        module.half_weight = None  # type: ignore[assignment]
    monkeypatch.setattr(gpu_layers, "_by_kernel", lambda _: True)
    x, labels = maps((images, 3, size, size), 1), torch.arange(images, device=DEVICE) % 10
    losses = []
    for net in (plain, fast):
        losses.append(F.cross_entropy(net(x), labels))
        losses[-1].backward()
    after_backward()
    exact = DEVICE.type == "cpu" or precision == "fp32"
    assert_close(losses[1].detach(), losses[0].detach(), 1e-4 if exact else 1e-2)
    pairs = zip(fast.named_parameters(), plain.parameters(), strict=True)
    gradients = [(name, cast(Tensor, ours.grad), cast(Tensor, theirs.grad)) for (name, ours), theirs in pairs]
    nothing = 1e-6 * sum(float(theirs.norm()) for _, _, theirs in gradients)  # that of a bias before another batch norm
    for name, ours, theirs in gradients if exact else ():
        # Rounding decides what a ReLU lets through of almost nothing: of 15,360 elements of one that is 1 or 2 %.
        assert torch.linalg.norm(ours - theirs) <= 5e-2 * torch.linalg.norm(theirs) + nothing, name
