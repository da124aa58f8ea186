"""What a user's file takes from outside of what travels with it, seen by Python's audit events while it runs.

What decides a result has to be in the trial's id, or the same id would stand for two results: so a file of data, a
module or an answer from the network that lies elsewhere is refused by name.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import os
import site
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from search_spaces import machine, user_code
from search_spaces.user_code import Source
from trainer import user_module
from trainer.gate.report import Finding

SYSTEM = ("/bin", "/etc", "/lib", "/lib64", "/proc", "/sbin", "/sys", "/usr")
DEVICES = ("/dev/null", "/dev/random", "/dev/urandom")
LISTS = ("os.listdir", "os.scandir")
ASKS = ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname")
MEND = "Keep it beside the pool's file and write its name there as a text, so that it travels and is part of the id."


class Reads:
    """Everything that Python opens, lists, imports or connects to within the block.

    Attributes:
        opened: files that were read and that this process had not written.
        listed: folders, but for those that an import looks through.
        hosts: that were connected to.
    """

    def __init__(self) -> None:
        self.opened: dict[str, None] = {}
        self.listed: dict[str, None] = {}
        self.hosts: dict[str, None] = {}
        self._written = set[str]()
        self._modules = set(sys.modules)
        self._active = False
        sys.addaudithook(self._heed)  # which cannot be taken back: this process ends with the file's validation

    def __enter__(self) -> Reads:
        self._active = True
        return self

    def __exit__(self, *_: object) -> None:
        self._active = False

    def _heed(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self._active or event not in (*LISTS, *ASKS, "open"):
            return
        with contextlib.suppress(Exception):  # of a hook's, Python would raise in whatever it was called for
            if event in ASKS:
                host = arguments[0] if event != "socket.connect" else arguments[1][0]
                if isinstance(host, str) and not host.startswith("/"):
                    self.hosts[host] = None
            elif event in LISTS:
                if "importlib" not in _caller_file():
                    self.listed[os.path.realpath(os.fsdecode(arguments[0] or "."))] = None
            elif isinstance(arguments[0], str | bytes):
                path = os.path.realpath(os.fsdecode(arguments[0]))
                writes = isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
                if writes or (isinstance(arguments[1], str) and set(arguments[1]) & set("wax+")):
                    self._written.add(path)
                elif path not in self._written:
                    self.opened[path] = None

    def findings(self, source: Source) -> Iterator[Finding]:
        """Give what of it decides a result and is in no id."""
        for what, mend in self._found(source):
            yield Finding("reads", "import, building and training", what, mend)

    def _found(self, source: Source) -> Iterator[tuple[str, str]]:
        for name, file in self._modules_elsewhere():
            what = f"it imports {name} from {file}, which lies neither beside it nor in an installed distribution"
            yield what, "Put it beside the pool's file, or install it."
        root = os.path.realpath(user_module.folder() or "")
        came_from = Path(source.path).parents[source.place.count("/")]
        named = {os.path.realpath(text) for text in user_code.texts(source) if text.startswith("/")}  # C++ may read it
        for name in sorted((self.opened.keys() | named) - set(_of_modules())):
            if name.startswith(f"{root}/"):
                relative = os.path.relpath(name, root)
                if not os.path.exists(name) and (came_from / relative).is_file():  # noqa: PTH110
                    yield f"it reads {relative} beside it, whose name does not stand in the file as a text", MEND
            elif os.path.isfile(name) and not _is_environment(name):  # noqa: PTH113
                yield f"it reads {name}, which is in no trial's id and on no other machine", MEND
        if any(f"{folder}/".startswith(f"{root}/") for folder in self.listed) and not user_code.names_a_pattern(source):
            what = "it lists the folder that it lies in, where on another machine is only what its text names"
            yield what, "Write the names there as texts, or a pattern: '*.npy'."
        for host in self.hosts:
            yield f"it connects to {host}, whose answer is in no trial's id", MEND

    def _modules_elsewhere(self) -> Iterator[tuple[str, str]]:
        own = user_module.modules()
        tops = {name.partition(".")[0] for name in set(sys.modules) - self._modules}
        for top in sorted(tops):
            module = sys.modules.get(top)
            file = getattr(module, "__file__", None)
            if file and module not in own and not _is_environment(os.path.realpath(file)) and not _is_installed(top):
                yield top, file


def _caller_file() -> str:
    """Return the file of the code that has done what the hook is told of."""
    frame = inspect.currentframe()
    asking = frame and frame.f_back and frame.f_back.f_back
    return asking.f_code.co_filename if asking else ""


def _of_modules() -> Iterator[str]:
    """The files that modules were imported from."""
    for module in list(sys.modules.values()):
        for key in ("__file__", "__cached__"):
            if isinstance(file := getattr(module, key, None), str):
                yield os.path.realpath(file)


def _is_environment(path: str) -> bool:
    """Whether a file is Python's, an installed distribution's, the system's, this project's, or a compiler's cache."""
    return path.startswith(_environment())


@functools.cache
def _environment() -> tuple[str, ...]:
    home = Path.home()
    inductor = os.environ.get("TORCHINDUCTOR_CACHE_DIR") or f"{tempfile.gettempdir()}/torchinductor_"
    triton = os.environ.get("TRITON_CACHE_DIR") or home / ".triton"
    caches = (home / ".cache" / name for name in ("fontconfig", "matplotlib", "torch/kernels", "torch_extensions"))
    places = [
        *(sys.prefix, sys.base_prefix, *sysconfig.get_paths().values(), *site.getsitepackages()),
        *(site.getusersitepackages(), *(machine.ROOT / each for each in machine.PACKAGES if each != "search_spaces")),
        *(machine.ROOT / "search_spaces").glob("*.py"),  # and not the candidates there, which are users'
        *(inductor, triton, home / ".config/matplotlib", *caches),
    ]
    resolved = tuple(os.path.realpath(place) for place in places if str(place) not in ("", "/"))
    return (*resolved, *(f"{place}/" for place in SYSTEM), *DEVICES)


def _is_installed(top: str) -> bool:
    """Whether a distribution says that a module is its own, as one that is installed editable does."""
    import importlib.metadata

    return top in importlib.metadata.packages_distributions()
