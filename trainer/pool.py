"""Pools by name: from what a person writes to a pool with an identity, and from that to a module.

Everything but `load_class` and `build` works on the source text, without importing torch and without running
any code of a candidate, so that a plan, a status or a table can be made from files that nobody trusts yet.
"""

from __future__ import annotations

import ast
import contextlib
import hashlib
import importlib
import itertools
import json
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer import candidate, plain
from trainer.candidate import DEFAULT_CLASS, Source
from trainer.printable import unprintable
from trainer.problems import Problem, RequestError, did_you_mean, short, unknown

if TYPE_CHECKING:
    from torch import nn

SHELF = Path(__file__).parent / "pools"
MOST_CHARACTERS = 2**20  # of a user's file
NO_LITERAL = (ValueError, TypeError, SyntaxError, MemoryError, RecursionError)  # by the manual of `ast.literal_eval`


@dataclass(frozen=True, slots=True)
class Pool:
    """A global pooling layer, [B, C, H, W] -> [B, C], with its parameters bound.

    Attributes:
        name: the file's name on the shelf (`gem`), or the stem of a user's file (`mine`, and
            `mine.Other` for a class that is not called CustomPool).
        params: (name, value) of every constructor argument, defaults included, sorted by name.
        source: the user's file; None for a pool of the shelf.
        label: how tables call it. Not part of the identity.
    """

    name: str
    params: tuple[tuple[str, Any], ...] = ()
    source: Source | None = None
    label: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        if not self.label:
            object.__setattr__(self, "label", self.name)

    def identity(self) -> dict[str, Any]:
        """What makes two pools different pools, as plain data."""
        return {"pool": self.name, "params": dict(self.params), "source": self.source.sha if self.source else None}

    @property
    def revision(self) -> str:
        """The short hash of a user's file; empty for a pool of the shelf."""
        return self.source.sha[:8] if self.source else ""

    @property
    def key(self) -> tuple[str, str, str]:
        """(name, parameters, revision), as a trial's id and row spell them."""
        return slug(self.name), self.params_json, self.revision

    @property
    def params_json(self) -> str:
        return json.dumps(dict(self.params), sort_keys=True)

    def to_dict(self) -> dict[str, Any]:
        source = self.source and {
            "text": self.source.text,
            "class_name": self.source.class_name,
            "path": self.source.path,
            "helpers": dict(self.source.helpers),
        }
        return {"name": self.name, "params": dict(self.params), "source": source, "label": self.label}

    @classmethod
    def from_dict(cls, data: Any) -> Pool:
        """From `to_dict`, as it comes back from a file.

        Raises:
            RequestError: it is nothing that `to_dict` makes; says where.
        """
        name, label = plain.name(data, "name"), plain.name(data, "label")
        params = plain.take(data, "params", Mapping)
        if strange := [key for key, value in params.items() if not isinstance(key, str) or not _is_plain(value)]:
            raise RequestError.of(f"found {short(params[strange[0]])}, allowed is plain data", f"params.{strange[0]}")
        source = None if data.get("source") is None else _source_from(plain.take(data, "source", Mapping))
        if source is None and not re.fullmatch("[a-z0-9_]+", name):
            raise RequestError.of(f"found {short(name)}, allowed is the name of a pool of the shelf", "name")
        return cls(name, _frozen(params), source, label)


def _source_from(data: Mapping[str, Any]) -> Source:
    helpers = plain.take(data, "helpers", Mapping) if "helpers" in data else {}
    named = tuple(
        (plain.expect(name, str), plain.expect(text, str, f"helpers.{name}")) for name, text in helpers.items()
    )
    return Source(plain.take(data, "text", str), plain.name(data, "class_name"), plain.take(data, "path", str), named)


@cache
def slug(name: str) -> str:
    """A name as a harmless part of a file name: lower-case letters, digits and underscores, at most 40."""
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")[:40] or "pool"


def own_slug(name: str) -> str:
    """A slug that no other name has: with the beginning of a hash where something of the name is not in it."""
    return slug(name) if slug(name) == name else f"{slug(name)}_{hashlib.sha256(name.encode()).hexdigest()[:6]}"


@cache
def names() -> tuple[str, ...]:
    """The names of the pools on the shelf: the files of `trainer/pools`."""
    return tuple(sorted(path.stem for path in SHELF.glob("*.py") if not path.stem.startswith("_")))


@dataclass(frozen=True, slots=True)
class PoolGrid:
    """The pools that one request stands for: every combination of the values of its parameters.

    Attributes:
        values: {argument: the values that it takes}.
        label: how tables call it, with the parameters that vary; None is the name, with those that are no default.
    """

    name: str
    source: Source | None
    values: Mapping[str, Sequence[Any]]
    label: str | None
    _signature: _Signature

    @property
    def count(self) -> int:
        """How many pools there are. They may be too many to be made, so look here first."""
        return math.prod(map(len, self.values.values()))

    def __iter__(self) -> Iterator[Pool]:
        varies = {key for key, values in self.values.items() if len(values) > 1}
        defaults = self._signature.defaults
        for values in itertools.product(*self.values.values()):
            bound = self._signature.bind(dict(zip(self.values, values, strict=True)))
            shown = {k: v for k, v in bound.items() if (k in varies if self.label else defaults.get(k) != v)}
            yield Pool(self.name, _frozen(bound), self.source, (self.label or self.name) + _spell(shown))


def expand(
    spec: str,
    params: Mapping[str, Any] | None = None,
    *,
    class_name: str | None = None,
    label: str | None = None,
    root: Path | None = None,
) -> list[Pool]:
    """The pools of `grid`, which has the same arguments."""
    return list(grid(spec, params, class_name=class_name, label=label, root=root))


def grid(
    spec: str,
    params: Mapping[str, Any] | None = None,
    *,
    class_name: str | None = None,
    label: str | None = None,
    root: Path | None = None,
) -> PoolGrid:
    """The pools that `spec` asks for: one, or a grid where a parameter is a list of values.

    Args:
        spec: `gem`, `gem(p=3)`, or a path to a user's file, `mine.py`, `mine.py:Other`.
        params: constructor arguments; a list is a grid (`{"p": [1, 3, 5]}`), so a parameter
            that is itself a list is written as `[[1, 2, 4]]`.
        class_name: the class of a user's file, `CustomPool` unless given.
        label: how tables call it; in a grid, the parameters that vary are added.
        root: what a relative path of a user's file starts from; the working directory by default.

    Raises:
        RequestError: an unknown pool (with the nearest name), a file that cannot be read or parsed, a class that
            is not in it, an unknown or missing argument.
    """
    name, called_with = _parse_call(spec)
    given = {**called_with, **(params or {})}
    source = None
    if name.endswith(".py") or ".py:" in name:
        file, _, after = name.partition(".py:")
        source = _read_source(
            (root or Path()) / (file.removesuffix(".py") + ".py"), class_name or after or DEFAULT_CLASS
        )
        stem = Path(source.path).stem
        name = stem if source.class_name == DEFAULT_CLASS else f"{stem}.{source.class_name}"
    elif class_name:
        raise RequestError.of(f"class {class_name!r} goes with `file`, not with the pool {name!r} of the shelf")
    elif name not in names():
        raise RequestError.of(unknown("pool", name, names()))

    values = {key: value if isinstance(value, list) else [value] for key, value in given.items()}
    problems = [Problem(f"params.{key}", "the list of values is empty") for key, some in values.items() if not some]
    problems += [
        Problem(f"params.{key}", f"found {short(value)}, allowed is a finite number, text, true, false, null or a list")
        for key, some in values.items()
        for value in some
        if not _is_plain(value)
    ]
    signature = _signature(source or _shelf_source(name))
    problems += signature.problems_with(name, given)
    if problems:
        raise RequestError(problems)
    return PoolGrid(name, source, values, label, signature)


def load_class(pool: Pool) -> type[nn.Module]:
    """The pool's class. Runs the file it stands in: a candidate is code, and is trusted from here on.

    Raises:
        whatever the file raises on import.
    """
    if pool.source is None:
        if pool.name not in names():
            raise RequestError.of(unknown("pool", pool.name, names()))
        module = importlib.import_module(f"trainer.pools.{pool.name}")
        return getattr(module, _shelf_source(pool.name).class_name)
    return getattr(candidate.load(pool.source), pool.source.class_name)


def build(pool: Pool, channels: int) -> nn.Module:
    """The pool as a module, for feature maps of that many channels; `channels` is passed if it is declared."""
    cls = load_class(pool)
    signature = _signature(pool.source or _shelf_source(pool.name))
    return cls(**dict(pool.params), **({"channels": channels} if signature.takes_channels else {}))


@dataclass(frozen=True, slots=True)
class _Signature:
    """A constructor's arguments, read off the source text."""

    arguments: tuple[str, ...]
    defaults: Mapping[str, Any]  # those that are literals
    required: tuple[str, ...]
    takes_channels: bool
    takes_any: bool

    def problems_with(self, name: str, given: Iterable[str]) -> list[Problem]:
        """What keeps the pool of that name from being made with these arguments."""
        problems = []
        names = set(given)
        if strange := [] if self.takes_any else sorted(names - set(self.arguments)):
            hint = did_you_mean(strange[0], self.arguments) if self.arguments else "it takes none"
            problems.append(Problem("", f"{name} has no parameter {', '.join(map(repr, strange))}; {hint}"))
        if missing := [key for key in self.required if key not in names]:
            problems.append(Problem("", f"{name} needs a value for {', '.join(missing)}; give it under params"))
        return problems

    def bind(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """All arguments: those that are given, and the defaults of the others."""
        bound = dict(self.defaults)
        for key, value in given.items():
            # `p: 3` and `p: 3.0` are one pool, so one id.
            as_float = type(value) is int and type(self.defaults.get(key)) is float
            bound[key] = float(value) if as_float else value
        return bound


@cache
def _signature(source: Source) -> _Signature:
    classes = {node.name: node for node in ast.parse(source.text).body if isinstance(node, ast.ClassDef)}
    init = _find_init(classes, source.class_name)
    if init is None:
        return _Signature((), {}, (), takes_channels=False, takes_any=False)
    positional = [*init.args.posonlyargs, *init.args.args][1:]
    optional = init.args.defaults
    with_default = dict(zip([a.arg for a in positional[len(positional) - len(optional) :]], optional, strict=True))
    with_default |= {
        a.arg: d for a, d in zip(init.args.kwonlyargs, init.args.kw_defaults, strict=True) if d is not None
    }
    arguments = [a.arg for a in (*positional, *init.args.kwonlyargs)]
    defaults = {}
    for key, node in with_default.items():
        with contextlib.suppress(*NO_LITERAL):  # the hash of the source stands for it
            value = ast.literal_eval(node)
            if _is_plain(value):
                defaults[key] = value
    defaults.pop("channels", None)
    own = tuple(a for a in arguments if a != "channels")
    return _Signature(
        own,
        defaults,
        tuple(a for a in own if a not in with_default),
        takes_channels="channels" in arguments,
        takes_any=init.args.kwarg is not None,
    )


def _find_init(classes: Mapping[str, ast.ClassDef], name: str) -> ast.FunctionDef | None:
    """The `__init__` of a class, or of the first of its bases in the same file that has one."""
    waiting, seen = [name], set[str]()
    while waiting:
        node = classes.get(waiting.pop())
        if node is None or node.name in seen:  # a class may be named as its base is
            continue
        seen.add(node.name)
        for item in node.body:
            if isinstance(item, ast.FunctionDef) and item.name == "__init__":
                return item
        waiting += [base.id for base in reversed(node.bases) if isinstance(base, ast.Name)]
    return None


@cache
def _shelf_source(name: str) -> Source:
    """The file of a shelf pool, and its one public class."""
    path = SHELF / f"{name}.py"
    text = path.read_text()
    public = [n.name for n in ast.parse(text).body if isinstance(n, ast.ClassDef) and not n.name.startswith("_")]
    if len(public) != 1:
        raise RuntimeError(f"{path.name} must hold exactly one public class, found {public}")
    return Source(text, public[0], str(path))


def _read_source(path: Path, class_name: str) -> Source:
    text, tree = _read(path)
    classes = [node.name for node in tree.body if isinstance(node, ast.ClassDef)]
    if class_name not in classes:
        has = f"it has {', '.join(classes)}; name one with `class`" if classes else "it has no class at all"
        raise RequestError.of(f"the pool file {path} has no class {class_name!r}; {has}")
    return Source(text, class_name, str(path.resolve()), _helpers(path, tree))


def _read(path: Path) -> tuple[str, ast.Module]:
    text = _text(path)
    try:
        return text, ast.parse(text)
    except (MemoryError, RecursionError):
        raise RequestError.of(f"the pool file {path} is nested too deeply") from None
    except (SyntaxError, ValueError) as error:
        line = f", line {error.lineno}" if isinstance(error, SyntaxError) else ""
        raise RequestError.of(f"the pool file {path}{line} is not Python: {error}") from None


def _text(path: Path) -> str:
    try:
        if path.exists() and not path.is_file():  # a pipe would be waited for
            raise RequestError.of(f"the pool file {path} is no file")
        with path.open(encoding="utf-8") as file:
            text = file.read(MOST_CHARACTERS + 1)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise RequestError.of(f"the pool file {path} cannot be read: {reason}") from None
    except UnicodeDecodeError as error:
        raise RequestError.of(f"the pool file {path} is not Python: {error}") from None
    if len(text) > MOST_CHARACTERS:
        raise RequestError.of(f"the pool file {path} is too long; allowed are {MOST_CHARACTERS:,} characters")
    return text


def _helpers(path: Path, tree: ast.Module) -> tuple[tuple[str, str], ...]:
    """The modules beside a file that it imports, and those that they import, by name."""
    found: dict[str, str] = {}
    waiting = [tree]
    while waiting:
        for name in _imported(waiting.pop()):
            beside = path.parent / f"{name}.py"
            if name not in found and name != path.stem and os.path.isfile(beside):  # noqa: PTH113 - a name too long is none
                found[name], helper = _read(beside)
                waiting.append(helper)
    return tuple(sorted(found.items()))


def _imported(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from [node.module] if node.module else (alias.name for alias in node.names)


def _parse_call(spec: str) -> tuple[str, dict[str, Any]]:
    """`gem(p=3)` -> ("gem", {"p": 3}); a path keeps its slashes."""
    head, bracket, tail = spec.strip().partition("(")
    if not bracket:
        return head, {}
    try:
        call = ast.parse(f"_({tail}", mode="eval").body
        if not isinstance(call, ast.Call) or call.args or any(k.arg is None for k in call.keywords):
            raise ValueError
        return head.strip(), {str(k.arg): ast.literal_eval(k.value) for k in call.keywords}
    except NO_LITERAL:
        raise RequestError.of(f"cannot read {spec!r}; write a pool as name or name(key=value, ...)") from None


def _is_plain(value: Any) -> bool:
    """Whether a parameter can be part of an identity and of a label: JSON without objects, in one line."""
    match value:
        case list() | tuple():
            return all(map(_is_plain, value))
        case str():
            return unprintable(value) is None
        case int():
            return value.bit_length() <= 64
        case float():
            return math.isfinite(value)
    return value is None


def _spell(params: Mapping[str, Any]) -> str:
    inner = ", ".join(f"{key}={value:g}" if type(value) is float else f"{key}={value}" for key, value in params.items())
    return f"({inner})" if inner else ""


def _frozen(params: Mapping[str, Any]) -> tuple[tuple[str, Any], ...]:
    """Parameters as a hashable, sorted tuple; lists become tuples, which JSON spells alike."""

    def freeze(value: Any) -> Any:
        return tuple(map(freeze, value)) if isinstance(value, (list, tuple)) else value

    return tuple(sorted((key, freeze(value)) for key, value in params.items()))
