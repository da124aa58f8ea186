"""The published candidates: their formulas, and that the gate sees of each what the published table saw."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from results.table import published
from search_spaces import pool
from search_spaces import space as spaces
from trainer import pools
from trainer.gate import Gate

Maps = np.ndarray


def entries() -> dict[str, pool.Pool]:
    """{published name: pool}"""
    return {e.pool.label: e.pool for e in spaces.load("published.yaml").grid.entries if e.role == "candidate"}


def test_they_have_the_names_under_which_they_were_published() -> None:
    space = spaces.load("published.yaml").grid
    assert [entry.pool.label for entry in space.entries if entry.role == "baseline"] == [*published.IDENTITIES]
    assert [str(pair) for pair in space.pairs if pair.hidden] == ["mobilenetv2-fmnist"]
    for column in published.columns(published.load()):
        names = {entry.name for entry in column.entries}
        if (column.arch, column.dataset) in {(pair.arch, pair.dataset) for pair in space.pairs}:
            assert entries().keys() <= names
            assert {name for name in names if name.endswith(" agent")} < entries().keys()


@pytest.mark.soak
def test_the_gate_sees_what_was_published() -> None:
    """CAP: 72.66 on ResNet-56, 1.00 on VGG-16, 94.50 on MobileNetV2, whose map cannot have one position for that."""
    found = entries()
    with Gate(list(found.values()), ["resnet56", "vgg16bn", "mobilenetv2"]) as gate:
        report = gate.report
    (refused,) = (one for one in report.validations if one.refused)
    assert (refused.pool.label, refused.arch) == ("deepseek-reasoner vanilla", "vgg16bn")
    (finding,) = (finding for finding in refused.findings if finding.refused)
    assert finding.check == "finite-output"
    assert "std(unbiased) is NaN" in finding.mend


def sigmoid(x: float | Maps) -> Maps:
    return 1 / (1 + np.exp(-np.asarray(x)))


def mean_std_max(x: Maps, a: float) -> Maps:
    if x.shape[2:] == (1, 1):
        return x[:, :, 0, 0]
    mean, largest = x.mean((2, 3)), x.max((2, 3))
    return mean + sigmoid(a) * np.sqrt(x.var((2, 3)) + 1e-6) + (1 - sigmoid(a)) * (largest - mean)


def channel_gate(x: Maps, w: Maps, t: float) -> Maps:
    gates = np.ones(x.shape[1])
    gates[: len(w)] = sigmoid(w * t)[: x.shape[1]]
    return gates * x.mean((2, 3)) + (1 - gates) * x.max((2, 3))


def channel_adaptive(x: Maps, scale: float, bias: float, first: Maps, inner: Maps, last: Maps) -> Maps:
    three = np.stack([x.mean((2, 3)), x.max((2, 3)), x.std((2, 3), ddof=1)], -1)
    score = np.maximum(three @ first.T + inner, 0) @ last.T
    gates = sigmoid(scale * score[..., 0] + bias)
    return gates * three[..., 0] + (1 - gates) * three[..., 1]


def maximum(x: Maps) -> Maps:
    return x.max((2, 3))


def gated_attention(x: Maps, k: float, b: float) -> Maps:
    weights = np.exp(x.mean(1) * np.log1p(np.exp(k)))  # [B, H, W]
    weights /= weights.sum((1, 2), keepdims=True)
    mean, variance = x.mean((2, 3)), x.var((2, 3))
    gates = sigmoid(variance / (np.abs(mean) + np.sqrt(variance) + 1e-6) + b)
    return mean + gates * ((x * weights[:, None]).sum((2, 3)) - mean)


def signed_gem_std(x: Maps, p: float, v: float) -> Maps:
    mean = x.mean((2, 3))
    if x.shape[2:] == (1, 1):
        return mean
    k, p = 0.1 * sigmoid(v), min(max(p, 1), 20)
    gem = ((np.abs(x) + 1e-6) ** p).mean((2, 3)) ** (1 / p) * np.sign(mean)
    return (1 - k) * gem + k * np.sqrt(x.var((2, 3)) + 1e-6) * np.sign(mean)


@pytest.mark.parametrize("size", [(64, 8, 8), (2050, 3, 2), (7, 1, 1)], ids=str)
@pytest.mark.parametrize(
    "formula", [mean_std_max, channel_gate, channel_adaptive, maximum, gated_attention, signed_gem_std]
)
def test_formulas(formula: Callable[..., Maps], size: tuple[int, int, int]) -> None:
    """Beside numpy in float64, at the parameters that they start with and at others."""
    (candidate,) = (found for found in entries().values() if found.name == formula.__name__)
    torch.manual_seed(0)
    module = pools.build(candidate, size[0])
    maps = torch.randn(3, *size) + 0.3
    if formula is channel_adaptive and size[1:] == (1, 1):
        assert module(maps).isnan().all()
        return
    for moved in (False, True):
        parameters = [parameter.detach() for parameter in module.parameters()]
        if moved:
            for parameter in parameters:
                parameter.add_(torch.randn_like(parameter))
        arguments = [p.double().numpy() if p.dim() else p.double().item() for p in parameters]
        expected = formula(maps.double().numpy(), *arguments)
        torch.testing.assert_close(module(maps).detach().double(), torch.from_numpy(expected), rtol=1e-4, atol=1e-5)


def test_what_they_start_from() -> None:
    starts = {
        "mean_std_max": {"a": 0.5},
        "channel_gate": {"t": 1.0},
        "channel_adaptive": {"scale": 1.0, "bias": 0.0},
        "gated_attention": {"k": 1.0, "b": -0.5},
        "signed_gem_std": {"p": 3.0, "v": 0.0},
    }
    by_name = {found.name: found for found in entries().values()}
    for name, values in starts.items():
        module = pools.build(by_name[name], 64)
        assert {key: module.get_parameter(key).item() for key in values} == values
    assert not pools.build(by_name["channel_gate"], 64).get_parameter("w").any()
    mlp = pools.build(by_name["channel_adaptive"], 64).get_submodule("mlp")
    assert [tuple(layer.weight.shape) for layer in mlp.children() if isinstance(layer, nn.Linear)] == [(16, 3), (1, 16)]
