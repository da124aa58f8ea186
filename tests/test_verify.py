"""The audit of a run folder: a real one is well, and whatever is done to it is found, by name."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

import results
from orchestrator import record
from orchestrator.record import Job
from orchestrator.worker import run_pack
from results.__main__ import main
from results.store import parquet, schema, verify
from results.store.folder import RunFolder
from results.store.schema import COMPLETED, DIVERGED, FAILED, INVALID
from results.store.set_aside import set_aside
from search_spaces import pool
from search_spaces.errors import RequestError
from search_spaces.grid import BASELINE, CANDIDATE, Entry, Grid, Pair, Planned
from search_spaces.recipe import Recipe
from trainer.data import Dataset

pytestmark = pytest.mark.usefixtures("nothing_collapses")  # trials of a few steps are no better than guessing
RECIPE = Recipe(epochs=3, batch_size=32, lr=0.02, train_samples=64, test_samples=40)
POOLS = {
    "mine.py": "return twice(x.mean((2, 3))) / 2",
    "diverges.py": "self.calls += self.training\n"
    "        return x.mean((2, 3)) * (float('nan') if self.calls > 3 else 1)",
    "raises.py": "self.calls += self.training\n        if self.calls > 3: raise ValueError('no more')\n"
    "        return x.mean((2, 3))",
    "refused.py": "return x",
}
HEAD = "from torch import nn\nfrom helper import twice\nclass CustomPool(nn.Module):\n    calls = 0\n"
EACH = settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
BITS = [name for name in verify.SUMMARY if name != "train_s"]  # Pythons differ in how they sum
TRIALS, EPOCHS = 9, 18  # 4 completed with 3 epochs each, 2 diverged in the 2nd, 2 failed in the 2nd, 1 refused
Rows = list[dict[str, Any]]


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> Grid:
    folder = tmp_path_factory.mktemp("pools")
    (folder / "helper.py").write_text("def twice(x):\n    return 2 * x\n")
    for name, body in POOLS.items():
        (folder / name).write_text(f"{HEAD}    def forward(self, x):\n        {body}\n")
    entries = [Entry(pool.expand("gem(p=2)")[0], BASELINE)]
    entries += [Entry(pool.expand(str(folder / name))[0], CANDIDATE) for name in POOLS]
    return Grid("audited", tuple(entries), (Pair("resnet20", "digits"),), (1, 2), RECIPE)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, grid: Grid, digits: Dataset) -> Path:
    """A run folder as a sweep leaves it, with a trial that is yet to run, and one that was stopped."""
    run = RunFolder(tmp_path_factory.mktemp("made") / "run")
    run.create()
    run.write_grid(grid)
    refused = [planned for planned in grid if planned.trial.pool.name == "refused"]
    record.refuse(refused[0], "wrong shape", run)
    train_all(run, [planned for planned in grid if planned not in refused], digits)
    return run.path


def train_all(run: RunFolder, pack: list[Planned], digits: Dataset) -> None:
    job = Job(run.where)
    run_pack(pack, digits, job)


@pytest.fixture
def run(made: Path, tmp_path: Path) -> RunFolder:
    """A copy, to be spoilt."""
    return RunFolder(shutil.copytree(made, tmp_path / "run"))


@pytest.fixture(params=["small", "merged"])
def either(request: pytest.FixtureRequest, run: RunFolder) -> RunFolder:
    """A copy with a file a trial, or with those that have completed or diverged in merged files."""
    if request.param == "merged":
        run.compact()
    return run


@contextlib.contextmanager
def restored(path: Path) -> Iterator[None]:
    """Many examples spoil one folder: undo what is done to the file within the block."""
    before = path.read_bytes()
    try:
        yield
    finally:
        path.write_bytes(before)


def files_of(run: RunFolder, pattern: str = "*/*.parquet") -> list[Path]:
    return sorted(run.path.glob(pattern))


def name_of(path: Path) -> str:
    return f"{path.parent.name}/{path.name}"


def found(run: RunFolder) -> set[tuple[str, str]]:
    return {(one.kind, one.name) for one in verify.audit(run).findings}


def of(run: RunFolder, status: str) -> str:
    """The id of a trial that ended so."""
    return next(trial_id for trial_id, ended in sorted(run.ended().items()) if ended.status == status)


def where(run: RunFolder, folder: str, trial_id: str) -> Path:
    """The file with the trial's rows."""
    own = run.path / folder / f"{trial_id}.parquet"
    return own if own.exists() else files_of(run, f"{folder}/merged.*")[0]


def edit(run: RunFolder, folder: str, trial_id: str, change: Callable[[Rows], object]) -> Path:
    """Change the trial's rows in a file that stays whole and well formed; which one."""
    path = where(run, folder, trial_id)
    table = pq.read_table(path)
    rows = table.to_pylist()
    mine = [row for row in rows if row["trial_id"] == trial_id]
    at = rows.index(mine[0])
    others = [row for row in rows if row["trial_id"] != trial_id]
    change(mine)
    changed = pa.Table.from_pylist(others[:at] + mine + others[at:], schema=table.schema)
    path.write_bytes(parquet.written(changed))
    return path


def setting(**values: Any) -> Callable[[Rows], None]:
    return lambda rows: rows[0].update(values)


# What is well


def test_what_a_sweep_leaves_is_well(either: RunFolder) -> None:
    assert str(verify.audit(either)) == f"{TRIALS} trials, {EPOCHS} epochs: all is well"
    assert {one.status for one in either.ended().values()} == set(schema.STATUSES) - {schema.COLLAPSED}


def test_a_folder_in_which_nothing_has_ended_is_well(tmp_path: Path, grid: Grid) -> None:
    run = RunFolder(tmp_path / "run")
    run.create()
    assert str(verify.audit(run)) == "0 trials, 0 epochs: all is well"
    run.write_grid(grid)
    assert not verify.audit(run).findings


def test_what_other_commands_and_older_versions_write_is_well(
    run: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    filled_in = {"trials": {"pool_name", "pool_revision"}, "epochs": set[str]()}
    for version, absent in ((3, schema.ADDED), (1, filled_in)):
        for folder, columns in absent.items():
            for path in files_of(run, f"{folder}/*"):
                path.write_bytes(parquet.written(pq.read_table(path).drop_columns(list(columns))))
        assert not verify.audit(run).findings, f"schema {version}"
    for command in ("report", "topup", "compact"):
        assert main([command, run.where]) == 0
    assert main(["submit", run.where, "mine"]) == 0
    assert main(["leaderboard", run.where, "--format", "csv", "--output", str(run.path / "leaderboard.csv")]) == 0
    for folder in ("cam", "tensorboard"):
        (run.path / folder).mkdir()
    run.files.write(f"cam/{of(run, COMPLETED)}.png", b"png")
    capsys.readouterr()
    assert main(["verify", run.where]) == 0
    assert capsys.readouterr().out.endswith("all is well\n")
    added = run.epochs.read(["git_commit", "kernels"]).to_pandas()
    assert len(added) == EPOCHS
    assert added.isna().all(axis=None)


# What can be wrong with a row, and with epochs

HEAVIER = dataclasses.replace(RECIPE, weight_decay=0.1)
SPOILT: list[tuple[str, str, Callable[[Rows], object], str, str]] = [
    ("trials", COMPLETED, setting(status="done"), "row", "status: expected one of completed, diverged, collapsed"),
    ("trials", COMPLETED, setting(role="boss"), "row", "role: expected one of baseline, candidate, got 'boss'"),
    ("trials", DIVERGED, setting(hidden=None), "row", "hidden is null"),
    ("trials", FAILED, setting(error=None), "row", "it is failed, and its error is None"),
    ("trials", INVALID, setting(error=""), "row", "it is invalid, and its error is ''"),
    ("trials", COMPLETED, setting(error="none"), "row", "it is completed, and its error is 'none'"),
    ("trials", COMPLETED, setting(recipe="{"), "row", "expected the JSON of a recipe"),
    ("trials", COMPLETED, setting(best_test_acc=None), "row", "best_test_acc is null"),
    ("trials", COMPLETED, setting(best_test_acc=math.nan), "summary", "got nan"),
    ("trials", COMPLETED, setting(epochs=2), "row", "it is completed after 2 epochs, and its recipe has 3"),
    ("trials", DIVERGED, setting(epochs=4), "row", "it is diverged after 4 epochs, and its recipe has 3"),
    ("trials", COMPLETED, setting(schema_version=99), "row", "is of a newer version"),
    ("trials", FAILED, setting(seed=7), "id", "its contents have the id"),
    ("trials", FAILED, setting(pool_source_sha="0" * 64), "id", "is not in pools.json"),
    ("trials", COMPLETED, setting(pool_name="gap"), "id", "is not in pools.json"),
    ("trials", FAILED, setting(pool_revision="0" * 8), "id", "is not in pools.json"),
    ("trials", COMPLETED, setting(pool_params='{"p": 3.0}'), "id", "is not in pools.json"),
    ("trials", COMPLETED, setting(recipe=HEAVIER.to_json()), "id", "its contents have the id"),
    ("trials", DIVERGED, setting(status=COMPLETED), "summary", "its last loss says otherwise"),
    ("trials", COMPLETED, setting(train_s=1e-3), "summary", "train_s: expected"),
    ("epochs", COMPLETED, lambda rows: rows.pop(1), "epochs", "epoch 2 with all its values, got epoch 3"),
    ("epochs", COMPLETED, lambda rows: rows.pop(), "epochs", "epochs: expected 2.0, got 3.0"),
    ("epochs", COMPLETED, lambda rows: rows.append(rows[0]), "epochs", "epoch 4 with all its values, got epoch 1"),
    ("epochs", COMPLETED, lambda rows: [row.update(epoch=row["epoch"] - 1) for row in rows], "epochs", "got epoch 0"),
    ("epochs", COMPLETED, lambda rows: rows.reverse(), "epochs", "epoch 1 with all its values, got epoch 3"),
    ("epochs", COMPLETED, lambda rows: rows.append(rows[-1] | {"epoch": 4}), "epochs", "epochs: expected 4.0, got 3.0"),
    ("epochs", COMPLETED, lambda rows: rows[1].update(test_loss=None), "epochs", "epoch 2 with all its values"),
    ("epochs", COMPLETED, lambda rows: rows[1].update(test_acc=math.nan), "epochs", "epoch 2 with all its values"),
    ("epochs", COMPLETED, lambda rows: rows[2].update(test_loss=math.nan), "summary", "its last loss says otherwise"),
    ("epochs", COMPLETED, lambda rows: rows[1].update(test_acc=100.0), "summary", "best_test_acc: expected 100.0"),
]


@pytest.mark.parametrize(("folder", "status", "change", "kind", "what"), SPOILT)
def test_rows_that_no_trial_can_have(
    either: RunFolder, folder: str, status: str, change: Callable[[Rows], object], kind: str, what: str
) -> None:
    trial_id = of(either, status)
    edit(either, folder, trial_id, change)
    findings = verify.audit(either).findings
    assert any(one.kind == kind and what in str(one) for one in findings), findings
    assert all(trial_id in str(one) for one in findings)
    tables = ["trials"] if status == INVALID else schema.TABLES  # it has no epochs
    assert {one.name for one in findings} <= {name_of(where(either, each, trial_id)) for each in tables}
    assert not any(parquet.is_merged(name) for one in findings for name in one.aside)
    if kind == "epochs" and not parquet.is_merged(file := name_of(where(either, folder, trial_id))):
        assert any(one.aside and file in str(one) for one in findings), "the small file can be moved away"


def test_epochs_that_are_gone(either: RunFolder) -> None:
    trial_id = of(either, COMPLETED)
    where(either, "epochs", trial_id).unlink()
    (lost,) = [one for one in verify.audit(either).findings if trial_id in str(one)]
    assert (lost.kind, lost.name) == ("epochs", name_of(where(either, "trials", trial_id)))
    assert "none of its epochs is on record" in lost.what


@given(st.data())
@EACH
def test_one_bit_of_a_summary(either: RunFolder, data: st.DataObject) -> None:
    """The next number that there is, in the row or in the epoch that it is from."""
    ended = sorted(trial_id for trial_id, one in either.ended().items() if one.status in schema.TRAINED)
    trial_id, column = data.draw(st.sampled_from(ended)), data.draw(st.sampled_from(BITS))
    up = data.draw(st.sampled_from([math.inf, -math.inf]))
    of_epochs = data.draw(st.booleans()) and column.startswith("final_")
    folder, index, name = ("epochs", -1, column.removeprefix("final_")) if of_epochs else ("trials", 0, column)

    def change(rows: Rows) -> None:
        value = rows[index][name]
        assume(math.isfinite(value))
        rows[index][name] = value + 1 if isinstance(value, int) else math.nextafter(value, up)

    with restored(where(either, folder, trial_id)):
        edit(either, folder, trial_id, change)
        named = name_of(where(either, "epochs", trial_id))
        assert any(one.name == named and trial_id in str(one) for one in verify.audit(either).findings)


# What can be wrong with a file


@given(st.data())
@EACH
def test_a_bit_that_turns_over_in_a_file(either: RunFolder, data: st.DataObject) -> None:
    """It is found, or nobody sees it; nor does a filter, which of a merged file reads what it has to."""
    path = data.draw(st.sampled_from(files_of(either)))
    asked = results.load(either.path)
    read = {"trials": asked.trials, "epochs": asked.epochs}[path.parent.name]
    whole, some = pq.read_table(path), read(seed=1)
    with restored(path):
        spoilt = bytearray(path.read_bytes())
        footer = len(spoilt) - 8 - int.from_bytes(spoilt[-8:-4], "little")  # which has no checksum in Parquet
        spoilt[data.draw(st.integers(0, footer - 1))] ^= 1 << data.draw(st.integers(0, 7))
        path.write_bytes(spoilt)
        if name_of(path) not in {one.name for one in verify.audit(either).findings}:
            assert repr(pq.read_table(path).to_pydict()) == repr(whole.to_pydict())
        with contextlib.suppress(RequestError):
            pd.testing.assert_frame_equal(read(seed=1), some)


@given(st.data())
@EACH
def test_a_file_that_is_cut_off(either: RunFolder, data: st.DataObject) -> None:
    path = data.draw(st.sampled_from(files_of(either)))
    whole = path.read_bytes()
    beginnings = st.integers(0, len(whole) - 1).map(lambda size: whole[:size])
    with restored(path):
        path.write_bytes(data.draw(beginnings | st.sampled_from([b"PAR1", b"\xff" * 100, b"results.seal=00000000"])))
        assert ("unreadable", name_of(path)) in found(either)
        assert [one.name for one in verify.unreadable(either)] == [name_of(path)]


@pytest.mark.parametrize("folder", ["trials", "epochs"])
def test_files_that_change_places(run: RunFolder, folder: str) -> None:
    one, other = (where(run, folder, of(run, status)) for status in (COMPLETED, DIVERGED))
    before = one.read_bytes(), other.read_bytes()
    one.write_bytes(before[1])
    other.write_bytes(before[0])
    assert found(run) >= {("misplaced", name_of(path)) for path in (one, other)}


@pytest.mark.parametrize(
    ("folder", "change", "what"),
    [
        ("trials", lambda table: table.append_column("speed", table["seed"]), "speed: expected none, got int64"),
        ("trials", lambda table: table.drop_columns(["recipe"]), "recipe: expected string, got none"),
        ("epochs", lambda table: table.set_column(5, "epoch", table["lr"]), "epoch: expected int64, got double"),
    ],
)
def test_parquet_of_other_columns(run: RunFolder, folder: str, change: Callable, what: str) -> None:
    path = where(run, folder, of(run, COMPLETED))
    path.write_bytes(parquet.written(change(pq.read_table(path))))
    (finding,) = verify.audit(run).findings
    assert (finding.kind, finding.name) == ("schema", name_of(path))
    assert f"column {what}" in finding.what


@pytest.mark.parametrize("text", ["{", "[1, {}]", "", "\0"])
def test_a_document_that_no_sweep_wrote(run: RunFolder, text: str) -> None:
    names = ["space.yaml", "pools.json", "submitted.json", "checks.json", "packs.json"]
    for name in names:
        (run.path / name).write_text(text)
    assert found(run) >= {("unreadable", name) for name in names}


def test_a_text_that_was_changed_on_record(run: RunFolder) -> None:
    path = run.path / "pools.json"
    path.write_text(path.read_text().replace("twice(x.mean", "twice(x.amax"))
    (run.path / "space.yaml").unlink()
    findings = verify.audit(run).findings
    assert [one.kind for one in findings] == ["id", "id"]
    assert all("is not in pools.json, or was changed there" in one.what and not one.aside for one in findings)


# Files that are too many


def test_a_trial_in_two_places(run: RunFolder) -> None:
    """As `compact` has it for a moment, or when it is killed, and as it never has it."""
    trial_id = of(run, COMPLETED)
    small = [where(run, folder, trial_id) for folder in ("trials", "epochs")]
    before = [path.read_bytes() for path in small]
    run.compact()
    for path, data in zip(small, before, strict=True):
        path.write_bytes(data)
    audit = verify.audit(run)
    assert str(audit) == f"{TRIALS} trials, {EPOCHS} epochs, 1 twice until the next `compact`: all is well"
    edit(run, "epochs", trial_id, lambda rows: rows[0].update(train_loss=1.0))
    edit(run, "trials", trial_id, setting(host="elsewhere"))
    merged = files_of(run, "*/merged.*")
    assert found(run) == {("twice", name_of(path)) for path in merged}
    assert {name for one in verify.audit(run).findings for name in one.aside} == set(map(name_of, small))
    for path in merged:
        shutil.copy(path, path.with_name("merged.0123456789ab.parquet"))
    for path in small:
        path.unlink()
    audit = verify.audit(run)
    assert (audit.findings, audit.twice) == ((), 6)


@pytest.mark.parametrize("name", ["trials/notes.txt", "epochs/x.csv", "logs/of Ray", "checkpoints/a.pt"])
def test_a_file_of_no_trial(run: RunFolder, name: str) -> None:
    run.files.write(name, b"what?")
    assert found(run) == ({("orphan", name)} if not name.startswith("checkpoints/") else set())
    assert set_aside(run, [name]) == [f"set-aside/{name}"]
    assert not verify.audit(run).findings


def test_what_belongs_to_nothing(run: RunFolder, grid: Grid) -> None:
    """A trial that has begun is unfinished while somebody may go on with it, and an orphan after that."""
    trial_id = of(run, DIVERGED)
    where(run, "trials", trial_id).unlink()
    files = [f"epochs/{trial_id}.parquet", f"weights/{trial_id}.pt", f"logs/{trial_id}.log"]
    run.files.write(files[1], b"weights")
    audit = verify.audit(run)
    assert str(audit) == f"{TRIALS - 1} trials, {EPOCHS} epochs, 1 unfinished: all is well"
    run.write_grid(dataclasses.replace(grid, entries=grid.entries[:1]))
    assert found(run) == {("orphan", name) for name in files}
    run.files.write(f"checkpoints/{trial_id}.pt", b"to go on from")
    assert not verify.audit(run).findings


def test_what_killed_processes_leave_is_found_and_tidied(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    ended, failed = of(run, COMPLETED), of(run, FAILED)
    leftovers = [f"checkpoints/{ended}.pt", f"attempts/{ended}.json", "epochs/.tmp-0123"]
    for name in (*leftovers, f"checkpoints/{failed}.pt", f"attempts/{failed}.json"):
        run.files.write(name, b"{}")
    assert found(run) == {("leftover", name) for name in leftovers}
    assert len(verify.verify(run, settle_s=0.0).findings) == 3
    monkeypatch.setattr(time, "sleep", lambda _: run.tidy())
    assert not verify.verify(run).findings, "a process was about to take it away"
    assert run.files.exists(f"checkpoints/{failed}.pt")


def test_a_newer_space_wins(run: RunFolder, grid: Grid) -> None:
    entries = tuple(dataclasses.replace(entry, role=CANDIDATE) for entry in grid.entries)
    pairs = tuple(dataclasses.replace(pair, hidden=True) for pair in grid.pairs)
    run.write_grid(dataclasses.replace(grid, entries=entries, pairs=pairs, seeds=(1,)))
    assert not verify.audit(run).findings


# What comes of it


def test_set_aside_and_trained_again(
    run: RunFolder, grid: Grid, digits: Dataset, capsys: pytest.CaptureFixture[str]
) -> None:
    before = metrics(run)
    completed = sorted(trial_id for trial_id, one in run.ended().items() if one.status == COMPLETED)
    (run.path / "trials" / f"{completed[0]}.parquet").write_bytes(b"PAR1")
    edit(run, "epochs", completed[1], lambda rows: rows.pop())
    (run.path / "epochs" / f"{completed[2]}.parquet").write_bytes(b"")
    kept = where(run, "trials", completed[3]).stat()
    assert main(["verify", run.where, "--set-aside"]) == 1
    said = capsys.readouterr().out
    assert f"unreadable: trials/{completed[0]}.parquet: " in said
    assert f"set aside: set-aside/epochs/{completed[2]}.parquet" in said
    assert said.endswith(": 3 findings\n")
    assert len(list((run.path / "set-aside").rglob("*.parquet"))) == 6

    assert main(["verify", run.where]) == 0
    left = [planned for planned in grid if planned.trial.id not in run.ended()]
    assert {planned.trial.id for planned in left} >= set(completed[:3])
    train_all(run, [planned for planned in left if planned.trial.id in completed], digits)
    assert main(["verify", run.where]) == 0
    assert metrics(run) == before
    assert where(run, "trials", completed[3]).stat() == kept


def metrics(run: RunFolder) -> list[str]:
    """Every trial's numbers but times, NaN like NaN."""
    asked = results.load(run.path)
    trials = asked.trials(["trial_id", "status", "best_test_acc", "best_epoch", "final_test_loss", "error"])
    return sorted(map(repr, [*asked.epochs().drop(columns="epoch_s").to_dict("records"), *trials.to_dict("records")]))


def test_what_is_set_aside_twice_is_kept_twice(run: RunFolder) -> None:
    trial_id = of(run, COMPLETED)
    for data in (b"one", b"two", b"three"):
        (run.path / "trials" / f"{trial_id}.parquet").write_bytes(data)
        set_aside(run, [f"trials/{trial_id}.parquet"])
    kept = sorted((run.path / "set-aside" / "trials").iterdir())
    assert [path.read_bytes() for path in kept] == [b"one", b"two", b"three"]
    assert set_aside(run, ["trials/nothing.parquet"]) == []
