"""What a pool keeps in Python, where no checkpoint finds it: plain values and tensors, by the path that leads to them.

Addresses are no state, and neither is what a library holds: only what hangs on the module, on the globals and classes
of the user's own files, and on the closures of their functions.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import random
from collections.abc import Iterator, Mapping, Sequence
from types import FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import nn

PLAIN = (type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device, torch.Size, range)
MOST = 20_000  # values looked at
_OWN = frozenset(vars(nn.Module()))


def held(module: nn.Module, files: Sequence[ModuleType]) -> dict[str, str]:
    """Return {path: what is there}, of all that a module and the files that it came from hold outside its state_dict.

    A tensor is a digest, and so is where a generator stands; plain values are spelled out.
    """
    walk = _Walk(files, module.state_dict(keep_vars=True).values())
    found = dict(walk.of("self", module))
    for file in files:
        found |= dict(walk.of(file.__name__.rpartition(".")[2], file))
    return found


class _Walk:
    def __init__(self, files: Sequence[ModuleType], saved: Any):
        self._own = {file.__name__ for file in files}
        self._seen = {id(value): value for value in saved}  # held, so that none leaves its address to another

    def of(self, path: str, value: Any) -> Iterator[tuple[str, str]]:
        if id(value) in self._seen or len(self._seen) >= MOST:
            return
        if isinstance(value, PLAIN):
            yield path, repr(value)
            return
        self._seen[id(value)] = value
        if (spelled := _spell(value)) is not None:
            yield path, spelled
            return
        for key, part in self._parts(value):
            yield from self.of(f"{path}{key}", part)

    def _parts(self, value: Any) -> Iterator[tuple[str, Any]]:
        match value:
            case Mapping():
                yield from ((f"[{key!r}]" if isinstance(key, PLAIN) else "[...]", part) for key, part in value.items())
            case list() | tuple():
                yield from ((f"[{index}]", part) for index, part in enumerate(value))
            case set() | frozenset():
                yield "", repr(sorted(repr(part) for part in value if isinstance(part, PLAIN)))
            case MethodType():
                yield "", value.__self__
            case nn.Module():
                yield from _attributes({key: part for key, part in vars(value).items() if key not in _OWN})
                yield from _attributes(dict(value.named_parameters(recurse=False, remove_duplicate=False)))
                yield from _attributes(dict(value.named_buffers(recurse=False, remove_duplicate=False)))
                yield from _attributes(dict(value.named_children()))
            case ModuleType() | FunctionType() | type():
                name = value.__name__ if isinstance(value, ModuleType) else value.__module__
                if name in self._own:
                    yield from _attributes({key: part for key, part in vars(value).items() if key[:2] != "__"})
                    yield from _attributes(_closure(value))
            case itertools.count() | itertools.cycle():
                yield from _reduced(value)
            case _:
                yield from _attributes(vars(value)) if hasattr(value, "__dict__") else _reduced(value)


def _spell(value: Any) -> str | None:
    """A value that has no parts that matter; None for any other."""
    match value:
        case torch.Tensor():
            return digest(value)
        case np.ndarray():
            return digest(torch.from_numpy(value)) if value.dtype.kind in "biuf" else repr(value.shape)
        case os.PathLike():
            return repr(os.fspath(value))
        case torch.Generator():
            return digest(value.get_state())
        case random.Random():
            return _hash(value.getstate())
        case np.random.RandomState():
            return _hash(value.get_state())
        case np.random.Generator():
            return _hash(value.bit_generator.state)
    return None


def _attributes(held: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    yield from ((f".{key}", part) for key, part in list(held.items()))


def _closure(value: Any) -> Mapping[str, Any]:
    found: dict[str, Any] = {}
    if isinstance(value, FunctionType):
        for name, cell in zip(value.__code__.co_freevars, value.__closure__ or (), strict=True):
            with contextlib.suppress(ValueError):  # it has no value yet
                found[name] = cell.cell_contents
    return found


def _reduced(value: Any) -> Iterator[tuple[str, Any]]:
    """What a value without a `__dict__` would be pickled as: slots, the state of an iterator, a deque's items."""
    try:
        made = value.__reduce_ex__(2)
    except Exception:  # it holds what cannot be copied, and is left alone
        return
    if isinstance(made, tuple):
        yield from ((f".{index}", part) for index, part in enumerate(made[1:3]) if part is not None)
        for index, part in enumerate(itertools.islice(made[3], 1000) if len(made) > 3 and made[3] else ()):
            yield f"[{index}]", part


def _hash(state: object) -> str:
    return hashlib.sha256(repr(state).encode()).hexdigest()[:16]


def digest(tensor: torch.Tensor) -> str:
    """Return a tensor's shape, and a hash of its values."""
    if tensor.is_sparse or tensor.is_quantized or tensor.device.type == "meta":
        return str(tuple(tensor.shape))
    data = tensor.detach().cpu().contiguous().flatten()
    data = data.view(torch.uint8) if data.numel() else data
    return f"{tuple(tensor.shape)} {hashlib.sha256(data.numpy().tobytes()).hexdigest()[:16]}"
