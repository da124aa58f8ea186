"""Trackers: real TensorBoard and MLflow files read back, a wandb that takes notes, and what a fault of one costs."""

from __future__ import annotations

import dataclasses
import io
import itertools
import socket
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from orchestrator.progress import Progress
from orchestrator.watcher import Watcher
from rich.console import Console

from orchestrator.record import Job, epoch_rows, row
from results import track as trackers
from results.store import schema
from results.store.folder import RunFolder
from results.store.lease import Lease
from results.track import Curve, Trackers
from search_spaces import pool
from search_spaces import space as spaces
from search_spaces.errors import RequestError
from search_spaces.grid import Entry, Grid, Pair, Planned
from search_spaces.recipe import Recipe
from trainer.epoch import Epoch

RECIPE = Recipe(epochs=3, lr=0.1)
ENTRIES = (Entry(pool.expand("gap")[0], "baseline"), Entry(pool.expand("gem", {"p": 2}, label="ours, <p>")[0]))
GRID = Grid("a space", ENTRIES, (Pair("resnet20", "digits"),), (42,), RECIPE)
GAP, GEM = GRID
ACCURACY = [60.0, 62.5, 61.0]


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
    return run


def write(run: RunFolder, planned: Planned, status: str = schema.COMPLETED, accuracy: list[float] = ACCURACY) -> None:
    history = [Epoch(e, 1.0 / e, 50.0 + e, 2.0 / e, acc, 0.1 / e, 10.0, 9.0) for e, acc in enumerate(accuracy, 1)]
    if history:
        run.write_epochs(planned.trial.id, epoch_rows(planned.trial, history))
    run.write_trial(row(planned, status, history, None))


class Sweep:
    """The end of a sweep in which these trials have ended."""

    def __init__(self, run: RunFolder, *names: str):
        self.run, self.names, self.said = run, names, []

    def __call__(self, *ended: Planned, status: str = schema.COMPLETED) -> list[str]:
        console = Console(file=io.StringIO())
        job = Job(self.run.where, False, 1, 1, False, None)
        with (
            Trackers(self.names, self.run, GRID.name, self.said.append) as logged,
            Progress(ended, 0, console) as progress,
        ):
            watcher = Watcher(progress, job, Lease(self.run), logged)
            for planned in ended:
                watcher.ended(planned, {"status": status, "best_test_acc": 1.0, "train_s": 1.0, "error": None})
                assert planned.trial.id in watcher._ended
        return self.said


# TensorBoard


def scalars(run: RunFolder, planned: Planned) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run.path / "tensorboard" / planned.trial.id))
    events.Reload()
    return {tag: [(one.step, one.value) for one in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_tensorboard_has_every_curve(run: RunFolder) -> None:
    write(run, GAP)
    write(run, GEM)
    assert Sweep(run, "tensorboard")(GAP, GEM) == []
    found = scalars(run, GEM)
    assert found.keys() == {*trackers.METRICS, *trackers.OUTCOME}
    assert found["test_acc"] == [(1, 60.0), (2, 62.5), (3, 61.0)]
    assert [step for step, _ in found["lr"]] == [1, 2, 3]
    assert (found["best_test_acc"], found["final_test_acc"]) == ([(3, 62.5)], [(3, 61.0)])
    assert scalars(run, GAP).keys() == found.keys()


def test_tensorboard_knows_the_parameters(run: RunFolder) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams import metadata

    write(run, GEM)
    Sweep(run, "tensorboard")(GEM)
    events = EventAccumulator(str(run.path / "tensorboard" / GEM.trial.id))
    events.Reload()
    content = events.SummaryMetadata(metadata.SESSION_START_INFO_TAG).plugin_data.content
    start = metadata.parse_session_start_info_plugin_data(content)
    assert start.hparams["pool"].string_value == "ours, <p>"
    assert start.hparams["pool.p"].number_value == 2
    assert start.hparams["seed"].number_value == 42
    assert start.hparams["status"].string_value == "completed"
    assert start.hparams["train_samples"].string_value == "null"


def test_an_attempt_after_a_failed_one_replaces_it(run: RunFolder) -> None:
    write(run, GAP, schema.FAILED, [10.0])
    Sweep(run, "tensorboard")(GAP, status=schema.FAILED)
    assert scalars(run, GAP)["test_acc"] == [(1, 10.0)]
    write(run, GAP)
    Sweep(run, "tensorboard")(GAP)
    assert scalars(run, GAP)["test_acc"] == [(1, 60.0), (2, 62.5), (3, 61.0)]


def test_logging_to_tensorboard_takes_no_torch(run: RunFolder) -> None:
    write(run, GAP)
    code = f"""
        import sys, orchestrator.sweep
        from results.track import Trackers, check
        from results.store.folder import RunFolder
        run = RunFolder({str(run.path)!r})
        (planned, _) = run.grid()
        check(["tensorboard"], run)
        with Trackers(["tensorboard"], run, "x", print) as trackers:
            trackers.ended(planned, {{"status": "completed"}})
        assert "torch" not in sys.modules
    """
    run.write_grid(GRID)
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], cwd=Path(__file__).parents[1], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert scalars(run, GAP)["test_acc"]


# MLflow


def mlflow_runs(run: RunFolder) -> list[Any]:
    from mlflow import MlflowClient

    client = MlflowClient((run.path / "mlruns").as_uri())
    experiment = client.get_experiment_by_name(GRID.name)
    return client.search_runs([experiment.experiment_id]) if experiment else []


def test_mlflow_has_every_trial_in_a_local_store(run: RunFolder) -> None:
    from mlflow import MlflowClient

    write(run, GAP, schema.DIVERGED, [60.0, float("nan")])
    write(run, GEM)
    trackers.check(["mlflow"], run)
    assert not (run.path / "mlruns").exists(), "asking leaves nothing behind"
    assert Sweep(run, "mlflow")(GEM) == []
    assert Sweep(run, "mlflow")(GAP, status=schema.DIVERGED) == []
    found = {one.info.run_name: one for one in mlflow_runs(run)}
    assert found.keys() == {GAP.trial.id, GEM.trial.id}
    ours = found[GEM.trial.id]
    assert ours.data.params["pool"] == "ours, <p>"
    assert (ours.data.params["pool.p"], ours.data.params["seed"], ours.data.params["role"]) == (
        "2.0",
        "42",
        "candidate",
    )
    assert (ours.data.params["epochs"], ours.data.params["lr"]) == ("3", "0.1")
    assert (ours.data.tags["status"], ours.data.tags["best_test_acc"]) == ("completed", "62.5")
    assert ours.data.metrics["final_test_acc"] == 61.0
    assert ours.info.status == "FINISHED"
    client = MlflowClient((run.path / "mlruns").as_uri())
    curve = client.get_metric_history(ours.info.run_id, "test_acc")
    assert [(one.step, one.value) for one in curve] == [(1, 60.0), (2, 62.5), (3, 61.0)]
    assert [round((b.timestamp - a.timestamp) / 1000) for a, b in itertools.pairwise(curve)] == [10, 10]
    assert (found[GAP.trial.id].info.status, found[GAP.trial.id].data.tags["status"]) == ("FAILED", "diverged")


def test_a_trial_without_an_epoch_is_logged_too(run: RunFolder) -> None:
    write(run, GAP, schema.FAILED, [])
    assert Sweep(run, "mlflow", "tensorboard")(GAP, status=schema.FAILED) == []
    (one,) = mlflow_runs(run)
    assert one.data.tags["status"] == "failed"
    assert not one.data.metrics
    assert scalars(run, GAP) == {}


def test_long_curves_are_sent_in_parts(run: RunFolder) -> None:
    write(run, GAP, accuracy=[float(i) for i in range(250)])
    assert Sweep(run, "mlflow")(GAP) == []
    assert mlflow_runs(run)[0].data.metrics["test_acc"] == 249.0


# Weights & Biases, as far as it can be asked without it

FAKE = """
calls = []
class Run:
    summary = {}
    def log(self, metrics, step): calls.append(("log", step, metrics))
    def finish(self, exit_code): calls.append(("finish", exit_code, dict(self.summary)))
def init(**given):
    calls.append(("init", given))
    return Run()
"""


@pytest.fixture
def wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    (tmp_path / "fake").mkdir()
    (tmp_path / "fake" / "wandb.py").write_text(FAKE)
    monkeypatch.syspath_prepend(tmp_path / "fake")
    sys.modules.pop("wandb", None)
    import wandb  # pyright: ignore

    yield wandb
    del sys.modules["wandb"]


def test_wandb_is_told_the_same(run: RunFolder, wandb: Any) -> None:
    write(run, GEM)
    assert Sweep(run, "wandb")(GEM) == []
    (_, given), *logged, finish = wandb.calls
    assert (given["project"], given["name"], given["dir"]) == ("a space", GEM.trial.id, str(run.path))
    assert given["config"]["pool.p"] == 2
    assert [(step, metrics["test_acc"]) for _, step, metrics in logged] == [(1, 60.0), (2, 62.5), (3, 61.0)]
    assert finish == ("finish", 0, {"best_test_acc": 62.5, "final_test_acc": 61.0, "status": "completed"})


def test_wandb_needs_a_key_or_to_be_offline(
    run: RunFolder, wandb: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, closed: str
) -> None:
    with pytest.raises(RequestError, match=r"no key.*WANDB_MODE=offline"):
        trackers.check(["wandb"], run)
    monkeypatch.setenv("WANDB_BASE_URL", closed)
    (tmp_path / "no-netrc").write_text("machine 127.0.0.1 login user password 1234\n")
    (tmp_path / "no-netrc").chmod(0o600)
    with pytest.raises(RequestError, match=r"does not answer.*WANDB_MODE=offline"):
        trackers.check(["wandb"], run)
    monkeypatch.setenv("WANDB_MODE", "offline")
    trackers.check(["wandb"], run)


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
    monkeypatch.setattr("importlib.util.find_spec", _without("wandb"))
    with pytest.raises(RequestError) as caught:
        trackers.check(["tensorboard", "mlflow", "wandb"], run)
    mlflow, wandb = caught.value.problems
    assert mlflow.where == "[1]"
    assert f"{closed} does not answer within 3 s" in mlflow.what
    assert "secret" not in mlflow.what
    assert (wandb.where, wandb.what) == ("[2]", "wandb is not installed here; pip install wandb")


def _without(name: str) -> Callable[[str], Any]:
    from importlib.util import find_spec

    return lambda module: None if module == name else find_spec(module)


def test_an_address_that_takes_the_call_and_says_nothing(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trackers, "ANSWER_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{silent.getsockname()[1]}")
        with pytest.raises(RequestError, match="does not answer within 0 s"):
            trackers.check(["mlflow"], run)


def test_an_address_that_is_no_mlflow(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    class NotFound(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(404)

        do_POST = do_GET  # noqa: N815

        def log_message(self, format: str, *args: Any) -> None: ...

    server = HTTPServer(("127.0.0.1", 0), NotFound)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{server.server_port}")
        with pytest.raises(RequestError, match=r"mlflow cannot log to http://127.0.0.1:\d+: "):
            trackers.check(["mlflow"], run)
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_a_store_that_mlflow_does_not_know(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "nonsense://x")
    with pytest.raises(RequestError, match="mlflow cannot log to nonsense://x"):
        trackers.check(["mlflow"], run)


# What a fault costs


class Broken:
    made = 0
    asked = 0

    def __init__(self, *_: Any):
        Broken.made += 1

    def log(self, curve: Curve) -> None:
        Broken.asked += 1
        raise RuntimeError("the disk is\nfull")


def test_what_writes_files_has_no_place_in_an_object_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = RunFolder("s3://bucket/run")
    with pytest.raises(RequestError) as caught:
        trackers.check(["tensorboard", "mlflow", "wandb"], run)
    assert [problem.where for problem in caught.value.problems] == ["[0]", "[1]", "[2]"]
    for problem, way_out in zip(
        caught.value.problems, ("take it out", "MLFLOW_TRACKING_URI", "WANDB_DIR"), strict=True
    ):
        assert f"it writes files, which {run} takes none of" in problem.what
        assert way_out in problem.what
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tmp_path.as_uri())
    trackers.check(["mlflow"], run)


def test_a_tracker_that_raises_is_said_once_and_harms_nobody(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trackers, "KNOWN", {**trackers.KNOWN, "mlflow": Broken})
    monkeypatch.setattr(Broken, "asked", 0)
    many = list(dataclasses.replace(GRID, seeds=(1, 2, 3)))
    for planned in many:
        write(run, planned)
    said = Sweep(run, "mlflow", "tensorboard")(*many)
    assert said == ["tracker mlflow: RuntimeError: the disk is; its trials are in the run folder all the same"]
    assert all(scalars(run, planned)["test_acc"] for planned in many)
    assert Broken.asked == trackers.PATIENCE, "it may be a minute each time"


def test_none_asked_for_is_none_made(run: RunFolder) -> None:
    before = threading.active_count()
    write(run, GAP)
    assert Sweep(run)(GAP) == []
    assert threading.active_count() == before
    assert not (run.path / "tensorboard").exists()
    assert not (run.path / "mlruns").exists()


def test_a_trial_whose_end_is_reported_twice_is_logged_once(run: RunFolder) -> None:
    write(run, GAP)
    assert Sweep(run, "mlflow")(GAP, GAP) == []
    assert len(mlflow_runs(run)) == 1
