"""The CPU's own layers compute what torch's compute."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from search_spaces import pool
from trainer import network
from trainer.device import cpu


@pytest.mark.parametrize("size", [1, 2, 3, 4])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kernel", [1, 3, 5])
def test_depthwise(size: int, stride: int, kernel: int) -> None:
    torch.manual_seed(0)
    theirs = nn.Conv2d(6, 6, kernel, stride, kernel // 2, groups=6, bias=False)
    check_same(theirs, cpu.DepthwiseConv2d, torch.randn(4, 6, size, size))


@pytest.mark.parametrize("channels", [3, 6, 10])
@pytest.mark.parametrize("shape", [(4, 6, 1, 1), (3, 6, 2, 2), (2, 6, 1, 3), (1, 6, 4, 4)], ids=str)
def test_pointwise(shape: tuple[int, ...], channels: int) -> None:
    torch.manual_seed(0)
    check_same(nn.Conv2d(6, channels, 1, bias=False), cpu.PointwiseConv2d, torch.randn(shape))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(4, 6, 2, 2), (3, 6, 3, 2), (2, 6, 1, 1), (2, 6, 4, 4)], ids=str)
def test_small_map(shape: tuple[int, ...], bias: bool) -> None:
    torch.manual_seed(0)
    check_same(nn.Conv2d(6, 10, 3, padding=1, bias=bias), cpu.SmallMapConv2d, torch.randn(shape))


def test_small_map_under_autocast() -> None:
    torch.manual_seed(0)
    theirs = nn.Conv2d(64, 64, 3, padding=1)
    ours = copy.deepcopy(theirs)
    cpu.speed_up(ours)
    results = []
    for conv in (theirs, ours):
        x = torch.randn(8, 64, 2, 2, generator=torch.Generator().manual_seed(1)).requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            out = conv(x)
        assert out.dtype == torch.bfloat16
        out.float().square().sum().backward()
        results.append((out.detach().float(), x.grad, *(parameter.grad for parameter in conv.parameters())))
    for mine, torchs in zip(results[1], results[0], strict=True):
        torch.testing.assert_close(mine, torchs, rtol=0.03, atol=0.03 * float(torchs.abs().max()))


def check_same(theirs: nn.Conv2d, kind: type, x: torch.Tensor) -> None:
    ours = nn.Sequential(type(theirs)(1, 1, 1))
    ours[0] = sped_up(theirs)
    assert type(ours[0]) is kind
    results = []
    for module in (theirs, ours):
        for layout in (torch.contiguous_format, torch.channels_last):
            inputs = x.clone().to(memory_format=layout).requires_grad_()
            module.zero_grad()
            out = module(inputs)
            (out * torch.linspace(-1, 1, out.numel()).view_as(out)).sum().backward()
            gradient = next(iter(module.parameters())).grad
            assert gradient is not None
            results.append((out.detach(), inputs.grad, gradient.clone()))
    for result in results[1:]:
        for mine, reference in zip(result, results[0], strict=True):
            torch.testing.assert_close(mine, reference, rtol=1e-5, atol=1e-5)


def sped_up(conv: nn.Conv2d) -> nn.Module:
    holder = nn.Sequential(copy.deepcopy(conv))
    cpu.speed_up(holder)
    return holder[0]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("size", [1, 4])
def test_batch_norm_and_relu6(size: int, training: bool) -> None:
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(5)
    nn.init.uniform_(norm.weight, 1, 8)  # so that both ends of the clamp are reached
    theirs = nn.Sequential(norm, nn.ReLU6())
    ours = copy.deepcopy(theirs)
    cpu.speed_up(ours)
    assert [type(module) for module in ours] == [cpu.BatchNormReLU6, nn.Identity]
    x = torch.randn(8, 5, size, size)
    results = []
    for module in (theirs.train(training), ours.train(training)):
        inputs = x.clone().requires_grad_()
        out = module(inputs)
        (out * torch.linspace(-1, 1, out.numel()).view_as(out)).sum().backward()
        gradients = [parameter.grad for parameter in module.parameters()]
        results.append([out, inputs.grad, *gradients, *module.state_dict().values()])
    for mine, reference in zip(*reversed(results), strict=True):
        torch.testing.assert_close(mine, reference, rtol=1e-5, atol=1e-5)


NETWORKS = ["mobilenetv2", "mobilenetv2_s32", "vgg16bn", "resnet20"]


@pytest.mark.parametrize("arch", NETWORKS)
def test_a_network_keeps_its_parameters_its_function_and_its_gradients(arch: str) -> None:
    torch.manual_seed(0)
    plain, fast = (network.build(pool.expand("gap")[0], arch, 10, seed=1).double() for _ in range(2))
    cpu.speed_up(fast.features)
    assert list(plain.state_dict()) == list(fast.state_dict())
    x = torch.randn(8, 3, 32, 32, dtype=torch.float64)
    outputs = []
    for net in (plain, fast):
        net.head.eval()  # or dropout would draw other masks for each
        outputs.append(net(x))
        F.cross_entropy(outputs[-1], torch.arange(8)).backward()
    torch.testing.assert_close(*outputs)
    for (name, mine), reference in zip(fast.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, reference.grad, rtol=1e-6, atol=1e-9, msg=name)


def test_it_does_change_mobilenetv2() -> None:
    fast = network.build(pool.expand("gap")[0], "mobilenetv2_s32", 10, seed=1)
    cpu.speed_up(fast.features)
    kinds = [type(module) for module in fast.modules()]
    assert kinds.count(cpu.DepthwiseConv2d) == 17
    assert kinds.count(cpu.PointwiseConv2d) == 34
    assert kinds.count(cpu.BatchNormReLU6) == 35


def test_bf16_autocast_goes_through() -> None:
    fast = network.build(pool.expand("gap")[0], "mobilenetv2_s32", 10, seed=1)
    cpu.speed_up(fast.features)
    with torch.autocast("cpu", torch.bfloat16):
        fast(torch.randn(4, 3, 32, 32)).float().sum().backward()
    assert all(parameter.grad is not None for parameter in fast.parameters())


def test_evaluation_is_torchs() -> None:
    theirs = network.build(pool.expand("gap")[0], "mobilenetv2_s32", 10, seed=1).features.eval()
    ours = copy.deepcopy(theirs)
    cpu.speed_up(ours)
    images = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))

    def same() -> None:
        with torch.inference_mode():
            torch.testing.assert_close(ours.eval()(images), theirs.eval()(images), rtol=1e-4, atol=1e-5)

    same()
    for module in (theirs, ours):  # a batch moves the running statistics
        with torch.no_grad():
            module.train()(images)
    same()
    with torch.no_grad():  # a step moves the weights
        for mine, torchs in zip(ours.parameters(), theirs.parameters(), strict=True):
            change = 0.01 * torch.randn(torchs.shape, generator=torch.Generator().manual_seed(1))
            mine.add_(change)
            torchs.add_(change)
    same()
