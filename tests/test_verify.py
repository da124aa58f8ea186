"""The audit of a run folder: a real one is well, and whatever is done to it is found, by name."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from orchestrator import record
from orchestrator.record import Job
from orchestrator.worker import run_pack
from results.__main__ import main
from results.store import parquet, schema, verify
from results.store.folder import RunFolder
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
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
BITS = [name for name in verify.SUMMARY if name != "train_s"]  # Pythons differ in how they sum
TRIALS, EPOCHS = 9, 18  # 4 completed with 3 epochs each, 2 diverged in the 2nd, 2 failed in the 2nd, 1 refused


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
def restored(*paths: Path) -> Iterator[None]:
    """What is done to the files within is undone: many examples spoil one folder."""
    before = [path.read_bytes() for path in paths]
    try:
        yield
    finally:
        for path, data in zip(paths, before, strict=True):
            path.write_bytes(data)


def found(run: RunFolder) -> set[tuple[str, str]]:
    return {(one.kind, one.name) for one in verify.audit(run).findings}


def of(run: RunFolder, status: str) -> str:
    """The id of a trial that ended so."""
    return next(trial_id for trial_id, ended in sorted(run.ended().items()) if ended.status == status)


def where(run: RunFolder, folder: str, trial_id: str) -> Path:
    """The file with the trial's rows."""
    own = run.path / folder / f"{trial_id}.parquet"
    return own if own.exists() else next((run.path / folder).glob("merged.*"))


def edit(run: RunFolder, folder: str, trial_id: str, change: Callable[[list[dict[str, Any]]], Any]) -> Path:
    """Changes the trial's rows in place, in a file that is whole and well formed; which one."""
    path = where(run, folder, trial_id)
    table = pq.read_table(path)
    rows = table.to_pylist()
    mine = [row for row in rows if row["trial_id"] == trial_id]
    before = rows.index(mine[0])
    others = [row for row in rows if row["trial_id"] != trial_id]
    change(mine)
    path.write_bytes(
        parquet.written(pa.Table.from_pylist(others[:before] + mine + others[before:], schema=table.schema))
    )
    return path


def setting(**values: Any) -> Callable[[list[dict[str, Any]]], None]:
    return lambda rows: rows[0].update(values)


def test_what_a_sweep_leaves_is_well(either: RunFolder) -> None:
    assert str(verify.audit(either)) == f"{TRIALS} trials, {EPOCHS} epochs: all is well"
    assert set(either.read_trials(["status"])["status"].to_pylist()) == set(schema.STATUSES) - {schema.COLLAPSED}


def test_a_folder_in_which_nothing_has_ended_is_well(tmp_path: Path, grid: Grid) -> None:
    run = RunFolder(tmp_path / "run")
    run.create()
    assert str(verify.audit(run)) == "0 trials, 0 epochs: all is well"
    run.write_grid(grid)
    assert not verify.audit(run).findings


def test_what_the_other_commands_write_is_well(run: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("report", "topup", "compact"):
        assert main([command, run.where]) == 0
    assert main(["submit", run.where, "mine"]) == 0
    assert main(["leaderboard", run.where, "--format", "csv", "--output", str(run.path / "leaderboard.csv")]) == 0
    run.write_picture(of(run, schema.COMPLETED), b"png")
    (run.path / "tensorboard").mkdir()
    capsys.readouterr()
    assert main(["verify", run.where]) == 0
    assert capsys.readouterr().out.endswith("all is well\n")


# What can be wrong with a row, and with epochs

ROWS: Mapping[str, tuple[str, dict[str, Any], str, str]] = {
    "status": (schema.COMPLETED, {"status": "done"}, "row", "status: expected one of completed, diverged, collapsed"),
    "role": (schema.COMPLETED, {"role": "boss"}, "row", "role: expected one of baseline, candidate, got 'boss'"),
    "a null": (schema.DIVERGED, {"hidden": None}, "row", "hidden is null"),
    "another null": (schema.DIVERGED, {"hidden": None, "seed": None}, "row", "seed is null"),
    "no error": (schema.FAILED, {"error": None}, "row", "it is failed, and its error is None"),
    "an empty error": (schema.INVALID, {"error": ""}, "row", "it is invalid, and its error is ''"),
    "an error": (schema.COMPLETED, {"error": "none really"}, "row", "it is completed, and its error is 'none really'"),
    "no recipe": (schema.COMPLETED, {"recipe": "{"}, "row", "expected the JSON of a recipe"),
    "no summary": (schema.COMPLETED, {"best_test_acc": None}, "row", "best_test_acc is null"),
    "no number": (schema.COMPLETED, {"best_test_acc": math.nan}, "summary", "got nan"),
    "no percentage": (schema.COMPLETED, {"best_test_acc": math.inf}, "summary", "got inf"),
    "too early": (schema.COMPLETED, {"epochs": 2}, "row", "it is completed after 2 epochs, and its recipe has 3"),
    "too early for its epochs": (schema.COMPLETED, {"epochs": 2}, "epochs", "epochs: expected 3.0, got 2.0"),
    "too late": (schema.DIVERGED, {"epochs": 4}, "row", "it is diverged after 4 epochs, and its recipe has 3"),
    "newer": (schema.COMPLETED, {"schema_version": 99}, "row", "is of a newer version"),
    "seed": (schema.FAILED, {"seed": 7}, "id", "its contents have the id"),
    "arch": (schema.FAILED, {"arch": "resnet56"}, "id", "its contents have the id"),
    "another pool": (schema.COMPLETED, {"pool_name": "gap"}, "id", "is not in pools.json"),
    "another revision": (schema.FAILED, {"pool_revision": "0" * 8}, "id", "is not in pools.json"),
    "parameters": (schema.COMPLETED, {"pool_params": '{"p": 3.0}'}, "id", "is not in pools.json"),
    "another recipe": (
        schema.COMPLETED,
        {"recipe": dataclasses.replace(RECIPE, weight_decay=0.1).to_json()},
        "id",
        "its contents have the id",
    ),
    "another text": (schema.FAILED, {"pool_source_sha": "0" * 64}, "id", "is not in pools.json"),
    "not diverged": (schema.DIVERGED, {"status": schema.COMPLETED}, "summary", "its last loss says otherwise"),
    "best_epoch": (schema.COMPLETED, {"best_epoch": 0}, "summary", "best_epoch: expected"),
    "train_s": (schema.COMPLETED, {"train_s": 1e-3}, "summary", "train_s: expected"),
}


@pytest.mark.parametrize("name", ROWS)
def test_a_row_that_no_trial_can_have(run: RunFolder, name: str) -> None:
    status, values, kind, what = ROWS[name]
    trial_id = of(run, status)
    edit(run, "trials", trial_id, setting(**values))
    findings = [one for one in verify.audit(run).findings if one.kind == kind]
    assert any(trial_id in one.name and what in str(one) for one in findings), verify.audit(run).findings


EPOCH_ROWS: Mapping[str, tuple[Callable[[list[dict[str, Any]]], Any], str, str]] = {
    "one is missing": (lambda rows: rows.pop(1), "epochs", "expected epoch 2 with all its values, got epoch 3"),
    "the last is missing": (lambda rows: rows.pop(), "epochs", "epochs: expected 2.0, got 3.0"),
    "one stands twice": (
        lambda rows: rows.append(rows[0]),
        "epochs",
        "expected epoch 4 with all its values, got epoch 1",
    ),
    "out of order": (lambda rows: rows.reverse(), "epochs", "expected epoch 1 with all its values, got epoch 3"),
    "from 0": (lambda rows: [row.update(epoch=row["epoch"] - 1) for row in rows], "epochs", "got epoch 0"),
    "too many": (lambda rows: rows.append(rows[-1] | {"epoch": 4}), "epochs", "epochs: expected 4.0, got 3.0"),
    "a null": (lambda rows: rows[1].update(test_loss=None), "epochs", "expected epoch 2 with all its values"),
    "no number": (lambda rows: rows[1].update(test_acc=math.nan), "epochs", "expected epoch 2 with all its values"),
    "not completed": (lambda rows: rows[2].update(test_loss=math.nan), "summary", "its last loss says otherwise"),
    "a better epoch": (lambda rows: rows[1].update(test_acc=100.0), "summary", "best_test_acc: expected 100.0"),
}


@pytest.mark.parametrize("name", EPOCH_ROWS)
def test_epochs_that_no_trial_can_have(either: RunFolder, name: str) -> None:
    change, kind, what = EPOCH_ROWS[name]
    trial_id = of(either, schema.COMPLETED)
    path = edit(either, "epochs", trial_id, change)
    findings = verify.audit(either).findings
    assert {one.name for one in findings} == {f"epochs/{path.name}"}
    assert {one.aside for one in findings} == {() if parquet.is_merged(path.name) else (f"epochs/{path.name}",)}
    assert all(trial_id in str(one) for one in findings)
    assert any(one.kind == kind and what in one.what for one in findings), findings


def test_a_row_that_is_as_short_as_its_epochs(either: RunFolder) -> None:
    trial_id = of(either, schema.COMPLETED)
    edit(either, "epochs", trial_id, lambda rows: rows.pop())
    path = edit(either, "trials", trial_id, setting(epochs=2))
    assert ("row", f"trials/{path.name}") in found(either)


@pytest.mark.parametrize("data", [b"", b"PAR1", b"\xff" * 7, b"\xff" * 100, b"results.seal=00000000"])
def test_what_is_no_parquet_file(run: RunFolder, data: bytes) -> None:
    name = f"trials/{of(run, schema.COMPLETED)}.parquet"
    run.files.write(name, data)
    with pytest.raises(pa.ArrowInvalid):
        parquet.whole(run.files, name)


# The same, wherever and whichever


def _named(run: RunFolder, trial_id: str, path: Path) -> bool:
    name = path.relative_to(run.path).as_posix()
    return any(one.name == name and trial_id in str(one) for one in verify.audit(run).findings)


@pytest.fixture
def ended(either: RunFolder) -> list[str]:
    statuses = either.ended()
    return sorted(trial_id for trial_id, one in statuses.items() if one.status in schema.TRAINED)


@given(st.data())
@EACH
def test_an_epoch_that_is_lost_or_doubled(either: RunFolder, ended: list[str], data: st.DataObject) -> None:
    trial_id = data.draw(st.sampled_from(ended))
    path = where(either, "epochs", trial_id)

    def change(rows: list[dict[str, Any]]) -> None:
        index = data.draw(st.integers(0, len(rows) - 1))
        if data.draw(st.booleans()):
            del rows[index]
        else:
            rows.insert(data.draw(st.integers(0, len(rows))), rows[index])

    with restored(path):
        edit(either, "epochs", trial_id, change)
        assert _named(either, trial_id, path) or _named(either, trial_id, where(either, "trials", trial_id))


@given(st.data())
@EACH
def test_one_bit_of_a_summary(either: RunFolder, ended: list[str], data: st.DataObject) -> None:
    """The next number that there is, in the row or in the epoch that it is from."""
    trial_id, column = data.draw(st.sampled_from(ended)), data.draw(st.sampled_from(BITS))
    up = data.draw(st.sampled_from([math.inf, -math.inf]))
    of_epochs = data.draw(st.booleans()) and column.startswith("final_")
    folder, index, name = ("epochs", -1, column.removeprefix("final_")) if of_epochs else ("trials", 0, column)

    def change(rows: list[dict[str, Any]]) -> None:
        value = rows[index][name]
        assume(math.isfinite(value))
        rows[index][name] = value + 1 if isinstance(value, int) else math.nextafter(value, up)

    with restored(where(either, folder, trial_id)):
        edit(either, folder, trial_id, change)
        assert _named(either, trial_id, where(either, "epochs", trial_id))


def turn_a_bit(path: Path, data: st.DataObject) -> None:
    """Of a page: a footer has no checksum in Parquet."""
    spoilt = bytearray(path.read_bytes())
    footer = len(spoilt) - 8 - int.from_bytes(spoilt[-8:-4], "little")
    spoilt[data.draw(st.integers(0, footer - 1))] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(spoilt)


@given(st.data())
@EACH
def test_a_bit_that_turns_over_in_a_file(either: RunFolder, data: st.DataObject) -> None:
    """It is found, or nobody sees it."""
    path = data.draw(st.sampled_from(sorted(either.path.glob("*/*.parquet"))))
    whole = pq.read_table(path)
    with restored(path):
        turn_a_bit(path, data)
        name = path.relative_to(either.path).as_posix()
        if name not in {one.name for one in verify.audit(either).findings}:
            assert repr(pq.read_table(path).to_pydict()) == repr(whole.to_pydict())


@given(st.data())
@EACH
def test_a_bit_that_turns_over_is_no_wrong_number_in_a_table(run: RunFolder, data: st.DataObject) -> None:
    """Of a merged file, of which a filter reads what it has to."""
    run.compact()
    path = data.draw(st.sampled_from(sorted(run.path.glob("*/merged.*.parquet"))))
    read = {"trials": run.read_trials, "epochs": run.read_epochs}[path.parent.name]
    whole = read(where={"seed": 1}).to_pydict()
    with restored(path):
        turn_a_bit(path, data)
        with contextlib.suppress(RequestError):
            assert repr(read(where={"seed": 1}).to_pydict()) == repr(whole)


@given(st.data())
@EACH
def test_a_file_that_is_cut_off(either: RunFolder, data: st.DataObject) -> None:
    path = data.draw(st.sampled_from(sorted(either.path.glob("*/*.parquet"))))
    whole = path.read_bytes()
    with restored(path):
        path.write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])
        name = path.relative_to(either.path).as_posix()
        assert ("unreadable", name) in found(either)
        assert [one.name for one in verify.unreadable(either)] == [name]


@given(st.data())
@EACH
def test_files_that_change_places(run: RunFolder, data: st.DataObject) -> None:
    folder = data.draw(st.sampled_from(["trials", "epochs"]))
    files = sorted((run.path / folder).glob("*.parquet"))
    held = [path for path in files if len(pq.read_table(path))]  # epochs of a trial that had none are alike in all
    one, other = data.draw(st.lists(st.sampled_from(held), min_size=2, max_size=2, unique=True))
    before = one.read_bytes(), other.read_bytes()
    with restored(one, other):
        one.write_bytes(before[1])
        other.write_bytes(before[0])
        assert found(run) >= {("misplaced", f"{folder}/{path.name}") for path in (one, other)}


@given(st.data())
@EACH
def test_a_file_under_another_name(run: RunFolder, data: st.DataObject) -> None:
    path = data.draw(st.sampled_from(sorted(run.path.glob("*/*.parquet"))))
    assume(len(pq.read_table(path)))
    digits = data.draw(st.from_regex(r"\A[0-9a-f]{8}\Z"))
    renamed = path.with_name(f"{path.stem[:-8]}{digits}.parquet")
    assume(not renamed.exists())
    path.rename(renamed)
    try:
        assert ("misplaced", f"{path.parent.name}/{renamed.name}") in found(run)
    finally:
        renamed.rename(path)


# Files that are none of a run's, or of nothing


@pytest.mark.parametrize("name", ["trials/notes.txt", "epochs/x.csv", "logs/of Ray", "checkpoints/a.pt"])
def test_a_file_of_no_trial(run: RunFolder, name: str) -> None:
    (run.path / name).write_text("what?")
    kinds = {name: "orphan"} if not name.startswith("checkpoints/") else {}
    assert found(run) == {(kind, one) for one, kind in kinds.items()}
    assert set_aside(run, [name]) == [f"set-aside/{name}"]
    assert not verify.audit(run).findings


def test_parquet_of_other_columns(run: RunFolder) -> None:
    trial_id = of(run, schema.COMPLETED)
    for folder, change, what in (
        (
            "trials",
            lambda table: table.append_column("speed", pa.nulls(1, pa.int64())),
            "column speed: expected none, got int64",
        ),
        (
            "trials",
            lambda table: table.drop_columns(["host", "recipe"]),
            "column recipe: expected string, got none, column host",
        ),
        ("epochs", lambda table: table.drop_columns(["lr"]), "column lr: expected double, got none"),
        (
            "epochs",
            lambda table: table.set_column(5, "epoch", table["epoch"].cast(pa.int32())),
            "column epoch: expected int64, got int32",
        ),
    ):
        path = where(run, folder, trial_id)
        before = path.read_bytes()
        path.write_bytes(parquet.written(change(pq.read_table(path))))
        (finding,) = verify.audit(run).findings
        assert (finding.kind, finding.name) == ("schema", f"{folder}/{path.name}")
        assert what in finding.what
        path.write_bytes(before)


def test_columns_that_schema_1_did_not_have(run: RunFolder) -> None:
    for path in (run.path / "trials").iterdir():
        path.write_bytes(parquet.written(pq.read_table(path).drop_columns(["pool_name", "pool_revision"])))
    assert not verify.audit(run).findings


def test_a_trial_in_two_places(run: RunFolder) -> None:
    """As `compact` has it for a moment, or when it is killed, and as it never has it."""
    trial_id = of(run, schema.COMPLETED)
    paths = [run.path / folder / f"{trial_id}.parquet" for folder in ("trials", "epochs")]
    before = [path.read_bytes() for path in paths]
    run.compact()
    for path, data in zip(paths, before, strict=True):
        path.write_bytes(data)
    audit = verify.audit(run)
    assert str(audit) == f"{TRIALS} trials, {EPOCHS} epochs, 1 twice until the next `compact`: all is well"
    edit(run, "epochs", trial_id, lambda rows: rows[0].update(train_loss=1.0))
    edit(run, "trials", trial_id, setting(host="elsewhere"))
    merged = {next((run.path / folder).glob("merged.*")).name: folder for folder in ("trials", "epochs")}
    assert found(run) == {("twice", f"{folder}/{name}") for name, folder in merged.items()}
    asides = {name for one in verify.audit(run).findings for name in one.aside}
    assert asides == {f"trials/{trial_id}.parquet", f"epochs/{trial_id}.parquet"}


def test_two_merged_files_with_the_same(run: RunFolder) -> None:
    run.compact()
    for path in list(run.path.glob("*/merged.*")):
        shutil.copy(path, path.with_name("merged.0123456789ab.parquet"))
    audit = verify.audit(run)
    assert (audit.findings, audit.twice) == ((), 6)


def test_epochs_that_are_gone(either: RunFolder) -> None:
    trial_id = of(either, schema.COMPLETED)
    path = where(either, "epochs", trial_id)
    path.unlink()
    lost = [one for one in verify.audit(either).findings if trial_id in str(one)]
    assert [one.kind for one in lost] == ["epochs"]
    assert "none of its epochs is on record" in lost[0].what
    assert lost[0].name.startswith("trials/")


def test_what_belongs_to_nothing(run: RunFolder, grid: Grid) -> None:
    """A trial that has begun is unfinished while somebody may go on with it, and an orphan after that."""
    trial_id = of(run, schema.DIVERGED)
    where(run, "trials", trial_id).unlink()
    run.weights(trial_id).write(b"weights")
    audit = verify.audit(run)
    assert str(audit) == f"{TRIALS - 1} trials, {EPOCHS} epochs, 1 unfinished: all is well"
    run.write_grid(dataclasses.replace(grid, entries=grid.entries[:1]))
    files = {f"epochs/{trial_id}.parquet", f"weights/{trial_id}.pt", f"logs/{trial_id}.log"}
    assert found(run) == {("orphan", name) for name in files}
    run.checkpoint(trial_id).write(b"to go on from")
    assert not verify.audit(run).findings


def test_what_killed_processes_leave(run: RunFolder) -> None:
    trial_id = of(run, schema.COMPLETED)
    run.checkpoint(trial_id).write(b"of a trial that has ended")
    (run.path / "epochs" / ".tmp-0123").write_bytes(b"half")
    leftovers = {("leftover", f"checkpoints/{trial_id}.pt"), ("leftover", "epochs/.tmp-0123")}
    assert found(run) == leftovers
    run.checkpoint(of(run, schema.FAILED)).write(b"to try it again from")
    assert found(run) == leftovers


def test_what_a_process_is_about_to_take_away_is_no_finding(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    stray = run.path / "epochs" / ".tmp-0123"
    stray.write_bytes(b"half")
    assert [one.kind for one in verify.verify(run, settle_s=0.0).findings] == ["leftover"]
    monkeypatch.setattr(time, "sleep", lambda _: stray.unlink())
    assert not verify.verify(run).findings


@pytest.mark.parametrize("name", ["space.yaml", "pools.json", "submitted.json", "checks.json", "packs.json"])
@pytest.mark.parametrize("text", ["{", "[1, {}]", "", "\0"])
def test_a_document_that_no_sweep_wrote(run: RunFolder, name: str, text: str) -> None:
    (run.path / name).write_text(text)
    assert ("unreadable", name) in found(run)


def test_a_text_that_was_changed_on_record(run: RunFolder) -> None:
    path = run.path / "pools.json"
    path.write_text(path.read_text().replace("twice(x.mean", "twice(x.amax"))
    space = run.path / "space.yaml"
    space.unlink()
    findings = verify.audit(run).findings
    assert {one.kind for one in findings} == {"id"}
    assert all("is not in pools.json, or was changed there" in one.what and not one.aside for one in findings)
    assert len(findings) == 2


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
    completed = sorted(trial_id for trial_id, one in run.ended().items() if one.status == schema.COMPLETED)
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
    epochs = run.read_epochs([name for name in schema.EPOCHS.names if name != "epoch_s"])
    trials = run.read_trials(["trial_id", "status", "best_test_acc", "best_epoch", "final_test_loss", "error"])
    return sorted(map(repr, [*epochs.to_pylist(), *trials.to_pylist()]))


def test_what_is_set_aside_twice_is_kept_twice(run: RunFolder) -> None:
    trial_id = of(run, schema.COMPLETED)
    for data in (b"one", b"two", b"three"):
        (run.path / "trials" / f"{trial_id}.parquet").write_bytes(data)
        set_aside(run, [f"trials/{trial_id}.parquet"])
    kept = sorted((run.path / "set-aside" / "trials").iterdir())
    assert [path.read_bytes() for path in kept] == [b"one", b"two", b"three"]
    assert set_aside(run, ["trials/nothing.parquet"]) == []


def test_a_request_that_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(tmp_path)]) == 2
    assert "is no run folder" in capsys.readouterr().err
