"""Trackers: real TensorBoard and MLflow files read back, a wandb that takes notes, and what a fault of one costs."""

from __future__ import annotations

import dataclasses
import itertools
import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import results
from orchestrator.record import epoch_rows, row
from results import track, trackers
from results.__main__ import main
from results.store import schema
from results.store.attempt import Attempt
from results.store.folder import RunFolder
from results.track import Follower
from search_spaces import pool
from search_spaces import space as spaces
from search_spaces.errors import RequestError
from search_spaces.grid import Entry, Grid, Pair, Planned
from search_spaces.messages import shown_by
from search_spaces.recipe import Recipe
from trainer.outcome import Epoch

RECIPE = Recipe(epochs=3, lr=0.1)
ENTRIES = (Entry(pool.expand("gap")[0], "baseline"), Entry(pool.expand("gem", {"p": 2}, label="ours, <p>")[0]))
GRID = Grid("a space", ENTRIES, (Pair("resnet20", "digits"),), (42,), RECIPE)
GAP, GEM = GRID
ACCURACY = [60.0, 62.5, 61.0]
CURVE = [(1, 60.0), (2, 62.5), (3, 61.0)]
ALL_ONCE = {name: [1, 2, 3] for name in trackers.METRICS} | {name: [3] for name in trackers.OUTCOME}


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("MLFLOW_TRACKING_URI", "WANDB_MODE", "WANDB_API_KEY", "WANDB_BASE_URL", "WANDB_DIR"):
        monkeypatch.delenv(name, raising=False)
    for name in ("MLFLOW_ALLOW_FILE_STORE", "MLFLOW_HTTP_REQUEST_MAX_RETRIES", "MLFLOW_HTTP_REQUEST_TIMEOUT"):
        monkeypatch.setenv(name, "x")  # so that it is put back
        monkeypatch.delenv(name)
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    run = RunFolder(tmp_path / "a run")
    run.create()
    run.write_grid(GRID)
    return run


def train(run: RunFolder, planned: Planned, accuracy: list[float], attempt: int = 1) -> list[Epoch]:
    """A trial under way, as a worker has written it down."""
    history = [Epoch(e, 1.0 / e, 50.0 + e, 2.0 / e, acc, 0.1 / e, 10.0, 9.0) for e, acc in enumerate(accuracy, 1)]
    if history:
        run.epochs.write(planned.trial.id, epoch_rows(planned.trial, history))
    run.trial(planned.trial.id).write_attempt(Attempt(attempt, epoch=len(history)))
    return history


def write(run: RunFolder, planned: Planned, status: str = schema.COMPLETED, accuracy: list[float] = ACCURACY) -> None:
    """A trial that has ended."""
    history = train(run, planned, accuracy)
    run.write_trial({**row(planned, status, history, None), "finished_at": datetime.now(UTC)})
    run.trial(planned.trial.id).end_attempt()


def look(run: RunFolder, *names: str) -> list[str]:
    """What followers say that look once, each started anew."""
    said = []
    with shown_by(said.append):
        for name in names:
            with Follower(name, run) as follower:
                follower.look()
    return said


@pytest.fixture(params=["one follower", "started again", "killed before it remembers"])
def look_again(run: RunFolder, name: str, request: pytest.FixtureRequest) -> Iterator[Callable[[], object]]:
    """What looks at the run folder, each time that it is called."""
    if request.param == "one follower":
        with Follower(name, run) as follower:
            yield follower.look
        return

    damaged = itertools.cycle([b"[]", b"", b'{"x": 3}', b"\xff"])

    def again() -> None:
        if request.param == "killed before it remembers":
            run.tracked(name).write(next(damaged))
        assert look(run, name) == []

    yield again


# What a tool has, by the epochs of a trial


def events_of(run: RunFolder, planned: Planned) -> Any:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run.path / "tensorboard" / planned.trial.id))
    events.Reload()
    return events


def scalars(run: RunFolder, planned: Planned) -> dict[str, list[tuple[int, float]]]:
    events = events_of(run, planned)
    return {tag: [(one.step, one.value) for one in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def mlflow_client(run: RunFolder) -> Any:
    return trackers._mlflow_client((run.path / "mlruns").as_uri())


def mlflow_runs(run: RunFolder) -> dict[str, Any]:
    client = mlflow_client(run)
    experiment = client.get_experiment_by_name(GRID.name)
    found = client.search_runs([experiment.experiment_id])
    assert len({one.info.run_name for one in found}) == len(found), "a trial has one run"
    return {one.info.run_name: one for one in found}


def mlflow_metrics(run: RunFolder, planned: Planned) -> dict[str, list[tuple[int, float]]]:
    client, one = mlflow_client(run), mlflow_runs(run)[planned.trial.id]
    history = {name: client.get_metric_history(one.info.run_id, name) for name in one.data.metrics}
    return {name: [(point.step, point.value) for point in points] for name, points in history.items()}


def wandb_metrics(run: RunFolder, planned: Planned) -> dict[str, list[tuple[int, float]]]:
    named = {one.given["name"]: one for one in sys.modules["wandb"].runs.values()}
    return named[planned.trial.id].found


def steps(found: dict[str, list[tuple[int, float]]]) -> dict[str, list[int]]:
    return {tag: [step for step, _ in points] for tag, points in found.items()}


READ = {"tensorboard": scalars, "mlflow": mlflow_metrics, "wandb": wandb_metrics}


class FakeRun:
    """A run of a wandb that keeps all that it is told, twice or not."""

    def __init__(self, given: dict[str, Any]):
        self.given, self.id, self.tags = given, given["id"], given["tags"]
        self.found, self.summary, self.step, self.exits = {}, {}, 0, []

    def log(self, metrics: dict[str, float], step: int, commit: bool) -> None:
        assert commit, "else it waits for the next step"
        self.step = step + 1
        for name, value in metrics.items():
            self.found.setdefault(name, []).append((step, value))

    def mark_preempting(self) -> None:
        self.exits.append("preempting")

    def finish(self, exit_code: int) -> None:
        self.exits.append(exit_code)
        self.found |= {name: [(self.step - 1, self.summary[name])] for name in trackers.OUTCOME if name in self.summary}


class FakeWandB(ModuleType):
    def __init__(self):
        super().__init__("wandb")
        self.runs: dict[str, FakeRun] = {}

    def init(self, **given: Any) -> FakeRun:
        assert (given["resume"], given["reinit"]) == ("allow", "create_new")
        return self.runs.setdefault(given["id"], FakeRun(given))


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> FakeWandB:
    fake = FakeWandB()
    for name in ("wandb", "wandb.sdk"):
        monkeypatch.setitem(sys.modules, name, fake)
    return fake


Read = Callable[[RunFolder, Planned], dict[str, list[tuple[int, float]]]]
each_tool = pytest.mark.parametrize("name", READ)


@pytest.fixture
def read(name: str, wandb: Any) -> Read:
    return READ[name]


# Every epoch, once


@each_tool
def test_every_epoch_is_there_once_while_its_trial_runs(
    run: RunFolder, look_again: Callable[[], object], read: Read
) -> None:
    for epochs in (0, 1, 2, 2, 3):
        train(run, GEM, ACCURACY[:epochs])
        train(run, GAP, ACCURACY[:epochs], attempt=1 + (epochs > 1))
        if epochs == 1:
            write(run, GAP, schema.FAILED, ACCURACY[:1])
        look_again()
        assert read(run, GEM).get("test_acc", []) == read(run, GAP).get("test_acc", []) == CURVE[:epochs]
    write(run, GEM)
    write(run, GAP)
    for _ in range(2):
        look_again()
        found, tried_twice = read(run, GEM), read(run, GAP)
        assert steps(found) == ALL_ONCE
        assert (found["best_test_acc"], found["final_test_acc"]) == ([(3, 62.5)], [(3, 61.0)])
        assert found["test_acc"] == tried_twice["test_acc"] == CURVE
        assert tried_twice["best_test_acc"][-1] == (3, 62.5)


@each_tool
def test_a_trial_without_an_epoch_has_a_run_unless_the_gate_refused_it(run: RunFolder, name: str, read: Read) -> None:
    write(run, GAP, schema.FAILED, [])
    write(run, GEM, schema.INVALID, [])
    assert look(run, name) == []
    assert read(run, GAP) == {}
    assert list(json.loads(run.tracked(name).read() or b"").popitem()[1]) == [GAP.trial.id]


# TensorBoard


def test_tensorboard_knows_the_parameters_and_the_end(run: RunFolder) -> None:
    from tensorboard.plugins.hparams import metadata
    from tensorboard.plugins.hparams.api_pb2 import STATUS_SUCCESS  # pyright: ignore

    train(run, GEM, ACCURACY[:2])
    look(run, "tensorboard")
    events = events_of(run, GEM)
    content = events.SummaryMetadata(metadata.SESSION_START_INFO_TAG).plugin_data.content
    start = metadata.parse_session_start_info_plugin_data(content)
    assert start.hparams["pool"].string_value == "ours, <p>"
    assert start.hparams["pool.p"].number_value == 2
    assert start.hparams["seed"].number_value == 42
    assert start.hparams["train_samples"].string_value == "null"
    write(run, GEM)
    time.sleep(1)  # it reads files in the order of their names, which have seconds
    look(run, "tensorboard")
    events.Reload()  # who has it open sees no epoch twice of a run that is written anew
    assert [(one.step, one.value) for one in events.Scalars("test_acc")] == CURVE
    content = events.SummaryMetadata(metadata.SESSION_END_INFO_TAG).plugin_data.content
    assert metadata.parse_session_end_info_plugin_data(content).status == STATUS_SUCCESS
    assert events.Tensors("status")[0].tensor_proto.string_val == [b"completed"]


def test_a_link_in_a_run_folder_empties_nothing_elsewhere(run: RunFolder, tmp_path: Path) -> None:
    (tmp_path / "events.theirs").write_text("x")
    (run.path / "tensorboard").mkdir()
    (run.path / "tensorboard" / GAP.trial.id).symlink_to(tmp_path)
    write(run, GAP)
    assert look(run, "tensorboard") == []
    assert (tmp_path / "events.theirs").read_text() == "x"


# MLflow


def test_mlflow_has_every_trial_in_a_local_store(run: RunFolder) -> None:
    track.check(["mlflow"], run)
    assert not (run.path / "mlruns").exists(), "asking leaves nothing behind"
    train(run, GEM, ACCURACY[:2])
    write(run, GAP, schema.DIVERGED, [60.0, float("nan")])
    look(run, "mlflow")
    found = mlflow_runs(run)
    assert found.keys() == {GAP.trial.id, GEM.trial.id}
    assert (found[GAP.trial.id].info.status, found[GAP.trial.id].data.tags["status"]) == ("FAILED", "diverged")
    ours = found[GEM.trial.id]
    assert (ours.info.status, ours.data.tags["status"]) == ("RUNNING", "running")
    assert ours.data.tags["run_folder"] == run.where
    expected = {"pool": "ours, <p>", "pool.p": "2.0", "seed": "42", "role": "candidate", "epochs": "3", "lr": "0.1"}
    assert expected.items() <= ours.data.params.items()
    first, second = mlflow_client(run).get_metric_history(ours.info.run_id, "test_acc")
    gaps = first.timestamp - ours.info.start_time, second.timestamp - first.timestamp
    assert [round(gap / 1000) for gap in gaps] == [10, 10]  # seconds of an epoch
    assert abs(second.timestamp / 1000 - time.time()) < 60
    for status, said in ((schema.FAILED, "FAILED"), ("running", "RUNNING"), (schema.COMPLETED, "FINISHED")):
        _ = train(run, GEM, ACCURACY[:2], attempt=2) if status == "running" else write(run, GEM, status)
        look(run, "mlflow")
        ours = mlflow_runs(run)[GEM.trial.id]
        assert (ours.info.status, ours.data.tags["status"]) == (said, status)
    assert ours.data.metrics["final_test_acc"] == 61.0


def test_a_server_of_two_run_folders(run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    accuracy = [float(epoch) for epoch in range(250)]  # in more than one request
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "server").as_uri())
    other = RunFolder(tmp_path / "another")
    other.create()
    other.write_grid(GRID)
    for folder in (run, other):
        write(folder, GAP, accuracy=accuracy)
        assert look(folder, "mlflow") == []
    client = trackers._mlflow_client(os.environ["MLFLOW_TRACKING_URI"])
    assert len(client.search_runs([client.get_experiment_by_name(GRID.name).experiment_id])) == 2, "each has its own"
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert look(run, "mlflow") == []
    assert mlflow_metrics(run, GAP)["test_acc"] == list(enumerate(accuracy, 1)), "another place has all of it too"


# Weights & Biases, as far as it can be asked without it


def test_wandb_is_told_the_same(run: RunFolder, wandb: Any) -> None:
    train(run, GEM, ACCURACY[:1])
    look(run, "wandb")
    (one,) = wandb.runs.values()
    assert (one.given["project"], one.given["name"], one.given["dir"]) == ("a space", GEM.trial.id, str(run.path))
    assert one.given["config"]["pool.p"] == 2
    assert (one.tags, one.exits) == (["candidate"], ["preempting", 1])
    write(run, GEM)
    assert look(run, "wandb") == []
    assert one.summary == {"best_test_acc": 62.5, "final_test_acc": 61.0, "status": "completed"}
    assert (one.tags, one.exits) == (("candidate", "completed"), ["preempting", 1, 0])


def test_wandb_that_is_offline_has_every_epoch_in_each_folder(run: RunFolder, wandb: Any) -> None:
    train(run, GAP, ACCURACY[:2])
    look(run, "wandb")
    wandb.runs.clear()  # nobody can ask what it has, and `wandb sync` takes the last folder in place of the others
    write(run, GAP)
    look(run, "wandb")
    assert wandb_metrics(run, GAP)["test_acc"] == CURVE


def test_wandb_needs_a_key_or_to_be_offline(
    run: RunFolder, wandb: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, closed: str
) -> None:
    with pytest.raises(RequestError, match=r"no key.*WANDB_MODE=offline"):
        track.check(["wandb"], run)
    monkeypatch.setenv("WANDB_BASE_URL", closed)
    (tmp_path / "no-netrc").write_text("machine 127.0.0.1 login user password 1234\n")
    (tmp_path / "no-netrc").chmod(0o600)
    with pytest.raises(RequestError, match=r"does not answer.*WANDB_MODE=offline"):
        track.check(["wandb"], run)
    monkeypatch.setenv("WANDB_MODE", "offline")
    track.check(["wandb"], run)


# What is wrong, before anything starts


@pytest.fixture
def closed() -> str:
    """An address at which nobody listens."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{one.getsockname()[1]}"


def space_of(tmp_path: Path, loggers: str) -> spaces.Space:
    text = f"name: s\npairs: [{{arch: resnet20, dataset: digits}}]\npools: [gap]\nseeds: [1]\nloggers: {loggers}\n"
    (tmp_path / "space.yaml").write_text(text)
    return spaces.load(tmp_path / "space.yaml")


def test_the_file_names_them(tmp_path: Path) -> None:
    assert space_of(tmp_path, "[tensorboard, mlflow, wandb]").loggers == spaces.LOGGERS == tuple(trackers.KNOWN)
    assert space_of(tmp_path, "[]").loggers == ()
    with pytest.raises(RequestError, match=r"loggers\[1\].*unknown logger 'mlfow'; did you mean 'mlflow'\?"):
        space_of(tmp_path, "[tensorboard, mlfow]")
    with pytest.raises(RequestError, match=r"loggers\[1\]: mlflow stands twice"):
        space_of(tmp_path, "[mlflow, mlflow]")


def test_every_problem_is_said_at_once(run: RunFolder, monkeypatch: pytest.MonkeyPatch, closed: str) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", closed.replace("//", "//me:secret@"))
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(RequestError) as caught:
        track.check(["tensorboard", "mlflow", "wandb"], run)
    mlflow, wandb = caught.value.problems
    assert mlflow.where == "[1]"
    assert f"it cannot log to {closed}: " in mlflow.what
    assert "secret" not in mlflow.what
    assert wandb.where == "[2]"
    assert wandb.what.startswith("wandb cannot be imported: ")
    assert wandb.what.endswith("; pip install wandb")


@pytest.mark.soak
def test_an_address_that_takes_the_call_and_says_nothing(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    """MLflow's client would try for a quarter of an hour; it is told half a minute (`results.trackers`)."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{silent.getsockname()[1]}")
        for name in ("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "MLFLOW_HTTP_REQUEST_TIMEOUT"):
            monkeypatch.delenv(name, raising=False)
        began = time.monotonic()
        with pytest.raises(RequestError, match="it cannot log to http"):
            track.check(["mlflow"], run)
        assert time.monotonic() - began < 90


def test_a_store_that_mlflow_does_not_know(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "nonsense://x")
    with pytest.raises(RequestError, match="it cannot log to nonsense://x"):
        track.check(["mlflow"], run)


def test_none_asked_for_is_none_made(run: RunFolder) -> None:
    with track.following([], run):
        assert not multiprocessing.active_children()
    assert not (run.path / "trackers").exists()


def test_what_writes_files_has_no_place_in_an_object_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = RunFolder("s3://bucket/run")
    with pytest.raises(RequestError) as caught:
        track.check(["tensorboard", "mlflow", "wandb"], run)
    assert [problem.where for problem in caught.value.problems] == ["[0]", "[1]", "[2]"]
    for problem, variable in zip(caught.value.problems, ("on a disk", "MLFLOW_TRACKING_URI", "WANDB_DIR"), strict=True):
        assert f"it writes files, which {run} takes none of" in problem.what
        assert problem.what.endswith(variable)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tmp_path.as_uri())
    track.check(["mlflow"], run)


# What a fault costs


@each_tool
def test_a_tracker_that_was_gone_for_a_while(
    run: RunFolder, name: str, read: Read, monkeypatch: pytest.MonkeyPatch
) -> None:
    others = list(dataclasses.replace(GRID, seeds=(1, 2, 3)))
    asked, said = [], []

    def fails(*_: Any) -> None:
        asked.append(1)
        raise RuntimeError("the disk is\nfull")

    with shown_by(said.append), Follower(name, run) as follower:
        train(run, GAP, ACCURACY[:1])
        follower.look()
        with monkeypatch.context() as gone:
            gone.setattr(trackers.KNOWN[name], "log", fails)
            run.write_grid(dataclasses.replace(GRID, seeds=(42, 1, 2, 3)))
            for planned in others:
                write(run, planned)
            for _ in range(2):
                train(run, GAP, ACCURACY[:2])
                follower.look()
                assert not follower.is_complete
        write(run, GAP)
        follower.look()
        assert follower.is_complete
    assert said == [f"tracker {name}: RuntimeError: the disk is; its trials are in the run folder all the same"]
    assert len(asked) == 2 * track.PATIENCE, "it may be a minute each time"
    assert all(steps(read(run, planned)) == ALL_ONCE for planned in others)
    assert steps(read(run, GAP)) == ALL_ONCE


# The followers of a sweep


def wait_for(what: Callable[[], Any], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_a_sweep_is_followed_by_processes_of_their_own(run: RunFolder) -> None:
    said: list[str] = []
    train(run, GAP, ACCURACY[:1])
    with shown_by(said.append), track.following(["tensorboard", "mlflow"], run, every_s=0.2):
        children = multiprocessing.active_children()
        assert {child.name for child in children} == {"track-tensorboard", "track-mlflow"}
        for child in children:
            assert str(run.path).encode() not in Path(f"/proc/{child.pid}/cmdline").read_bytes()
        wait_for(lambda: (run.path / "tensorboard").exists() and scalars(run, GAP).get("test_acc") == CURVE[:1])
        for child in children:
            os.kill(child.pid or 0, signal.SIGINT)  # as a terminal's Ctrl-C, which every process gets
        train(run, GAP, ACCURACY[:2])
        wait_for(lambda: scalars(run, GAP)["test_acc"] == CURVE[:2])
        write(run, GAP)
        write(run, GEM)
    assert said == []
    assert not multiprocessing.active_children()
    for read, planned in itertools.product((scalars, mlflow_metrics), (GAP, GEM)):
        assert steps(read(run, planned)) == ALL_ONCE


def test_what_a_follower_says_is_said_by_the_sweep(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "nonsense://x")
    monkeypatch.setattr(track, "WAITED_S", 0.0)
    said: list[str] = []
    write(run, GAP)
    with shown_by(said.append), track.following(["mlflow", "tensorboard"], run, every_s=60.0):
        wait_for(lambda: said)
        dying = next(child for child in multiprocessing.active_children() if child.name == "track-tensorboard")
        dying.kill()
        dying.join()
    assert said[0].startswith("tracker mlflow: ")
    assert said[1] == "tracker mlflow: the last epochs are still to be logged ..."
    assert "tracker tensorboard: its process died (exit code -9); to log all: python -m results track" in said[-1]


def test_a_second_interrupt_abandons_what_is_left(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    def sweep() -> None:
        with track.following(["tensorboard"], run):
            (child,) = multiprocessing.active_children()
            monkeypatch.setattr(type(child), "join", interrupt)
            monkeypatch.setattr(type(child), "kill", lambda self: (monkeypatch.undo(), type(self).kill(self)))
            interrupt()

    with pytest.raises(KeyboardInterrupt):
        sweep()
    assert not multiprocessing.active_children()


def test_a_follower_takes_no_torch_and_ends_with_its_parent(run: RunFolder) -> None:
    write(run, GAP)
    code = f"""
        import multiprocessing, sys
        import orchestrator.sweep
        from results import track
        from results.store.folder import RunFolder
        with track.following(["tensorboard"], RunFolder({str(run.path)!r})):
            assert not {{"torch", "ray"}} & {{*sys.modules}}
            print(multiprocessing.active_children()[0].pid, flush=True)
            input()
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    here = Path(__file__).parents[1]
    parent = subprocess.Popen(command, cwd=here, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert parent.stdout
    child = Path("/proc") / parent.stdout.readline().strip()
    wait_for(lambda: GAP.trial.id.encode() in (run.tracked("tensorboard").read() or b""))
    assert scalars(run, GAP)["test_acc"] == CURVE
    mapped = (child / "maps").read_text()
    assert "pyarrow" in mapped
    assert "/torch/" not in mapped
    assert "/ray/" not in mapped
    parent.kill()
    parent.communicate()
    wait_for(lambda: not child.exists() or not (child / "cmdline").read_bytes())


# The command


def test_the_command_logs_what_is_on_record_and_follows(run: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    write(run, GAP)
    train(run, GEM, ACCURACY[:1])
    command = ["track", str(run.path), "--to", "tensorboard"]
    assert main(command) == 0
    assert (scalars(run, GAP)["test_acc"], scalars(run, GEM)["test_acc"]) == (CURVE, CURVE[:1])
    assert results.load(run.path).track("mlflow")
    assert mlflow_metrics(run, GEM)["test_acc"] == CURVE[:1]
    done: list[int] = []
    thread = threading.Thread(target=lambda: done.append(main([*command, "--follow", "--every", "0.1"])))
    thread.start()
    train(run, GEM, ACCURACY[:2])
    wait_for(lambda: scalars(run, GEM).get("test_acc") == CURVE[:2])
    assert not done
    write(run, GEM)
    thread.join(30)
    assert done == [0], "all has ended"
    assert steps(scalars(run, GEM)) == ALL_ONCE
    assert capsys.readouterr().err == ""


def test_the_command_says_what_keeps_it(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["track", str(run.path), "--to", "tensorboard"]
    monkeypatch.setattr(track, "LOCKED_S", 0.1)
    with Follower("tensorboard", run):
        assert main(command) == 2
    assert "another process logs" in capsys.readouterr().err
    with monkeypatch.context() as lacking:
        lacking.setitem(sys.modules, trackers.TensorBoard.module, None)
        assert main(command) == 2
    assert "error: --to: tensorboard cannot be imported: " in capsys.readouterr().err
    write(run, GAP)
    with monkeypatch.context() as full:
        full.setattr(trackers.TensorBoard, "end", None)
        assert main(command) == 1
    assert "tracker tensorboard: TypeError: 'NoneType'" in capsys.readouterr().err
    run.files.remove("space.yaml")
    assert main(command) == 2
    assert "no sweep has begun" in capsys.readouterr().err
    with pytest.raises(RequestError, match="unknown tracker 'tensorbord'; did you mean 'tensorboard'"):
        results.load(run.path).track("tensorbord")
