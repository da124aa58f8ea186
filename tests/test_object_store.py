"""A run folder in an object store: what can be asked of it, what a bad network costs, what a refusal says."""

from __future__ import annotations

import dataclasses
import os
import pickle
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from faulty_proxy import FaultyProxy, some

import results
from orchestrator import cli
from orchestrator.record import epoch_rows, row
from results.__main__ import main
from results.page import report
from results.store import schema
from results.store.folder import RunFolder
from results.store.s3 import ObjectStore, StoreError
from search_spaces import pool
from search_spaces.errors import RequestError
from search_spaces.grid import Entry, Grid, Pair
from search_spaces.recipe import Recipe
from trainer.outcome import Epoch

ROOT = Path(__file__).parents[1]
ENTRIES = (
    Entry(pool.expand("gap")[0], "baseline"),
    Entry(pool.expand("global_max")[0], "baseline"),
    Entry(pool.expand("gem", label="ours, π")[0]),
)
GRID = Grid("in a store", ENTRIES, (Pair("resnet20", "digits"),), (1, 2, 3), Recipe(epochs=3))


def fill(run: RunFolder, grid: Grid = GRID) -> RunFolder:
    """All of a grid, complete."""
    run.create()
    run.write_grid(grid)
    for number, planned in enumerate(grid):
        best = 70 + (number * 7 % 5) / 3 + planned.trial.seed / 10
        history = [Epoch(e, 1 / e, 50.0, 2 / e, best - 3 + e, 0.1, 2.0, 100.0) for e in (1, 2, 3)]
        run.epochs.write(planned.trial.id, epoch_rows(planned.trial, history))
        with run.trial(planned.trial.id).open_log() as log:
            print("attempt 1", file=log)
        run.write_trial(row(planned, schema.COMPLETED, history, None))
    return run


def in_order(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.sort_values([key for key in ("trial_id", "epoch") if key in frame], ignore_index=True)


@pytest.fixture
def through(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable], FaultyProxy]:
    """`with through(some(seed, share, faults)) as proxy:` what the environment leads to is behind it."""

    def make(choose: Callable) -> FaultyProxy:
        proxy = FaultyProxy(s3_server, choose)
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{proxy.address}")
        return proxy

    return make


# What is asked


def test_everything_is_as_on_a_disk(s3: str, tmp_path: Path) -> None:
    stored, there = fill(RunFolder(f"{s3}/runs/a")), fill(RunFolder(tmp_path / "a"))
    assert (str(stored), stored.where, stored.name, stored.on_disk) == (f"{s3}/runs/a",) * 2 + ("a", False)
    some_id = next(iter(GRID)).trial.id
    for compacted in (False, True):
        if compacted:
            assert stored.compact() == there.compact() == 9
            assert stored.compact() == 0
            assert len(stored.files.names("trials")) == len(stored.files.names("epochs")) == 1
        ours, theirs = results.load(stored.where), results.load(there.where)
        pd.testing.assert_frame_equal(in_order(ours.trials()), in_order(theirs.trials()))
        pd.testing.assert_frame_equal(in_order(ours.epochs()), in_order(theirs.epochs()))
        pd.testing.assert_frame_equal(ours.epochs(seed=2, epoch=3), theirs.epochs(seed=2, epoch=3))
        pd.testing.assert_frame_equal(ours.leaderboard(), theirs.leaderboard())
        assert stored.ended() == there.ended()
        assert stored.status(some_id) == schema.COMPLETED
        assert stored.status("nobody") is None
    assert stored.space.read() == GRID
    assert stored.pools.read() == there.pools.read()


def test_every_command(s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    run = fill(RunFolder(f"{s3}/runs/a"))
    log = f"logs/{next(iter(GRID)).trial.id}.log"

    def said(command: str, *arguments: str) -> str:
        assert main([command, run.where, *arguments]) == 0
        return capsys.readouterr().out

    assert said("status") == "9 trials: 9 completed\n"
    assert "9 completed" in said("watch")
    assert said("report") == f"{run}/report.html\n"
    page = run.files.read("report.html").decode()
    assert "ours, π" in page
    assert f'href="{log}"' in page, "beside it"
    assert said("report", "--output", "elsewhere.html") == "elsewhere.html\n"
    assert f'href="{run}/{log}"' in Path("elsewhere.html").read_text()
    said("curves", "--output", "pictures")
    assert list(Path("pictures").glob("*.png"))
    assert f"python run_sweep.py --space YOURS --out {run} --set" in said("topup", "--target", "3")
    assert said("submit", "ours, π") == "ours, π is the entry\n"
    assert said("compact") == "9 trials merged\n"
    assert "ours, π" in said("leaderboard")
    assert said("verify").endswith("9 trials, 27 epochs: all is well\n")


def test_patterns(s3: str, tmp_path: Path) -> None:
    runs = [fill(RunFolder(f"{s3}/x/runs/{name}")) for name in ("a", "b")]
    RunFolder(f"{s3}/x/runs/other").files.write("notes.txt", b"no run")
    disk = str(tmp_path / "c")
    fill(RunFolder(disk))
    for pattern in (f"{s3}/x/runs/*", f"{s3}/*/runs/[ab]", f"{s3}/x/*/*"):
        assert list(results.load(pattern).folders) == list(map(str, runs)), pattern
    everywhere = results.load(f"{s3}/x/runs/*", disk)
    assert everywhere.trials().groupby("run").size().to_dict() == dict.fromkeys([*map(str, runs), disk], 9)
    with pytest.raises(RequestError) as caught:
        results.load(f"{s3}/y/*", f"{s3}/z", disk)
    assert [problem.what for problem in caught.value.problems] == [
        f"{s3}/y/* finds no run folder, that is one with `trials` in it",
        f"{s3}/z is no run folder: it has no `trials` in it; give the --out of a sweep",
    ]


def test_a_folder_that_has_only_been_asked_for_something(s3: str) -> None:
    run = RunFolder(f"{s3}/run")
    run.create()
    assert run.files.names("") == [], "trying leaves nothing behind"
    run.write_grid(GRID)
    assert results.load(run.where).trials().empty
    assert run.ended() == {}
    run.tidy()
    run.discard_if_empty()
    assert run.space.read() == GRID


def test_what_needs_a_disk_says_so(s3: str) -> None:
    with pytest.raises(RequestError, match=r"/run is in an object store, where a folder on a disk is needed"):
        _ = RunFolder(f"{s3}/run").path


# Logs


def test_a_log_of_a_killed_process_is_found_again(s3: str) -> None:
    run = RunFolder(f"{s3}/run")
    code = f"""
        import os
        from results.store.folder import RunFolder
        log = RunFolder({run.where!r}).files.append("logs/t.log")
        print("attempt 1", file=log)
        log.save()
        print("last words", file=log)
        os._exit(9)
    """
    killed = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], cwd=ROOT, check=False)
    assert killed.returncode == 9
    assert run.files.read("logs/t.log") == b"attempt 1\n"
    with run.files.append("logs/t.log") as log:
        print("attempt 2", file=log)
    assert run.files.read("logs/t.log") == b"attempt 1\nlast words\nattempt 2\n"


def test_a_log_that_another_machine_went_on_with_is_not_undone(
    s3: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    files = ObjectStore(f"{s3}/run")
    (tmp_path / "file").touch()
    monkeypatch.setenv("POOLSWEEP_CACHE", str(tmp_path / "one"))
    stopped = files.append("logs/t.log")
    print("attempt 1", file=stopped)
    stopped.save()
    print("unseen", file=stopped)
    for number, cache in enumerate(("other", "one", "file"), 2):  # a cache that cannot be written costs no log
        monkeypatch.setenv("POOLSWEEP_CACHE", str(tmp_path / cache))
        with files.append("logs/t.log") as log:
            print(f"attempt {number}", file=log)
    assert files.read("logs/t.log") == b"attempt 1\nattempt 2\nattempt 3\nattempt 4\n"
    stopped.detach()  # as a process that is killed: nothing more is saved


# Faults that pass


@pytest.mark.soak
@pytest.mark.parametrize("seed", [0, 1])
def test_a_bad_network_loses_nothing(s3: str, through, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("results.store.s3.FIRST_PAUSE_S", 0.01)
    with through(some(seed, 0.3, ["500", "503", "drop before", "drop after"])) as proxy:
        run = fill(RunFolder(f"{s3}/run"), dataclasses.replace(GRID, seeds=(1,)))
        run.compact()
        large = bytes(range(256)) * 80_000
        run.files.write("checkpoints/t.pt", large)
        assert run.files.read("checkpoints/t.pt") == large
        assert len(results.load(run.where).trials()) == 3
        assert len(results.load(run.where).epochs()) == 9
    assert all(proxy.happened[fault] for fault in ("500", "503", "drop before", "drop after"))


@pytest.mark.soak
def test_a_store_that_falls_silent(s3: str, through, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("results.store.s3.ANSWER_S", 1.0)
    faults = iter(["silence"])
    with through(lambda: next(faults, None)) as proxy:
        ObjectStore(f"{s3}/run").write("file", b"x" * 1000)
        assert ObjectStore(f"{s3}/run").read("file") == b"x" * 1000
    assert proxy.happened["silence"] == 1


@pytest.mark.soak
@pytest.mark.parametrize("fault", ["drop before", "drop after", "500"])
def test_an_upload_that_breaks_off_leaves_the_old_object(s3: str, through, fault: str) -> None:
    ObjectStore(f"{s3}/run").write("file", b"old" * 7_000_000)  # in parts
    over = iter([None, *[fault] * 500])
    with through(lambda: next(over)), pytest.raises(StoreError):
        ObjectStore(f"{s3}/run", patience_s=0.5).write("file", b"new" * 7_000_000)
    with through(lambda: None):
        assert ObjectStore(f"{s3}/run").read("file") == b"old" * 7_000_000


# Faults that stay


@pytest.mark.parametrize("fault", ["500", "503", "drop before"])
@pytest.mark.soak
def test_a_fault_that_stays_is_said_in_time(s3: str, through, fault: str) -> None:
    with through(lambda: fault):
        store = ObjectStore(f"{s3}/run", patience_s=1.0)
        for call in (lambda: store.read("a"), lambda: store.write("a", b"x"), lambda: store.names("a")):
            begun = time.monotonic()
            with pytest.raises(StoreError, match=r"/run/a: no success in \d+ attempts over \d+ s: .*AWS_ENDPOINT_URL"):
                call()
            assert time.monotonic() - begun < 20


def test_nobody_there(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(StoreError, match=r"is the network there, and the endpoint the right one"):
        ObjectStore(f"{s3}/run", patience_s=0.5).read("a")


def test_a_refusal_is_said_at_once(s3: str, through, capsys) -> None:
    with through(lambda: "403"):
        begun = time.monotonic()
        with pytest.raises(RequestError, match=rf"{s3}/run.*the store refuses: .*AWS_ACCESS_KEY_ID"):
            RunFolder(f"{s3}/run").create()
        assert main(["leaderboard", f"{s3}/run"]) == 2
        assert time.monotonic() - begun < 10
    said = capsys.readouterr().err
    assert said.startswith(f"error: {s3}/run")
    assert "Traceback" not in said


def test_a_missing_bucket_is_said_at_once(s3: str, capsys) -> None:
    begun = time.monotonic()
    with pytest.raises(RequestError, match=r"s3://no-such-bucket/run.*NO_SUCH_BUCKET"):
        RunFolder("s3://no-such-bucket/run").create()
    for command in ("leaderboard", "status", "report"):
        assert main([command, "s3://no-such-bucket/run"]) == 2
    assert capsys.readouterr().err.count("there is no bucket 'no-such-bucket'; make it, or give another") == 3
    assert time.monotonic() - begun < 10


@pytest.mark.parametrize(
    ("uri", "said"),
    [
        ("s4://bucket/run", r"unknown store 's4://'; did you mean 's3://'\?.*or a path on a disk"),
        ("s3://bucket/run?regoin=x", r"unknown option 'regoin'; did you mean 'region'\?"),
        ("gs://bucket/run", r"unknown store 'gs://'; .*or a path on a disk"),
        ("s3://bucket//run", r"expected s3://BUCKET/RUN .*, got 'bucket//run'"),
        ("s3://bucket/../run", r"expected s3://BUCKET/RUN .*, got 'bucket/../run'"),
        ("s3://", r"expected s3://BUCKET/RUN"),
    ],
)
def test_what_is_no_uri_is_named(uri: str, said: str) -> None:
    with pytest.raises(RequestError, match=said):
        RunFolder(uri)


def test_an_error_travels_between_processes() -> None:
    error = pickle.loads(pickle.dumps(StoreError("s3://b/run: the store refuses")))
    assert isinstance(error, OSError)
    assert isinstance(error, RequestError)
    assert str(error) == "s3://b/run: the store refuses"
    assert [problem.what for problem in error.problems] == [str(error)]


# Secrets


def test_what_is_secret_in_a_uri_is_shown_nowhere(
    s3: str, s3_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL"):
        monkeypatch.delenv(name)
    uri = f"s3://someone-s-key:pass%2Fword@{s3.removeprefix('s3://')}/run?endpoint_override={s3_server}&scheme=http"
    run = fill(RunFolder(uri))
    assert str(run) == f"{s3}/run?endpoint_override={s3_server}&scheme=http"
    assert RunFolder(run.where).space.read() == GRID
    for command in (["leaderboard"], ["report"], ["status"], ["topup", "--target", "3"], ["submit", "nobody"]):
        main([command[0], uri, *command[1:]])
    main(["leaderboard", uri.replace("/run?", "/none?")])
    captured = capsys.readouterr()
    folders = [*results.load(uri, uri.replace("/run", "/*")).folders]
    assert folders == [str(run)]
    kept = [run.files.read(name) for name in run.files.names("")]
    for text in (captured.out, captured.err, str(folders), str(kept), report.page(results.load(uri))):
        assert not any(secret in text for secret in ("pass%2Fword", "pass/word", "someone-s-key"))


# Processes


@pytest.mark.parametrize(
    "how", ["fork", *(pytest.param(how, marks=pytest.mark.soak) for how in ("spawn", "forkserver"))]
)
def test_children_use_it_and_end(s3: str, how: str, tmp_path: Path) -> None:
    code = f"""
        import multiprocessing
        from results.store.s3 import ObjectStore

        def child(store):
            store.write("child", b"of " + store.read("parent"))

        if __name__ == "__main__":
            store = ObjectStore("{s3}/run")
            store.write("parent", b"parent")
            process = multiprocessing.get_context("{how}").Process(target=child, args=(ObjectStore("{s3}/run"),))
            process.start()
            process.join(60)
            assert process.exitcode == 0, process.exitcode
            print(store.read("child").decode())
    """
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(code))
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(script)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "of parent\n", "")


@pytest.mark.soak
def test_a_sweep_into_a_store(
    s3: str, s3_server: str, ray_address: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """By real Ray, whose workers were started without this environment: all that leads there is in the URI."""
    (tmp_path / "space.yaml").write_text(SPACE)
    uri = f"s3://someone:pass%2Fword@{s3.removeprefix('s3://')}/run?endpoint_override={s3_server}&scheme=http"
    run = RunFolder(uri)

    def sweep(*arguments: str) -> int:
        command = ["--space", str(tmp_path / "space.yaml"), "--out", uri, "--address", ray_address]
        return cli.main([*command, *arguments])

    assert sweep("--set", "keep_weights=true") == cli.OK
    trials, epochs = results.load(uri).trials(), results.load(uri).epochs()
    assert trials["status"].tolist() == ["completed"] * 4
    assert epochs.groupby("trial_id")["epoch"].apply(list).map(lambda found: found == [1, 2]).all()
    for trial_id in trials["trial_id"]:
        assert b"Final metrics" in run.files.read(f"logs/{trial_id}.log")
        assert run.files.exists(f"weights/{trial_id}.pt")
    assert run.files.names("checkpoints") == []
    before = {name: run.files.modified(f"trials/{name}") for name in run.files.names("trials")}
    assert sweep() == cli.OK
    said = capfd.readouterr()
    assert "nothing to do" in said.out
    assert {name: run.files.modified(f"trials/{name}") for name in run.files.names("trials")} == before
    assert "pass%2Fword" not in said.out + said.err


SPACE = """
name: stored
recipe: {epochs: 2, batch_size: 16, lr: 0.01, train_samples: 640, test_samples: 200}
pairs: [{arch: resnet20, dataset: digits}]
pools: [{name: gap, role: baseline}, gem]
seeds: [1, 2]
checkpoint_every: 1
"""
