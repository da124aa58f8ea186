"""Pools by name: from what a person writes to a pool with an identity.

Everything here works on the source text. It neither imports torch nor runs any code of a candidate, so a plan, a status
or a table can be made from files that nobody trusts yet. `trainer.pools` makes modules of them.
"""

from __future__ import annotations

import ast
import base64
import contextlib
import hashlib
import itertools
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BeforeValidator, Field, PlainValidator, model_validator

from search_spaces import user_code
from search_spaces.errors import Problem, RequestError, expected, require
from search_spaces.signature import NO_LITERAL, Signature, choose_class, signature
from search_spaces.user_code import DEFAULT_CLASS, Source
from search_spaces.validation import PLAIN, Form, Line, Plain, check, is_plain, validate

BUILT_IN = Path(__file__).parents[1] / "trainer" / "pools"


@dataclass(frozen=True, slots=True)
class Pool:
    """A global pooling layer, [B, C, H, W] -> [B, C], with its parameters bound.

    Attributes:
        name: the file's name of a built-in pool (`gem`), or the stem of a user's file (`mine`, and
            `mine.Other` for a class that is not called CustomPool).
        params: (name, value) of every constructor argument, defaults included, sorted by name.
        source: the user's file; None for a built-in pool.
        label: its name in tables. Not part of the identity.
    """

    name: str
    params: tuple[tuple[str, Any], ...] = ()
    source: Source | None = None
    label: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        if not self.label:
            object.__setattr__(self, "label", self.name)

    def identity(self) -> dict[str, Any]:
        """Return what makes two pools different pools, as plain data."""
        return {"pool": self.name, "params": dict(self.params), "source": self.code or None}

    @property
    def code(self) -> str:
        """The hash of a user's file, or empty for a built-in pool. A process that has run one code runs no other."""
        return self.source.sha if self.source else ""

    @property
    def revision(self) -> str:
        """The first 8 hex digits of `code`."""
        return self.code[:8]

    @property
    def key(self) -> tuple[str, str, str]:
        """(name, parameters, revision), as in a trial's id and row."""
        return slug(self.name), json.dumps(dict(self.params), sort_keys=True), self.revision

    def to_dict(self) -> dict[str, Any]:
        source = self.source and _stored(self.source)
        return {"name": self.name, "params": dict(self.params), "source": source, "label": self.label}

    @classmethod
    def from_dict(cls, data: Any) -> Pool:
        """Return the pool that `to_dict` wrote; raise a RequestError if it did not."""
        return validate(PoolForm, data).pool()


StoredPool = Annotated[Pool, PlainValidator(Pool.from_dict)]


# As plain data: Python as text, anything else in base64


Place = Annotated[str, check(user_code.is_place, "a path below the pool file's folder")]


# Run folders of before packages and data have the module's name.
_Module = Annotated[Place, BeforeValidator(lambda name: f"{name}".removesuffix(".py") + ".py")]


def _decoded(text: Any) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (TypeError, ValueError):
        raise RequestError.of(expected("base64", text)) from None


def _file_name(source: Mapping[str, Any]) -> str:
    return re.split(r"[/\\]", source.get("path", ""))[-1]


class _SourceForm(Form):
    text: str
    class_name: Line
    path: str
    place: Annotated[Place, Field(default_factory=_file_name, validate_default=True)]  # not given before packages
    helpers: dict[_Module, str] = Field({})
    data: dict[Place, Annotated[bytes, BeforeValidator(_decoded)]] = Field({})

    def source(self) -> Source:
        beside = {name: text.encode() for name, text in self.helpers.items()} | self.data
        return Source(self.text, self.class_name, self.path, tuple(sorted(beside.items())), self.place)


class PoolForm(Form):
    """A pool as `Pool.to_dict` writes it."""

    name: Line
    params: dict[str, Plain]
    source: _SourceForm | None = None
    label: Line

    @model_validator(mode="after")
    def _names_a_pool(self) -> Self:
        if self.source is None and not re.fullmatch("[a-z0-9_]+", self.name):
            raise RequestError.of(expected("the name of a built-in pool", self.name), "name")
        return self

    def pool(self) -> Pool:
        return Pool(self.name, _frozen(self.params), self.source and self.source.source(), self.label)


def _stored(source: Source) -> dict[str, Any]:
    helpers = {name: text for name, content in source.beside if (text := _python(name, content)) is not None}
    data = {name: base64.b64encode(content).decode() for name, content in source.beside if name not in helpers}
    found = {"text": source.text, "class_name": source.class_name, "path": source.path, "place": source.place}
    return found | {"helpers": helpers} | ({"data": data} if data else {})


def _python(name: str, content: bytes) -> str | None:
    with contextlib.suppress(UnicodeDecodeError):
        return content.decode() if name.endswith(".py") else None


@cache
def names() -> tuple[str, ...]:
    """Return the names of the built-in pools: the files of `trainer/pools`. They are read, and never imported."""
    return tuple(sorted(path.stem for path in BUILT_IN.glob("*.py") if not path.stem.startswith("_")))


@cache
def slug(name: str) -> str:
    """Return a name as a harmless part of a file name: at most 40 lower-case letters, digits and underscores."""
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")[:40] or "pool"


def own_slug(name: str) -> str:
    """Return a slug that no other name has: it ends with part of a hash where it does not hold the whole name."""
    return slug(name) if slug(name) == name else f"{slug(name)}_{hashlib.sha256(name.encode()).hexdigest()[:6]}"


@dataclass(frozen=True, slots=True)
class ParameterGrid:
    """The pools that one request stands for: every combination of the values of its parameters, each made when asked.

    Attributes:
        values: {argument of the constructor: its values}.
        label: the name in tables, to which parameters that vary are added. None is the pool's name, to which those
            that differ from their defaults are added.
        constructor: the arguments that the class takes.
    """

    name: str
    source: Source | None
    values: Mapping[str, Sequence[Any]]
    label: str | None
    constructor: Signature

    @property
    def count(self) -> int:
        """How many pools there are: maybe more than `len` could say."""
        return math.prod(map(len, self.values.values()))

    def __getitem__(self, index: int) -> Pool:
        return list(self)[index]

    def __iter__(self) -> Iterator[Pool]:
        varies = {key for key, values in self.values.items() if len(values) > 1}
        defaults = self.constructor.defaults
        for values in itertools.product(*self.values.values()):
            bound = self.constructor.bind(dict(zip(self.values, values, strict=True)))
            shown = {k: v for k, v in bound.items() if (k in varies if self.label else defaults.get(k) != v)}
            yield Pool(self.name, _frozen(bound), self.source, (self.label or self.name) + _spell(shown))


def expand(
    spec: str,
    params: Mapping[str, Any] | None = None,
    *,
    class_name: str | None = None,
    label: str | None = None,
    root: Path | None = None,
) -> ParameterGrid:
    """Return the pools that `spec` asks for: one, or several where a parameter is a list of values.

    Args:
        spec: `gem`, `gem(p=3)`, or a path to a user's file, `mine.py`, `mine.py:Other`.
        params: constructor arguments; a list is a grid (`{"p": [1, 3, 5]}`), so a parameter
            that is itself a list is written as `[[1, 2, 4]]`.
        class_name: the class of a user's file, `CustomPool` unless given.
        label: the name in tables; in a grid, the parameters that vary are added.
        root: what a relative path of a user's file starts from; the working directory by default.

    Raises:
        RequestError: the pool is unknown (says the nearest name), the file cannot be read or parsed or lacks the
            class, or an argument is unknown or missing.
    """
    name, called_with = _parse_call(spec)
    given = {**called_with, **(params or {})}
    source = None
    if name.endswith(".py") or ".py:" in name:
        file, _, after = name.partition(".py:")
        source = _read_source((root or Path()) / (file.removesuffix(".py") + ".py"), class_name or after or None)
        stem = Path(source.path).stem
        name = stem if source.class_name == DEFAULT_CLASS else f"{stem}.{source.class_name}"
    elif class_name:
        raise RequestError.of(f"class {class_name!r} goes with `file`, not with the built-in pool {name!r}")
    else:
        require("pool", name, names())

    values = {key: value if isinstance(value, list) else [value] for key, value in given.items()}
    problems = list[Problem]()
    for key, some in values.items():
        wrong = [expected(PLAIN, value) for value in some if not is_plain(value)]
        problems += [Problem(f"params.{key}", what) for what in (wrong if some else ["the list of values is empty"])]
    constructor = signature(source or builtin_source(name))
    problems += constructor.problems_with(name, given)
    if problems:
        raise RequestError(problems)
    return ParameterGrid(name, source, values, label, constructor)


@cache
def builtin_source(name: str) -> Source:
    """Return the file of a built-in pool, with its one public class."""
    path = BUILT_IN / f"{name}.py"
    text = path.read_text(encoding="utf-8")
    (public,) = (n.name for n in ast.parse(text).body if isinstance(n, ast.ClassDef) and not n.name.startswith("_"))
    return Source(text, public, str(path))


def _read_source(path: Path, class_name: str | None) -> Source:
    _, text, tree = user_code.read(path)
    try:
        chosen = choose_class(tree, class_name)
    except RequestError as error:
        raise RequestError.of(f"the pool file {path} {error}") from None
    place, beside = user_code.gather_beside(path, tree)
    return Source(text, chosen, str(path.resolve()), beside, place)


def _parse_call(spec: str) -> tuple[str, dict[str, Any]]:
    """Return the name or path, and the arguments: ("gem", {"p": 3}) for `gem(p=3)`."""
    if file := re.fullmatch(r"(.*\.py(?::[\w.]*)?)(\(.*)?", spec.strip(), re.DOTALL):  # a path may have brackets too
        head, bracket, tail = file[1], file[2] or "", (file[2] or "")[1:]
    else:
        head, bracket, tail = spec.strip().partition("(")
    if not bracket:
        return head, {}
    try:
        call = ast.parse(f"_({tail}", mode="eval").body
        if not isinstance(call, ast.Call) or call.args or any(k.arg is None for k in call.keywords):
            raise ValueError
        return head.strip(), {str(k.arg): ast.literal_eval(k.value) for k in call.keywords}
    except NO_LITERAL:
        raise RequestError.of(expected("a pool as name or name(key=value, ...)", spec)) from None


def _spell(params: Mapping[str, Any]) -> str:
    inner = ", ".join(f"{key}={value:g}" if type(value) is float else f"{key}={value}" for key, value in params.items())
    return f"({inner})" if inner else ""


def _frozen(params: Mapping[str, Any]) -> tuple[tuple[str, Any], ...]:
    """Return parameters as a hashable, sorted tuple. Lists become tuples, which are the same in JSON."""

    def freeze(value: Any) -> Any:
        return tuple(map(freeze, value)) if isinstance(value, (list, tuple)) else value

    return tuple(sorted((key, freeze(value)) for key, value in params.items()))
