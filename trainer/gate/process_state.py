"""What a process holds that every computation in it depends on, and what a user's file has changed of that.

Some of it the trainer sets once, before it runs a file: what a file changes there on import holds for the trials that
follow and not for the one that was being set up, so no trial of the file could be repeated. A function of torch that is
wrapped on import is wrapped for all of the file's trials alike: then their network, loss and accuracy are its own
business, which is said, and no other pool's trial ever sees it (`trainer.isolation`).
"""

from __future__ import annotations

import functools
import gc
import inspect
import os
import random
import signal
import sys
import threading
import warnings
from collections.abc import Iterator, Mapping
from types import ModuleType
from typing import Any

import numpy as np
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
DECIDES = "numerics"  # set by the trainer, or by nobody: a trial cannot be repeated if it may or may not be set
WRAPPED = "functions"
OTHER = "others"
MODULE = "the module "

State = dict[str, dict[str, Any]]


def snapshot() -> State:
    """{group: {name: value}}, of values that can be compared."""
    return {DECIDES: dict(_numerics()), WRAPPED: dict(_functions()), OTHER: dict(_others())}


def changes(before: State, after: State) -> Mapping[str, list[str]]:
    """{group: what has another value}, in words."""
    found: dict[str, list[str]] = {}
    for group, values in before.items():
        for name, value in values.items():
            now = after[group].get(name)
            if now != value:
                shown = f" ({value} -> {now})" if group == DECIDES else ""
                found.setdefault(group, []).append(name + shown)
    modules = tuple(f"{name.removeprefix(MODULE)}." for name in found.get(WRAPPED, ()) if name.startswith(MODULE))
    if modules:  # of which no function is the same, then
        found[WRAPPED] = [name for name in found[WRAPPED] if not name.startswith(modules)]
    return found


def findings(changed: Mapping[str, list[str]], when: str) -> Iterator[Finding]:
    """What is to be said of changes that came `when`: on `import`, or later."""
    on_import = when == "import"
    if names := changed.get(DECIDES):
        what = f"it changes {_some(names)}, on which every number of the process depends"
        yield Finding("process-state", when, what, "Take that out; the recipe and the trainer set it.")
    if names := changed.get(WRAPPED):
        if ours := [name for name in names if name.removeprefix(MODULE).startswith(OWN)]:
            what = f"it replaces {_some(ours)}, so that its trials are no longer this trainer's"
            yield Finding("process-state", when, what, "Take that out; the trainer is the same for every pool.")
        elif on_import:
            what = (
                f"it replaces {_some(names)}: the network, the loss and the accuracy of its own trials run with it, "
                "and no other pool's"
            )
            yield Finding("process-state", when, what, "Call a function of your own instead.", refused=False)
        else:
            what = f"it replaces {_some(names)} after its first trial was set up, so that the next starts from another"
            yield Finding("process-state", when, what, "Do it on import, or better call a function of your own.")
    if names := changed.get(OTHER):
        what = f"it changes {_some(names)}, for its own trials alone"
        yield Finding("process-state", when, what, "Take that out if you can.", refused=False)


def _some(names: list[str], most: int = 4) -> str:
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")


def _numerics() -> Iterator[tuple[str, Any]]:
    yield "the default dtype", torch.get_default_dtype()
    yield "the default device", str(torch.get_default_device())
    yield "torch's grad mode", torch.is_grad_enabled()
    yield "torch's inference mode", torch.is_inference_mode_enabled()
    yield "torch's number of threads", torch.get_num_threads()
    yield "anomaly detection", torch.is_anomaly_enabled()
    for name in ("enabled", "benchmark", "allow_tf32"):  # who benchmarks chooses its algorithms by their times
        yield f"cudnn.{name}", _quietly(torch.backends.cudnn, name)
    yield "cudnn.conv.fp32_precision", _quietly(getattr(torch.backends.cudnn, "conv", None), "fp32_precision")
    for backend in ("cuda", "mkldnn"):
        matmul = getattr(getattr(torch.backends, backend), "matmul", None)
        yield f"{backend}.matmul.fp32_precision", _quietly(matmul, "fp32_precision")
    yield "mkldnn.enabled", _quietly(torch.backends.mkldnn, "enabled")
    for name in ("allow_bf16_reduced_precision_reduction", "allow_fp16_reduced_precision_reduction"):
        yield f"cuda.matmul.{name}", _quietly(torch.backends.cuda.matmul, name)
    for device in ("cpu", "cuda"):
        yield f"autocast on {device}", (torch.is_autocast_enabled(device), torch.get_autocast_dtype(device))
    yield "flushing of denormals", bool((torch.tensor([1e-310], dtype=torch.float64) * 1 == 0).item())
    yield from compat.global_state()


def _quietly(holder: Any, name: str) -> Any:
    """Some settings of torch refuse to be read when an older and a newer one of them disagree."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return getattr(holder, name, None)
    except RuntimeError as error:
        return first_line(error)


def _functions() -> Iterator[tuple[str, int]]:
    """{module.function, module.Class.method: which it is}, of the watched modules."""
    for name, module in list(sys.modules.items()):
        if isinstance(module, ModuleType) and (name in MODULES or name.startswith(PACKAGES)):
            yield MODULE + name, id(module)
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


def _others() -> Iterator[tuple[str, Any]]:
    yield "deterministic algorithms", torch.are_deterministic_algorithms_enabled()
    yield "cudnn.deterministic", torch.backends.cudnn.deterministic
    yield "the working directory", os.getcwd()  # noqa: PTH109
    yield "sys.path", tuple(sys.path)
    environment = dict(os.environ)
    for name in sorted(environment):
        yield f"${name}", environment[name]
    for number in signal.valid_signals():
        yield f"the handler of {number!s}", repr(signal.getsignal(number))
    yield "Python's recursion limit", sys.getrecursionlimit()
    yield "garbage collection", (gc.isenabled(), gc.get_threshold())
    yield "numpy's error state", tuple(sorted(np.geterr().items()))
    yield "which warnings are errors", len([each for each in warnings.filters if each[0] == "error"])
    yield "Python's tracing", (sys.gettrace() is None, sys.getprofile() is None)
    yield "the running threads", threading.active_count()
    yield "Python's random numbers", hash(random.getstate())
    yield "numpy's random numbers", np.random.get_state()[1].tobytes()  # type: ignore[index,union-attr]
    yield "torch's random numbers", torch.get_rng_state().numpy().tobytes()
