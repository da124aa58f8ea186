"""A user's file as a module, run as Python itself runs it: from files, by Python's own import.

What travelled with it is laid out in a folder of this process, where everything lies as it lay beside the file. So its
packages, its relative imports, its data and its encoding are Python's business; nothing else of the machine that it
came from is there. A process that has run one user's file is given no other (`Pool.code`): whatever a file does to
torch, it does to its own trials.
"""

from __future__ import annotations

import atexit
import fcntl
import functools
import importlib
import importlib.util
import inspect
import os
import re
import shutil
import sys
import tempfile
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType

from torch import nn

from search_spaces.user_code import DEFAULT_CLASS, Files, Source, is_environment
from trainer.randomness import Noise, Purpose, same, seeded


def load_class(source: Source) -> type[nn.Module]:
    """Return the source's class. The file is run once a process.

    Raises:
        AttributeError: it has no such class, now that it has run; names those that it has.
        whatever it raises on import.
    """
    module = _module(source.text, source.beside, source.place, source.sha)
    if (found := getattr(module, source.class_name, None)) is not None:
        return found
    classes = [cls for cls in vars(module).values() if inspect.isclass(cls) and issubclass(cls, nn.Module)]
    classes = [cls for cls in dict.fromkeys(classes) if cls.__module__ == module.__name__] or classes
    if source.class_name == DEFAULT_CLASS and len(classes) == 1:
        return classes[0]
    has = ", ".join(cls.__name__ for cls in classes) or "none"
    raise AttributeError(f"it has no class {source.class_name}; of nn.Module it has {has}; name one with `class`")


def folder() -> Path | None:
    """Return where the file that this process runs is laid out; None before it has run one."""
    return _beside.folders[0] if _beside.folders else None


def modules() -> list[ModuleType]:
    """Return the modules that lie there: the file's own, and those beside it that it has imported."""
    below = f"{folder()}/"
    return [module for module in list(sys.modules.values()) if str(getattr(module, "__file__", "")).startswith(below)]


def draws() -> bool:
    """Return whether the file that this process runs has moved a global generator when it was imported."""
    return bool(_drawn)


_drawn: list[str] = []


class _Beside:
    """Finds modules that lie beside the file: as Python does for a script, but for the names of the environment."""

    folders: tuple[Path, ...] = ()

    def find_spec(self, name: str, path: object = None, _target: object = None) -> ModuleSpec | None:
        if path is not None or is_environment(name):
            return None
        return PathFinder.find_spec(name, [str(folder) for folder in self.folders])


_beside = _Beside()


@functools.cache
def _module(text: str, beside: Files, place: str, sha: str) -> ModuleType:
    package = f"pool_{sha[:8]}"  # what `from . import helper` is relative to, in a file that is part of no package
    above = _own_folder()
    root, file = above / package, above / package / place
    for name, content in (*beside, (place, Source(text).content)):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    _look_in(root, file.parent, above)
    own = {name.partition("/")[0].removesuffix(".py") for name, _ in beside}
    for name in list(sys.modules):  # one that Ray has imported, say, is not the one that lies beside
        if name.partition(".")[0] in own and not is_environment(name):
            del sys.modules[name]
    with seeded(0, Purpose.POOL):  # what is drawn on import is the same in every process
        before = Noise.host_state()
        module = _import(package, file, place)
        if not same(before, Noise.host_state()):
            _drawn.append(sha)
    return module


def _own_folder() -> Path:
    """An empty folder that lasts as long as this process; those of processes that were killed are removed.

    Whoever lives holds a lock on its own, which the system gives back in any case; see flock(2).
    """
    places = Path(tempfile.gettempdir())
    for left in places.glob("poolsweep-*"):
        if (handle := _lock(left)) is not None:
            shutil.rmtree(left, ignore_errors=True)
            os.close(handle)
    made = Path(tempfile.mkdtemp(prefix=".poolsweep-"))
    _lock(made)  # before anybody looks for it
    own = made.rename(places / made.name.removeprefix("."))
    atexit.register(shutil.rmtree, own, ignore_errors=True)
    return own


def _lock(folder: Path) -> int | None:
    """The handle of a folder that nobody else has locked."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        return None
    return handle


def _import(package: str, file: Path, place: str) -> ModuleType:
    if "/" in place:
        return importlib.import_module(".".join(Path(place).with_suffix("").parts))
    importlib.import_module(package)
    spec = importlib.util.spec_from_file_location(f"{package}.{re.sub(r'[^A-Za-z0-9_]', '_', file.stem)}", file)
    if spec is None or spec.loader is None:
        raise ImportError(f"{file} cannot be imported")
    sys.modules[spec.name] = module = importlib.util.module_from_spec(spec)  # where dataclasses and pickle look
    spec.loader.exec_module(module)
    return module


def _look_in(*folders: Path) -> None:
    """Imports from there, and from no other source's folders: two sources in a process are for tests alone."""
    if _beside not in sys.meta_path:
        sys.meta_path.insert(0, _beside)
    for module in modules():
        sys.modules.pop(module.__name__, None)
    _beside.folders = folders
    importlib.invalidate_caches()
