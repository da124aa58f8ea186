"""Pools by name: from what a person writes to a pool with an identity, and from that to a module.

Everything but `load_class` and `build` works on the source text, without importing torch and without running
any code of a candidate, so that a plan, a status or a table can be made from files that nobody trusts yet.
"""

from __future__ import annotations

import ast
import contextlib
import importlib
import itertools
import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer import candidate
from trainer.candidate import DEFAULT_CLASS, Source
from trainer.problems import Problem, RequestError, did_you_mean, unknown

if TYPE_CHECKING:
    from torch import nn

SHELF = Path(__file__).parent / "pools"


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
    def from_dict(cls, data: Mapping[str, Any]) -> Pool:
        given = data.get("source")
        source = given and Source(**{**given, "helpers": tuple(given.get("helpers", {}).items())})
        return cls(data["name"], _frozen(data["params"]), source, data["label"])


@cache
def slug(name: str) -> str:
    """A name as a harmless part of a file name: lower-case letters, digits and underscores, at most 40."""
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")[:40] or "pool"


def names() -> list[str]:
    """The names of the pools on the shelf: the files of `trainer/pools`."""
    return sorted(path.stem for path in SHELF.glob("*.py") if not path.stem.startswith("_"))


def expand(
    spec: str,
    params: Mapping[str, Any] | None = None,
    *,
    class_name: str | None = None,
    label: str | None = None,
    root: Path | None = None,
) -> list[Pool]:
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

    signature = _signature(source) if source else _signature(_shelf_source(name))
    grid = {key: value if isinstance(value, list) else [value] for key, value in given.items()}
    problems = [Problem(f"params.{key}", "the list of values is empty") for key, values in grid.items() if not values]
    problems += [
        Problem(f"params.{key}", f"found {value!r}, allowed is a finite number, a string, true, false, null or a list")
        for key, values in grid.items()
        for value in values
        if not _is_plain(value)
    ]
    if problems:
        raise RequestError(problems)
    varies = {key for key, values in grid.items() if len(values) > 1}
    pools = []
    for values in itertools.product(*grid.values()):
        chosen = dict(zip(grid, values, strict=True))
        bound = signature.bind(name, chosen)
        shown = {k: v for k, v in bound.items() if (k in varies if label else signature.defaults.get(k) != v)}
        pools.append(Pool(name, _frozen(bound), source, (label or name) + _spell(shown)))
    return pools


def load_class(pool: Pool) -> type[nn.Module]:
    """The pool's class. Runs the file it stands in: a candidate is code, and is trusted from here on.

    Raises:
        whatever the file raises on import.
    """
    if pool.source is None:
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

    def bind(self, name: str, given: Mapping[str, Any]) -> dict[str, Any]:
        if not self.takes_any:
            strange = [key for key in given if key not in self.arguments]
            if strange:
                hint = did_you_mean(strange[0], self.arguments) if self.arguments else "it takes none"
                raise RequestError.of(f"{name} has no parameter {', '.join(map(repr, strange))}; {hint}")
        missing = [key for key in self.required if key not in given]
        if missing:
            raise RequestError.of(f"{name} needs a value for {', '.join(missing)}; give it under params")
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
        with contextlib.suppress(ValueError, TypeError):  # no plain literal: the hash of the source stands for it
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
    node = classes.get(name)
    if node is None:
        return None
    for item in node.body:
        if isinstance(item, ast.FunctionDef) and item.name == "__init__":
            return item
    others = {key: value for key, value in classes.items() if key != name}  # a class may be named as its base is
    inherited = (_find_init(others, base.id) for base in node.bases if isinstance(base, ast.Name))
    return next(filter(None, inherited), None)


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
    try:
        text = path.read_text(encoding="utf-8")
        return text, ast.parse(text)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise RequestError.of(f"the pool file {path} cannot be read: {reason}") from None
    except (SyntaxError, ValueError) as error:
        line = f", line {error.lineno}" if isinstance(error, SyntaxError) else ""
        raise RequestError.of(f"the pool file {path}{line} is not Python: {error}") from None


def _helpers(path: Path, tree: ast.Module) -> tuple[tuple[str, str], ...]:
    """The modules beside a file that it imports, and those that they import, by name."""
    found: dict[str, str] = {}
    waiting = [tree]
    while waiting:
        for name in _imported(waiting.pop()):
            beside = path.parent / f"{name}.py"
            if name not in found and name != path.stem and beside.is_file():
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
    except (SyntaxError, ValueError):
        raise RequestError.of(f"cannot read {spec!r}; write a pool as name or name(key=value, ...)") from None


def _is_plain(value: Any) -> bool:
    """Whether a parameter can be part of an identity: JSON without objects."""
    if isinstance(value, (list, tuple)):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, (str, bool, int)) or (isinstance(value, float) and math.isfinite(value))


def _spell(params: Mapping[str, Any]) -> str:
    inner = ", ".join(f"{key}={value:g}" if type(value) is float else f"{key}={value}" for key, value in params.items())
    return f"({inner})" if inner else ""


def _frozen(params: Mapping[str, Any]) -> tuple[tuple[str, Any], ...]:
    """Parameters as a hashable, sorted tuple; lists become tuples, which JSON spells alike."""

    def freeze(value: Any) -> Any:
        return tuple(map(freeze, value)) if isinstance(value, (list, tuple)) else value

    return tuple(sorted((key, freeze(value)) for key, value in params.items()))
