"""What a pool keeps in Python, where no checkpoint finds it: plain values and tensors, by the path that leads to them.

Addresses are no state, and neither is what a library holds: only what hangs on the module, on the globals and classes
of the user's own files, and on the closures of their functions.
"""

from __future__ import annotations

import hashlib
import inspect
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
    """{path: what is there}, of all that a module and the files that it came from hold in Python."""
    walk = _Walk({file.__name__ for file in files})
    found = dict(walk.of("self", module))
    for file in files:
        for key, value in list(vars(file).items()):
            if not key.startswith("__"):
                found |= dict(walk.of(f"{file.__name__.rpartition('.')[2]}.{key}", value))
    return found


class _Walk:
    def __init__(self, own: set[str]):
        self._own = own
        self._seen = set[int]()
        self._keep: list[Any] = []  # what was seen must not go, and leave its address to another
        self._left = MOST

    def of(self, path: str, value: Any) -> Iterator[tuple[str, str]]:
        if isinstance(value, PLAIN):
            yield path, repr(value)
            return
        if isinstance(value, os.PathLike):
            yield path, repr(os.fspath(value))
            return
        if id(value) in self._seen or self._left <= 0:
            return
        self._seen.add(id(value))
        self._keep.append(value)
        self._left -= 1
        if isinstance(value, torch.Tensor):
            yield path, digest(value)
        elif isinstance(value, np.ndarray):
            yield path, digest(torch.from_numpy(value)) if value.dtype.kind in "biuf" else repr(value.shape)
        elif isinstance(value, (random.Random, np.random.RandomState, np.random.Generator, torch.Generator)):
            yield path, _state(value)
        else:
            for key, part in self._parts(value):
                yield from self.of(f"{path}{key}", part)

    def _parts(self, value: Any) -> Iterator[tuple[str, Any]]:
        if isinstance(value, Mapping):
            yield from ((f"[{key!r}]" if isinstance(key, PLAIN) else "[...]", part) for key, part in value.items())
        elif isinstance(value, (list, tuple)):
            yield from ((f"[{index}]", part) for index, part in enumerate(value))
        elif isinstance(value, (set, frozenset)):
            yield "", repr(sorted(repr(part) for part in value if isinstance(part, PLAIN)))
        elif isinstance(value, ModuleType):
            return
        elif inspect.isclass(value):
            if value.__module__ in self._own:
                yield from ((f".{key}", part) for key, part in vars(value).items() if not key.startswith("__"))
        elif isinstance(value, MethodType):
            yield "", value.__self__
        elif isinstance(value, FunctionType):
            if value.__module__ in self._own:
                cells = zip(value.__code__.co_freevars, value.__closure__ or (), strict=True)
                yield from ((f".{name}", cell.cell_contents) for name, cell in cells if _is_filled(cell))
                yield from ((f".{key}", part) for key, part in vars(value).items())
        elif isinstance(value, nn.Module):
            yield from ((f".{key}", part) for key, part in vars(value).items() if key not in _OWN)
            for each in (value.named_parameters, value.named_buffers):
                yield from ((f".{key}", item) for key, item in each(recurse=False, remove_duplicate=False))
            yield from ((f".{key}", item) for key, item in value.named_children())
        elif isinstance(value, (itertools.count, itertools.cycle)) or not hasattr(value, "__dict__"):
            yield from self._reduced(value)
        else:
            yield from ((f".{key}", part) for key, part in vars(value).items())

    def _reduced(self, value: Any) -> Iterator[tuple[str, Any]]:
        """What a value without a `__dict__` would be pickled as: slots, the state of an iterator, a deque's items."""
        try:
            made = value.__reduce_ex__(2)
        except Exception:  # it holds what cannot be copied, and is left alone
            return
        if isinstance(made, tuple):
            yield from ((f".{index}", part) for index, part in enumerate(made[1:3]) if part is not None)
            for index, part in enumerate(itertools.islice(made[3], 1000) if len(made) > 3 and made[3] else ()):
                yield f"[{index}]", part


def _is_filled(cell: Any) -> bool:
    try:
        cell.cell_contents  # noqa: B018 (it raises if it is empty)
    except ValueError:
        return False
    return True


def _state(generator: Any) -> str:
    match generator:
        case random.Random():
            state: Any = generator.getstate()
        case np.random.RandomState():
            state = generator.get_state()
        case np.random.Generator():
            state = generator.bit_generator.state
        case _:
            return digest(generator.get_state())
    return hashlib.sha256(repr(state).encode()).hexdigest()[:16]


def digest(tensor: torch.Tensor) -> str:
    """Its shape, and a hash of its values."""
    if tensor.is_sparse or tensor.is_quantized or tensor.device.type == "meta":
        return str(tuple(tensor.shape))
    data = tensor.detach().cpu().contiguous().flatten()
    data = data.view(torch.uint8) if data.numel() else data
    return f"{tuple(tensor.shape)} {hashlib.sha256(data.numpy().tobytes()).hexdigest()[:16]}"
