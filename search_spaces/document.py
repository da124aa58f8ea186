"""Read a space file as data, with the line of every key, and say what is wrong with it as a text."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from search_spaces import strict_yaml
from search_spaces.errors import Problem, RequestError, expected, meant_number, read_at_most, short
from search_spaces.strict_yaml import MOST_BYTES
from search_spaces.text import unprintable, visible

# What looks like a space, or like nothing, and is no space to YAML: it comes with what is copied from a page or a PDF.
_ODD = "[\u00a0\u1680\u2000-\u200b\u202f\u205f\u2060\u3000\ufeff]"
_NO_SPACE = re.compile(_ODD)
_TAKEN_FOR_A_SPACE = re.compile(f"^{_ODD}|{_ODD}$|:{_ODD}|^-{_ODD}|{_ODD}#")
_DIGITS = re.compile(r"[0-9]+([eE][-+]?[0-9]+)?")
_NULL, _INT = "tag:yaml.org,2002:null", "tag:yaml.org,2002:int"


class Document:
    """The data of a YAML file, a mapping, and the line of each key.

    Raise a RequestError for no YAML, no mapping, keys that stand twice, and texts with control characters.
    """

    def __init__(self, path: Path):
        self.path = path
        data, self._lines, problems = _parse(_read(path))
        if data is not None and not isinstance(data, dict):
            raise RequestError.of(f"{path}: {expected('a mapping of keys (name, pools, seeds, ...)', data)}")
        if problems:
            raise RequestError(map(self.locate, problems))
        self.data: dict[str, Any] = data or {}

    def set(self, override: str) -> None:
        """Apply `KEY.KEY=VALUE`, the value in YAML; raise a RequestError if that cannot be."""
        key, value = read_override(override)
        at: Any = self.data
        *parents, last = key.split(".")
        for parent in parents:
            if isinstance(at, dict) and at.get(parent) is None:  # not there, or left empty
                at[parent] = {}
            at = at[parent] if isinstance(at, dict) else None
        if not isinstance(at, dict):
            raise RequestError.of(f"{'.'.join(parents)} is not a mapping, so nothing in it can be set", key)
        at[last] = value

    def line(self, where: str) -> int:
        """Return the line of a key (`pools[2].name`), or of the nearest above it; 0 if there is none."""
        while where and where not in self._lines:
            where = where[: max(where.rfind("."), where.rfind("["), 0)]
        return self._lines.get(where, 0)

    def locate(self, problem: Problem) -> Problem:
        """Return the problem with the file in front, and the line of its key."""
        line = self.line(problem.where)
        return Problem(f"{self.path}{f':{line}' if line else ''}: {problem.where}".removesuffix(": "), problem.what)


def read_override(override: str) -> tuple[str, Any]:
    """Return the key and the value of `KEY=VALUE`, the value in YAML; raise a RequestError if it is none."""
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise RequestError.of(expected("KEY=VALUE", override))
    value, _, problems = _parse(text)
    if problems:
        raise RequestError(problem.under(key) for problem in problems)
    return key, value


def _read(path: Path) -> str:
    data = read_at_most(MOST_BYTES, path)
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        line, byte = data.count(b"\n", 0, error.start) + 1, data[error.start]
        what = f"is not YAML, which is UTF-8 text: got the byte 0x{byte:02x}; save the file as UTF-8"
        raise RequestError.of(what, f"{path}:{line}") from None


def _parse(text: str) -> tuple[Any, dict[str, int], list[Problem]]:
    """Return a text's data, {key or item as in a problem: its line}, and what is wrong."""
    lines: dict[str, int] = {}
    try:
        loader, root = strict_yaml.compose(text)
        problems = list(_walk(root, "", lines))
        return loader.construct_document(root) if root else None, lines, problems
    except yaml.YAMLError as error:
        line, what = _not_yaml(error, text)
        return None, {"": line}, [Problem("", f"is not YAML: {what}")]


def _not_yaml(error: yaml.YAMLError, text: str) -> tuple[int, str]:
    """Return the line where a text is not YAML, 0 if nobody knows, and why, with what to do."""
    if isinstance(error, yaml.reader.ReaderError):
        what = f"got U+{error.character:04X}, a character that YAML does not have; take it out"
        return text.count("\n", 0, error.position) + 1, what
    if not isinstance(error, yaml.MarkedYAMLError) or not error.problem_mark:
        return 0, str(error)
    end, begin = error.problem_mark.line, (error.context_mark or error.problem_mark).line
    for number, line in enumerate(text.split("\n")[begin : end + 1], begin + 1):
        if found := _NO_SPACE.search(line):
            return number, _no_space(line, found[0])
    what = " ".join(f"{error.problem}".split())
    what = f"{error.context}, {what}" if what.startswith("but found") else what
    hint = next((hint for says, hint in _HINTS if says in f"{error.context} {what}"), "").format(begin + 1)
    return (begin if "simple key" in f"{error.context}" else end) + 1, f"{what}{hint}"


_HINTS = (  # by what PyYAML says
    ("'\\t' that cannot start", "; indent with spaces, not with tabs"),
    ("that cannot start any token", "; put a text that begins with it in quotes"),
    ("expected ':'", "; a line is `key: value`, with a space after the colon"),
    ("mapping values are not allowed", "; quote a text that has a colon and a space, or mind the indentation"),
    ("quoted scalar", "; a quote that opens in line {} is not closed"),
    ("expected ',' or", "; a bracket that opens in line {} is not closed, or a comma is missing"),
    ("while parsing a flow", "; a bracket that opens in line {} is not closed, or a comma is missing"),
    ("expected <block end>", "; what belongs together begins in the same column, as in line {}"),
    ("undefined alias", "; put a text that begins with * in quotes"),
    ("another document", "; a file holds one space: take out the line ---"),
)


def _no_space(where: str, character: str) -> str:
    name = unicodedata.name(character, "")
    return f"got U+{ord(character):04X} {name} in {short(where)}; replace it by an ordinary space, or quote the text"


def _walk(node: yaml.Node | None, where: str, lines: dict[str, int]) -> Iterator[Problem]:
    """Yield what is wrong in a node; note the line of every key and item."""
    if isinstance(node, yaml.ScalarNode):
        if what := _wrong_with(node, _TAKEN_FOR_A_SPACE):
            lines[visible(where)] = node.start_mark.line + 1
            yield Problem(where, what)
    elif isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            lines[visible(f"{where}[{index}]")] = item.start_mark.line + 1
            yield from _walk(item, f"{where}[{index}]", lines)
    elif isinstance(node, yaml.MappingNode):
        seen: dict[str, int] = {}
        here, whole = where, ""
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue  # no key of a mapping that can be constructed
            name, line = key.value, key.start_mark.line + 1
            if whole and not value.value and value.tag == _NULL and _DIGITS.fullmatch(name):  # {lr: 0,02}
                text = f"{whole},{name}"
                yield Problem(here, f"got {text}, and a comma begins the next key{meant_number(text)}")
                continue
            here = f"{where}.{name}" if where else name
            whole = value.value if node.flow_style and value.tag == _INT else ""
            lines[visible(here)] = line
            if what := _wrong_with(key, _NO_SPACE):
                yield Problem(here, f"as a key: {what}")
            if name in seen:
                yield Problem(here, f"stands twice, on lines {seen[name]} and {line}; keep one")
            seen[name] = line
            yield from _walk(value, here, lines)


def _wrong_with(node: yaml.ScalarNode, no_space: re.Pattern[str]) -> str:
    text = node.value
    if character := unprintable(text):
        return f"{expected('text without control characters', text)}; it has {character}"
    if node.style is None and (found := no_space.search(text)):
        return _no_space(text, found[0].strip(":-#"))
    return ""
