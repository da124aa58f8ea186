"""Stage `kernels`: what each kernel takes at each shape, beside its bytes; and each convolution three ways.

Rows of `what` = kernel: every (Triton kernel, shape) of a training step of 128 images and of an evaluation in bf16, as
the program launches it: microseconds in a graph with its operands in the L2 and without, bytes, GB/s, how often it is
launched in a step, and `us_step` for all those launches. A row of `what` = kernels has the sum of those of a step.

Rows of `what` = convolution: every convolution of the networks, forward, and forward and backward, as the program does
it, as cuDNN does it, and as cuDNN does it when it may search (`torch.backends.cudnn.benchmark`).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.rental import jobs, networks
from benchmarks.rental.settings import Row, Rows, Settings, Sizes
from benchmarks.rental.timing import microseconds
from search_spaces import kernels as families
from trainer import network
from trainer.device.execution import default_device
from trainer.train import Program


def all_kernels(settings: Settings) -> Sequence[jobs.Job]:
    sizes = settings.sizes
    steps = [(f"{arch} step", functools.partial(step, sizes, arch)) for arch in sizes.archs]
    return [*steps, *((f"{arch} convolutions", functools.partial(convolutions, sizes, arch)) for arch in sizes.archs)]


# Triton's


@dataclass
class Call:
    """A launch that can be made again: its tensors are held."""

    function: Any
    args: tuple[Any, ...]
    options: dict[str, Any]
    count: int = 1

    def key(self) -> tuple[Any, ...]:
        given = [*self.args, *(value for name, value in sorted(self.options.items()) if name != "grid")]
        return self.function, *((tuple(one.shape), one.dtype) if isinstance(one, Tensor) else one for one in given)

    def name(self) -> str:
        return f"{self.function.fn.__module__.rpartition('.')[2]}.{self.function.fn.__name__}"

    def shapes(self) -> str:
        tensors = (one for one in (*self.args, *self.options.values()) if isinstance(one, Tensor))
        return " ".join("x".join(map(str, one.shape)) for one in tensors)

    def again(self) -> object:
        return self.function.run(*self.args, **self.options)

    def bytes(self) -> int:
        """Return how many it moves: see `trainer.device.launches`."""
        from trainer.device import launches

        options = {name: value for name, value in self.options.items() if name not in ("grid", "warmup")}
        return launches.of_triton(self.function, self.args, self.options["grid"], options).bytes


def step(sizes: Sizes, arch: str, rows: Rows) -> None:
    device = default_device()
    if device.type != "cuda":
        print(f"{arch}: no Triton kernel is launched on a CPU")
        return
    images = networks.images(sizes.batch, sizes.evaluation, device)
    program = Program(networks.trial(arch, batch_size=sizes.batch), images, graphs=False)
    for _ in program.run(1):
        pass
    for phase, do, size in (
        ("train", program._train_batch, sizes.batch),
        ("evaluation", program._test_batch, sizes.evaluation),
    ):
        with program._execution.lane():
            program._cursor.zero_()
            calls = calls_of(functools.partial(do, size))
        program._execution.synchronize()
        time_all(calls, {"arch": arch, "phase": phase}, device, rows)


def time_all(calls: Sequence[Call], told: Row, device: torch.device, rows: Rows) -> None:
    """Add a row for each as soon as it is timed, or one that says why it is not; last their sum."""
    total = 0.0
    for call in calls:
        kernel = {"what": "kernel", **told, "kernel": call.name(), "shapes": call.shapes(), "count": call.count}
        with jobs.noted(rows, **kernel):
            figures = _figures(call, device)
            rows.add(kernel | figures)
            total += figures["us_step"]
    rows.add({"what": "kernels", **told, "us_step": total})


def calls_of(work: Callable[[], object]) -> list[Call]:
    """Do something; return the kernels of Triton that it launches, those of one kernel and shape as one."""
    from triton.runtime.jit import JITFunction

    calls: dict[Any, Call] = {}
    launch = JITFunction.run

    def note(function: Any, *args: Any, **options: Any) -> Any:
        call = Call(function, args, options)
        if (known := calls.setdefault(call.key(), call)) is not call:
            known.count += 1
        return launch(function, *args, **options)

    with mock.patch.object(JITFunction, "run", note):
        work()
    return list(calls.values())


def _figures(call: Call, device: torch.device) -> Row:
    moved = call.bytes()
    us, cold = microseconds(call.again, device), microseconds(call.again, device, cold=True)
    rates = {"GB/s": moved / us / 1e3, "GB/s_cold": moved / cold / 1e3 if cold > 0 else None}
    return {"us": us, "us_cold": cold, "us_step": us * call.count, "bytes": moved, **rates}


# Convolutions


def convolutions(sizes: Sizes, arch: str, rows: Rows) -> None:
    device = default_device()
    for conv, shape, count in distinct(sizes, arch):
        x = torch.randn(shape, device=device).to(torch.bfloat16).contiguous(memory_format=torch.channels_last)
        x.requires_grad_()
        c_out, _, kernel, _ = conv.weight.shape
        told = {"what": "convolution", "arch": arch, "in": "x".join(map(str, shape)), "out": c_out, "kernel": kernel}
        told |= {"stride": conv.stride[0], "groups": conv.groups, "count": count}
        for way, function, leaves in ways(conv.to(device), device):
            with jobs.noted(rows, **told, way=way), networks.searching(way == "cudnn.benchmark"):
                forward, both = _timed(function, [x, *leaves], device)
                rows.add({**told, "way": way, "us_forward": forward, "us_both": both})


def distinct(sizes: Sizes, arch: str) -> list[tuple[nn.Conv2d, tuple[int, ...], int]]:
    """Return (convolution, shape of its input, how many there are like it) of a network, the largest first."""
    net = network.build(networks.trial(arch).pool, arch, 10, 0)
    found: dict[Any, list[Any]] = {}

    def note(conv: nn.Module, given: Any, _: Tensor) -> None:
        assert isinstance(conv, nn.Conv2d)  # noqa: S101
        shape = (sizes.batch, *given[0].shape[1:])
        found.setdefault((conv.weight.shape, conv.stride, conv.groups, shape), [conv, shape, 0])[2] += 1

    for module in net.features.modules():
        if type(module) is nn.Conv2d:
            module.register_forward_hook(note)
    with torch.no_grad():
        net.eval()(torch.zeros(1, 3, 32, 32))
    for module in net.features.modules():
        module._forward_hooks.clear()
    return [(conv, shape, count) for conv, shape, count in found.values()]


Way = tuple[str, Callable[[Tensor], Tensor], list[Tensor]]  # a name, the convolution, and what it learns


def ways(conv: nn.Conv2d, device: torch.device) -> list[Way]:
    weight = conv.weight.detach().to(torch.bfloat16).contiguous(memory_format=torch.channels_last).requires_grad_()

    def library(x: Tensor) -> Tensor:
        return F.conv2d(x, weight, None, conv.stride, conv.padding, conv.dilation, conv.groups)

    if device.type != "cuda":
        return [("cudnn", library, [weight])]
    from trainer.device import gpu

    ours = nn.Sequential(conv).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    gpu.speed_up(ours, "bf16", families.off())

    def as_trained(x: Tensor) -> Tensor:
        with torch.autocast("cuda", torch.bfloat16):
            return ours(x)

    learned = [*ours.parameters(), *(half for one in ours if (half := getattr(one, "half_weight", None)) is not None)]
    return [("ours", as_trained, learned), *((way, library, [weight]) for way in ("cudnn", "cudnn.benchmark"))]


def _timed(function: Callable[[Tensor], Tensor], leaves: Sequence[Tensor], device: torch.device) -> tuple[float, float]:
    """Return microseconds of a pass forward, and of one forward and backward; the input is the first of the leaves."""
    x = leaves[0]
    with torch.no_grad():
        slope = torch.randn_like(function(x))
        forward = microseconds(lambda: function(x), device)

    def both() -> None:
        function(x).backward(slope)
        for leaf in leaves:
            leaf.grad = None

    return forward, microseconds(both, device)


if __name__ == "__main__":
    jobs.run("kernels.json", all_kernels)
