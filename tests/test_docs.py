"""What documents say of tests: each of those that they name is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NAMED = re.compile(r"`(test_\w+\.py)?::(\w+)`|`(test_\w+\.py)`")


@pytest.mark.parametrize("document", ["docs/faults.md", "SECURITY.md"])
def test_every_test_that_is_named_is_there(document: str) -> None:
    missing, count, file = [], 0, ""
    for match in NAMED.finditer((ROOT / document).read_text()):
        file = match[1] or match[3] or file  # `::name` alone is of the file before
        path = ROOT / "tests" / file
        if not path.is_file() or (match[2] and f"def {match[2]}(" not in path.read_text()):
            missing.append(match[0])
        count += 1
    assert not missing
    assert count > 8
