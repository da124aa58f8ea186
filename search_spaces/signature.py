"""Read off a file's text which class is the pool and what its constructor takes, without running it.

A file can make its class in ways that no reader can follow: a factory, a decorator, a base class of some library. What
is not seen here is left to the gate, which builds the pool. A signature says whether it is certain.
"""

from __future__ import annotations

import ast
import builtins
import contextlib
import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import PurePosixPath
from typing import Any

from search_spaces.errors import Problem, RequestError, did_you_mean
from search_spaces.user_code import DEFAULT_CLASS, Source
from search_spaces.validation import is_plain

NO_LITERAL = (ValueError, TypeError, SyntaxError, MemoryError, RecursionError)  # by the manual of `ast.literal_eval`
MODULE = {"nn.Module", "torch.nn.Module", "Module"}
WITHOUT_CONSTRUCTOR = MODULE | {"object", "ABC", "abc.ABC"}
NO_MODULE = {name for name, value in vars(builtins).items() if isinstance(value, type)} | {
    *("ABC", "Enum", "Flag", "Generic", "IntEnum", "IntFlag", "NamedTuple", "OrderedDict", "Protocol", "StrEnum"),
    *("Function", "TypedDict", "UserDict", "UserList", "defaultdict", "deque"),
}


@dataclass(frozen=True, slots=True)
class Signature:
    """The arguments of a constructor, but for `channels`.

    Attributes:
        defaults: the default values that are literals.
        required: the arguments without a default.
        takes_channels: whether it has an argument `channels`.
        takes_any: whether it has `**kwargs`.
        certain: whether it is sure to be so when the file runs.
    """

    arguments: tuple[str, ...] = ()
    defaults: Mapping[str, Any] = field(default_factory=dict)
    required: tuple[str, ...] = ()
    takes_channels: bool = False
    takes_any: bool = False
    certain: bool = True

    def problems_with(self, name: str, given: Iterable[str]) -> list[Problem]:
        """Return what is wrong with these arguments for the pool of that name, as far as it is certain."""
        problems = []
        names = set(given)
        if not self.certain:
            return []
        if strange := [] if self.takes_any else sorted(names - set(self.arguments)):
            hint = did_you_mean(strange[0], self.arguments) if self.arguments else "it takes none"
            problems.append(Problem("", f"{name} has no parameter {', '.join(map(repr, strange))}; {hint}"))
        if missing := [key for key in self.required if key not in names]:
            problems.append(Problem("", f"{name} needs a value for {', '.join(missing)}; give it under params"))
        return problems

    def bind(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Return all arguments: the given ones, and the defaults of the others."""
        bound = dict(self.defaults)
        for key, value in given.items():
            # `p: 3` and `p: 3.0` are one pool, so one id.
            as_float = type(value) is int and type(self.defaults.get(key)) is float
            bound[key] = float(value) if as_float else value
        return bound


PLAIN, UNKNOWN = Signature(), Signature(takes_any=True, certain=False)


@cache
def signature(source: Source) -> Signature:
    """Return the arguments that the class of a source takes."""
    files = {name: content for name, content in source.beside if name.endswith(".py")}
    return _Reader(files | {source.place: source.text.encode()}).of(source.place, source.class_name)


def choose_class(tree: ast.Module, wanted: str | None) -> str:
    """Return the name of the pool's class: the one that was named, `CustomPool`, or else the only nn.Module.

    Raises:
        RequestError: there is no such class, or it is not clear which one is meant.
    """
    bound, star = _bound(tree)
    name = wanted or DEFAULT_CLASS
    if name in bound or star:
        return name
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef)]
    modules = [node.name for node in classes if _may_be_module(node, {each.name: each for each in classes})]
    if wanted is None and len(modules) == 1:
        return modules[0]
    named = [node.name for node in classes]
    has = f"it has {', '.join(named)}; name one with `class`" if named else "it has no class at all"
    raise RequestError.of(f"has no class {name!r}; {has}")


class _Reader:
    """Classes in files that import each other, by (place, name)."""

    def __init__(self, files: Mapping[str, bytes]):
        self._files = files
        self._seen = set[tuple[str, str]]()

    def of(self, place: str, name: str) -> Signature:
        if (place, name) in self._seen or place not in self._files:
            return UNKNOWN
        self._seen.add((place, name))
        tree = self._parsed(place)
        found = [node for node in ast.walk(tree) if name in _binds(node)]
        if len(found) != 1 or found[0] not in tree.body:  # by a condition, or several times
            same = [node for node in found if isinstance(node, ast.ClassDef) and node in tree.body]
            return self._of_class(place, same[-1]) if len(same) == len(found) and same else UNKNOWN
        node = found[0]
        match node:
            case ast.ClassDef():
                return self._of_class(place, node)
            case ast.FunctionDef():
                return _of_arguments(node.args, skip=0, certain=not node.decorator_list)
            case ast.Assign(value=ast.Name(id=other)):
                return self.of(place, other)
            case ast.ImportFrom():
                original = next(alias.name for alias in node.names if name in (alias.asname, alias.name))
                return self.of(self._place(place, node.module or "", node.level), original)
        return UNKNOWN

    def _of_class(self, place: str, node: ast.ClassDef) -> Signature:
        decorators = {ast.unparse(d.func if isinstance(d, ast.Call) else d) for d in node.decorator_list}
        methods = {item.name: item for item in node.body if isinstance(item, ast.FunctionDef)}
        certain = not (decorators - {"dataclass", "dataclasses.dataclass"}) and not node.keywords
        certain = certain and "__new__" not in methods
        if init := methods.get("__init__"):
            found = _of_arguments(init.args, skip=1, certain=certain and not init.decorator_list)
            if not found.takes_any or found.takes_channels:
                return found
            given = [self._of_base(place, base) for base in node.bases]  # what it passes on
            return dataclasses.replace(found, takes_channels=any(base.takes_channels for base in given))
        if decorators & {"dataclass", "dataclasses.dataclass"}:
            return _of_fields(node, certain=certain and all(ast.unparse(base) in MODULE for base in node.bases))
        for base in node.bases:
            if (found := self._of_base(place, base)) is not PLAIN:
                return found if certain else UNKNOWN
        return PLAIN if certain else UNKNOWN

    def _of_base(self, place: str, base: ast.expr) -> Signature:
        spelled = ast.unparse(base)
        bound, _ = _bound(self._parsed(place))
        if spelled in WITHOUT_CONSTRUCTOR and not (spelled in bound and self._is_class(place, spelled)):
            return PLAIN
        if isinstance(base, ast.Name):
            return self.of(place, base.id)
        if isinstance(base, ast.Attribute):  # import layers; class Mine(layers.Base)
            return self.of(self._place(place, ast.unparse(base.value), 0), base.attr)
        return UNKNOWN

    def _is_class(self, place: str, name: str) -> bool:
        return any(isinstance(node, ast.ClassDef) and node.name == name for node in self._parsed(place).body)

    def _place(self, place: str, module: str, level: int) -> str:
        """Return the file of a module beside this one; empty for any other module."""
        folder = PurePosixPath(place).parent
        for above in (folder, PurePosixPath()) if level == 0 else (([folder, *folder.parents])[level - 1 : level]):
            at = above.joinpath(*module.split(".")) if module else above
            for candidate in (f"{at}.py", f"{at}/__init__.py"):
                if candidate in self._files:
                    return candidate
        return ""

    def _parsed(self, place: str) -> ast.Module:
        return _parse(self._files[place])


@cache
def _parse(content: bytes) -> ast.Module:
    try:
        return ast.parse(content)
    except NO_LITERAL:
        return ast.Module([], [])


def _of_arguments(given: ast.arguments, skip: int, certain: bool) -> Signature:
    positional = [*given.posonlyargs, *given.args][skip:]
    optional = given.defaults
    with_default = dict(zip([a.arg for a in positional[len(positional) - len(optional) :]], optional, strict=True))
    with_default |= {a.arg: d for a, d in zip(given.kwonlyargs, given.kw_defaults, strict=True) if d is not None}
    names = [a.arg for a in (*positional, *given.kwonlyargs)]
    return _made(names, with_default, takes_any=given.kwarg is not None, certain=certain)


def _of_fields(node: ast.ClassDef, certain: bool) -> Signature:
    """Return the arguments of a dataclass: what is annotated in its body."""
    names, with_default = [], {}
    for item in node.body:
        if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name):
            if "ClassVar" in ast.unparse(item.annotation):
                continue
            names.append(item.target.id)
            if item.value is not None:
                with_default[item.target.id] = item.value
                certain = certain and not isinstance(item.value, ast.Call)  # field(...) has its own rules
    return _made(names, with_default, takes_any=False, certain=certain)


def _made(names: list[str], with_default: Mapping[str, ast.expr], *, takes_any: bool, certain: bool) -> Signature:
    defaults = {}
    for key, node in with_default.items():
        with contextlib.suppress(*NO_LITERAL):  # the hash of the source stands for it
            value = ast.literal_eval(node)
            if is_plain(value):
                defaults[key] = value
    defaults.pop("channels", None)
    own = tuple(name for name in names if name != "channels")
    required = tuple(name for name in own if name not in with_default)
    return Signature(own, defaults, required, "channels" in names, takes_any, certain)


def _bound(tree: ast.Module) -> tuple[set[str], bool]:
    """Return the names that a module has once it has run, and whether `import *` may add more."""
    names, star = set[str](), False
    waiting: list[ast.AST] = list(tree.body)
    while waiting:
        node = waiting.pop()
        names |= _binds(node)
        star = star or "*" in _binds(node)
        if not isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            waiting += ast.iter_child_nodes(node)
    return names, star


def _binds(node: ast.AST) -> set[str]:
    match node:
        case ast.ClassDef(name=name) | ast.FunctionDef(name=name):
            return {name}
        case ast.Import() | ast.ImportFrom():
            return {alias.asname or alias.name.partition(".")[0] for alias in node.names}
        case ast.Assign():
            return {name for target in node.targets for name in _targets(target)}
        case ast.AnnAssign(target=ast.Name(id=name)):
            return {name}
    return set()


def _targets(target: ast.expr) -> Iterator[str]:
    return (node.id for node in ast.walk(target) if isinstance(node, ast.Name))


def _may_be_module(node: ast.ClassDef, classes: Mapping[str, ast.ClassDef], depth: int = 0) -> bool:
    """Return whether a class may be an nn.Module, as far as its bases tell."""
    for base in map(ast.unparse, node.bases):
        if base in classes and base != node.name and depth < len(classes):
            if _may_be_module(classes[base], classes, depth + 1):
                return True
        elif base.partition("[")[0].rpartition(".")[2] not in NO_MODULE and not base.endswith(("Error", "Exception")):
            return True
    return False
