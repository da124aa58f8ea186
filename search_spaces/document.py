"""A space file as data, with the line of every key; and what is wrong with it as a text, whatever it is about."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from trainer import strict_yaml
from trainer.printable import unprintable
from trainer.problems import Problem, RequestError, short

KeyPath = tuple[str | int, ...]

MOST_BYTES = 2**20  # of short values PyYAML reads 120 kB a second
MOST_VALUES = 200_000
MOST_CHARACTERS = 1_000  # of a text


class Document:
    """A YAML file's data, and where in the file each key stands.

    Attributes:
        data: the mapping that the file holds.

    Raises:
        RequestError: no YAML, no mapping, keys that stand twice, or texts with control characters.
    """

    def __init__(self, path: Path):
        self.path = path
        self._lines: dict[KeyPath, int] = {}
        try:
            loader, root = strict_yaml.compose(_read(path), MOST_VALUES)
            problems = list(_walk(root, (), self._lines))
            self.data: dict[str, Any] = loader.construct_document(root) if root else {}
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise RequestError.of(f"{path} is not YAML: {error}") from None
        if not isinstance(self.data, dict):
            raise RequestError.of(
                f"{path} must hold a mapping of keys (name, pools, seeds, ...), found a {_kind(self.data)}"
            )
        if problems:
            raise RequestError(self.locate(problem, at) for at, problem in problems)

    def set(self, override: str) -> None:
        """Applies `KEY.KEY=VALUE`, the value in YAML."""
        key, equals, text = override.partition("=")
        if not equals or not key:
            raise RequestError.of(f"found {override!r}, allowed is KEY=VALUE", "--set")
        where = f"--set {key}"
        try:
            loader, root = strict_yaml.compose(text, MOST_VALUES)
            problems = [problem for _, problem in _walk(root, (), {})]
            value = loader.construct_document(root) if root else None
        except yaml.YAMLError as error:
            raise RequestError.of(f"{short(text)} is not a YAML value: {error}", where) from None
        if problems:
            raise RequestError(problem.under(where) for problem in problems)
        at: Any = self.data
        *parents, last = key.split(".")
        for parent in parents:
            at = at.setdefault(parent, {}) if isinstance(at, dict) else None
        if not isinstance(at, dict):
            raise RequestError.of(f"{'.'.join(parents)} is not a mapping, so nothing in it can be set", where)
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


def _read(path: Path) -> str:
    """The file's text.

    Raises:
        RequestError: it cannot be read, or is larger than a space can be.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise RequestError.of(f"{path} cannot be read: {error.strerror or error}") from None
    if len(data) > MOST_BYTES:
        raise RequestError.of(f"{path} has {path.stat().st_size:,} bytes; allowed are {MOST_BYTES:,}")
    return data.decode()


def _walk(node: yaml.Node | None, path: KeyPath, lines: dict[KeyPath, int]) -> Iterator[tuple[KeyPath, Problem]]:
    """What is wrong in a node, each with its path; notes the line of every key and item."""
    if isinstance(node, yaml.ScalarNode):
        if what := _wrong_with(node.value):
            yield path, Problem(spell(path), what)
    elif isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            lines[(*path, index)] = item.start_mark.line + 1
            yield from _walk(item, (*path, index), lines)
    elif isinstance(node, yaml.MappingNode):
        seen: dict[str, int] = {}
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue  # no key of a mapping that can be constructed
            name, line = key.value, key.start_mark.line + 1
            here = (*path, name)
            lines[here] = line
            if what := _wrong_with(name):
                yield here, Problem(spell(here), f"as a key: {what}")
            if name in seen:
                yield here, Problem(spell(here), f"stands twice, on lines {seen[name]} and {line}; keep one")
            seen[name] = line
            yield from _walk(value, here, lines)


def _wrong_with(text: str) -> str:
    if len(text) > MOST_CHARACTERS:
        return f"found a text of {len(text):,} characters, {short(text)}; allowed are {MOST_CHARACTERS:,}"
    if character := unprintable(text):
        return f"found {short(text)}, allowed is text without control characters; it has {character}"
    return ""


def spell(path: KeyPath) -> str:
    """("pools", 2, "name") -> `pools[2].name`."""
    return "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in path).removeprefix(".")


def _kind(value: Any) -> str:
    return "list" if isinstance(value, list) else "mapping" if isinstance(value, Mapping) else type(value).__name__
