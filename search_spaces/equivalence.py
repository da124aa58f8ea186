"""Pools that are the same function, as the gate found them. A reader of the table has to know."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import ConfigDict, Field

from search_spaces.validation import Line


@dataclass(frozen=True, slots=True)
class Equivalence:
    """Pools that compute the same function in an architecture, at initialisation.

    Attributes:
        pools: their labels.
        parting: {label: the parameters that may part it from the others later}; not those that have none.
    """

    arch: Line
    pools: Annotated[tuple[Line, ...], Field(min_length=2)]
    parting: Mapping[Line, tuple[Line, ...]]

    __pydantic_config__ = ConfigDict(strict=False)  # a form's strictness would let no mapping be one

    def __str__(self) -> str:
        """Return `vgg16bn: gap and mine start as the same function; learning may part mine by weight`."""
        learned = ", ".join(f"{pool} by {', '.join(names)}" for pool, names in self.parting.items())
        later = f"; learning may part {learned}" if learned else ", and nothing that they learn parts them: chance does"
        return f"{self.arch}: {', '.join(self.pools[:-1])} and {self.pools[-1]} start as the same function{later}"

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)
