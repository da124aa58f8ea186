"""What documents name is there: tests, files and make targets."""

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


def test_every_file_that_contributing_names_is_there() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    named = set(re.findall(r"`((?:\w+/)+(?:[\w.]+\.\w+)?|\w+\.(?:py|md|cff|toml|lock))`", text))
    assert len(named) > 30
    within = ["", "orchestrator", "trainer", "results"]  # the text goes through a package's folders by their bare names
    assert [name for name in named if not any((ROOT / folder / name).exists() for folder in within)] == []
    for file, _, method in re.findall(r"`([\w/]+\.py)`, `(\w+)\.(\w+)`", text):
        assert f"def {method}(" in (ROOT / file).read_text()


@pytest.mark.parametrize("document", ["CONTRIBUTING.md", "README.md"])
def test_every_make_target_that_is_named_is_there(document: str) -> None:
    named = set(re.findall(r"(?:`|^)make ([a-z-]+)", (ROOT / document).read_text(), re.MULTILINE))
    assert {"test", "soak"} <= named <= set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
