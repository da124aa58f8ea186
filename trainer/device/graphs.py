"""Recording device functions as CUDA graphs.

A step of ResNet-56 launches more than 500 kernels of a few microseconds each: launched one by one from Python the GPU
mostly waits. A graph launches them all at once. It replays what was recorded, at the same addresses, and nothing else:
whatever a function does on the host happens once, when it is recorded. So a function that does something there which
matters is refused, and its caller runs it eagerly.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from unittest import mock

import torch
from torch import nn

from search_spaces.errors import first_line
from trainer.randomness import Noise, same

Step = Callable[[], object]
TENSOR = "tensor"
WARM_UP = 3  # calls: libraries load, choose kernels and take their workspaces, none of which may be recorded


class RecordError(Exception):
    """What keeps functions from being recorded; the message is for a trial's log."""


def record(
    steps: Sequence[Step], modules: nn.Module, rewind: Step, generator: torch.Generator | None = None
) -> list[Step]:
    """Return the replays of device functions, recorded on the current stream, which must not be the default one.

    Every function is called `WARM_UP` times first, so what they write has to be put back afterwards. One memory pool
    serves all: they must be replayed on this stream, and leave their results outside of what they allocate.

    Args:
        steps: take nothing and return nothing; what they read and write stands at fixed addresses.
        modules: whose Python attributes must not change from call to call.
        rewind: makes ready for a call, before each one that warms up; it is not recorded.
        generator: of the GPU, that they draw from beside the default one: each replay draws on from where it stands.

    Raises:
        RecordError: a function waits for the GPU, draws from a generator of the CPU, changes a Python attribute
            from call to call, or does something else that a graph cannot hold.
        torch.OutOfMemoryError: as ever.
    """
    for step in steps:
        for _ in range(WARM_UP):
            rewind()
            step()
        rewind()
        _refuse_host_work(step, modules)
    pool, stream = torch.cuda.graph_pool_handle(), torch.cuda.current_stream()
    return [_capture(step, pool, stream, generator) for step in steps]


def _refuse_host_work(step: Step, modules: nn.Module) -> None:
    held, generators = _held(modules), Noise.host_state()
    torch.cuda.set_sync_debug_mode("error")
    try:
        with refused_waits():
            step()
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise RecordError(f"a step waits for the GPU ({first_line(error)})") from error
    finally:
        torch.cuda.set_sync_debug_mode("default")
    if not same(generators, Noise.host_state()):
        raise RecordError("a step draws random numbers on the CPU")
    if changed := [name for name, value in _held(modules).items() if held.get(name) != value]:
        raise RecordError(f"a step changes what Python holds: {', '.join(changed)}")


@contextlib.contextmanager
def refused_waits() -> Iterator[None]:
    """Have torch's functions and methods called `synchronize` raise RuntimeError: its own check does not see them.

    In the middle of a recording CUDA would refuse them, and then no memory of this process is freed again (torch 2.11).
    A wait by other means (a name bound before, native code) still costs that, in the process of that file alone.
    """

    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("it calls synchronize")

    with contextlib.ExitStack() as patched:
        for owner in (torch.cuda, torch.cuda.Stream, torch.cuda.Event, torch.accelerator):
            patched.enter_context(mock.patch.object(owner, "synchronize", refuse))
        yield


def _capture(step: Step, pool: Any, stream: torch.cuda.Stream, generator: torch.Generator | None) -> Step:
    graph = torch.cuda.CUDAGraph()
    if generator is not None:
        graph.register_generator_state(generator)
    try:
        # thread_local: what Ray's own threads do meanwhile is none of this graph's business.
        with torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
            step()
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        torch.cuda.synchronize()  # raises again if it is the GPU that is broken, and not just the recording
        why = error.__context__ or error  # what went wrong first; that the recording cannot be ended follows from it
        if "out of memory" in str(why):  # of the graph itself, which is not the allocator's to say
            raise torch.OutOfMemoryError(first_line(why)) from error
        raise RecordError(f"a step cannot be recorded ({first_line(why)})") from error
    return graph.replay


def _held(modules: nn.Module) -> dict[str, str]:
    # A step that binds `parameter.data` anew leaves the parameter and its name, and trains another address.
    return attributes(modules) | {name: _spell(parameter) for name, parameter in modules.named_parameters()}


def attributes(modules: nn.Module) -> dict[str, str]:
    """Return {name: value} of all that a module's Python objects hold, spelled out; tensors by where their data are."""
    found: dict[str, str] = {}
    for path, module in modules.named_modules():
        for key, value in [*vars(module).items(), *module.named_buffers(recurse=False, remove_duplicate=False)]:
            if key not in ("_parameters", "_buffers", "_modules"):
                found[f"{path}.{key}".lstrip(".")] = _spell(value)
    return found


def _spell(value: object) -> str:
    if isinstance(value, torch.Tensor):
        return f"{TENSOR} at {value.data_ptr()}"
    if isinstance(value, torch.ScriptMethod):  # of which each access makes another
        return ""
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_spell, value))}]"
    return re.sub(r" at 0x[0-9a-f]+", "", repr(value))  # where something lies is no state
