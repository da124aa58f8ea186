"""Compiles Triton kernels ahead of their first launch, for any NVIDIA GPU and without one, in many processes.

A kernel is compiled by Triton's own `warmup`, which goes the way of a launch and stops short of it. So what is compiled
lies in Triton's cache (`TRITON_CACHE_DIR`) under the key that a launch looks up: the code, the kinds of the arguments,
which of them are 1 or divisible by 16, what it is compiled for, the target, the versions and Triton's own variables.

Of Triton it takes a driver that has no GPU (`driver.set_active`), and the knobs `jit_cache_hook` and `listener`. If
they go, kernels are compiled as they are met, which is half a second each.
"""

from __future__ import annotations

import contextlib
import importlib
import queue
import re
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from search_spaces.errors import first_line
from trainer.device.launches import Kernel
from trainer.isolation import Child, ChildDiedError

# {compute capability: bytes of shared memory that a block may have}: CUDA C++ Programming Guide, technical
# specifications per compute capability, less the 1 KiB that the system keeps of each block's.
SHARED = {
    75: 65_536,
    80: 166_912,
    86: 101_376,
    87: 166_912,
    89: 101_376,
    90: 232_448,
    100: 232_448,
    103: 232_448,
    120: 101_376,
}


@dataclass(frozen=True)
class Compiled:
    """What has become of a kernel.

    Attributes:
        seconds: that it took.
        cached: whether it was there already.
        key: under which Triton's cache has it.
        shared: bytes of shared memory of a block.
        registers, stack: of a thread; bytes on its stack are what did not fit into registers. None if not asked for.
        error: why it could not be compiled, if it could not.
    """

    kernel: Kernel
    capability: int
    seconds: float
    cached: bool = False
    key: str = ""
    shared: int = 0
    registers: int | None = None
    stack: int | None = None
    error: str | None = None

    @property
    def problem(self) -> str | None:
        """Why it cannot run on its GPU, or runs slowly there; None if all is well."""
        if self.error:
            return self.error
        limit = SHARED.get(self.capability, self.shared)
        if self.shared > limit:
            return f"takes {self.shared:,} bytes of shared memory, of {limit:,}"
        return f"spills {self.stack} bytes a thread" if self.stack else None


def distinct(kernels: Iterable[Kernel], capability: int) -> list[Kernel]:
    """Return the calls that Triton compiles kernels of their own for, the first of each kind."""
    found: dict[object, Kernel] = {}
    for kernel in dict.fromkeys(kernels):
        try:
            kind: object = key(kernel, capability)
        except Exception:  # and whoever compiles it finds out why
            kind = kernel
        found.setdefault(kind, kernel)
    return list(found.values())


def key(kernel: Kernel, capability: int) -> str:
    """Return by what a launch finds a kernel in memory: the function, and what it is specialised for."""
    keys: list[str] = []

    def refuse(*, key: str, **_: Any) -> bool:
        keys.append(f"{kernel.module} {kernel.name} {key}")
        return True  # and nothing is compiled

    with _for(capability), _set(knobs.runtime, "jit_cache_hook", refuse):
        _warm_up(kernel)
    return keys[0]


def compile_all(
    kernels: Iterable[Kernel], capability: int, processes: int = 1, resources: bool = False
) -> list[Compiled]:
    """Compile each kernel that is not in Triton's cache, for GPUs of a compute capability (90 is that of an H100).

    This process must not have used a GPU, nor torch's threads; see `isolation`.

    Args:
        resources: find out registers and stack too, at 30 ms a kernel.
    """
    waiting: queue.SimpleQueue[Kernel] = queue.SimpleQueue()
    different = distinct(kernels, capability)
    for kernel in different:
        waiting.put(kernel)

    def serve(requests: Connection) -> None:
        torch.set_num_threads(1)
        while (kernel := requests.recv()) is not None:
            requests.send(_compile(kernel, capability, resources))
            requests.send(None)

    def work(child: Child) -> list[Compiled]:
        found: list[Compiled] = []
        with contextlib.suppress(queue.Empty):
            while True:
                kernel, started = waiting.get_nowait(), time.perf_counter()
                try:
                    found += child.ask(kernel)
                except ChildDiedError as error:  # LLVM ends the process where it finds itself wrong
                    found.append(Compiled(kernel, capability, time.perf_counter() - started, error=str(error)))
                    child = Child(serve)
        child.close()
        return found

    children = [Child(serve) for _ in range(min(processes, len(different)))]
    with ThreadPoolExecutor(max(1, len(children))) as threads:
        return [one for found in threads.map(work, children) for one in found]


def _compile(kernel: Kernel, capability: int, resources: bool) -> Compiled:
    cached: list[bool] = []
    started = time.perf_counter()
    try:
        with _for(capability), _set(knobs.compilation, "listener", lambda **found: cached.append(found["cache_hit"])):
            binary = _warm_up(kernel)
    except Exception as error:
        why = f"{type(error).__name__}: {first_line(error)}"
        return Compiled(kernel, capability, time.perf_counter() - started, error=why)
    seconds, shared = time.perf_counter() - started, binary.metadata.shared
    (file,) = [path for name, path in binary.metadata_group.items() if name.endswith(".cubin")]
    registers, stack = _resources(Path(file)) if resources else (None, None)
    return Compiled(kernel, capability, seconds, cached == [True], binary.hash, shared, registers, stack)


def _resources(file: Path) -> tuple[int, int]:
    """Return registers of a thread, and bytes of its stack and of other local memory."""
    command = [knobs.nvidia.cuobjdump.path, "-res-usage", file]
    said = subprocess.run(command, check=True, capture_output=True, encoding="utf-8").stdout
    registers, stack, local = (int(value) for value in re.findall(r"\b(?:REG|STACK|LOCAL):(\d+)", said))
    return registers, stack + local


def _warm_up(kernel: Kernel) -> Any:
    function = getattr(importlib.import_module(kernel.module), kernel.name)
    if not hasattr(function, "warmup"):
        raise RuntimeError("nothing is compiled where TRITON_INTERPRET is set")
    return function.warmup(*kernel.args, grid=(1,), **dict(kernel.options))


class _NoGPU:
    """As much of a driver as compiling takes, for a target that needs not be there."""

    def __init__(self, capability: int):
        self.capability = capability

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.capability, 32)

    def get_current_device(self) -> int:
        return self.capability  # Triton keeps what it knows of a target by the device's number

    def get_current_stream(self, _: int) -> int:
        return 0


@contextlib.contextmanager
def _for(capability: int) -> Iterator[None]:
    before: Any = driver._active
    driver.set_active(_NoGPU(capability))  # type: ignore[arg-type]
    try:
        yield
    finally:
        driver._active = before


@contextlib.contextmanager
def _set(knob: Any, name: str, value: Callable[..., Any]) -> Iterator[None]:
    before = getattr(knob, name)
    setattr(knob, name, value)
    try:
        yield
    finally:
        setattr(knob, name, before)
