"""What steps launch is counted, and compiled for GPUs that are not here: with no GPU, and no kernel interpreted."""

from __future__ import annotations

import dataclasses
import importlib
import itertools
import pkgutil
import subprocess
import sys
from collections.abc import Iterator
from types import FunctionType, ModuleType
from typing import Any

import pytest
import torch

from search_spaces import machine, pool
from search_spaces.recipe import PRECISIONS
from tests import real_launches
from trainer import compat, network
from trainer.precompile import Case, apart, compiled, precompile

pytest.importorskip("triton")
from benchmarks.counts import case, total
from trainer.device import kernels, launches
from trainer.device.compiling import Compiled, compile_all

ARCHS = "resnet56", "vgg16bn", "mobilenetv2"
# Of a training step of 128 images in bf16: launches and GB. More than these is a mistake; less is to be written here.
# Layer by layer, as they were until kernels were version 2: 569 and 2.976, 151 and 1.691, 457 and 6.122 (and 3.03 more
# for a depthwise weight gradient that read its maps nine times).
MOST = {"resnet56": (239, 1.858), "vgg16bn": (104, 1.177), "mobilenetv2": (185, 3.436)}
CAPABILITIES = 80, 89, 90  # and 86 for the heaviest
Trace = dict[tuple[str, int], list[launches.Launch]]


@pytest.fixture(scope="module", autouse=True)
def _triton_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Not the user's own, and the same for all these tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_CACHE_DIR", str(tmp_path_factory.mktemp("triton")))
        yield


@pytest.fixture(scope="module")
def found() -> tuple[dict[Case, Trace], dict[str, list[tuple[str, int, int]]]]:
    """What trials launch, and what the expressions of `COSTS` do."""
    cases = [*(case(arch, "bf16") for arch in ARCHS), case("resnet56", "tf32"), case("mobilenetv2", "tf32")]
    steps, costs = apart(real_launches.traced, cases, list(COSTS))
    return dict(zip(cases, steps, strict=True)), dict(zip(COSTS, costs, strict=True))


@pytest.fixture(scope="module")
def traces(found: tuple[dict[Case, Trace], Any]) -> dict[Case, Trace]:
    return found[0]


@pytest.fixture(scope="module")
def calls(traces: dict[Case, Trace]) -> list[launches.Launch]:
    """Every Triton kernel that any step launches."""
    steps = [step for trace in traces.values() for step in trace.values()]
    return [launch for step in steps for launch in step if launch.kernel is not None]


# --- Counting ---


@pytest.mark.parametrize("arch", ARCHS)
def test_a_step_launches_no_more_and_moves_no_more(arch: str, traces: dict[Case, Trace]) -> None:
    found = total(traces[case(arch, "bf16")]["train", 128])
    assert found["launches"] <= MOST[arch][0]
    assert round(found["gb"], 3) <= MOST[arch][1]


def test_every_size_of_a_batch_is_there(traces: dict[Case, Trace]) -> None:
    last = {"resnet56": 80, "vgg16bn": 80, "mobilenetv2": 96}
    for one, trace in traces.items():
        assert list(trace) == [("train", 128), ("train", last[one.arch]), ("test", 1000)]


def test_the_trace_covers_every_kernel(calls: list[launches.Launch]) -> None:
    """Those that are launched, and those that they call."""
    written = {f"{module.__name__}.{name}" for module in _modules() for name in vars(module) if _code(module, name)}
    covered, found = set[str](), [f"{call.kernel.module}.{call.kernel.name}" for call in calls if call.kernel]
    while found:
        name = found.pop()
        if name in written - covered:
            covered.add(name)
            module, _, function = name.rpartition(".")
            source: Any = _code(sys.modules[module], function)
            known = source.__globals__
            found += [
                f"{known[word].fn.__module__}.{word}"
                for word in source.__code__.co_names
                if _is_kernel(known.get(word))
            ]
    assert covered == written


def _modules() -> list[ModuleType]:
    files = pkgutil.iter_modules(kernels.__path__, f"{kernels.__name__}.")
    return [importlib.import_module(name) for _, name, _ in files]


def _code(module: Any, name: str) -> FunctionType | None:
    """The function that a kernel was made of, if that is what the module has by this name, and made itself."""
    value = getattr(module, name)
    return value.fn if _is_kernel(value) and value.fn.__module__ == module.__name__ else None


def _is_kernel(value: Any) -> bool:
    return isinstance(getattr(value, "fn", None), FunctionType) and type(value).__module__.startswith("triton.")


MAPS, OUT, WEIGHT = 2 * 8 * 4 * 4 * 4, 2 * 16 * 4 * 4 * 4, 16 * 8 * 3 * 3 * 4  # bytes
COSTS = {
    "maps + maps": [("aten.add", 1, 2 * MAPS)],
    "maps.add_(maps + 1)": [("aten.add", 1, 2 * MAPS), ("aten.add_", 1, 3 * MAPS)],
    "maps.copy_(maps.to(half))": [("aten._to_copy", 1, MAPS * 3 // 2), ("aten.copy_", 1, MAPS * 3 // 2)],
    "maps.zero_()": [("aten.zero_", 1, MAPS)],
    "maps.view(2, 128).t()[3].expand(5, 2), new(1000), torch.empty_like(maps)": [],
    "new(3, 1).expand(3, 100) + 1": [("aten.add", 1, 12 + 1200)],
    "new(10_000, 8).index_select(0, new(5, dtype=long))": [("aten.index_select", 1, 2 * 5 * 8 * 4 + 5 * 8)],
    "F.conv2d(maps, weight, padding=1)": [("aten.convolution", 1, MAPS + WEIGHT + OUT)],
    "backward(new(2, 16, 4, 4), maps, weight, [16], [1, 1], [1, 1], [1, 1], False, [0, 0], 1, [True, True, True])": [
        ("aten.convolution_backward", 3, 3 * OUT + 2 * WEIGHT + 2 * MAPS + 16 * 4)
    ],
    "backward(new(2, 16, 4, 4), maps, weight, [0], [1, 1], [1, 1], [1, 1], False, [0, 0], 1, [False, True, False])": [
        ("aten.convolution_backward", 1, OUT + WEIGHT + MAPS)
    ],
    "torch._foreach_copy_([new(8)] * 65, [new(8, dtype=half)] * 65)": [("aten._foreach_copy_", 2, 8 * 4 + 8 * 2)],
}


def test_what_torchs_operators_cost(found: tuple[Any, dict[str, list[tuple[str, int, int]]]]) -> None:
    assert found[1] == COSTS


@pytest.mark.parametrize(
    ("sizes", "lists", "kernels"),
    [([8] * 48, 3, 1), ([8] * 49, 3, 2), ([320 * 65536], 1, 1), ([320 * 65536 + 1], 1, 2), ([], 2, 0), ([0, 5], 2, 1)],
)
def test_how_torch_splits_lists(sizes: list[int], lists: int, kernels: int) -> None:
    assert launches._splits(sizes, lists) == kernels


class _Scaled(torch.autograd.Function):
    """A function with an argument that is no tensor, one that needs no gradient, and a gradient in another kind."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, factor: float, shift: torch.Tensor) -> torch.Tensor:
        ctx.factor = factor
        return x * factor + shift

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return gradient * ctx.factor, None, None


@pytest.mark.parametrize("arch", ["resnet20", "mobilenetv2_s32"])
def test_backward_without_a_gpu_is_that_of_autograd(arch: str) -> None:
    net = network.build(pool.expand("gem")[0], arch, 10, 1)
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0)).to(memory_format=torch.channels_last)
    found = []
    for backward in (torch.Tensor.backward, compat._backward):
        logits = _Scaled.apply(net(images), 0.5, torch.ones(10))
        backward((logits.double() * torch.arange(10)).sum() + logits.square().mean())
        found.append([parameter.grad for parameter in net.parameters()])
        net.zero_grad()
    for theirs, ours in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_without_a_part_of_torch_there_is_no_trace_and_it_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("torch._C._ConvBackend.Cudnn")
    with pytest.raises(RuntimeError, match=r"takes torch\._C\._ConvBackend\.Cudnn"), compat.training_on_fake_gpu():
        pass


# --- Compiling ---


@pytest.fixture(scope="module")
def heaviest(calls: list[launches.Launch]) -> list[launches.Kernel]:
    """Of each file of kernels the launch that moves most."""
    most: dict[str, launches.Launch] = {}
    for call in calls:
        assert call.kernel is not None
        most[call.kernel.module] = max(call, most.get(call.kernel.module, call), key=lambda one: one.bytes)
    return [call.kernel for call in most.values() if call.kernel]


def test_the_heaviest_kernels_compile_and_are_then_in_the_cache(heaviest: list[launches.Kernel]) -> None:
    wrong = dataclasses.replace(heaviest[0], options=(*heaviest[0].options, ("num_warps", 3)))
    deadly = launches.Kernel("tests.real_launches", "Dies", (), ())
    everything = apart(compile_all, [deadly, wrong, *heaviest], 86, 2, True)
    errors = {one.kernel: one.error for one in everything if one.error}
    assert errors == {deadly: "the process that runs it has ended: exit code 3", wrong: errors[wrong]}
    assert "power of 2" in errors[wrong]
    new = [one for one in everything if not one.error]
    assert sorted(map(str, heaviest)) == sorted(str(one.kernel) for one in new)
    assert [(str(one.kernel), one.problem) for one in new if one.problem] == []
    assert not any(one.cached for one in new)
    assert all(one.registers and one.registers <= 255 for one in new)
    again = apart(compile_all, heaviest, 86, 2, True)
    assert [one for one in again if not one.cached] == []
    assert {one.key for one in again} == {one.key for one in new}


def test_kernels_read_no_global_values() -> None:
    """Triton's key of one depends on whether a function that it calls, and that reads such, was hashed before it."""
    for module in _modules():
        for source in filter(None, (_code(module, name) for name in vars(module))):
            read = {name: source.__globals__[name] for name in source.__code__.co_names if name in source.__globals__}
            values = [name for name, value in read.items() if not (_is_kernel(value) or isinstance(value, ModuleType))]
            assert values == [], source


def test_a_launch_looks_a_kernel_up_under_the_key_that_it_was_compiled_under(calls: list[launches.Launch]) -> None:
    different = list(dict.fromkeys(call.kernel for call in calls))
    for recorded, real, unaligned in apart(real_launches.keys, different, 90):
        assert recorded == real
        assert recorded != unaligned


def test_every_tensor_of_a_launch_begins_at_a_multiple_of_16_bytes(calls: list[launches.Launch]) -> None:
    """So no kernel is compiled twice, or reads its maps two bytes at a time."""
    for call in calls:
        assert call.kernel is not None
        values = [*call.kernel.args, *dict(call.kernel.options).values()]
        assert {value.address for value in values if isinstance(value, launches.Pointer)} == {0}, call.name


def test_what_is_wrong_with_a_kernel_is_said() -> None:
    kernel = launches.Kernel("trainer.device.kernels.crops", "_crop", (), ())
    assert Compiled(kernel, 86, 0.1, error="no").problem == "no"
    assert Compiled(kernel, 86, 0.1, shared=101_377).problem == "takes 101,377 bytes of shared memory, of 101,376"
    assert Compiled(kernel, 90, 0.1, shared=101_377, stack=0).problem is None
    assert Compiled(kernel, 90, 0.1, stack=8).problem == "spills 8 bytes a thread"


@pytest.mark.soak
@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize(("arch", "precision"), [*itertools.product(ARCHS, PRECISIONS), ("mobilenetv2_2x2", "bf16")])
def test_every_kernel_of_the_networks_compiles_and_fits(arch: str, precision: str, capability: int) -> None:
    found = apart(compiled, [case(arch, precision)], capability, machine.cores(), True)
    assert len(found) > 5
    assert [(str(one.kernel), one.problem) for one in found if one.problem] == []


@pytest.mark.gpu
@pytest.mark.parametrize("precision", PRECISIONS)
def test_after_precompiling_a_trial_compiles_nothing(precision: str) -> None:
    sizes = real_launches.SIZES
    one = Case("resnet20", precision, sizes["train_samples"], sizes["test_samples"], 3, 100)
    assert not any(each.cached or each.error for each in precompile([one]))
    command = machine.module("tests.real_launches", "resnet20", precision)
    done = subprocess.run(command, check=True, capture_output=True, encoding="utf-8", env=machine.environment())
    assert done.stdout.split()[-1] == "0"
