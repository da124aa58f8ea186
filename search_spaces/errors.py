"""What is wrong with a request: every problem at once, each with its place, what was expected and what it got."""

from __future__ import annotations

import argparse
import difflib
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from search_spaces import text
from search_spaces.text import visible


@dataclass(frozen=True, slots=True)
class Problem:
    """One fault of a request. What it quotes is shown on a terminal, so control characters are spelled out.

    Attributes:
        where: the path of the key that is wrong (`recipe.lr`, `pools[2].file`); empty for the whole request.
        what: what was expected, what it got, and what to do next.
    """

    where: str
    what: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "where", visible(self.where))
        object.__setattr__(self, "what", visible(self.what, keep="\n"))

    def under(self, prefix: str) -> Problem:
        """Return the same problem, with its place below `prefix`."""
        joint = "." if prefix and self.where and not self.where.startswith("[") else ""
        return Problem(prefix + joint + self.where, self.what)

    def __str__(self) -> str:
        return f"{self.where}: {self.what}" if self.where else self.what


class RequestError(ValueError):
    """A request that cannot be carried out; holds every problem that was found, not just the first."""

    def __init__(self, problems: Iterable[Problem]):
        self.problems = tuple(problems)
        super().__init__("\n".join(map(str, self.problems)))

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.problems,)  # not by its text: an error of a worker's travels pickled

    @classmethod
    def of(cls, what: str, where: str = "") -> RequestError:
        return cls([Problem(where, what)])


def did_you_mean(name: object, choices: Iterable[str]) -> str:
    """Return a phrase with the nearest of `choices` to `name`, and all of them."""
    known = sorted(choices)
    near = difflib.get_close_matches(str(name).lower(), known, n=1, cutoff=0.5)
    return (f"did you mean {near[0]!r}? " if near else "") + f"known: {', '.join(known)}"


def require(kind: str, name: str, choices: Iterable[str], where: str = "") -> str:
    """Return a name that is one of `choices`; raise a RequestError with the nearest and all of them if it is not."""
    if name not in (known := list(choices)):
        raise RequestError.of(unknown(kind, name, known), where)
    return name


def unknown(kind: str, name: object, choices: Iterable[str]) -> str:
    """Return the message for a `name` that is not among `choices`."""
    return f"unknown {kind} {short(name)}; {did_you_mean(name, choices)}"


def expected(what: str, got: object) -> str:
    """Return the message for a value that is not allowed: `expected a number > 0, got -1`; a hint may follow a `; `.

    Args:
        what: the values that are allowed, as a noun.
        got: the value itself. None is said to be nothing, since people write it by leaving a key empty.
    """
    return f"expected {what}, got {'nothing (null)' if got is None else short(got)}"


def short(value: object) -> str:
    """Return the value as Python spells it, in at most 60 characters."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def meant_number(found: object) -> str:
    """Return how to write a number that somebody wrote as text, as the end of a message; empty if none was meant."""
    if not isinstance(found, str):
        return ""
    if re.fullmatch(r"[-+]?[0-9]+,[0-9]+([eE][-+]?[0-9]+)?", found):
        thousands = f", and thousands have nothing: {found.replace(',', '')}" if re.search(r",[0-9]{3}$", found) else ""
        return f"; a decimal has a point: {found.replace(',', '.')}{thousands}"
    if re.fullmatch(r"[-+]?[0-9]+([_ ',][0-9]+)+", found):
        return "; digits have nothing between them: " + re.sub("[_ ',]", "", found)
    return f"; a number has no quotes: {found}" if re.fullmatch(r"[-+]?[0-9]+(\.[0-9]+)?", found) else ""


def meant_boolean(found: object) -> str:
    """Return the same for a boolean: `on` and `yes` were booleans in YAML 1.1, and are text in 1.2."""
    word = str(found).lower()
    for meant, words in (("true", "on yes y true"), ("false", "off no n false")):
        if word in words.split():
            return f"; write {meant}"
    return ""


def meant_text(found: object) -> str:
    """Return how a text is written that YAML takes for a number or a boolean; empty for a list or a mapping."""
    return "" if found is None or isinstance(found, list | dict) else f"; quotes make it text: '{found}'"


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or its type if it has none."""
    return text.first_line(str(error)) or type(error).__name__


def seconds(given: str) -> float:
    """Return a number of seconds > 0: the type of a command line's option."""
    try:
        if 0 < (value := float(given)) < float("inf"):
            return value
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(expected("a number of seconds > 0", given))


def read_at_most(most: int, path: Path, kind: str = "") -> bytes:
    """Return what a file holds; raise a RequestError if it is none, cannot be read, or has more than `most` bytes."""
    try:
        if path.exists() and not path.is_file():  # a pipe would be waited for
            raise RequestError.of(f"{kind}{path} is no file")
        with path.open("rb") as file:
            content = file.read(most + 1)
    except OSError as error:
        raise RequestError.of(f"{kind}{path} cannot be read: {error.strerror or type(error).__name__}") from None
    if len(content) > most:
        raise RequestError.of(f"{kind}{path} is too long: expected at most {most:,} bytes")
    return content


def gather(*attempts: tuple[str, Callable[[], Any]]) -> list[Any]:
    """Return the results of all attempts, each a place and a function, or raise the problems of all of them at once."""
    values, problems = [], []
    for where, attempt in attempts:
        try:
            values.append(attempt())
        except RequestError as error:
            problems += [problem.under(where) for problem in error.problems]
    if problems:
        raise RequestError(problems)
    return values
