"""What a command is started with: streams that are closed, full or in any encoding; Ray's variables; $TMPDIR; a folder
with files that are called as Python's own or ours."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from orchestrator import cli, environment
from orchestrator.record import epoch_rows, row
from results.store import schema
from results.store.folder import RunFolder
from search_spaces import machine, pool
from search_spaces.errors import RequestError
from search_spaces.grid import Entry, Grid, Pair
from search_spaces.recipe import Recipe
from trainer.outcome import Epoch

ROOT = Path(__file__).parents[1]
LABEL = "caf\u00e9 \u2260 \U0001f600"
LOOPBACK = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"  # 0: only there
SWEEP = [sys.executable, str(ROOT / "run_sweep.py")]
RESULTS, TRAINER = [sys.executable, "-m", "results"], [sys.executable, "-m", "trainer"]
SPACE = """
name: tiny
recipe: {epochs: 1, batch_size: 32, lr: 0.02, train_samples: 64, test_samples: 64}
pairs: [{arch: resnet20, dataset: digits}]
pools: [{name: gap, role: baseline}, {name: gem, label: "caf\u00e9 \u2260 \U0001f600"}]
seeds: [1, 2, 3]
"""


def rarely(*values: object) -> list[Any]:
    """Cases for `make soak`: each is a process that imports pandas."""
    return [pytest.param(value, marks=pytest.mark.soak) for value in values]


def result_of(
    command: Sequence[object], cwd: Path = ROOT, how: str = '"$@"', **environment: str
) -> subprocess.CompletedProcess[bytes]:
    """Of a command as a shell starts it: `"$@" | true`, `"$@" >&-`; PIPESTATUS, where it asks for it, is its own."""
    line = ["bash", "-c", f"{how}; exit ${{PIPESTATUS[0]}}", "bash", *map(str, command)]
    return subprocess.run(line, cwd=cwd, env=os.environ | environment, capture_output=True, timeout=300, check=False)


@pytest.fixture
def space(tmp_path: Path) -> Path:
    path = tmp_path / "space.yaml"
    path.write_text(SPACE, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A run folder whose table has every sign that a table can have."""
    entries = (Entry(pool.expand("gap")[0], "baseline"), Entry(pool.expand("gem", label=LABEL)[0]))
    grid = Grid("g", entries, (Pair("resnet20", "digits"),), (1, 2, 3), Recipe(epochs=4))
    run = RunFolder(tmp_path_factory.mktemp("trained") / "run")
    run.create()
    run.write_grid(grid)
    for planned in grid:
        seed, is_candidate = planned.trial.seed, planned.role == "candidate"
        accuracy = 60.0 + seed / 10 + is_candidate * (9 + seed % 2 / 10)
        history = [Epoch(n, 1.0, 50.0, 1.0, accuracy, 0.1, 10.0, 100.0) for n in range(1, 5)]
        run.trial(planned.trial.id).open_log().close()
        run.epochs.write(planned.trial.id, epoch_rows(planned.trial, history))
        run.write_trial(row(planned, schema.COMPLETED, history, None))
    return run


# Streams


@pytest.mark.parametrize(("encoding", "cell"), [("ascii", "60.20 +- 0.10 (3)"), ("latin-1", "60.20 \u00b1 0.10 (3)")])
def test_a_table_can_be_read_in_any_encoding(trained: RunFolder, encoding: str, cell: str) -> None:
    done = result_of([*RESULTS, "leaderboard", trained.path], PYTHONIOENCODING=encoding)
    assert (done.returncode, done.stderr) == (0, b"")
    for part in (cell, "^ better, v worse", r"\u2260 \U0001f600"):
        assert part in done.stdout.decode(encoding)


@pytest.mark.parametrize(
    "command", ["status", *rarely("leaderboard --format markdown", "reproduce", "watch", "verify", "topup")]
)
def test_every_listing_can_be_read_in_ascii(trained: RunFolder, command: str) -> None:
    name, *options = command.split()
    done = result_of([*RESULTS, name, trained.path, *options], PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.isascii()


def test_what_is_written_is_utf_8_whatever_the_locale(trained: RunFolder, space: Path, tmp_path: Path) -> None:
    plain = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    done = result_of([*RESULTS, "leaderboard", trained.path, "--output", tmp_path / "table.md"], ROOT, **plain)
    assert (done.returncode, done.stderr) == (0, b"")
    assert "caf\u00e9 \u2260 \U0001f600" in (tmp_path / "table.md").read_text(encoding="utf-8")
    done = result_of([*SWEEP, "--space", space, "--plan"], tmp_path, **plain)
    assert (done.returncode, done.stderr) == (0, b"")
    assert rb"gem-resnet20-digits-s3" in done.stdout


@pytest.mark.parametrize("command", ["leaderboard", *rarely("watch", "verify")])
def test_a_pipe_that_nobody_reads_ends_a_listing_quietly(trained: RunFolder, command: str) -> None:
    done = result_of([*RESULTS, command, trained.path], how='"$@" | true')
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize(
    "how", ['"$@" | head -1', '"$@" <&- >&- 2>&-', *rarely('"$@" | true', '"$@" >&-', '"$@" 2>&-')]
)
def test_a_plan_that_nobody_reads(space: Path, how: str) -> None:
    done = result_of([*SWEEP, "--space", space, "--plan"], space.parent, how)
    assert (done.returncode, done.stderr) == (cli.OK, b"")


@pytest.mark.parametrize("how", ['"$@" 2>&-', *rarely('"$@" 2>/dev/full', '"$@" 2>&1 >&- | true')])
def test_a_refusal_that_nobody_reads(tmp_path: Path, how: str) -> None:
    assert result_of([*SWEEP, "--space", "none.yaml"], tmp_path, how).returncode == cli.REFUSED


def test_a_listing_onto_a_disk_that_is_full_says_so(trained: RunFolder, space: Path) -> None:
    for command in ([*RESULTS, "leaderboard", trained.path], [*SWEEP, "--space", space, "--plan"]):
        done = result_of(command, how='"$@" >/dev/full')
        assert done.returncode == cli.REFUSED
        assert done.stderr.startswith(b"error: stdout: cannot be written: No space left on device\n")


@pytest.mark.soak
def test_one_trial_without_ray_is_not_trained_on_for_nobody() -> None:
    one = [*TRAINER, "--arch", "resnet20", "--dataset", "digits", "--pool", "gem"]
    checked = result_of([*one, "--check"], how='"$@" | true')
    assert (checked.returncode, checked.stderr) == (0, b"")
    samples = ["--set", "train_samples=64", "--set", "test_samples=32", "--set", "epochs=100000"]
    assert result_of([*one, *samples], how='"$@" | head -1').returncode == 141


# Ray's variables


def left_of(found: Mapping[str, Any], address: str) -> dict[str, str]:
    """What a fresh process is left with of these."""
    code = f"import json, os; from orchestrator import environment; environment.prepare({address!r})"
    done = result_of([sys.executable, "-c", f"{code}; print(json.dumps(dict(os.environ)))"], **found)
    after: dict[str, str] = json.loads(done.stdout)
    return {name: after[name] for name in [*found, LOOPBACK] if name in after}


def test_a_ray_of_our_own_is_given_its_system_configuration_and_where_its_files_go() -> None:
    steering = """TUNE_RESULT_DIR RAY_AIR_LOCAL_CACHE_DIR RAY_ADDRESS RAY_NAMESPACE RAY_JOB_CONFIG_JSON_ENV_VAR
        RAY_RUNTIME_ENV_HOOK RAY_CHDIR_TO_TRIAL_DIR RAY_TRAIN_CALLBACKS RAY_TUNE_CALLBACKS RAY_OVERRIDE_RESOURCES
        RAY_LOG_TO_STDERR RAY_PROFILING RAY_RAYLET_NODE_ID RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES RAY_START_HOOK"""
    kept = {"RAY_TMPDIR": "/tmp", "RAY_memory_usage_threshold": "0.9", "CUDA_VISIBLE_DEVICES": "1", "RAYON": "1"}
    assert left_of({**dict.fromkeys(steering.split(), "x"), **kept}, "local") == {**kept, LOOPBACK: "0"}


def test_a_cluster_may_be_named_but_tune_is_ours_there_too() -> None:
    kept = {"RAY_ADDRESS": "10.0.0.5:6379", "RAY_JOB_CONFIG_JSON_ENV_VAR": "{}"}
    steering = {"TUNE_RESULT_DIR": "x", "RAY_AIR_LOCAL_CACHE_DIR": "x"}
    assert left_of({**steering, **kept}, "auto") == {**kept, LOOPBACK: "1"}


# Where temporary files go


@pytest.mark.parametrize("name", environment.FOLDERS)
def test_a_folder_that_cannot_be_written_is_refused_before_anything_starts(space: Path, name: str) -> None:
    done = result_of([*SWEEP, "--space", space], space.parent, **{name: "/proc/none"})
    assert done.returncode == cli.REFUSED
    said = done.stderr.decode().splitlines()
    assert said[0].startswith(f"error: ${name}: expected a folder that can be written, got /proc/none: ")
    assert said[1:] == ["nothing was started"]
    assert not (space.parent / "runs").exists()


def test_a_folder_is_absolute_and_an_empty_one_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    monkeypatch.setenv("TMPDIR", "here")
    monkeypatch.setenv("RAY_TMPDIR", "")
    environment.check_folders()
    assert os.environ["TMPDIR"] == str(tmp_path / "here")
    assert "RAY_TMPDIR" not in os.environ


def test_a_folder_is_short_enough_for_rays_sockets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from orchestrator import cluster

    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    most = cluster.MOST_OF_AN_ADDRESS - cluster.LONGEST_SOCKET - len("/ray")
    for length, is_short in ((most, True), (most + 1, False)):
        monkeypatch.setenv("TMPDIR", "/" + "x" * (length - 1))
        with cluster._folder() as folder:
            assert (folder is None) == is_short
    assert folder is not None
    assert not Path(folder).parent.exists(), "it is removed"
    with cluster._folder() as folder:
        assert folder is not None
        assert Path(folder).parent.stat().st_mode & 0o777 == 0o700
        assert len(folder) + cluster.LONGEST_SOCKET <= cluster.MOST_OF_AN_ADDRESS
    monkeypatch.setattr(cluster, "SHORT_PLACES", (str(tmp_path / "none"),))
    with (
        pytest.raises(RequestError, match=r"\$TMPDIR: expected 39 bytes at most.*got /x+; set RAY_TMPDIR"),
        cluster._folder(),
    ):
        raise AssertionError


# How Ray's start fails


@pytest.mark.parametrize(
    "error",
    [RuntimeError("two\nlines"), OSError(28, "No space"), TimeoutError(), AssertionError(), KeyError("x"),
     SystemExit(1), subprocess.CalledProcessError(1, "raylet")],
    ids=lambda error: type(error).__name__,
)  # fmt: skip
def test_whatever_ray_raises_while_it_starts_is_a_line(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    from orchestrator import cluster
    from orchestrator.resources import Node

    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(cluster.ray, "init", fail)
    log = io.StringIO()
    with pytest.raises(RequestError) as caught, cluster.connected("local", Node(1, 0), log):
        raise AssertionError
    said = str(caught.value)
    assert said.startswith(f"--address local: Ray cannot be reached or started: {type(error).__name__}")
    assert "\n" not in said
    assert "Traceback" in log.getvalue()


# Files that are called as others

SHADOWS = """random queue types typing socket json logging pickle threading asyncio torch numpy ray pandas results
    orchestrator trainer search_spaces""".split()


@pytest.fixture
def shadows(tmp_path: Path) -> Path:
    """A folder in which every import would fail."""
    folder = tmp_path / "shadows"
    folder.mkdir()
    for name in SHADOWS:
        (folder / f"{name}.py").write_text("raise ImportError('shadow')\n", encoding="utf-8")
    return folder


def test_the_path_depends_on_no_place_where_one_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(["", ".", "../" + tmp_path.name, "sub", "/abs", ""]))
    assert machine.python_path().split(os.pathsep) == [str(ROOT), str(tmp_path / "sub"), "/abs"]
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert machine.python_path().split(os.pathsep) == [str(ROOT), str(tmp_path)], "who names it whole means it"


@pytest.mark.parametrize("path", [".:", *rarely("", ":", f"{ROOT}:")])
def test_nothing_is_imported_from_where_one_stands(shadows: Path, space: Path, path: str) -> None:
    done = result_of([*SWEEP, "--space", space, "--plan"], shadows, PYTHONPATH=path)
    assert (done.returncode, done.stderr) == (cli.OK, b"")


# All of it, for real


@pytest.fixture
def long_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "a" / ("long" * 20)
    folder.mkdir(parents=True)
    return folder


@pytest.mark.soak
@pytest.mark.parametrize("how", ['"$@" 2>&- | head -2', 'PYTHONIOENCODING=ascii "$@"'], ids=["unread", "ascii"])
def test_a_sweep_goes_to_its_end(shadows: Path, space: Path, long_folder: Path, tmp_path: Path, how: str) -> None:
    steering = {"TUNE_RESULT_DIR": str(tmp_path / "x"), "RAY_AIR_LOCAL_CACHE_DIR": str(tmp_path / "x")}
    steering |= {"RAY_ADDRESS": "1.2.3.4:5", "RAY_JOB_CONFIG_JSON_ENV_VAR": "{", "RAY_RUNTIME_ENV_HOOK": "no.hook"}
    steering |= {"RAY_OVERRIDE_RESOURCES": '{"CPU": 0}', "RAY_LOG_TO_STDERR": "1", "RAY_CHDIR_TO_TRIAL_DIR": "1"}
    run = tmp_path / "run"
    command = [*SWEEP, "--space", space, "--out", run]
    done = result_of(command, shadows, how, PYTHONPATH=":.", TMPDIR=str(long_folder), **steering)
    trials = pd.read_parquet(run / "trials")
    assert len(trials) == 6
    assert set(trials["status"]) <= {*schema.TRAINED}
    assert done.returncode == (cli.OK if set(trials["status"]) == {schema.COMPLETED} else cli.INCOMPLETE), done
    assert done.stderr == b""
    assert not (tmp_path / "x").exists()
    if "head" not in how:
        assert b"ask again with" in done.stdout
