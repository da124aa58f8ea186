"""Plain data out of a file that anybody may have written: JSON or YAML, taken apart with every kind checked.

What a run folder says is read by these alone. So a file that no sweep wrote is refused with the place that is wrong,
and nothing of it becomes a path, a module's name or a loop without an end.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from search_spaces.errors import RequestError, gather, short
from search_spaces.text import unprintable

T = TypeVar("T")

_NAMED: Mapping[Any, str] = {
    str: "text",
    int: "an integer",
    bool: "true or false",
    list: "a list",
    Mapping: "a mapping",
}


def take(data: Any, key: str, kind: type[T]) -> T:
    """`data[key]`, of a kind.

    Raises:
        RequestError: `data` is no mapping, or has no such key, or something else there.
    """
    found = expect(data, Mapping)
    if key not in found:
        raise RequestError.of("missing", key)
    return expect(found[key], kind, key)


def name(data: Any, key: str) -> str:
    """`data[key]`, a text without control characters; as `take`."""
    return line(take(data, key, str), key)


def line(value: Any, where: str = "") -> str:
    """The value, if it is a text without control characters."""
    text = expect(value, str, where)
    if character := unprintable(text):
        raise RequestError.of(f"found {short(text)}, allowed is text without {character}", where)
    return text


def number(data: Any, key: str) -> float:
    """`data[key]`, a finite number; as `take`."""
    value = expect(data, Mapping).get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise RequestError.of(f"found {short(value)}, allowed is a finite number", key)
    return value


def values(data: Any, parse: Callable[[Any], T]) -> dict[str, T]:
    """{key: what `parse` makes of its value} of a mapping whose keys are texts without control characters."""
    found = expect(data, Mapping)
    keys = [line(key) for key in found]
    return dict(zip(keys, gather(*((key, functools.partial(parse, found[key])) for key in keys)), strict=True))


def each(values: Any, parse: Callable[[Any], T], where: str = "") -> list[T]:
    """What `parse` makes of each item of a list; its problems under `where[index]`."""
    items = expect(values, list, where)
    return gather(*((f"{where}[{index}]", functools.partial(parse, item)) for index, item in enumerate(items)))


def expect(value: Any, kind: type[T], where: str = "") -> T:
    """The value, if it is of the kind; true is no integer."""
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise RequestError.of(f"found {short(value)}, allowed is {_NAMED[kind]}", where)
    return value


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
