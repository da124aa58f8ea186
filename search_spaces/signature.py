"""Read off a file's text which class is the pool and what its constructor takes, without running it.

A file can make its class in ways that no reader can follow: a factory, a decorator, a base class of some library. What
is not seen here is left to the gate, which builds the pool. A signature says whether it is certain.
"""

from __future__ import annotations

import ast
import builtins
import contextlib
import dataclasses
from collections.abc import Collection, Mapping
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


DATACLASS = {"dataclass", "dataclasses.dataclass"}
_ENDINGS = ("Error", "Exception")


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

    def problems_with(self, name: str, given: Collection[str]) -> list[Problem]:
        """Return what is wrong with these arguments for the pool of that name, as far as it is certain."""
        problems = []
        strange = [] if self.takes_any else sorted(set(given) - set(self.arguments))
        missing = [key for key in self.required if key not in given]
        if strange and self.certain:
            hint = did_you_mean(strange[0], self.arguments) if self.arguments else "it takes none"
            problems.append(Problem("", f"{name} has no parameter {', '.join(map(repr, strange))}; {hint}"))
        if missing and self.certain:
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

    Raise a RequestError if there is none, or if it is not clear which one is meant.
    """
    bound = _bound(tree)
    name = wanted or DEFAULT_CLASS
    if name in bound or "*" in bound:
        return name
    classes = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
    modules = [each for each in classes if _may_be_module(each, classes)]
    if wanted is None and len(modules) == 1:
        return modules[0]
    has = f"it has {', '.join(classes)}; name one with `class`" if classes else "it has no class at all"
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
        tree = _parse(self._files[place])
        found = [node for node in ast.walk(tree) if name in _binds(node)]
        classes = [node for node in found if isinstance(node, ast.ClassDef) and node in tree.body]
        if classes and classes == found:
            return self._of_class(place, classes[-1])
        if len(found) != 1 or found[0] not in tree.body:  # by a condition, or several times
            return UNKNOWN
        match found[0]:
            case ast.FunctionDef(args=arguments, decorator_list=decorators):
                return _of_arguments(arguments, skip=0, certain=not decorators)
            case ast.Assign(value=ast.Name(id=other)):
                return self.of(place, other)
            case ast.ImportFrom(module=module, names=names, level=level):
                original = next(alias.name for alias in names if name in (alias.asname, alias.name))
                return self.of(self._place(place, module or "", level), original)
        return UNKNOWN

    def _of_class(self, place: str, node: ast.ClassDef) -> Signature:
        decorators = {ast.unparse(d.func if isinstance(d, ast.Call) else d) for d in node.decorator_list}
        methods = {item.name: item for item in node.body if isinstance(item, ast.FunctionDef)}
        certain = decorators <= DATACLASS and not node.keywords and "__new__" not in methods
        if init := methods.get("__init__"):
            found = _of_arguments(init.args, skip=1, certain=certain and not init.decorator_list)
            if not found.takes_any or found.takes_channels:
                return found
            passed_on = any(self._of_base(place, base).takes_channels for base in node.bases)
            return dataclasses.replace(found, takes_channels=passed_on)
        if decorators & DATACLASS:
            return _of_fields(node, certain=certain and all(ast.unparse(base) in MODULE for base in node.bases))
        of_bases = (self._of_base(place, base) for base in node.bases)
        return next((each for each in of_bases if each is not PLAIN), PLAIN) if certain else UNKNOWN

    def _of_base(self, place: str, base: ast.expr) -> Signature:
        spelled = ast.unparse(base)
        body = _parse(self._files[place]).body
        is_own = any(isinstance(node, ast.ClassDef) and node.name == spelled for node in body)
        if spelled in WITHOUT_CONSTRUCTOR and not is_own:
            return PLAIN
        match base:
            case ast.Name(id=name):
                return self.of(place, name)
            case ast.Attribute(value=module, attr=name):  # import layers; class Mine(layers.Base)
                return self.of(self._place(place, ast.unparse(module), 0), name)
        return UNKNOWN

    def _place(self, place: str, module: str, level: int) -> str:
        """Return the file of a module beside this one; empty for any other module."""
        folder = PurePosixPath(place).parent
        folders = [folder, *folder.parents][level - 1 : level] if level else [folder, PurePosixPath()]
        modules = [each.joinpath(*filter(None, module.split("."))) for each in folders]
        files = [file for each in modules for file in (f"{each}.py", f"{each}/__init__.py")]
        return next((file for file in files if file in self._files), "")


@cache
def _parse(content: bytes) -> ast.Module:
    try:
        return ast.parse(content)
    except NO_LITERAL:
        return ast.Module([], [])


def _of_arguments(given: ast.arguments, skip: int, certain: bool) -> Signature:
    positional = [*given.posonlyargs, *given.args]
    defaults = [*[None] * (len(positional) - len(given.defaults)), *given.defaults]
    arguments = [*zip(positional, defaults, strict=True)][skip:]
    arguments += zip(given.kwonlyargs, given.kw_defaults, strict=True)
    return _made({each.arg: default for each, default in arguments}, given.kwarg is not None, certain)


def _of_fields(node: ast.ClassDef, certain: bool) -> Signature:
    """Return the arguments of a dataclass: what is annotated in its body."""
    fields = {
        item.target.id: item.value
        for item in node.body
        if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name)
        if "ClassVar" not in ast.unparse(item.annotation)
    }
    has_rules = any(isinstance(default, ast.Call) for default in fields.values())  # field(...) has its own
    return _made(fields, takes_any=False, certain=certain and not has_rules)


def _made(arguments: Mapping[str, ast.expr | None], takes_any: bool, certain: bool) -> Signature:
    own = {name: default for name, default in arguments.items() if name != "channels"}
    defaults = {}
    for name, default in own.items():
        with contextlib.suppress(*NO_LITERAL):  # the hash of the source stands for it
            if default is not None and is_plain(value := ast.literal_eval(default)):
                defaults[name] = value
    required = tuple(name for name, default in own.items() if default is None)
    return Signature(tuple(own), defaults, required, "channels" in arguments, takes_any, certain)


def _bound(tree: ast.Module) -> set[str]:
    """Return the names that a module has once it has run; `*` if it may have more."""
    names = set[str]()
    waiting: list[ast.AST] = list(tree.body)
    while waiting:
        node = waiting.pop()
        names |= _binds(node)
        if not isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            waiting += ast.iter_child_nodes(node)
    return names


def _binds(node: ast.AST) -> set[str]:
    match node:
        case ast.ClassDef(name=name) | ast.FunctionDef(name=name):
            return {name}
        case ast.Import() | ast.ImportFrom():
            return {alias.asname or alias.name.partition(".")[0] for alias in node.names}
        case ast.Assign():
            parts = (part for target in node.targets for part in ast.walk(target))
            return {part.id for part in parts if isinstance(part, ast.Name)}
        case ast.AnnAssign(target=ast.Name(id=name)):
            return {name}
    return set()


def _may_be_module(name: str, classes: Mapping[str, ast.ClassDef]) -> bool:
    """Return whether a class may be an nn.Module, as far as its bases tell."""
    seen = [name]
    for own in seen:  # which grows
        for base in map(ast.unparse, classes[own].bases):
            if base in classes and base != own:
                seen += [] if base in seen else [base]
            elif base.partition("[")[0].rpartition(".")[2] not in NO_MODULE and not base.endswith(_ENDINGS):
                return True
    return False
