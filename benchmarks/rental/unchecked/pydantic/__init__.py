"""A stand-in for pydantic on a rented machine that has none: it takes what it is given, and checks nothing.

What is read there is what this code, or this code on the machine before, has written: recipes, leases, attempts. Forms
for what anybody may have written (`search_spaces.validation.Form`) are declared, and never read.
"""

from __future__ import annotations

import json
from typing import Any


class ValidationError(ValueError):
    """JSON that is none, or that has other fields than it should."""


class BaseModel:
    """A form."""


class TypeAdapter:
    """Makes a dataclass of its fields."""

    def __init__(self, kind: Any):
        self._kind = kind

    def validate_python(self, data: Any) -> Any:
        return self._kind(**data)

    def validate_json(self, data: bytes, strict: bool = False) -> Any:
        del strict
        try:
            return self._kind(**json.loads(data))
        except (ValueError, TypeError) as error:
            raise ValidationError(str(error)) from error


def _nothing(*_: Any, **__: Any) -> None:
    return None


def model_validator(**_: Any) -> Any:
    return lambda function: function


AfterValidator = BeforeValidator = ConfigDict = Field = PlainValidator = Strict = _nothing
