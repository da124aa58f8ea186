"""Chains of ResNet's basic blocks beside torchvision's own in float64; interpreted where there is no GPU."""

from __future__ import annotations

import copy
import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock

from search_spaces import pool
from trainer import network
from trainer.device import gpu, gpu_layers

pytest.importorskip("triton")
from triton import language as tl
from triton.runtime import interpreter

from trainer.device.kernels import basic_block, convolution, norm, sgd

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
RESNET = [(16, 32), (32, 16), (64, 8)]  # channels and sizes of maps in a ResNet for 32x32 images
KINDS = {torch.float32: 2e-5, torch.bfloat16: 8e-3}  # and the error that their rounding makes


@pytest.fixture(autouse=True)
def _poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """New memory holds NaN: whoever reads what no kernel wrote gives it away."""
    for owner, name in ((torch, "empty"), (torch, "empty_like"), (Tensor, "new_empty")):
        make = getattr(owner, name)

        @functools.wraps(make)
        def poisoned(*arguments: Any, make: Callable[..., Tensor] = make, **options: Any) -> Tensor:
            made = make(*arguments, **options)
            return made.fill_(torch.nan) if made.is_floating_point() else made

        monkeypatch.setattr(owner, name, poisoned)


@pytest.fixture(autouse=True)
def _bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have Triton's interpreter round to bfloat16 as a GPU does, and multiply its values and not its bits."""
    cast_as_it_is = interpreter.InterpreterBuilder.cast_impl

    def value(handle: Any) -> np.ndarray:
        return torch.from_numpy(handle.data).view(torch.bfloat16).float().numpy()

    def cast_impl(self: Any, source: Any, kind: Any) -> Any:
        if (source.dtype.scalar, kind.scalar) == (tl.bfloat16, tl.float32):
            return interpreter.TensorHandle(value(source), tl.float32)
        if (source.dtype.scalar, kind.scalar) == (tl.float32, tl.bfloat16):
            rounded = torch.from_numpy(np.ascontiguousarray(source.data)).to(torch.bfloat16).view(torch.uint16)
            return interpreter.TensorHandle(rounded.numpy(), tl.bfloat16)
        return cast_as_it_is(self, source, kind)

    def create_dot(self: Any, a: Any, b: Any, total: Any, *_: Any) -> Any:
        left, right = (value(each) if each.dtype.scalar == tl.bfloat16 else each.data for each in (a, b))
        return interpreter.TensorHandle(left @ right + total.data, tl.float32)

    monkeypatch.setattr(interpreter.InterpreterBuilder, "cast_impl", cast_impl)
    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_dot", create_dot)


def random(shape: Sequence[int], seed: int) -> Tensor:
    """Normal; a map is channels-last."""
    values = torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE)
    return values.to(memory_format=torch.channels_last) if len(shape) == 4 else values


def stored(value: Tensor, kind: torch.dtype) -> Tensor:
    """As it is read again; differentiated as the value itself."""
    return value + (value.to(kind).double() - value).detach()


def blocks_of(channels: int, count: int, kind: torch.dtype) -> nn.Sequential:
    """With random norms, and halves if the maps are."""
    blocks = nn.Sequential(*(BasicBlock(channels, channels) for _ in range(count)))
    network.initialise(blocks)
    seeds = itertools.count(10)
    for layer in blocks.modules():
        if isinstance(layer, nn.BatchNorm2d):
            for tensor in (layer.weight, layer.bias, cast(Tensor, layer.running_mean)):
                tensor.data.copy_(random((channels,), next(seeds)))
            cast(Tensor, layer.running_var).copy_(random((channels,), next(seeds)).square() + 0.5)
    blocks = blocks.to(DEVICE).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    for layer in blocks.modules():
        if isinstance(layer, nn.Conv2d):
            layer.weight.data.copy_(random(layer.weight.shape, next(seeds)) / (3 * channels**0.5))
            if kind == torch.bfloat16:
                layer.half_weight = layer.weight.detach().to(kind)  # type: ignore[assignment]
    return blocks


def reference(blocks: nn.Sequential, x: Tensor, kind: torch.dtype) -> Tensor:
    """The blocks' layers in float64, with what goes from one kernel to another as the maps are stored."""
    keep = functools.partial(stored, kind=kind) if blocks.training else lambda value: value
    x = x.double()
    for block in cast(list[BasicBlock], list(blocks)):
        weights = [stored(conv.weight, kind) for conv in (block.conv1, block.conv2)]
        inner = stored(F.relu(block.bn1(keep(F.conv2d(x, weights[0], padding=1)))), kind)
        x = stored(F.relu(block.bn2(keep(F.conv2d(inner, weights[1], padding=1))) + x), kind)
    return x


def assert_close(found: Tensor | None, expected: Tensor | None, error: float, what: str) -> None:
    """To a relative error, over all elements."""
    assert found is not None, what
    assert expected is not None, what
    distance = torch.linalg.norm(found.double() - expected) / torch.linalg.norm(expected)
    assert distance <= error, (what, float(distance))


def check_chain(channels: int, size: int, batch: int, count: int, kind: torch.dtype) -> None:
    """Outputs, gradients, statistics, and evaluation with those."""
    error = KINDS[kind]
    ours = blocks_of(channels, count, kind)
    theirs = copy.deepcopy(ours).double()
    tickets = norm.tickets(DEVICE)
    x, gradient = (random((batch, channels, size, size), seed).to(kind) for seed in (5, 6))
    mine, its = x.clone().requires_grad_(), x.double().requires_grad_()
    out, expected = basic_block.chain(list(ours), mine, tickets), reference(theirs, its, kind)  # type: ignore[arg-type]
    out.backward(gradient)
    expected.backward(gradient.double())
    assert (out.dtype, mine.grad.dtype) == (kind, kind)  # type: ignore[union-attr]
    assert_close(out, expected, error, "output")
    assert_close(mine.grad, its.grad, error, "gradient of x")
    for (name, parameter), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        assert_close(parameter.grad, other.grad, error, name)
    for (name, buffer), other in zip(ours.named_buffers(), theirs.buffers(), strict=True):
        if buffer.is_floating_point():
            assert_close(buffer, other, error, name)
    assert not tickets.any(), "the next kernel takes them from 0"
    with torch.inference_mode():
        found = basic_block.chain(list(ours.eval()), x, tickets)  # type: ignore[arg-type]
        assert_close(found, reference(theirs.eval(), x, kind), error, "evaluation")


@pytest.mark.parametrize(
    ("channels", "size", "batch", "count"), [(16, 7, 13, 2), (32, 7, 3, 3), (64, 4, 6, 1)], ids=str
)
def test_a_chain_computes_what_its_blocks_do(
    channels: int, size: int, batch: int, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By so few programs that one has several tiles even of a map that is small enough to be interpreted."""
    monkeypatch.setattr(basic_block, "PROGRAMS", 2)
    monkeypatch.setattr(convolution, "SPLITS", dict.fromkeys(convolution.CHANNELS, 2 if count > 1 else 1))
    check_chain(channels, size, batch, count, torch.float32)


@pytest.mark.parametrize(("channels", "size"), RESNET)
def test_a_block_of_a_resnet(channels: int, size: int) -> None:
    """In bfloat16. Of more than one, whatever rounds otherwise decides what a ReLU lets through: 5 % after three."""
    check_chain(channels, size, 1, 1, torch.bfloat16)


@pytest.mark.gpu  # interpreted it takes half an hour; smaller batches are tested above
@pytest.mark.parametrize(("channels", "size"), RESNET)
@pytest.mark.parametrize("batch", [128, 80])
def test_a_chain_at_the_size_of_a_step(channels: int, size: int, batch: int) -> None:
    check_chain(channels, size, batch, 1, torch.float32)


def test_a_chain_hands_in_the_gradients_of_its_convolutions() -> None:
    plain = blocks_of(16, 1, torch.float32)
    handing = copy.deepcopy(plain)
    weights = [layer.weight for layer in handing.modules() if isinstance(layer, nn.Conv2d)]
    for weight in weights:
        sgd.take_parts(weight)
    for blocks in (plain, handing):
        out = basic_block.chain(list(blocks), random((4, 16, 5, 5), 1), norm.tickets(DEVICE))  # type: ignore[arg-type]
        out.backward(random(out.shape, 2))
    expected = [layer.weight.grad for layer in plain.modules() if isinstance(layer, nn.Conv2d)]
    for weight, gradient in zip(weights, expected, strict=True):
        assert weight.grad is None
        assert len(weight.parts) > 1  # type: ignore[attr-defined]
        found = weight.parts.sum(0).permute(0, 2, 1).reshape(weight.shape)  # type: ignore[attr-defined]
        assert_close(found, gradient.double(), 1e-6, "sum of the parts")  # type: ignore[union-attr]


def test_a_chain_masks_to_the_bit() -> None:
    """The gradient that enters a chain is stored as it came, or as zero, and its sums are those of what is stored."""
    out, y, gradient = (random((5, 16, 9, 9), seed).to(torch.bfloat16) for seed in (1, 2, 3))
    out = out.clamp(min=0)
    masked, affine = torch.empty_like(out), torch.empty(2, 16, device=DEVICE)
    saved = torch.stack([y.float().mean((0, 2, 3)), y.float().var((0, 2, 3)).rsqrt()])
    sums = basic_block._Sums(out, norm.tickets(DEVICE))
    basic_block._enter[sums.grid](
        gradient,
        out,
        masked,
        y,
        saved,
        affine,
        *sums.place,
        sums.pixels,
        CHANNELS=16,
        ROWS=256,
        num_warps=8,  # pyright: ignore[reportCallIssue]
    )
    expected = torch.where(out > 0, gradient, 0).double()
    assert torch.equal(masked.double(), expected)
    normalised = (y.double() - saved[0].double()[:, None, None]) * saved[1].double()[:, None, None]
    assert_close(affine[0], (expected * normalised).sum((0, 2, 3)), 1e-5, "gradient of the weight")
    assert_close(affine[1], expected.sum((0, 2, 3)), 1e-5, "gradient of the bias")


def test_a_network_with_chains_computes_what_it_did(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = network.build(pool.expand("gap")[0], "resnet20", 10, 1).to(DEVICE)
    plain = plain.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    fast = copy.deepcopy(plain)
    after_backward = gpu.speed_up(fast.features, "tf32").after_backward
    gpu._join(fast.features, {"basic_block"})
    monkeypatch.setattr(gpu_layers, "_by_kernel", lambda _: True)
    lengths, chain = list[int](), basic_block.chain
    monkeypatch.setattr(
        basic_block, "chain", lambda blocks, *rest: [lengths.append(len(blocks)), chain(blocks, *rest)][1]
    )
    images, labels = random((3, 3, 8, 8), 1), torch.arange(3, device=DEVICE)
    losses = [F.cross_entropy(net(images), labels) for net in (plain, fast)]
    for loss in losses:
        loss.backward()
    after_backward()
    assert lengths == [3, 2, 2], "all but the blocks whose shortcut is a projection"
    assert_close(losses[1].detach(), losses[0].detach().double(), 1e-2 if DEVICE.type == "cuda" else 1e-5, "loss")
    for (name, ours), theirs in zip(fast.named_parameters(), plain.named_parameters(), strict=True):
        assert name == theirs[0]
        if DEVICE.type == "cpu":
            assert_close(ours.grad, theirs[1].grad.double(), 1e-3, name)  # type: ignore[union-attr]
    for (name, ours), (_, theirs) in zip(fast.named_buffers(), plain.named_buffers(), strict=True):
        assert_close(ours, theirs.double(), 1e-2 if DEVICE.type == "cuda" else 1e-5, name)
    with torch.no_grad():
        logits = fast.eval()(images), plain.eval()(images).double()
    assert_close(*logits, 5e-2 if DEVICE.type == "cuda" else 1e-5, "logits")
