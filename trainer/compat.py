"""Every private part of torch and torchvision that the trainer touches: here, and nowhere else.

Each function says why it does not do with what is public, what that brings where it is speed, and falls back to public
parts that are slower or see less. No number of a trial depends on which of the two runs, beyond rounding. `missing()`
says in words what this installation lacks. `pyproject.toml` has the versions that this was tried with.
"""

from __future__ import annotations

import contextlib
import sys
import types
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.modules import module as modules

_PRODUCT = "torch.ops.mkldnn._linear_pointwise"
_CLAMP_GRADIENT = "torch.ops.aten.hardtanh_backward.grad_input"
_COPY_ALL = "torch._foreach_copy_"
_FAKE_TENSORS = "torch._subclasses.fake_tensor"
_DISPATCH_MODES = "torch.utils._python_dispatch._get_current_dispatch_mode_stack"

# {where it is: what is lost without it}
PRIVATE = {
    _PRODUCT: "products by oneDNN: MKL takes twice as long on AMD's CPUs",
    _CLAMP_GRADIENT: "ReLU6's gradient in place: 4 % of a step of mobilenetv2_s32",
    _COPY_ALL: "copies of many tensors in one kernel: 120 kernels of a step of MobileNetV2",
    _FAKE_TENSORS: "fake tensors on a GPU that is not there: pools are checked on `meta`",
    _DISPATCH_MODES: "modes of torch's dispatch that a file leaves on",
}


def missing() -> list[str]:
    """Return what this installation lacks, in words: `torch._foreach_copy_: copies of many tensors ...`."""
    return [f"{place}: {lost}" for place, lost in PRIVATE.items() if _found(place) is None]


def _found(place: str) -> Any:
    """Return what is at `torch.a.b`; None if nothing is. Imports the modules on the way."""
    name, *parts = place.split(".")
    found: Any = sys.modules.get(name) or __import__(name)
    for part in parts:
        name = f"{name}.{part}"
        if not hasattr(found, part):
            with contextlib.suppress(ImportError):
                __import__(name)
        found = getattr(found, part, None)
    return found


# Speed


_onednn_product = _found(_PRODUCT) if torch.backends.mkldnn.is_available() else None
_clamp_gradient = _found(_CLAMP_GRADIENT)
_copy_all = _found(_COPY_ALL)


def product(a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return a [M, K] times b [N, K] transposed, plus bias [N].

    In fp32 by oneDNN: torch's own product goes to MKL, which takes twice as long on AMD's CPUs.
    """
    if _onednn_product and a.dtype == torch.float32:
        return _onednn_product(a, b, bias, "none", [], "")
    return F.linear(a, b, bias)


def clamp_gradient(gradient: Tensor, out: Tensor, low: float, high: float, into: Tensor) -> Tensor:
    """Write the gradient of `out = clamp(x, low, high)` with respect to x into `into`, which may be `gradient`.

    4 % of a step of `mobilenetv2_s32`; by masks the same takes eight times as long.
    """
    if _clamp_gradient:
        return _clamp_gradient(gradient, out, low, high, grad_input=into)
    return into.copy_(gradient).masked_fill_((out <= low) | (out >= high), 0)


def copy_all(targets: Sequence[Tensor], sources: Sequence[Tensor]) -> None:
    """Copy each source into its target: in one kernel, where one each is 52 and 70 of a step of MobileNetV2."""
    if _copy_all:
        _copy_all(targets, sources)
        return
    for target, source in zip(targets, sources, strict=True):
        target.copy_(source)


# Imports


def import_torchvision() -> None:
    """Import torchvision without torch._dynamo, which only torch.compile needs: 0.4 s and not 3.3 in every process.

    One of torchvision's files imports a predicate from it, which no architecture calls. A stand-in answers to that name
    while torchvision is imported, and finds the real one when it is called. A torchvision that needs more of it is
    imported as it is.
    """
    if "torch._dynamo" in sys.modules or "torchvision" in sys.modules:
        return
    package, utils = types.ModuleType("torch._dynamo"), types.ModuleType("torch._dynamo.utils")
    package.__path__ = []
    utils.is_compile_supported = _is_compile_supported  # type: ignore[attr-defined]
    stand_ins = {package.__name__: package, utils.__name__: utils}
    sys.modules.update(stand_ins)
    try:
        import torchvision  # noqa: F401
    except ImportError:
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
    finally:
        for name in stand_ins:
            sys.modules.pop(name, None)


def _is_compile_supported(device_type: str) -> bool:
    from torch._dynamo.utils import is_compile_supported

    return is_compile_supported(device_type)


# What the gate looks at


class HostSyncError(Exception):
    """A module looks at a value on the GPU from Python."""


class MixedDevicesError(Exception):
    """A module mixes tensors of the GPU and of the CPU."""


def on_fake_gpu(call: Callable[[Callable[..., Tensor]], Any]) -> Any:
    """Return what `call(empty)` returns, where `empty(shape, dtype=...)` gives tensors of a GPU that is not there.

    Fake tensors know on which device they would be. Without them it is the device `meta`, which finds fewer mistakes.

    Raises:
        HostSyncError, MixedDevicesError, or whatever `call` raises.
    """
    fake = _found(_FAKE_TENSORS)
    device = "cuda" if fake else "meta"

    def empty(shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=device)

    try:
        with fake.FakeTensorMode(allow_non_fake_inputs=True) if fake else contextlib.nullcontext():
            return call(empty)
    except Exception as error:  # torch 2.13 has a type for mixed devices, 2.11 a sentence
        name, words = type(error).__name__, str(error)
        if name in ("DataDependentOutputException", "DynamicOutputShapeException") or "on meta tensors" in words:
            raise HostSyncError(words) from error
        if name == "FakeTensorDeviceMismatchError" or "different devices" in words or "devices, meta" in words:
            raise MixedDevicesError(words) from error
        raise


_TENSOR = torch.empty(0)


def global_state() -> Iterator[tuple[str, Any]]:
    """Give (name, value) of what changes every call of torch in this process, as far as it can be seen.

    Where hooks on all modules and replaced operators are kept has names that may change: so all that torch's modules
    for them hold is counted, whatever it is called.
    """
    yield "modes of torch functions", torch.overrides.has_torch_function((_TENSOR,))
    if stack := _found(_DISPATCH_MODES):
        yield "modes of torch dispatch", len(stack())
    for name, held in sorted(vars(modules).items()):
        if isinstance(held, dict) and not name.startswith("__"):
            yield f"hooks on all modules ({name.removeprefix('_global_')})", len(held)
    registered = [name for held in vars(torch.library).values() if isinstance(held, set) for name in held]
    yield "operators of torch", len([name for name in registered if str(name).startswith("aten")])
