"""The conformance suite: every pool of the shelf, and what its formula says."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn

from trainer import pool
from trainer.arch import ARCHS

MAPS = sorted({arch.feature_map for arch in ARCHS.values()} | {(6, 1, 3), (5, 7, 5), (3, 2, 2)})
INPUTS = ("random", "constant", "zero", "large")


def build(spec: str, channels: int) -> nn.Module:
    return pool.build(pool.expand(spec)[0], channels)


def maps(kind: str, shape: tuple[int, ...]) -> Tensor:
    random = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    return {"random": random, "constant": torch.full(shape, 0.7), "zero": torch.zeros(shape), "large": 1e3 * random}[
        kind
    ]


@pytest.mark.parametrize("autocast", [False, True], ids=["fp32", "bf16"])
@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("shape", MAPS, ids=str)
@pytest.mark.parametrize("kind", INPUTS)
@pytest.mark.parametrize("name", pool.names())
def test_shape_and_finite_values_and_gradients(
    name: str, kind: str, shape: tuple[int, int, int], batch: int, autocast: bool
) -> None:
    module = build(name, shape[0]).train()
    x = maps(kind, (batch, *shape)).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        out = module(x.bfloat16() if autocast else x)
    assert out.shape == (batch, shape[0])
    assert out.isfinite().all()
    out.float().sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()
    for parameter in module.parameters():
        assert parameter.grad is not None
        assert parameter.grad.isfinite().all()


@pytest.mark.parametrize("name", pool.names())
class TestEveryPool:
    def test_samples_do_not_see_each_other_in_eval(self, name: str) -> None:
        module = build(name, 8).eval()
        x = maps("random", (4, 8, 5, 5))
        together, alone = module(x), torch.cat([module(x[i : i + 1]) for i in range(4)])
        torch.testing.assert_close(together, alone)

    def test_memory_layout_does_not_matter(self, name: str) -> None:
        module = build(name, 8).eval()
        x = maps("random", (2, 8, 6, 6))
        torch.testing.assert_close(module(x), module(x.to(memory_format=torch.channels_last)))

    def test_state_dict_pickle_and_copy(self, name: str) -> None:
        module = build(name, 8).eval()
        for parameter in module.parameters():
            nn.init.uniform_(parameter, 1.5, 2.5)
        fresh = build(name, 8).eval()
        fresh.load_state_dict(module.state_dict())
        x = maps("random", (2, 8, 4, 4))
        for other in (fresh, pickle.loads(pickle.dumps(module)), copy.deepcopy(module)):
            assert torch.equal(other(x), module(x))

    def test_the_input_is_left_alone(self, name: str) -> None:
        x = maps("random", (2, 8, 4, 4))
        before = x.clone()
        build(name, 8)(x)
        assert torch.equal(x, before)


POSITIVE = torch.rand(3, 4, 5, 6, generator=torch.Generator().manual_seed(1)) + 0.1


def test_formulas() -> None:
    """Each against a definition of a line or two, in float64."""
    x = POSITIVE.double()
    flat = x.flatten(2)
    wanted = {
        "gap": flat.sum(2) / 30,
        "global_max": flat.sort(2).values[:, :, -1],
        "avg_max": 0.5 * (flat.sum(2) / 30 + flat.sort(2).values[:, :, -1]),
        "avg_max(weight=0.2)": 0.8 * flat.sum(2) / 30 + 0.2 * flat.sort(2).values[:, :, -1],
        "gem": ((flat**3).sum(2) / 30) ** (1 / 3),
        "gem(p=5)": ((flat**5).sum(2) / 30) ** (1 / 5),
    }
    for spec, value in wanted.items():
        torch.testing.assert_close(build(spec, 4)(POSITIVE).double(), value, rtol=1e-5, atol=1e-6, msg=spec)


def test_limits() -> None:
    gap, largest = build("gap", 4)(POSITIVE), build("global_max", 4)(POSITIVE)
    torch.testing.assert_close(build("gem(p=1)", 4)(POSITIVE), gap)
    torch.testing.assert_close(build("gem(p=200)", 4)(POSITIVE), largest, rtol=0.02, atol=0)
    torch.testing.assert_close(build("avg_max(weight=0)", 4)(POSITIVE), gap)
    torch.testing.assert_close(build("avg_max(weight=1)", 4)(POSITIVE), largest)


def test_gem_learns_its_exponent_from_where_it_is_told() -> None:
    module = build("gem(p=2.5)", 4)
    assert [parameter.item() for parameter in module.parameters()] == [2.5]


def test_gem_takes_what_relu_never_gives() -> None:
    """Negative activations are clamped: a power of one would be NaN."""
    assert build("gem", 4)(-POSITIVE).isfinite().all()


def test_the_mean_of_ties_goes_to_all_of_them() -> None:
    x = torch.ones(1, 1, 2, 2, requires_grad=True)
    build("global_max", 1)(x).sum().backward()
    assert x.grad is not None
    assert x.grad.flatten().tolist() == [0.25] * 4
