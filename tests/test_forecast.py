"""What a plan costs and can find."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.forecast import forecast
from orchestrator.record import row
from orchestrator.sweep import make_plan
from results import schema, stats
from results.store import RunFolder
from search_spaces import space as spaces
from trainer.epoch import Epoch

SPACE = """
name: plan
recipe: {epochs: 10}
architectures: [resnet20, vgg11bn]
datasets: [digits]
pools: [{name: gap, role: baseline}, gem]
seeds: [1, 2, 3]
"""


def test_hours_follow_from_what_was_measured(tmp_path: Path) -> None:
    (tmp_path / "space.yaml").write_text(SPACE)
    space, run = spaces.load(tmp_path / "space.yaml"), RunFolder(tmp_path / "run")
    run.create()
    first, *_ = make_plan(space, run).todo
    history = [Epoch(n, 1.0, 50.0, 1.0, 60.0, 0.1, 36.0, 100.0) for n in range(1, 11)]
    run.write_trial(row(first, schema.COMPLETED, history, None))
    said = list(forecast(make_plan(space, run), run))
    assert "5 trials on resnet20-digits: 0.50 h (36.00 s an epoch, measured)" in said
    assert "6 trials on vgg11bn-digits: 0.60 h (36.00 s an epoch, estimated from the other pairs)" in said
    assert "1.10 h in all for one trial after another on such a machine" in said
    found = float(said[-1].split(" of ")[1].split()[0])
    assert stats.power(found, 0.37 * 2**0.5, 3) == pytest.approx(0.8, abs=0.01)
    assert "11 would find 0.5" in said[-1]
