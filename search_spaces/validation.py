"""Read data that anybody may have written: pydantic checks it, and what is wrong becomes a `RequestError`.

A space file and the files of a run folder are read by these types alone. So nothing in them becomes a path, a module's
name or a loop without an end, and a file that no sweep wrote is refused with the place that is wrong.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, Strict, TypeAdapter, ValidationError

from search_spaces.errors import (
    Problem,
    RequestError,
    did_you_mean,
    expected,
    meant_boolean,
    meant_number,
    meant_text,
)
from search_spaces.text import unprintable

T = TypeVar("T")


class Form(BaseModel):
    """A mapping in a file. Strict: neither `"3"` nor true is an integer. Keys of a later version are passed over."""

    model_config = ConfigDict(strict=True, frozen=True)


def check(is_right: Callable[[Any], Any], what: str) -> AfterValidator:
    """Return the validator of a value for which `is_right` holds; `what` says in a message which values those are."""

    def validator(value: Any) -> Any:
        if not is_right(value):
            raise RequestError.of(expected(what, value))
        return value

    return AfterValidator(validator)


def is_plain(value: Any) -> bool:
    """Whether a parameter can be part of an identity and of a label: JSON without objects, in one line."""
    match value:
        case list() | tuple():
            return all(map(is_plain, value))
        case str():
            return unprintable(value) is None
        case int():
            return value.bit_length() <= 64
        case float():
            return math.isfinite(value)
    return value is None


Line = Annotated[str, check(lambda text: unprintable(text) is None, "text without control characters")]
Name = Annotated[str, check(re.compile("[a-z0-9_]+").fullmatch, "lower-case letters, digits and underscores")]
Integer = Annotated[int, Strict()]
Number = Annotated[float, Strict(), Field(allow_inf_nan=False)]
PLAIN = "a finite number, text, true, false, null or a list of these"
Plain = Annotated[Any, check(is_plain, PLAIN)]
Seed = Annotated[Integer, Field(ge=0, lt=2**63)]


def validate(kind: type[T], data: Any, forms: Mapping[str, Any] | None = None) -> T:
    """Return `data` as a value of the type `kind`, or raise a RequestError with every problem, each at its place.

    Args:
        forms: {place of a mapping, without indices: its form}, of those that forbid unknown keys.
    """
    try:
        return _adapter(kind).validate_python(data)
    except ValidationError as error:
        raise RequestError(problems_in(error, forms or {})) from None


def from_json(kind: type[T], data: bytes) -> T | None:
    """Return the JSON as a dataclass; None for bytes that `to_json` did not write."""
    try:
        return _adapter(kind).validate_json(data, strict=True)
    except ValidationError:
        return None


def to_json(value: Any) -> bytes:
    """Return a dataclass as JSON."""
    return json.dumps(dataclasses.asdict(value), indent=1).encode()


_adapter = functools.cache(TypeAdapter)


def problems_in(error: ValidationError, forms: Mapping[str, Any]) -> Iterator[Problem]:
    """Yield what pydantic found; `forms` are as for `validate`."""
    for item in error.errors(include_url=False):
        if item["type"] == "default_factory_not_called":  # what it is made of is said to be wrong
            continue
        path = [key for key in item["loc"] if key != "[key]"]  # what pydantic adds where a key itself is wrong
        context = item.get("ctx", {})
        cause = context.get("error")
        if isinstance(cause, RequestError):
            yield from (problem.under(spell(path)) for problem in cause.problems)
            continue
        if item["type"] in ("extra_forbidden", "invalid_key", "unexpected_keyword_argument"):
            form = forms.get(spell(key for key in path[:-1] if isinstance(key, str)))
            known = [field.alias or name for name, field in form.__pydantic_fields__.items()] if form else []
            what = f"unknown key; {did_you_mean(path[-1], known)}" if known else "unknown key"
        elif item["type"] == "missing":
            what = "missing; it must be given"
        else:
            kind, hint = _KINDS.get(item["type"], (item["msg"].removeprefix("Input should be "), None))
            what = expected(kind.format_map(context), item["input"]) + (hint(item["input"]) if hint else "")
        yield Problem(spell(path), what)


# What is allowed, and a guess at what was meant, by pydantic's name for what is wrong.
_KINDS: Mapping[str, tuple[str, Callable[[object], str] | None]] = {
    "bool_type": ("true or false", meant_boolean),
    "finite_number": ("a finite number", None),
    "float_type": ("a number", meant_number),
    "greater_than": ("a number > {gt}", None),
    "greater_than_equal": ("a number >= {ge}", None),
    "int_type": ("an integer", meant_number),
    "less_than": ("a number < {lt}", None),
    "less_than_equal": ("a number <= {le}", None),
    "literal_error": ("{expected}", None),
    "string_too_short": ("text that is not empty", None),
    "string_type": ("text", meant_text),
    "string_unicode": ("text", None),
    "too_short": ("a list of {min_length} or more", None),
} | {
    **dict.fromkeys(("list_type", "tuple_type"), ("a list [first, second, ...]", None)),
    **dict.fromkeys(("dataclass_type", "dict_type", "model_type"), ("a mapping {{key: value, ...}}", None)),
}


def spell(path: Iterable[str | int]) -> str:
    """Return a path of keys as people write it: `pools[2].name` for ("pools", 2, "name")."""
    return "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in path).removeprefix(".")
