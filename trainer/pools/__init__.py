"""The built-in pools: one public class a file, [B, C, H, W] -> [B, C]; the file's name is the pool's name.

Where a constructor takes `channels`, that is C.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable

from torch import nn

from search_spaces.errors import require
from search_spaces.pool import Pool, builtin_source, names
from search_spaces.signature import signature
from search_spaces.user_code import Source
from trainer import user_module


def load_class(pool: Pool) -> type[nn.Module]:
    """Return the pool's class. Runs its file, once a process: a candidate is code, and is trusted from here on.

    Raises:
        whatever the file raises on import.
    """
    if pool.source is not None:
        return user_module.load_class(pool.source)
    require("pool", pool.name, names())
    module = importlib.import_module(f"trainer.pools.{pool.name}")
    return getattr(module, builtin_source(pool.name).class_name)


def build(pool: Pool | Callable[..., nn.Module], channels: int) -> nn.Module:
    """Return a pool's module, or a function's, for maps of that many channels; `channels` is passed if declared."""
    if isinstance(pool, Pool):
        make, given = load_class(pool), dict(pool.params)
        source = pool.source or builtin_source(pool.name)
    else:
        make, given, source = pool, {}, None
    if _takes_channels(make, source):
        given["channels"] = channels
    return make(**given)


def _takes_channels(make: Callable[..., nn.Module], source: Source | None) -> bool:
    try:
        taken = inspect.signature(make).parameters
    except (TypeError, ValueError):  # it is no Python function's
        taken = {}
    if "channels" in taken:
        return True
    hidden = not taken or any(each.kind is each.VAR_KEYWORD for each in taken.values())  # behind a decorator, say
    return hidden and source is not None and signature(source).takes_channels
