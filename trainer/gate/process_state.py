"""What a process holds that every number in it depends on, and what a user's file has changed of that.

Some of it the trainer sets once, before it runs a file: what a file changes there on import holds for the trials that
follow and not for the one that was being set up, so no trial of the file could be repeated. A function of torch that is
wrapped on import is wrapped for all of the file's trials alike: then their network, loss and accuracy are its own
business, which is said. No other pool's trial ever sees any of it (`trainer.isolation`).
"""

from __future__ import annotations

import functools
import inspect
import sys
import warnings
from collections.abc import Iterator, Sequence
from operator import attrgetter
from types import ModuleType
from typing import Any

import torch

from search_spaces.errors import first_line
from trainer import compat
from trainer.gate.report import Finding

# Where the callables are compared, one by one: whoever wraps one wraps it for the trainer too. All of torch would be
# 57,000 of them, and 4 s.
MODULES = frozenset(
    {"builtins", "functools", "json", "math", "numpy", "numpy.random", "os", "random", "time", "torch", "torch._tensor"}
    | {"torch.amp.autocast_mode", "torch.autograd", "torch.autograd.function", "torch.functional", "torch.random"}
)
OWN = ("search_spaces.", "trainer.")
PACKAGES = ("torch.nn.", "torch.optim.", *OWN)
BACKENDS = (
    *("cudnn.enabled", "cudnn.benchmark", "cudnn.allow_tf32", "cudnn.conv.fp32_precision", "mkldnn.enabled"),
    *("cuda.matmul.fp32_precision", "mkldnn.matmul.fp32_precision"),
    *("cuda.matmul.allow_bf16_reduced_precision_reduction", "cuda.matmul.allow_fp16_reduced_precision_reduction"),
)
State = tuple[dict[str, Any], dict[str, int]]


def snapshot() -> State:
    """Return {setting: its value}, and {module or function: which it is}."""
    return dict(_settings()), dict(_functions())


def findings(before: State, after: State, when: str) -> Iterator[Finding]:
    """Give what is to be said of changes that came `when`: on `import`, or later."""
    if names := changed_settings(before, after):
        what = f"it changes {_some(names)}, on which every number of the process depends"
        yield Finding("process-state", when, what, "Take that out; the recipe and the trainer set it.")
    names = [name for name, function in before[1].items() if after[1].get(name) != function]
    if ours := [name for name in names if name.startswith(OWN)]:
        what = f"it replaces {_some(ours)}, so that its trials are no longer this trainer's"
        yield Finding("process-state", when, what, "Take that out; the trainer is the same for every pool.")
    elif names and when == "import":
        what = f"it replaces {_some(names)}: its own trials run with it, and no other pool's"
        yield Finding("process-state", when, what, "Call a function of your own instead.", refused=False)
    elif names:
        what = f"it replaces {_some(names)} after its first trial was set up, so that the next starts from another"
        yield Finding("process-state", when, what, "Do it on import, or better call a function of your own.")


def changed_settings(before: State, after: State) -> list[str]:
    """Return `the default dtype (torch.float32 -> torch.float64)` for each setting that has another value."""
    return [f"{name} ({was} -> {after[0].get(name)})" for name, was in before[0].items() if after[0].get(name) != was]


def _some(names: Sequence[str], most: int = 4) -> str:
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")


def _settings() -> Iterator[tuple[str, Any]]:
    yield "the default dtype", torch.get_default_dtype()
    yield "the default device", str(torch.get_default_device())
    yield "torch's grad mode", torch.is_grad_enabled()
    yield "torch's inference mode", torch.is_inference_mode_enabled()
    yield "torch's number of threads", torch.get_num_threads()
    yield "anomaly detection", torch.is_anomaly_enabled()
    for name in BACKENDS:
        yield name, _backend(name)
    for device in ("cpu", "cuda"):
        yield f"autocast on {device}", (torch.is_autocast_enabled(device), torch.get_autocast_dtype(device))
    yield "flushing of denormals", bool((torch.tensor([1e-310], dtype=torch.float64) * 1 == 0).item())
    yield from compat.global_state()


def _backend(name: str) -> Any:
    """Some settings of torch refuse to be read when an older and a newer one of them disagree."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return attrgetter(name)(torch.backends)
    except (AttributeError, RuntimeError) as error:
        return first_line(error)


def _functions() -> Iterator[tuple[str, int]]:
    """The functions of the watched modules, and the methods of their classes."""
    for name, module in list(sys.modules.items()):
        if isinstance(module, ModuleType) and (name in MODULES or name.startswith(PACKAGES)):
            for key, value in list(vars(module).items()):
                if inspect.isclass(value) and value.__module__ == name:
                    for method in _methods(value):
                        member = vars(value).get(method)
                        yield f"{name}.{key}.{method}", id(member) if callable(member) else 0
                elif callable(value):
                    yield f"{name}.{key}", id(value)


@functools.cache
def _methods(cls: type) -> frozenset[str]:
    """Those that it had when it was first seen, inherited ones included, which it may override later."""
    return frozenset(dir(cls))
