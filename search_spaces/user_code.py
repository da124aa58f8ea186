"""Read a user's file and the files beside it that it needs: as content, with one hash over all of it. Run none of it.

What a file needs is read off its text. An import is resolved as Python does for a script: first beside the file, or in
its package, then in the environment. But a name of the standard library, or of what this project imports, never means a
file beside it. A data file is needed if its name is in the text. The gate finds what these rules miss
(`trainer.gate.reads`), and refuses it by name.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import io
import itertools
import os
import re
import sys
import tokenize
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from search_spaces.errors import RequestError, read_at_most

DEFAULT_CLASS = "CustomPool"
MOST_BYTES = 2**20  # of a file of Python
MOST_BYTES_BESIDE = 4 * 2**20  # of all that travels with it: every run folder has it, as text
ENVIRONMENT = frozenset(
    {"orchestrator", "results", "run_sweep", "search_spaces", "trainer"}
    | {"numpy", "pandas", "PIL", "pyarrow", "ray", "rich", "scipy", "sklearn", "torch", "torchvision", "yaml"}
)  # what our own processes have imported, so that no sibling of that name would be

PATTERN = re.compile(r"[^*?]*\*[^*?/]*\.\w+")  # `data/*.npy`; a star alone is no pattern but a row of them
MAIN = ("__name__ == '__main__'", "'__main__' == __name__")

Files = tuple[tuple[str, bytes], ...]


@dataclass(frozen=True, slots=True)
class Source:
    """A pool in a user's file, as content and not as a path, so that it reaches a worker on any machine.

    Attributes:
        text: the file's text, decoded as Python would.
        path: the file's path, for messages only.
        beside: (path relative to the folder that they share, content) of the modules and data that it needs.
        place: the file's own path there: its name, or `lab/pools/mine.py` if it is part of a package.
    """

    text: str = field(repr=False)
    class_name: str = DEFAULT_CLASS
    path: str = field(default="<candidate>", compare=False)
    beside: Files = field(default=(), repr=False)
    place: str = "candidate.py"

    @property
    def sha(self) -> str:
        """The SHA-256 of the text and of all files beside it, 64 hex digits: the candidate's revision."""
        return _sha(self.text, self.beside, self.place)

    @property
    def content(self) -> bytes:
        """The file, in the encoding that its text declares."""
        encoding, _ = tokenize.detect_encoding(io.BytesIO(self.text.encode()).readline)
        return self.text.encode(encoding)


@functools.lru_cache(maxsize=256)
def _sha(text: str, beside: Files, place: str) -> str:
    parts = [text.encode()]
    if "/" in place:  # elsewhere it says nothing, and a file that was only renamed keeps its revision
        parts.append(b"\0\0" + place.encode())
    for name, content in beside:
        spelled = name.removesuffix(".py") if "/" not in name else name
        parts += [b"\0" + spelled.encode() + b"\0", content]
    return hashlib.sha256(b"".join(parts)).hexdigest()


def read(path: Path) -> tuple[bytes, str, ast.Module]:
    """Return a Python file's content, its text as Python decodes it, and its syntax tree; or raise a RequestError."""
    content = read_at_most(MOST_BYTES, path, "the pool file ")
    try:
        encoding, _ = tokenize.detect_encoding(io.BytesIO(content).readline)
        text = re.sub("\r\n?", "\n", content.decode(encoding))
        return content, text, ast.parse(text)
    except (MemoryError, RecursionError):
        raise RequestError.of(f"the pool file {path} is nested too deeply") from None
    except (SyntaxError, ValueError, LookupError) as error:
        line = f", line {error.lineno}" if isinstance(error, SyntaxError) and error.lineno else ""
        raise RequestError.of(f"the pool file {path}{line} is not Python: {error}") from None


def gather_beside(path: Path, tree: ast.Module) -> tuple[str, Files]:
    """Return the file's place, and the files beside it that it needs: its imports, their imports, and data.

    Raise a RequestError if one of them cannot be read, or if all together are too large.
    """
    path = path.resolve()  # as Python does for a script
    root = _root(path.parent)
    found: dict[str, bytes] = {}
    data: dict[str, int] = {}
    waiting = [(path, tree)]
    seen = {path}
    while waiting:
        file, parsed = waiting.pop()
        for module in _modules(file, parsed, path.parent, root):
            if module not in seen:
                seen.add(module)
                content, _, inner = read(module)
                found[module.relative_to(root).as_posix()] = content
                waiting.append((module, inner))
        data |= {item.relative_to(root).as_posix(): item.stat().st_size for item in _data(file, parsed)}
    sizes = {name: len(content) for name, content in found.items()} | data
    if (size := sum(sizes.values())) > MOST_BYTES_BESIDE:
        raise RequestError.of(
            f"expected at most {MOST_BYTES_BESIDE:,} bytes of files that {path} needs, got {size:,}, most of them in "
            f"{max(sizes, key=sizes.__getitem__)}; every run folder gets a copy, so make them smaller"
        )
    found |= {name: (root / name).read_bytes() for name in data}
    return path.relative_to(root).as_posix(), tuple(sorted(found.items()))


def texts(source: Source) -> set[str]:
    """Return the short strings in the Python files of a source."""
    modules = [content for name, content in source.beside if name.endswith(".py")]
    return {text for content in (source.text, *modules) for text in _texts(ast.parse(content))}


def names_a_pattern(source: Source) -> bool:
    """Return whether a source has a string such as `*.npy`: the files that it matches have travelled."""
    return any(PATTERN.fullmatch(text) for text in texts(source))


def is_environment(name: str) -> bool:
    """Return whether an import of that name means the standard library or this project's own environment."""
    top = name.partition(".")[0]
    return top in sys.stdlib_module_names or top in ENVIRONMENT


def is_place(text: str) -> bool:
    """Return whether a text is a relative path that stays below its folder."""
    parts = text.split("/")
    return 0 < len(text) < 1000 and not any(part in ("", ".", "..") or re.search(r"[\\\0:]", part) for part in parts)


def _root(folder: Path) -> Path:
    """Return the folder above the package that this one is part of; itself, if it is part of none."""
    while _file(folder / "__init__.py") and folder.parent != folder:
        folder = folder.parent
    return folder


def _modules(file: Path, tree: ast.Module, script: Path, root: Path) -> Iterator[Path]:
    """Yield the files beside a file that it imports, with the `__init__` of their packages."""
    for base, name in _imported(file, tree, (script, root)):
        parts = [part for part in name.split(".") if part]
        packages = [base.joinpath(*parts[:depth], "__init__.py") for depth in range(len(parts) + 1)]
        modules = [base.joinpath(*parts[:-1], f"{parts[-1]}.py")] if parts else []
        yield from filter(None, map(_file, (*packages, *modules)))
    for folder in file.parents:  # to import lab.pools.mine is to import lab and lab.pools
        if root in folder.parents and (init := _file(folder / "__init__.py")):
            yield init


def _imported(file: Path, tree: ast.Module, roots: Sequence[Path]) -> Iterator[tuple[Path, str]]:
    """Yield (folder to start from, dotted name) of all that a file may import from beside it, modules or not."""
    for node in _run(tree):
        match node:
            case ast.Import(names=aliases):
                names, level = [alias.name for alias in aliases], 0
            case ast.ImportFrom(module=module, names=aliases, level=level):
                above = [module] if module else []
                names = [".".join([*above, name]) for name in ("", *(alias.name for alias in aliases))]
            case _:
                continue
        for name in names:
            if level:
                folders = file.parents[level - 1 : level]
                yield from ((folder, name) for folder in folders if roots[-1] in (folder, *folder.parents))
            elif not is_environment(name):
                top = name.partition(".")[0]
                found = (root for root in roots if _file(root / f"{top}.py") or _is_folder(root / top))
                yield from ((root, name) for root in itertools.islice(found, 1))


def _data(file: Path, tree: ast.Module) -> Iterator[Path]:
    """Yield the data files that strings of a file name: whole, as a pattern, joined to a folder, or as a suffix."""
    named = sorted(set(_texts(tree)))
    folders = [""] + [text for text in named if is_place(text) and _is_folder(file.parent / text)]
    for folder, text in itertools.product(folders, named):
        names = [text.removeprefix("./").lstrip("/")] + ([file.stem + text] if text.startswith(".") else [])
        for name in names:
            relative = str(PurePosixPath(folder) / name)
            usable = is_place(relative) and not relative.endswith((".py", ".pyc"))
            if usable and PATTERN.fullmatch(relative):
                yield from (found for found in file.parent.glob(relative) if _is_data(found))
            elif usable and (found := _file(file.parent / relative)):
                yield found


def _run(tree: ast.Module) -> Iterator[ast.AST]:
    """Yield the nodes of a file that may run once it is imported: all but `if __name__ == "__main__"`."""
    waiting: list[ast.AST] = [tree]
    while waiting:
        node = waiting.pop()
        yield node
        is_main = isinstance(node, ast.If) and ast.unparse(node.test) in MAIN
        waiting += node.orelse if isinstance(node, ast.If) and is_main else ast.iter_child_nodes(node)


def _is_data(path: Path) -> bool:
    return path.is_file() and path.suffix not in (".py", ".pyc") and "__pycache__" not in path.parts


def _texts(tree: ast.Module) -> Iterator[str]:
    """Yield the short strings of a file, but for its docstrings, which may name a README."""
    said = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in _run(tree):
        text = node.value if isinstance(node, ast.Constant) and id(node) not in said else None
        if isinstance(text, str) and 0 < len(text) <= 200 and "\0" not in text:
            yield text


def _is_folder(path: Path) -> bool:
    return os.path.isdir(path)  # noqa: PTH112 - a name too long is none


def _file(path: Path) -> Path | None:
    return path if os.path.isfile(path) else None  # noqa: PTH113 - likewise
