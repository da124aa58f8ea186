"""A hundred kills: whatever instant a process dies at, nothing that was finished is done again, and nothing is lost."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from results.store import schema, verify
from results.store.folder import RunFolder
from tests.kills import Campaign, Death, identity, numbers

ROOT = Path(__file__).parents[1]
RANDOM = 67  # with the 33 changes that a trial makes, a hundred

pytestmark = [
    pytest.mark.soak,
    pytest.mark.usefixtures("nothing_collapses"),
    pytest.mark.skipif(not hasattr(__import__("os"), "fork"), reason="nothing is forked here"),
]


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Campaign]]:
    """The campaigns, side by side."""
    started = {}
    for name, options in {"every": [], "random": ["--seed", "5", "--kills", str(RANDOM)]}.items():
        folder = tmp_path_factory.mktemp(name)
        command = [sys.executable, "-m", "tests.kills", name, str(folder), *options]
        started[name] = folder, subprocess.Popen(command, cwd=ROOT, text=True, stdout=subprocess.PIPE)
    found = {}
    for name, (folder, process) in started.items():
        said, _ = process.communicate(timeout=600)
        assert process.returncode == 0
        told = json.loads(said)
        found[name] = folder, Campaign([Death(**death) for death in told["deaths"]], told["folders"])
    return found


@pytest.fixture(params=["every", "random"])
def campaign(request: pytest.FixtureRequest, both: dict[str, tuple[Path, Campaign]]) -> tuple[Path, Campaign]:
    return both[request.param]


def test_there_were_a_hundred(both: dict[str, tuple[Path, Campaign]]) -> None:
    every, at_random = (campaign.deaths for _, campaign in both.values())
    assert len(every) >= 30
    assert len(at_random) >= RANDOM
    assert sum(bool(death.covered) for death in every) > 10, "some died with a checkpoint behind them"
    assert len({len(death.ended) for death in at_random}) > 2, "not all at the beginning"


def test_every_number_is_that_of_an_undisturbed_run(campaign: tuple[Path, Campaign]) -> None:
    folder, done = campaign
    undisturbed = numbers(RunFolder(folder / "undisturbed"))
    assert len(undisturbed) >= 2 * 4
    for name in done.folders:
        run = RunFolder(folder / name)
        assert numbers(run) == undisturbed, name
        audit = verify.audit(run)
        assert (audit.findings, audit.unfinished, audit.epochs) == ((), 0, 3 * audit.trials), name


def test_no_finished_trial_was_trained_again(campaign: tuple[Path, Campaign]) -> None:
    folder, done = campaign
    for death in done.deaths:
        run = RunFolder(folder / death.folder)
        assert {trial_id: identity(run, trial_id) for trial_id in death.ended} == death.ended, death.folder
    for name in done.folders:
        run = RunFolder(folder / name)
        for row in run.trials.read(["trial_id", "attempt"]).to_pylist():
            log = (run.path / "logs" / f"{row['trial_id']}.log").read_text()
            numbers = [int(number) for number in re.findall(r"^attempt (\d+): ", log, re.MULTILINE)]
            assert numbers == sorted(set(numbers)), "each is counted once, though some died before they said a word"
            assert numbers[-1] == row["attempt"], "one came after the end"


def test_no_epoch_that_a_checkpoint_covers_was_trained_again(campaign: tuple[Path, Campaign]) -> None:
    """To the time that it took."""
    folder, done = campaign
    covered = 0
    for death in done.deaths:
        for trial_id, history in death.covered.items():
            rows = RunFolder(folder / death.folder).epochs.read(where={"trial_id": trial_id}).to_pylist()
            columns = [name for name in schema.EPOCHS.names if name in history[0]]
            kept = [{name: row[name] for name in columns} for row in rows[: len(history)]]
            assert kept == [{name: epoch[name] for name in columns} for epoch in history], (death.folder, trial_id)
            covered += len(history)
    assert covered > 10
