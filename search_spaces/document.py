"""YAML as people write it: numbers like 5e-4, the line of every key, and no key twice."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from trainer.problems import Problem, RequestError

KeyPath = tuple[str | int, ...]


class _Loader(yaml.SafeLoader):
    """PyYAML reads YAML 1.1, to which 5e-4 and 1e3 are strings; this resolves floats as YAML 1.2 does."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\.\d+|\d+(\.\d*)?)[eE][-+]?\d+$"), list("-+0123456789.")
)


class Document:
    """A YAML file's data, and where in the file each key stands.

    Attributes:
        data: the mapping that the file holds.

    Raises:
        RequestError: no YAML, no mapping, or keys that stand twice.
    """

    def __init__(self, path: Path):
        self.path = path
        self._lines: dict[KeyPath, int] = {}
        try:
            loader = _Loader(path.read_text(encoding="utf-8"))
            root = loader.get_single_node()
            problems = list(self._walk(root, ())) if root else []
            self.data: dict[str, Any] = loader.construct_document(root) if root else {}
        except (OSError, UnicodeDecodeError) as error:
            raise RequestError.of(f"{path} cannot be read: {error}") from None
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            raise RequestError.of(f"{path} is not YAML: {error}") from None
        if not isinstance(self.data, dict):
            raise RequestError.of(
                f"{path} must hold a mapping of keys (name, pools, seeds, ...), found a {_kind(self.data)}"
            )
        if problems:
            raise RequestError(self.locate(problem, ()) for problem in problems)

    def set(self, override: str) -> None:
        """Applies `KEY.KEY=VALUE`, the value in YAML."""
        key, equals, text = override.partition("=")
        if not equals or not key:
            raise RequestError.of(f"found {override!r}, allowed is KEY=VALUE", "--set")
        try:
            value = yaml.load(text, _Loader)  # noqa: S506  (a SafeLoader)
        except (yaml.YAMLError, ValueError) as error:
            raise RequestError.of(f"{text!r} is not a YAML value: {error}", f"--set {key}") from None
        at: Any = self.data
        *parents, last = key.split(".")
        for parent in parents:
            at = at.setdefault(parent, {}) if isinstance(at, dict) else None
        if not isinstance(at, dict):
            raise RequestError.of(f"{'.'.join(parents)} is not a mapping, so nothing in it can be set", f"--set {key}")
        at[last] = value

    def line(self, path: KeyPath) -> int:
        """The line of a path of keys, or of the nearest key above it that the file has; 0 for the whole file."""
        while path and path not in self._lines:
            path = path[:-1]
        return self._lines[path] if path else 0

    def locate(self, problem: Problem, path: KeyPath) -> Problem:
        """The problem at a path of keys, with file and line in front."""
        line = self.line(path)
        return Problem(f"{self.path}{f':{line}' if line else ''}: {problem.where}".removesuffix(": "), problem.what)

    def _walk(self, node: yaml.Node, path: KeyPath) -> Any:
        self._lines.setdefault(path, node.start_mark.line + 1)
        if isinstance(node, yaml.SequenceNode):
            for index, item in enumerate(node.value):
                yield from self._walk(item, (*path, index))
        elif isinstance(node, yaml.MappingNode):
            seen: dict[str, int] = {}
            for key, value in node.value:
                name, line = str(getattr(key, "value", "")), key.start_mark.line + 1
                if name in seen:
                    yield Problem(spell((*path, name)), f"stands twice, on lines {seen[name]} and {line}; keep one")
                seen[name] = line
                self._lines[(*path, name)] = line
                yield from self._walk(value, (*path, name))


def spell(path: KeyPath) -> str:
    """("pools", 2, "name") -> `pools[2].name`."""
    return "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in path).removeprefix(".")


def _kind(value: Any) -> str:
    return "list" if isinstance(value, list) else "mapping" if isinstance(value, Mapping) else type(value).__name__
