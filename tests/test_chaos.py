"""The soak that `make chaos` runs, for as long as a suite can wait: see `tests/chaos.py`."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from orchestrator import record
from results.store import schema
from results.store.folder import RunFolder
from search_spaces import space as spaces
from tests import chaos

pytestmark = [
    pytest.mark.soak,
    pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="processes are found in /proc"),
]


def test_a_sweep_under_a_monkey(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Another seed every time, which a failure tells: a soak that always kills the same finds nothing new."""
    seed = random.randrange(10_000)  # noqa: S311
    print(f"seed {seed}")
    monkey = chaos.chaos(seed, kills=20, seconds=30, trials=10, folder=tmp_path, say=print)
    assert monkey.kills.total() >= 1
    assert "10 trials, 30 epochs: all is well" in capsys.readouterr().out


def test_a_row_that_is_written_again_is_seen(tmp_path: Path) -> None:
    """So the watch over finished trials does watch."""
    space = tmp_path / "chaos.yaml"
    space.write_text(chaos.SPACE.format(seeds=[0]))
    sweep = chaos.Sweep(space, tmp_path / "run", str(tmp_path))
    run = RunFolder(sweep.folder)
    run.create()
    for planned in spaces.load(str(space)).grid:
        run.write_trial(record.row(planned, schema.COMPLETED, (), None))
    assert sweep.look() == 10
    assert sweep.look() == 10
    path = next((sweep.folder / "trials").iterdir())
    before = path.read_bytes()
    path.unlink()
    with pytest.raises(chaos.Defect, match="is gone"):
        sweep.look()
    path.write_bytes(before)
    with pytest.raises(chaos.Defect, match="was written again"):
        sweep.look()
