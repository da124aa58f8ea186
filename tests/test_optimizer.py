"""SGD as one kernel beside torch's: on a GPU where there is one, else interpreted on the CPU."""

from __future__ import annotations

import copy
import types
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from search_spaces import kernels as families
from search_spaces import pool
from search_spaces.errors import RequestError
from search_spaces.trial import Trial
from trainer import network
from trainer.augment import Images
from trainer.data import Dataset
from trainer.device import gpu, gpu_layers
from trainer.device.execution import Execution
from trainer.outcome import Epoch
from trainer.randomness import Purpose, seeded
from trainer.train import Program

pytest.importorskip("triton")
from trainer.device import kernels
from trainer.device.kernels import sgd

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
RATE, MOMENTUM, DECAY = 0.1, 0.9, 5e-4
# A cast to bfloat16 rounds to 8 bits; interpreted, it cuts off what is beyond them.
HALF = 2**-8 if DEVICE.type == "cuda" else 2**-7
Random = torch.Generator


def normal(shape: tuple[int, ...], random: Random, layout: torch.memory_format = torch.contiguous_format) -> Tensor:
    values = torch.randn(shape, generator=random).to(DEVICE)
    return values.contiguous(memory_format=layout) if len(shape) == 4 else values


def trained_by(parameters: list[nn.Parameter], halves: dict[Tensor, Tensor], counts: Tensor | None = None) -> sgd.Step:
    rate = torch.tensor(RATE, device=DEVICE)
    momenta = [torch.zeros_like(parameter) for parameter in parameters]
    return sgd.Step(parameters, momenta, halves, counts, rate, MOMENTUM, DECAY)


class Case:
    """A parameter and what its gradient is like: `give` makes one, and returns it in fp64."""

    def __init__(self, shape: tuple[int, ...], kind: str, layout: torch.memory_format, random: Random):
        self._random, self._kind, self._layout = random, kind, layout
        self.parameter = nn.Parameter(normal(shape, random, layout))
        self.half: Tensor | None = None
        if kind == "half":
            self.half = self.parameter.detach().bfloat16().requires_grad_()

    def give(self) -> Tensor | None:
        shape = tuple(self.parameter.shape)
        if self._kind == "none":
            return None
        if self._kind == "parts":
            count = int(torch.randint(1, 70, (), generator=self._random))
            parts = normal((count, self.parameter.numel()), self._random)
            assert sgd.hand_in(self.parameter, parts) is None
            return parts.double().sum(0).as_strided(shape, self.parameter.stride())
        if self.half is not None:
            self.half.grad = normal(tuple(self.half.shape), self._random, self._layout).bfloat16()
            return self.half.grad.double()
        self.parameter.grad = normal(shape, self._random, self._layout)
        if self._kind == "otherwise":  # in another order in memory than the parameter
            self.parameter.grad = self.parameter.grad.transpose(0, -1).contiguous().transpose(0, -1)
        return self.parameter.grad.double()


@st.composite
def cases(draw: Callable[..., Any], random: Random) -> Case:
    sizes = st.integers(1, 12)
    if draw(st.booleans()):
        layout = draw(st.sampled_from([torch.channels_last, torch.contiguous_format]))
        side = draw(st.sampled_from([1, 3]))
        shape = draw(sizes), draw(sizes), side, side
        return Case(shape, draw(st.sampled_from(["plain", "otherwise", "half", "parts"])), layout, random)
    shape = (draw(st.one_of(sizes, st.sampled_from([1024, 1032, 3000]))),)
    return Case(shape, draw(st.sampled_from(["plain", "parts", "none"])), torch.contiguous_format, random)


@settings(max_examples=15, deadline=None)
@given(st.data())
def test_three_steps_are_torchs(data: st.DataObject) -> None:
    random = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    found = data.draw(st.lists(cases(random), min_size=1, max_size=5))
    parameters, counts = [case.parameter for case in found], torch.arange(5, device=DEVICE)
    exact = [nn.Parameter(parameter.detach().double()) for parameter in parameters]
    step = trained_by(parameters, {case.parameter: case.half for case in found if case.half is not None}, counts)
    plain = torch.optim.SGD(exact, lr=RATE, momentum=MOMENTUM, weight_decay=DECAY)
    steps = 0
    for _ in range(3):
        step.clear()
        for case, parameter in zip(found, exact, strict=True):
            case.parameter.grad = None
            parameter.grad = case.give()
        steps += any(parameter.grad is not None for parameter in exact)
        step()
        plain.step()
    for case, parameter in zip(found, exact, strict=True):
        torch.testing.assert_close(case.parameter.double(), parameter, rtol=1e-5, atol=1e-5)
        if case.half is not None:
            torch.testing.assert_close(case.half.float(), case.parameter.detach(), rtol=HALF, atol=1e-30)
    assert counts.tolist() == [count + steps for count in range(5)]


def test_a_step_is_the_same_each_time() -> None:
    results = []
    for _ in range(2):
        random = torch.Generator().manual_seed(1)
        case = Case((8, 24, 3, 3), "parts", torch.channels_last, random)
        step = trained_by([case.parameter], {})
        case.give()
        step()
        results.append(case.parameter.detach())
    assert torch.equal(*results)


def test_parts_go_to_autograd_where_no_step_takes_them() -> None:
    parameter = nn.Parameter(normal((4, 6, 3, 3), torch.Generator(), torch.channels_last))
    parts = torch.arange(2 * parameter.numel(), dtype=torch.float32, device=DEVICE).view(2, -1)
    gradient = sgd.hand_in(parameter, parts)
    assert gradient is not None
    assert gradient.stride() == parameter.stride()
    assert torch.equal(gradient.permute(0, 2, 3, 1).flatten(), parts.sum(0))
    sgd.take_parts(parameter)
    assert sgd.hand_in(parameter, parts) is None
    with pytest.raises(RuntimeError, match="twice in one step"):
        sgd.hand_in(parameter, parts)
    for wrong in (parts.double(), parts[:, 1:], parts.t(), parts[:, 1:].contiguous()):
        with pytest.raises(ValueError, match="are no parts"):
            sgd.hand_in(parameter, wrong)


def test_a_frozen_parameter_stays_as_it_is() -> None:
    random = torch.Generator().manual_seed(0)
    parameter = nn.Parameter(normal((4, 6, 3, 3), random), requires_grad=False)
    before, step = parameter.clone(), trained_by([parameter], {})
    assert sgd.hand_in(parameter, torch.ones(2, parameter.numel(), device=DEVICE)) is None
    step()
    assert torch.equal(parameter, before)


def test_tables_that_graphs_read_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    """A graph holds an address and no tensor."""
    step = trained_by([nn.Parameter(normal((4,), torch.Generator()))], {})
    monkeypatch.setattr(step, "_lr", types.SimpleNamespace(is_cuda=True))
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    rows = torch.ones(1, sgd.FIELDS, dtype=torch.int64)
    table = weakref.ref(step._table(rows))
    step.settle()
    assert table() is not None
    assert torch.equal(table().cpu(), rows)  # type: ignore[union-attr]


def test_a_parameter_that_was_put_elsewhere_is_refused() -> None:
    """The kernel writes where it is told to: what is smaller than it was would be written past its end."""
    parameter = nn.Parameter(normal((40,), torch.Generator()))
    step = trained_by([parameter], {})
    parameter.data = parameter.detach()[:10].clone()
    parameter.grad = torch.ones_like(parameter)
    with pytest.raises(RuntimeError, match="has become"):
        step()


@pytest.mark.parametrize(
    ("parameter", "fitting"),
    [
        (torch.zeros(3, 4).t(), True),
        (torch.zeros(2, 1, 1, 3).contiguous(memory_format=torch.channels_last), True),
        (torch.zeros(()), True),
        (torch.zeros(3, 4)[:, ::2], False),
        (torch.zeros(3, 1).expand(3, 4), False),
        (torch.zeros(3, dtype=torch.float64), False),
        (torch.zeros(0, 3), False),
    ],
)
def test_what_a_step_can_train(parameter: Tensor, fitting: bool) -> None:
    assert sgd.fits(parameter) == fitting


class OddPool(nn.Module):
    """A pool with a parameter in float64."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3)) * self.scale.to(x.dtype)


@pytest.fixture
def few_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Interpreted, one takes milliseconds."""
    if DEVICE.type == "cpu":
        monkeypatch.setattr(sgd, "BLOCK", 2**14)


@pytest.mark.parametrize(
    ("arch", "images", "size"),
    [
        ("resnet20", 4, 8),
        pytest.param("vgg11bn", 8, 32, marks=pytest.mark.soak),
        pytest.param("mobilenetv2", 8, 8, marks=pytest.mark.gpu),
    ],
)
@pytest.mark.parametrize("layers", [False, pytest.param(True, marks=pytest.mark.soak)])
def test_a_network_trains_as_with_torch(
    few_programs: None, arch: str, images: int, size: int, layers: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three steps, each from the same weights; with `layers`, those compute by kernels as well.

    From weights that differ in their last bit a ReLU or a max-pool of VGG's million decides otherwise in every other
    step, and one such is 2 % of a gradient here and 9 % one step later. What kernels compute may do so within a step.
    """
    monkeypatch.setattr(gpu_layers, "_by_kernel", lambda _: layers)
    plain = network.build(pool.expand("gap")[0], arch, 10, 1).to(DEVICE).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    plain.pool = OddPool().to(DEVICE)
    plain.head.eval()  # or dropout would draw other masks for each
    fast = copy.deepcopy(plain)
    optimizer = gpu.speed_up(fast.features, "fp32").optimizer(
        list(fast.parameters()), torch.tensor(1e-3, device=DEVICE), MOMENTUM, DECAY
    )
    theirs = torch.optim.SGD(plain.parameters(), lr=1e-3, momentum=MOMENTUM, weight_decay=DECAY)
    random = torch.Generator().manual_seed(0)
    for _ in range(3):
        start = copy.deepcopy(plain.state_dict())
        fast.load_state_dict(start)
        x = normal((images, 3, size, size), random, torch.channels_last)
        labels = torch.randint(10, (images,), generator=random).to(DEVICE)
        theirs.zero_grad()
        optimizer.clear()
        for each in (plain, fast):
            F.cross_entropy(each(x), labels).backward()
        theirs.step()
        optimizer.step()
        for (name, ours), expected in zip(fast.state_dict().items(), plain.state_dict().values(), strict=True):
            error, moved = (torch.linalg.norm((each - expected).double()) for each in (ours, start[name]))
            assert moved > 0, name
            assert error <= (5e-2 if layers else 1e-3) * moved, name


def test_weights_in_bfloat16_follow(few_programs: None) -> None:
    """By one kernel as by torch's optimizer and a cast; and images may come in either type."""
    random = torch.Generator().manual_seed(0)
    images = normal((4, 3, 9, 9), random, torch.channels_last)
    layers = nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 24, 3, stride=2)
    with seeded(1, Purpose.BACKBONE):
        features = network.initialise(nn.Sequential(*layers))
        built = network.Network(features, OddPool(), network.initialise(nn.Linear(24, 10))).to(DEVICE)
    nets = []
    for off in (frozenset[str](), frozenset({"sgd"})):
        net = copy.deepcopy(built).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        together = gpu.speed_up(net.features, "bf16", off, net.head)
        parameters = list(net.parameters())
        optimizer = together.optimizer(parameters, torch.tensor(0.01, device=DEVICE), MOMENTUM, DECAY)
        with torch.autocast(DEVICE.type, torch.bfloat16):
            assert torch.equal(net(images), net(images.bfloat16()))
            for _ in range(2):
                optimizer.clear()
                net(images).float().square().mean().backward()
                optimizer.step()
        nets.append(net)
    for (name, ours), theirs in zip(nets[0].named_parameters(), nets[1].parameters(), strict=True):
        moved = torch.linalg.norm(theirs - built.get_parameter(name))
        assert torch.linalg.norm(ours - theirs) <= 0.05 * moved, name
    stem = nets[0].features[0]
    half = stem.half_weight
    torch.testing.assert_close(half.float(), stem.weight.detach(), rtol=HALF, atol=1e-30)
    for name in ("weight", "bias"):
        copied, whole = getattr(nets[0].head, f"half_{name}"), getattr(nets[0].head, name)
        torch.testing.assert_close(copied.float(), whole.detach(), rtol=HALF, atol=1e-30)
    with torch.no_grad():
        nets[1].features[0].weight.fill_(3.0)  # as a checkpoint does
    optimizer.follow()
    assert (nets[1].features[0].half_weight == 3).all()


def test_a_program_trains_by_kernels_as_without_them(
    few_programs: None, make_trial: Callable[..., Trial], digits: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An epoch of two steps."""

    def place(execution: Execution, network: network.Network, precision: str, *_: object, **__: object) -> object:
        network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        execution._together = gpu.speed_up(network.features, precision, kernels.off(), network.head)
        return network

    trial = make_trial("gem", epochs=1, batch_size=2, train_samples=4, test_samples=2, lr=1e-3)
    images = Images(digits, torch.device("cpu"))
    plain = Program(trial, images)
    expected = finished(plain.run(1))
    monkeypatch.setattr(Execution, "place", place)
    monkeypatch.setattr(gpu_layers, "_by_kernel", lambda _: True)
    images._fast = True
    found = finished(Program(trial, images).run(1))
    assert found.train_loss == pytest.approx(expected.train_loss, rel=1e-3)
    assert found.test_loss == pytest.approx(expected.test_loss, rel=1e-3)


def finished(turns: Iterator[None]) -> Epoch:
    """What an epoch has come to."""
    while True:
        try:
            next(turns)
        except StopIteration as end:
            return end.value


def test_families_are_switched_off_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(families.SWITCH, raising=False)
    assert kernels.off() == frozenset()
    assert families.used(kernels.off()) == str(families.VERSION)
    monkeypatch.setenv(families.SWITCH, "sgd, norm,")
    assert kernels.off() == {"norm", "sgd"}
    assert families.used(kernels.off()) == f"{families.VERSION} without norm, sgd"
    assert families.used(kernels.off(), compiled=True) == "torch.compile"
    monkeypatch.setenv(families.SWITCH, "norms")
    with pytest.raises(RequestError, match="did you mean 'norm'"):
        kernels.off()


@pytest.mark.parametrize("off", [None, *families.FAMILIES])
def test_what_is_switched_off_is_torchs(off: str | None) -> None:
    """Each family by itself; the network is the same function, in names and in numbers."""
    for arch in ("resnet20", "mobilenetv2"):
        plain = network.build(pool.expand("gap")[0], arch, 10, 1).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        fast = copy.deepcopy(plain)
        together = gpu.speed_up(fast.features, "tf32", frozenset({off} if off else ()))
        classes = {type(module) for module in fast.features.modules()}
        assert (gpu_layers.FusedBatchNorm2d in classes) == (off != "norm")
        assert (gpu_layers.DepthwiseConv2d in classes) == (off != "depthwise" and arch == "mobilenetv2")
        assert (gpu_layers.NarrowConv2d in classes) == (off != "convolution" and arch == "resnet20")
        optimizer = together.optimizer(list(fast.parameters()), torch.tensor(0.1), MOMENTUM, DECAY)
        assert type(optimizer) is (gpu.LibrarySgd if off == "sgd" else gpu.FusedSgd)
        assert list(fast.state_dict()) == list(plain.state_dict())
        x = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
        assert torch.equal(fast(x), plain(x))


@pytest.mark.parametrize("arch", ["resnet20", "mobilenetv2"])
def test_evaluation_keeps_gradients_where_they_are_wanted(arch: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By torch's functions: the kernels leave none behind in evaluation, and nobody would be told."""
    monkeypatch.setattr(gpu_layers, "_by_kernel", lambda _: True)
    net = network.build(pool.expand("gap")[0], arch, 10, 1)
    gpu.speed_up(net.features, "bf16", frozenset({"convolution", "depthwise"}))
    x = torch.randn(1, 3, 16, 16, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        net.eval().features(x).sum().backward()
    assert x.grad is not None
    assert x.grad.abs().sum() > 0
