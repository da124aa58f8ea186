"""Results of an older protocol: read as they were, trained into never."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from orchestrator import cli
from orchestrator.record import epoch_rows, row
from results import __main__, load
from results.store import schema
from results.store.folder import RunFolder
from search_spaces import pool
from search_spaces.errors import RequestError
from search_spaces.grid import BASELINE, Entry, Grid, Pair
from search_spaces.recipe import Recipe
from search_spaces.trial import CHANGES, PROTOCOL
from trainer.outcome import Epoch
from trainer.train import learning_rate

ENTRIES = (Entry(pool.expand("gap")[0], BASELINE), Entry(pool.expand("gem")[0]))
HISTORY = [Epoch(n, 1.0, 50.0, 1.0, 60.0 + n, learning_rate(Recipe(epochs=2), n), 2.0, 100.0) for n in (1, 2)]


def folder(path: Path, protocol: int, ended: bool = True) -> RunFolder:
    """As a sweep of that protocol left it: at 1, without a word about it in space.yaml."""
    run = RunFolder(path)
    run.create()
    grid = Grid("old", ENTRIES, (Pair("mobilenetv2", "digits"),), (1, 2), Recipe(epochs=2), protocol)
    run.write_grid(grid)
    text = yaml.safe_load((path / "space.yaml").read_text())
    assert text["protocol"] == protocol
    if protocol == 1:
        del text["protocol"]
        (path / "space.yaml").write_text(yaml.safe_dump(text))
    for planned in grid:
        run.epochs.write(planned.trial.id, epoch_rows(planned.trial, HISTORY))
        if ended:
            found = row(planned, schema.COMPLETED, HISTORY, None)
            assert found["protocol"] == protocol
            run.write_trial(found)
    return run


@pytest.mark.parametrize("protocol", [1, PROTOCOL])
def test_each_is_read_as_it_was(tmp_path: Path, capsys: pytest.CaptureFixture[str], protocol: int) -> None:
    run = folder(tmp_path / "run", protocol)
    for command in ("leaderboard", "status", "verify"):
        assert __main__.main([command, str(run.path)]) == 0
        said = capsys.readouterr().out
        assert "missing" not in said
        assert {"leaderboard": "62.00 ± 0.00 (2)", "status": "4 trials: 4 completed", "verify": "well"}[command] in said


def test_two_protocols_are_not_of_one_table(tmp_path: Path) -> None:
    runs = [str(folder(tmp_path / str(protocol), protocol).path) for protocol in (1, PROTOCOL)]
    with pytest.raises(RequestError, match=f"protocol=1; protocol={PROTOCOL}"):
        load(*runs).leaderboard()
    frame = load(*runs).leaderboard(allow_mixed=True)
    assert set(frame["pool"]) == {f"{name} [protocol={n}]" for name in ("gap", "gem") for n in (1, PROTOCOL)}


@pytest.mark.parametrize(
    ("protocol", "ended", "says"),
    [
        (1, True, f"is of protocol 1, and this version trains protocol 2, in which {CHANGES[2]}"),
        (1, False, "is of protocol 1, and this version trains protocol 2"),
        (PROTOCOL + 1, True, "go on with the newer version"),
    ],
)
def test_no_sweep_trains_into_an_older_or_newer_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], protocol: int, ended: bool, says: str
) -> None:
    run = folder(tmp_path / "run", protocol, ended)
    before = {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}
    space = tmp_path / "space.yaml"
    space.write_text(
        "name: old\nrecipe: {epochs: 2}\npairs: [{arch: mobilenetv2, dataset: digits}]\n"
        "pools: [{name: gap, role: baseline}, gem]\nseeds: [1, 2, 3]\n"
    )
    for options in ([], ["--plan"]):
        assert cli.main(["--space", str(space), "--out", str(run.path), *options]) == cli.REFUSED
        said = " ".join(capsys.readouterr().err.split())
        assert says in said
        assert "give another --out" in said
    assert {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()} == before


def test_no_map_is_drawn_by_a_network_that_is_not_the_trials(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """MobileNetV2's old weights fit into the new one: only the strides differ."""
    run = folder(tmp_path / "run", 1)
    planned = next(iter(run.space.read() or ()))
    assert __main__.main(["cam", str(run.path), planned.trial.id]) == 2
    assert "was trained by protocol 1, whose networks this version does not build" in capsys.readouterr().err
