"""`pydantic.dataclasses`, with the standard library's."""

from __future__ import annotations

import dataclasses
from typing import Any


def dataclass(config: Any, **settings: Any) -> Any:
    del config
    return dataclasses.dataclass(**settings)
