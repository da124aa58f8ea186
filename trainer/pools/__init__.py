"""The built-in pools: one public class a file, [B, C, H, W] -> [B, C]; the file's name is the pool's name."""

from __future__ import annotations

import importlib
import inspect
from typing import TYPE_CHECKING

from search_spaces.errors import require
from search_spaces.pool import Pool, builtin_source, names
from search_spaces.signature import signature
from trainer import user_module

if TYPE_CHECKING:
    from torch import nn


def load_class(pool: Pool) -> type[nn.Module]:
    """The pool's class. Runs the file it stands in, once a process: a candidate is code, and is trusted from here on.

    Raises:
        whatever the file raises on import.
    """
    if pool.source is not None:
        return user_module.load_class(pool.source)
    require("pool", pool.name, names())
    module = importlib.import_module(f"trainer.pools.{pool.name}")
    return getattr(module, builtin_source(pool.name).class_name)


def build(pool: Pool, channels: int) -> nn.Module:
    """The pool as a module, for feature maps of that many channels; `channels` is passed if it is declared."""
    cls = load_class(pool)
    return cls(**dict(pool.params), **({"channels": channels} if _takes_channels(pool, cls) else {}))


def _takes_channels(pool: Pool, cls: type[nn.Module]) -> bool:
    try:
        taken = inspect.signature(cls).parameters
    except (TypeError, ValueError):  # it is no Python function's
        taken = {}
    if "channels" in taken:
        return True
    hidden = not taken or any(each.kind is each.VAR_KEYWORD for each in taken.values())  # behind a decorator, say
    return hidden and signature(pool.source or builtin_source(pool.name)).takes_channels
