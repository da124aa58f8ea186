"""How a trial's steps run: on a stream and with generators of its own, recorded as CUDA graphs where they can be.

A step takes nothing from the host and gives nothing to it. So on a CPU it is called, on CUDA it is recorded once and
replayed, and the host waits for a trial once an epoch. No trial needs the host to itself: many can take turns in one
process, each on a stream of its own.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from search_spaces.messages import log
from trainer.device import cpu, graphs, objective
from trainer.device.graphs import Step
from trainer.device.optimizer import Sgd
from trainer.randomness import Noise

if TYPE_CHECKING:  # archs, pools and torchvision with it
    from trainer.device.gpu import Together
    from trainer.network import Network

SizedStep = Callable[[int], None]  # a step over so many images
TURN = 8  # steps between two chances for others


class Execution:
    """How the steps of one trial run on a device.

    Args:
        borrower: what the stream is for; it is given back when this is gone.

    Attributes:
        noise: the trial's own copies of the global generators.
    """

    def __init__(self, device: torch.device, borrower: object):
        self.device = device
        self.noise = Noise(device)
        self._stream = None
        self._graphs: dict[tuple[str, int], Step] = {}
        self._together: Together | None = None
        if device.type == "cuda":
            from trainer.device import gpu  # and Triton with it, which is not everywhere where there is a CPU

            self._stream = gpu.lend_stream(device, borrower)
            self._stream.wait_stream(torch.cuda.current_stream(device))  # which the images came by

    def on_stream(self) -> contextlib.AbstractContextManager[Any]:
        return torch.cuda.stream(self._stream) if self._stream else contextlib.nullcontext()

    @contextlib.contextmanager
    def lane(self) -> Iterator[None]:
        """Enter this trial's stream and generators."""
        with self.on_stream(), self.noise:
            yield

    def place(self, network: Network, precision: str, layout: torch.memory_format, *, fast_layers: bool) -> Network:
        """Return the network where it trains.

        Args:
            fast_layers: those that are faster there; torch.compile makes kernels of its own, and cannot read them all.
        """
        if self._stream is None:
            cpu.keep_memory()
            if fast_layers:
                cpu.speed_up(network.features)
        network = network.to(self.device).to(memory_format=layout)  # pyright: ignore[reportCallIssue]
        self._together = None
        if self._stream and fast_layers:
            from trainer.device import gpu, kernels

            if off := kernels.off():
                log.warning(f"kernels switched off, so that torch's own run: {', '.join(sorted(off))}")
            self._together = gpu.speed_up(network.features, precision, off, network.head)
        return network

    def cross_entropy(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return what the network that was placed is trained and counted by: see `objective.cross_entropy`."""
        fused = self._together is not None and "loss" not in self._together.off
        return objective.cross_entropy(logits, labels, fused=fused)

    def optimizer(self, network: Network, lr: Tensor, momentum: float, decay: float) -> Sgd:
        """Return what trains the network that was placed."""
        make = self._together.optimizer if self._together else Sgd
        return make(list(network.parameters()), lr, momentum, decay)

    def record(
        self,
        phases: Mapping[SizedStep, Sequence[int]],
        network: nn.Module,
        rewind: Step,
        generator: torch.Generator | None,
    ) -> None:
        """Record steps of these sizes as graphs, which run in their place from then on; see `graphs.record`.

        Raises:
            RecordError: they have to run eagerly.
        """
        steps = {
            (step.__name__, size): functools.partial(step, size) for step, sizes in phases.items() for size in sizes
        }
        held = _tensors(network)
        try:
            recorded = graphs.record(list(steps.values()), network, rewind=rewind, generator=generator)
            if any(one is not before for one, before in itertools.zip_longest(_tensors(network), held)):
                raise graphs.RecordError("its first steps bind parameters or buffers anew")
        except graphs.RecordError:
            self.noise = Noise(self.device)  # a generator may still take itself to be recorded
            raise
        self._graphs = dict(zip(steps, recorded, strict=True))

    def run(self, step: SizedStep, sizes: Sequence[int]) -> Iterator[None]:
        """Run steps in order, or have the device do so. Yields whenever others may take a turn."""
        for start in range(0, len(sizes), TURN):
            # A graph draws from the generator that it was recorded with, and to swap those of the host takes 0.4 ms.
            with self.on_stream() if self._graphs else self.lane():
                for size in sizes[start : start + TURN]:
                    self._graphs.get((step.__name__, size), functools.partial(step, size))()
            yield

    def done(self) -> Iterator[None]:
        """Yield until the device has run everything."""
        if self._stream is None:
            return
        end = self._stream.record_event()
        while not end.query():
            time.sleep(5e-5)  # an epoch of the fastest pack takes a thousand times as long
            yield

    def mark(self) -> float | torch.cuda.Event:
        """Return a point in this trial's time, for `seconds`."""
        if self._stream is None:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record(self._stream)
        return event

    def for_transfer(self, tensor: Tensor) -> Tensor:
        """Return a tensor of the CPU, where the device copies it from while the host goes on."""
        return tensor if self._stream is None else tensor.pin_memory()

    def synchronize(self) -> None:
        if self._stream is not None:
            self._stream.synchronize()


def _tensors(network: nn.Module) -> list[Tensor]:
    return [*network.parameters(), *network.buffers()]


def seconds(start: float | torch.cuda.Event, end: float | torch.cuda.Event) -> float:
    """Return the time between two marks, both reached."""
    if isinstance(start, torch.cuda.Event) and isinstance(end, torch.cuda.Event):
        return start.elapsed_time(end) / 1000
    return cast(float, end) - cast(float, start)


def default_device() -> torch.device:
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def set_matmul_precision(precision: str) -> None:
    """Allow TF32 in CUDA convolutions and matrix products if, and only if, the recipe asks for it."""
    mode = "tf32" if precision == "tf32" else "ieee"
    torch.backends.cuda.matmul.fp32_precision = mode
    torch.backends.cudnn.conv.fp32_precision = mode  # type: ignore[attr-defined]
