"""Every private part of torch and torchvision that the trainer touches: here, and nowhere else.

Each function says why it does not do with what is public, what that brings where it is speed, and falls back to public
parts that are slower or see less. No number of a trial depends on which of the two runs, beyond rounding. `missing()`
says in words what this installation lacks. `pyproject.toml` has the versions that this was tried with.
"""

from __future__ import annotations

import collections
import contextlib
import sys
import types
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.modules import module as modules

_PRODUCT = "torch.ops.mkldnn._linear_pointwise"
_CLAMP_GRADIENT = "torch.ops.aten.hardtanh_backward.grad_input"
_COPY_ALL = "torch._foreach_copy_"
_FAKE_TENSORS = "torch._subclasses.fake_tensor"
_DISPATCH_MODES = "torch.utils._python_dispatch._get_current_dispatch_mode_stack"
_DISPATCH_MODE = "torch.utils._python_dispatch.TorchDispatchMode"
_APPLY = "torch.nn.Module._apply"
_NO_AUTOCAST = "torch.cuda.amp.common.amp_definitely_not_available"
_CUDNN = "torch._C._ConvBackend.Cudnn"
_FAKE_GPU = _FAKE_TENSORS, _DISPATCH_MODE, _APPLY, _NO_AUTOCAST, _CUDNN

# {where it is: what is lost without it}
PRIVATE = {
    _PRODUCT: "products by oneDNN: MKL takes twice as long on AMD's CPUs",
    _CLAMP_GRADIENT: "ReLU6's gradient in place: 4 % of a step of mobilenetv2_s32",
    _COPY_ALL: "copies of many tensors in one kernel: 74 kernels of a step of MobileNetV2",
    _FAKE_TENSORS: "fake tensors on a GPU that is not there: pools are checked on `meta`",
    _DISPATCH_MODES: "modes of torch's dispatch that a file leaves on",
    **dict.fromkeys(_FAKE_GPU[1:], "a step's launches: kernels are compiled as they are met"),
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
    """Copy each source into its target: in one kernel, where one each is 37 of MobileNetV2, twice a step."""
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


# Training on a GPU that is not there


@contextlib.contextmanager
def training_on_fake_gpu() -> Iterator[None]:
    """Within the block, torch trains on a GPU that is not there: tensors have shapes and kinds, and no numbers.

    The whole process does, so it should do nothing else. Every step is taken to be recorded as a CUDA graph. Addresses
    are made up, as different and as aligned as the allocator's.

    Raises:
        RuntimeError: this installation lacks one of torch's private parts that it takes.
    """
    if lacks := [place for place in _FAKE_GPU if _found(place) is None]:
        raise RuntimeError(f"training without a GPU takes {', '.join(lacks)}, which this torch has not")
    fake, amp = _found(_FAKE_TENSORS), _found(_NO_AUTOCAST.rpartition(".")[0])

    class HostGenerator(torch.Generator):
        def __new__(cls, _: Any = None) -> HostGenerator:
            return super().__new__(cls)

    mode = fake.FakeTensorMode(allow_non_fake_inputs=True)  # first of all: it imports half of torch
    stream = types.SimpleNamespace(wait_stream=lambda _: None)
    stand_ins: list[tuple[Any, str, Any]] = [
        (fake.FakeTensor, "is_cuda", property(lambda tensor: tensor.device.type == "cuda")),
        (fake.FakeTensor, "data_ptr", _made_up_address),
        (torch.Tensor, "pin_memory", lambda tensor: tensor),
        (torch.nn.Module, "_apply", _apply_to_fakes),
        (torch.Tensor, "backward", _backward),
        (torch._C, "_select_conv_backend", lambda *_, **__: _found(_CUDNN)),  # whose results are channels-last
        (torch, "Generator", HostGenerator),
        (torch.cuda, "Stream", lambda _: stream),
        (torch.cuda, "current_stream", lambda _=None: stream),
        (torch.cuda, "stream", contextlib.nullcontext),
        (torch.cuda, "is_current_stream_capturing", lambda: True),
        (torch.cuda, "is_bf16_supported", lambda *_, **__: True),
        (amp, "amp_definitely_not_available", lambda: False),
    ]
    with contextlib.ExitStack() as patched:
        for owner, name, stand_in in stand_ins:
            patched.enter_context(mock.patch.object(owner, name, stand_in, create=True))
        patched.enter_context(mode)
        yield


@contextlib.contextmanager
def operators(note: Callable[[str, dict[str, Any], set[str], Any], None]) -> Iterator[None]:
    """Within the block, call `note(name, given, changed, out)` for each of torch's operators that runs.

    `given` has its arguments by name, `changed` the names of those that it writes to. An operator that is made of
    others is not noted, but they are.
    """

    class Watch(_found(_DISPATCH_MODE)):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func is torch.ops.prim.device.default:
                return args[0].device
            kwargs, schema = kwargs or {}, func._schema
            if torch.is_inference_mode_enabled():  # where those come whole
                with self:
                    out = func.decompose(*args, **kwargs)
                if out is not NotImplemented:
                    return out
            # What returns nothing has nothing to find out, and of some of those torch has no kernel for fake tensors.
            out = func(*args, **kwargs) if schema.returns else None
            given = {argument.name: value for argument, value in zip(schema.arguments, args, strict=False)} | kwargs
            changed = {one.name for one in schema.arguments if one.alias_info is not None and one.alias_info.is_write}
            note(func.overloadpacket.__name__, given, changed, out)
            return out

    with Watch():
        yield


def _backward(out: Tensor, gradient: Tensor | None = None) -> None:
    """What autograd's engine does, but for asking the GPU for its streams: each node once, when all has come to it."""
    waiting: collections.Counter[Any] = collections.Counter()
    known: list[Any] = [out.grad_fn]
    for node in known:
        for after, _ in node.next_functions:
            known += [after] if after is not None and after not in waiting else []
            waiting[after] += 1
    arrived: dict[Any, dict[int, Tensor]] = {out.grad_fn: {0: torch.ones_like(out) if gradient is None else gradient}}
    ready: list[Any] = [out.grad_fn]
    with torch.no_grad():
        while ready:
            node = ready.pop()
            given, edges = arrived.pop(node, None), node.next_functions
            gradients = _through(node, given) if given else [None] * len(edges)
            for (after, slot), gradient in zip(edges, gradients, strict=True):
                if after is None:
                    continue
                if gradient is not None:
                    there, expected = arrived.setdefault(after, {}), after._input_metadata[slot]
                    gradient = gradient.sum_to_size(expected.shape).to(expected.dtype)
                    there[slot] = there[slot] + gradient if slot in there else gradient
                waiting[after] -= 1
                if not waiting[after]:
                    ready.append(after)


def _through(node: Any, given: dict[int, Tensor]) -> list[Any]:
    """Return the gradients that leave a node of autograd's graph, one for each of its edges."""
    gradients: list[Any] = [given.get(slot) for slot in range(len(node._input_metadata))]
    if hasattr(node, "variable"):  # the end of the line
        (gradient,), variable = gradients, node.variable
        places = zip(gradient.shape, gradient.stride(), variable.stride(), strict=True)
        if any(size > 1 and ours != theirs for size, ours, theirs in places):
            gradient = torch.empty_like(variable).copy_(gradient)
        variable.grad = gradient if variable.grad is None else variable.grad + gradient
        return []
    of_python = isinstance(node, torch.autograd.function.BackwardCFunction)
    found = node.apply(*gradients) if of_python else node(*gradients)
    found = found if isinstance(found, tuple) else (found,)
    if not of_python:
        return list(found)
    wanted = iter([gradient for gradient, needed in zip(found, node.needs_input_grad, strict=False) if needed])
    return [None if after is None else next(wanted) for after, _ in node.next_functions]


def _made_up_address(tensor: Tensor) -> int:
    """Far from that of every other storage, and a multiple of 512 where a storage begins."""
    return tensor.untyped_storage()._cdata * 512 + tensor.storage_offset() * tensor.element_size()


def _apply_to_fakes(module: torch.nn.Module, function: Callable[[Tensor], Tensor], _: bool = True) -> Any:
    """What `Module.to` does, but for that it puts new tensors into old ones, which fake tensors do not allow."""
    with torch.no_grad():
        for each in module.modules():
            for name, parameter in each._parameters.items():
                each._parameters[name] = None if parameter is None else torch.nn.Parameter(function(parameter))
            for name, buffer in each._buffers.items():
                each._buffers[name] = None if buffer is None else function(buffer)
    return module


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
