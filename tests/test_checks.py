"""The gate's checks as a suite for anybody's tests: README's example, and what a failure says."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from torch import nn

from trainer.gate import checks

ROOT = Path(__file__).parents[1]


def test_the_example_of_the_readme_passes_on_the_pool_of_the_readme(tmp_path: Path) -> None:
    examples = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    (pool,) = (text for text in examples if text.startswith("# my_pool.py"))
    (tests,) = (text for text in examples if "checks.ALL" in text)
    (tmp_path / "my_pool.py").write_text(pool)
    (tmp_path / "test_my_pool.py").write_text(tests)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, stdout=-1, encoding="utf-8", check=False)
    assert f"{len(checks.ALL)} passed" in done.stdout, done.stdout


class Broken(nn.Module):
    def forward(self, x):
        return x.var((2, 3))


def test_a_failure_says_where_what_and_how_it_is_mended() -> None:
    (finite,) = (check for check in checks.ALL if str(check) == "finite")
    finite(Broken, ["resnet20"])
    with pytest.raises(AssertionError, match=r"finite-output: on vgg16bn's feature map .*NaN.*correction=0"):
        finite(Broken)


def test_notes_fail_if_that_is_asked() -> None:
    (sizes,) = (check for check in checks.ALL if str(check) == "other sizes")
    sizes(Broken, ["resnet20"])
    with pytest.raises(AssertionError, match="other-size"):
        sizes(Broken, ["resnet20"], notes=True)


def test_a_pool_by_name_or_by_a_function_that_takes_channels() -> None:
    for check in checks.ALL:
        check("gem(p=1)", ["resnet20"])
        check(lambda channels: nn.Sequential(nn.Conv2d(channels, channels, 1), nn.AdaptiveMaxPool2d(1), nn.Flatten()))
        break
