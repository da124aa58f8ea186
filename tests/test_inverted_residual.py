"""An inverted residual as one function, beside torchvision's in double precision; on a GPU, or interpreted."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.mobilenetv2 import InvertedResidual

pytest.importorskip("triton")
import triton.language as tl
from triton.runtime.interpreter import InterpreterBuilder

from trainer.device import gpu, gpu_layers
from trainer.device.kernels import depthwise, inverted_residual, norm, pointwise

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
SLOW = pytest.mark.soak


def random(shape: tuple[int, ...], seed: int, mean: float = 0.0) -> Tensor:
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed)) + mean
    return values.to(DEVICE).contiguous(memory_format=torch.channels_last)


def block(channels: int, outputs: int, stride: int, expansion: int, like: Tensor) -> InvertedResidual:
    """One that has seen a batch like this; of its channels ReLU6 lets some through either way."""
    torch.manual_seed(channels + outputs + stride + expansion)
    made = InvertedResidual(channels, outputs, stride, expansion)
    norms = [module for module in made.modules() if isinstance(module, nn.BatchNorm2d)]
    for each in norms:
        nn.init.uniform_(each.weight, 0.5, 1.5)
        with torch.no_grad():
            each.weight[::5] *= -1.0
        nn.init.normal_(each.bias, 1.0, 1.0)
        each.momentum = 1.0
    made = made.to(DEVICE).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    made(random(tuple(like.shape), 2, 0.5))
    for each in norms:
        each.momentum = 0.1
    return made


def assert_close(found: Tensor | None, expected: Tensor | None, error: float, what: str, floor: float = 0.0) -> None:
    """To a relative error, over all elements."""
    assert found is not None, what
    assert expected is not None, what
    difference, size = torch.linalg.norm(found.double() - expected), torch.linalg.norm(expected.double())
    assert difference <= error * size + floor, (what, difference.item(), size.item())


def rounding(module: nn.Module) -> float:
    """What stands for nothing in a gradient: a bias has hardly any before another batch norm."""
    return 1e-7 * sum(each.grad.norm().item() for each in module.parameters() if each.grad is not None)


class Stored(torch.autograd.Function):
    """What becomes of a value, or of its gradient, that is stored in bfloat16: the interpreter cuts off its bits."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, value: bool, slope: bool) -> Tensor:
        ctx.slope = slope
        return bits_kept(x) if value else x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return bits_kept(gradient) if ctx.slope else gradient, None, None


def bits_kept(x: Tensor) -> Tensor:
    if DEVICE.type == "cuda":
        return x.bfloat16().double()
    return (x.float().view(torch.int32) & -65536).view(torch.float32).double()


def as_stored(made: InvertedResidual, x: Tensor) -> Tensor:
    """The block in double precision, but for what the kernels store, or multiply, in bfloat16."""
    y = x
    for layer in made.conv.modules():
        if isinstance(layer, nn.Conv2d):
            dense = layer.groups == 1
            if dense and y is not x:
                y = Stored.apply(y, True, False)
            weight = layer.weight
            if dense:  # it is torch that casts it
                weight = weight + (weight.bfloat16().double() - weight).detach()
            y = F.conv2d(y, weight, None, layer.stride, layer.padding, 1, layer.groups)
            y = Stored.apply(y, True, dense)
        elif isinstance(layer, nn.BatchNorm2d):
            y = Stored.apply(layer(y), False, True)
        elif isinstance(layer, nn.ReLU6):
            y = layer(y)
    return Stored.apply(y + x if made.use_res_connect else y, True, False)


@pytest.fixture
def products_of_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter multiplies the bits of bfloat16 as if they were whole numbers: here it multiplies the numbers."""
    if DEVICE.type == "cuda":
        return
    plain: Any = InterpreterBuilder.create_dot

    def create_dot(self: Any, a: Any, b: Any, d: Any, *settings: Any) -> Any:
        numbers = [self.create_fp_ext(each, tl.block_type(tl.float32, list(each.data.shape))) for each in (a, b)]
        return plain(self, *numbers, d, *settings)

    monkeypatch.setattr(InterpreterBuilder, "create_dot", create_dot)


def check_block(
    made: InvertedResidual,
    x: Tensor,
    error: float,
    reference: Callable[[InvertedResidual, Tensor], Tensor] | None = None,
) -> None:
    """Output, gradients and running statistics of a step, and the output of an evaluation after it."""
    exact = copy.deepcopy(made).double()
    reference = reference or InvertedResidual.__call__
    tickets = norm.tickets(DEVICE)
    assert inverted_residual.fits(made.conv)

    def run(x: Tensor) -> Tensor:
        return inverted_residual.run(made.conv, x, tickets, shortcut=made.use_res_connect)

    ours, theirs = x.clone().requires_grad_(), x.double().requires_grad_()
    out, expected = run(ours), reference(exact, theirs)
    assert out.dtype == x.dtype
    gradient = random(tuple(out.shape), 9).to(x.dtype)
    out.backward(gradient)
    expected.backward(gradient.double())
    assert_close(out, expected, error, "output")
    assert_close(ours.grad, theirs.grad, error, "gradient")
    for (name, mine), other in zip(made.named_parameters(), exact.parameters(), strict=True):
        assert_close(mine.grad, other.grad, error, name, rounding(exact))
        assert mine.grad is not None
        assert mine.grad.dtype == torch.float32
    for (name, mine), other in zip(made.named_buffers(), exact.buffers(), strict=True):
        if "running" in name:
            assert_close(mine, other, error, name)
    assert not tickets.any(), "the next kernel takes them from 0"
    made.eval()
    exact.eval()
    with torch.inference_mode():
        assert_close(run(x), reference(exact, x.double()), error, "evaluation")


@pytest.mark.parametrize(
    ("channels", "outputs", "expansion", "stride", "size", "images"),
    [
        (32, 16, 1, 1, 8, 2),
        (24, 24, 1, 1, 4, 3),
        (16, 24, 6, 1, 8, 1),
        (16, 16, 6, 1, 7, 2),
        (24, 32, 6, 2, 4, 2),
        (16, 24, 6, 2, 7, 2),
        (16, 16, 6, 1, 1, 37),
        (16, 24, 6, 2, 2, 9),
        pytest.param(24, 32, 6, 2, 8, 3, marks=SLOW),
        pytest.param(24, 24, 6, 1, 7, 3, marks=SLOW),
        pytest.param(32, 32, 6, 1, 4, 5, marks=SLOW),
        pytest.param(32, 32, 6, 1, 2, 5, marks=SLOW),
        pytest.param(16, 16, 6, 1, 16, 4, marks=SLOW),
        pytest.param(64, 96, 6, 1, 8, 5, marks=SLOW),
        pytest.param(96, 160, 6, 2, 8, 5, marks=SLOW),
        pytest.param(160, 320, 6, 1, 4, 5, marks=SLOW),
        pytest.param(24, 24, 6, 1, 32, 2, marks=SLOW),
        pytest.param(32, 64, 6, 2, 16, 3, marks=SLOW),
    ],
)
@pytest.mark.usefixtures("poisoned")
def test_a_block_in_fp32(
    channels: int, outputs: int, expansion: int, stride: int, size: int, images: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (depthwise, pointwise):
        monkeypatch.setattr(module, "SHARES", 3)  # so that programs have more than one tile
    if channels == 16:  # few rows are as many as those of large maps
        monkeypatch.setattr(pointwise, "FEWEST", 2)
        monkeypatch.setattr(pointwise, "_worth", lambda *_: 2)
    x = random((images, channels, size, size), 1, 0.5)
    check_block(block(channels, outputs, stride, expansion, x), x, 5e-6)


@pytest.mark.parametrize("off", [frozenset[str](), frozenset({"inverted_residual"})], ids=["whole", "by layer"])
def test_blocks_in_a_network(off: frozenset[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """As one function or layer by layer, they compute what they did; products in fp32, which the interpreter can do."""
    monkeypatch.setattr(gpu_layers, "_by_kernel", lambda _: True)
    x = random((2, 8, 4, 4), 1, 0.5)
    plain = nn.Sequential(block(8, 8, 1, 6, x), block(8, 16, 2, 6, x))
    fast = copy.deepcopy(plain)
    exact = copy.deepcopy(plain)
    gpu.speed_up(exact, "tf32", off)
    together = gpu.speed_up(fast, "bf16", off)
    assert [module.whole for module in (*fast.children(), *exact.children())] == [not off] * 2 + [False] * 2
    for module in fast.modules():
        module.half_weight = None  # type: ignore[assignment]
    ours, theirs = fast(x), plain(x)
    assert_close(ours, theirs, 5e-6, "output")
    for out in (ours, theirs):
        out.backward(random(tuple(out.shape), 3))
    together.after_backward()
    for (name, mine), (other_name, other) in zip(fast.named_parameters(), plain.named_parameters(), strict=True):
        assert name == other_name
        assert_close(mine.grad, other.grad, 1e-5, name, rounding(plain))
    for (name, mine), other in zip(fast.named_buffers(), plain.buffers(), strict=True):
        assert_close(mine, other, 5e-6, name)


BF16_ERROR = 5e-3 if DEVICE.type == "cpu" else 2e-2  # a GPU adds up in another order: some roundings differ


@pytest.mark.parametrize(
    ("channels", "outputs", "expansion", "stride", "size", "images"),
    [
        (8, 8, 6, 1, 4, 8),
        (8, 16, 6, 2, 7, 3),
        (16, 16, 1, 1, 4, 8),
        *(
            pytest.param(*shape, images, marks=pytest.mark.gpu)
            for shape in ((32, 16, 1, 1, 32), (16, 24, 6, 1, 32), (24, 24, 6, 1, 32), (24, 32, 6, 2, 32),
                          (32, 64, 6, 2, 16), (96, 96, 6, 1, 8), (160, 320, 6, 1, 4))
            for images in (128, 80)
        ),
    ],
)  # fmt: skip
@pytest.mark.usefixtures("poisoned", "products_of_bfloat16")
def test_a_block_in_bf16(channels: int, outputs: int, expansion: int, stride: int, size: int, images: int) -> None:
    """Beside what the same roundings make of it: without them, a tenth of a gradient is what ReLU6 let through."""
    x = random((images, channels, size, size), 1, 0.5).to(torch.bfloat16)
    check_block(block(channels, outputs, stride, expansion, x), x, BF16_ERROR, as_stored)
