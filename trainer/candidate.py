"""A user's file, and the modules that it brings along: as text, and run as modules of their own.

The text comes from wherever the sweep was started, and runs on machines where no such file exists. Each revision has
its own modules under its own names, so that two of them live side by side in one process.
"""

from __future__ import annotations

import builtins
import hashlib
import linecache
import sys
import types
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

DEFAULT_CLASS = "CustomPool"


@dataclass(frozen=True, slots=True)
class Source:
    """A pool in a user's single file: the text itself, so that it reaches a worker on any machine.

    Attributes:
        path: for messages and tracebacks only.
        helpers: (name, text) of the modules beside the file that it imports, directly or through one of them.
    """

    text: str = field(repr=False)
    class_name: str = DEFAULT_CLASS
    path: str = field(default="<candidate>", compare=False)
    helpers: tuple[tuple[str, str], ...] = field(default=(), repr=False)

    @property
    def sha(self) -> str:
        """SHA-256 of the text and of its helpers', 64 hex digits: the candidate's revision."""
        parts = [self.text, *(f"\0{name}\0{text}" for name, text in self.helpers)]
        return hashlib.sha256("".join(parts).encode()).hexdigest()


def load(source: Source) -> types.ModuleType:
    """The file's module. Runs it anew, so that nothing that one trial left in its globals reaches the next.

    Raises:
        whatever it raises on import.
    """
    prefix = f"candidate_{source.sha[:16]}"
    helpers = dict(source.helpers)
    loaded: dict[str, types.ModuleType] = {}

    def run(name: str, text: str, path: str) -> types.ModuleType:
        loaded[name] = module = types.ModuleType(name)
        module.__file__ = path
        module.__dict__["__builtins__"] = {**vars(builtins), "__import__": import_}
        linecache.cache[path] = (len(text), None, text.splitlines(keepends=True), path)  # for tracebacks
        sys.modules[name] = module  # where dataclasses and pickle look
        exec(compile(text, path, "exec"), module.__dict__)
        return module

    def helper(name: str) -> types.ModuleType:
        own = f"{prefix}.{name}"
        return loaded.get(own) or run(own, helpers[name], str(Path(source.path).with_name(f"{name}.py")))

    def import_(name: str, globals: Any = None, locals: Any = None, fromlist: Any = (), level: int = 0) -> Any:
        if level == 1 and not name:  # from . import helper
            return types.SimpleNamespace(**{each: helper(each) for each in fromlist})
        if level <= 1 and name in helpers:
            return helper(name)
        return builtins.__import__(name, globals, locals, fromlist, level)

    return run(prefix, source.text, source.path)
