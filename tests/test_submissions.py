"""Hidden pairs, the budget of revisions, and the one revision that is the entry."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import results
from orchestrator.plan import make_plan
from orchestrator.record import row
from results import submissions
from results.__main__ import main
from results.store import schema
from results.store.folder import RunFolder
from search_spaces import space as spaces
from search_spaces.errors import RequestError
from search_spaces.space import Space

SPACE = """
name: hidden
recipe: {epochs: 2}
pairs:
  - {arch: resnet20, dataset: digits}
  - {arch: vgg11bn, dataset: digits, hidden: true}
pools:
  - {name: gap, role: baseline}
  - {file: mine.py}
  - {file: other.py, params: {k: [1, 2]}}
seeds: [1, 2]
"""
POOL = "from torch import nn\nclass CustomPool(nn.Module):\n    def __init__(self, k=1):\n        super().__init__()\n"

Train = Callable[..., Space]


@pytest.fixture
def train(tmp_path: Path, run: RunFolder) -> Train:
    """`train(revision, final=False, text=SPACE)`: as a sweep would, without training; the space."""

    def make(revision: int = 1, final: bool = False, text: str = SPACE, **changes: object) -> Space:
        (tmp_path / "mine.py").write_text(POOL + f"        self.revision = {revision}\n")
        (tmp_path / "other.py").write_text(POOL)
        (tmp_path / "space.yaml").write_text(text)
        space = spaces.load(tmp_path / "space.yaml").model_copy(update=changes)
        run.write_grid(space.grid)
        for planned in make_plan(space, run, final=final).todo:
            measured = {"best_test_acc": 50.0 + planned.trial.seed, "final_test_acc": 50.0}
            run.write_trial(row(planned, schema.COMPLETED, (), None) | measured)
        return space

    return make


def planned(space: Space, run: RunFolder, final: bool = False) -> list[str]:
    return [str(one.trial) for one in make_plan(space, run, final=final).planned if one.trial.seed == 1]


def test_hidden_pairs_are_for_baselines_and_for_what_was_submitted(train: Train, run: RunFolder) -> None:
    space = train()
    assert not any("vgg11bn" in trial for trial in planned(space, run))
    assert [trial for trial in planned(space, run, final=True) if "vgg11bn" in trial] == ["gap vgg11bn-digits seed 1"]
    assert make_plan(space, run, final=True).withheld == 6
    submissions.submit(run, "other(k=2)")
    hidden = [trial for trial in planned(space, run, final=True) if "vgg11bn" in trial]
    assert hidden == ["gap vgg11bn-digits seed 1", "other(k=2) vgg11bn-digits seed 1"]


def test_an_entry_is_a_revision_not_a_file(train: Train, run: RunFolder) -> None:
    old = train(revision=1).grid.entries[1].pool
    space = train(revision=2)
    with pytest.raises(RequestError, match=rf"names 2 of mine@{old.revision}, mine@.*write one of them"):
        submissions.submit(run, "mine")
    assert submissions.submit(run, f"mine@{old.revision[:5]}") == old
    final = space.model_copy(update={"grid": space.grid.with_candidates(p for p, _ in run.submissions.read().values())})
    hidden = [one.trial.pool for one in make_plan(final, run, final=True).todo if one.hidden]
    assert [pool.key for pool in hidden if pool.name == "mine"] == [old.key] * 2
    assert [pool.source for pool in hidden if pool.name == "mine"] == [old.source] * 2, "with its text of then"


def test_an_entry_may_change_until_the_hidden_pairs_were_asked(train: Train, run: RunFolder) -> None:
    train()
    submissions.submit(run, "other")
    submissions.submit(run, "other(k=2)")
    train(final=True)
    with pytest.raises(RequestError, match=r"other\(k=2\)@\w+ has been trained on the hidden pairs"):
        submissions.submit(run, "other")
    submissions.submit(run, "mine")  # another candidate


def test_one_label_for_two_sets_of_parameters_is_the_newest(train: Train, run: RunFolder) -> None:
    for k in (5, 6):
        train(text=SPACE.replace("{file: mine.py}", f"{{file: mine.py, label: m, params: {{k: {k}}}}}"))
    assert dict(submissions.submit(run, "m").params)["k"] == 6


def test_what_cannot_be_submitted(train: Train, run: RunFolder) -> None:
    with pytest.raises(RequestError, match="none has"):
        submissions.submit(run, "mine")
    train()
    for spec, says in (
        ("mime", "did you mean 'mine'"),
        ("mine@ffffffff", "'mine@ffffffff' names none of mine@"),
        ("gap", "no candidate 'gap'"),
    ):
        with pytest.raises(RequestError, match=says):
            submissions.submit(run, spec)


def test_a_budget_of_revisions(train: Train, run: RunFolder) -> None:
    train(revision=1, test_budget=2)
    train(revision=2, test_budget=2)
    train(revision=1, test_budget=2)  # nothing new
    with pytest.raises(RequestError, match=r"2 revisions of mine .* asks for 1 more, where 2 are allowed"):
        train(revision=3, test_budget=2)
    with pytest.raises(RequestError) as caught:
        train(revision=3, test_budget=1)
    assert any("of other" in problem.what for problem in caught.value.problems), "parameters are revisions too"


def test_the_command_and_the_table(train: Train, run: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    train()
    assert main(["submit", str(run.path), "mine"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("mine@")
    assert main(["leaderboard", str(run.path)]) == 0
    table = " ".join(capsys.readouterr().out.split())
    assert f"Submitted: {said.split()[0]}" in table
    assert "Withheld until the final run (--final): vgg11bn-digits" in table
    assert main(["submit", str(run.path), "nothing"]) == 2


def test_the_latest_revision_alone(train: Train, run: RunFolder) -> None:
    train(revision=1)
    train(revision=2)
    loaded = results.load(run.path)
    everything, latest = loaded.leaderboard(), loaded.leaderboard(latest=True)
    assert set(latest["pool"]) == set(everything["pool"])
    for frame, count in ((everything, 2), (latest, 1)):
        assert frame.query("pool == 'mine'")["revision"].nunique() == count
