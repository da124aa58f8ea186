"""Pools that are the same function, as the gate found them. A reader of the table has to know."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Self

from pydantic import Field

from search_spaces.validation import Form, Line, validate


@dataclass(frozen=True, slots=True)
class Equivalence:
    """Pools that compute the same function in an architecture, at initialisation.

    Attributes:
        pools: their labels.
        parting: {label: the parameters that may part it from the others later}; not those that have none.
    """

    arch: str
    pools: tuple[str, ...]
    parting: Mapping[str, tuple[str, ...]]

    def __str__(self) -> str:
        """Return `vgg16bn: gap and mine start as the same function; learning may part mine by weight`."""
        learned = ", ".join(f"{pool} by {', '.join(names)}" for pool, names in self.parting.items())
        later = f"; learning may part {learned}" if learned else ", and nothing that they learn parts them: chance does"
        return f"{self.arch}: {', '.join(self.pools[:-1])} and {self.pools[-1]} start as the same function{later}"

    def to_dict(self) -> dict[str, Any]:
        parting = {pool: list(names) for pool, names in self.parting.items()}
        return {"arch": self.arch, "pools": list(self.pools), "parting": parting}

    @classmethod
    def from_dict(cls, data: Any) -> Self:
        """Return the equivalence that `to_dict` wrote.

        Raises:
            RequestError: the data is not what `to_dict` makes; says where.
        """
        form = validate(_Form, data)
        return cls(form.arch, tuple(form.pools), {pool: tuple(names) for pool, names in form.parting.items()})


class _Form(Form):
    arch: Line
    pools: Annotated[list[Line], Field(min_length=2)]
    parting: dict[Line, list[Line]]
