"""A sweep in one process, without Ray: what a debugger needs, and the same rows."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator import cli
from results.store import schema
from results.store.folder import RunFolder

ROOT = Path(__file__).parents[1]
SPACE = """
name: inline
recipe: {epochs: 2, batch_size: 32, lr: 0.02, train_samples: 64, test_samples: 40}
pairs: [{arch: resnet20, dataset: digits}]
pools: [{name: gap, role: baseline}, gem, {file: mine.py}]
seeds: [1]
"""
MINE = """
import os
from torch import nn
class CustomPool(nn.Module):
    def forward(self, x):
        if os.environ.pop("LOOK", None): breakpoint()
        return x.mean((2, 3))
"""


@pytest.fixture
def space(tmp_path: Path) -> Path:
    (tmp_path / "space.yaml").write_text(SPACE)
    (tmp_path / "mine.py").write_text(MINE)
    return tmp_path / "space.yaml"


def sweep(space: Path, *options: str, typed: str = "") -> subprocess.CompletedProcess[str]:
    code = (
        "import sys; from orchestrator import cli; code = cli.main(sys.argv[1:]); "
        "assert 'ray' not in sys.modules; sys.exit(code)"
    )
    out = ["--space", str(space), "--out", str(space.parent / "run"), "--address", "inline", *options]
    return subprocess.run(
        [sys.executable, "-c", code, *out],
        cwd=ROOT,
        input=typed,
        capture_output=True,
        text=True,
        timeout=300,
        env={name: value for name, value in os.environ.items() if name != "PYTHONBREAKPOINT"} | {"LOOK": "1"},
    )


def test_a_debugger_works_in_a_pool(space: Path) -> None:
    done = sweep(space, "--only", "pool=mine", typed="p x.shape\nc\n")
    run = RunFolder(space.parent / "run")
    assert "torch.Size([" in done.stdout, done.stdout + done.stderr
    (found,) = run.trials.read().to_pylist()
    assert found["status"] in schema.TRAINED
    assert found["epochs"] == 2
    assert "attempt 1: mine-resnet20-digits-s1" in (run.trial(found["trial_id"]).log_text() or ""), "in its log, too"
    assert "TRAIN_METRICS: epoch=2" in done.stdout


def test_what_keeps_a_sweep_from_starting_is_said_at_once(space: Path) -> None:
    (space.parent / "wrong.py").write_text(MINE.replace("x.mean((2, 3))", "x.mean((2, 3)) / 0"))
    space.write_text(SPACE.replace("{file: mine.py}", "{file: mine.py}, {file: wrong.py}"))
    done = sweep(space)
    assert done.returncode == cli.REFUSED
    assert "check finite-output: on resnet20's feature map" in done.stderr
    assert "expected trials of one file, or of built-in pools, got gap, mine, wrong" in done.stderr
    assert "pick with --only pool=" in done.stderr
    assert "nothing was started" in done.stderr
    assert not (space.parent / "run").exists()
