"""What runs code, and what does not: every claim of SECURITY.md that is not about names or bad input."""

from __future__ import annotations

import ast
import io
import os
import pickle
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from orchestrator import cli
from orchestrator.record import Job, epoch_rows, row
from orchestrator.worker import run_pack
from results.__main__ import _parser, main
from results.store import schema
from results.store.folder import RunFolder
from search_spaces import pool
from search_spaces.grid import Entry, Grid, Pair
from search_spaces.recipe import Recipe
from trainer.data import Dataset
from trainer.outcome import Epoch

pytestmark = pytest.mark.usefixtures("nothing_collapses")  # trials of a few steps are no better than guessing
ROOT = Path(__file__).parents[1]
PACKAGES = ("benchmarks", "orchestrator", "results", "search_spaces", "trainer")
RECIPE = Recipe(epochs=1, batch_size=32, lr=0.02, train_samples=80, test_samples=40)


# The code base


def calls(path: Path) -> Iterator[tuple[str, ast.Call]]:
    """(what is called, `torch.load`, `eval`; the call) of a file."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def arguments(call: ast.Call) -> dict[str | None, str]:
    return {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}


FORBIDDEN = re.compile(
    r"(?:(?:builtins\.)?(?:eval|exec|__import__)|compile|os\.(?:system|popen|exec\w*|spawn\w*)|"
    r"(?:pickle|cloudpickle|dill|marshal|shelve|joblib)\.\w+|yaml\.(?:load|load_all|full_load\w*|unsafe_load\w*)|"
    r"pd\.read_pickle|subprocess\.get\w*output|importlib\.(?:import_module|util\.module_from_spec))"
)
ALLOWED = {
    ("trainer/user_module.py", "importlib.import_module"),  # a candidate's text becomes a module
    ("trainer/user_module.py", "importlib.util.module_from_spec"),
    ("trainer/archs/__init__.py", "importlib.import_module"),  # of a family that it names itself
    ("results/track.py", "importlib.import_module"),  # of a tracker in a table of its own
    ("trainer/pools/__init__.py", "importlib.import_module"),  # of the name of a built-in pool
    ("trainer/compat.py", "__import__"),  # of modules of torch's that it names itself
    ("trainer/device/compiling.py", "importlib.import_module"),  # of a kernel that was launched
    ("benchmarks/rental/env.py", "importlib.import_module"),  # of packages that it names itself
    ("orchestrator/compat.py", "importlib.import_module"),  # and of Ray's
    ("results/trackers.py", "importlib.import_module"),  # of a library by its fixed name
}


def test_calls_that_would_run_what_they_read() -> None:
    found, loads = set(), 0
    files = [ROOT / "run_sweep.py", *(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))]
    for path in files:
        name = str(path.relative_to(ROOT))
        assert {*re.findall(r"yaml\.\w*Loader\b", path.read_text())} <= {"yaml.SafeLoader"}, name
        assert not re.search(r"^\s*(?:import|from) (?:pickle|marshal|shelve|dill|joblib)\b", path.read_text(), re.M), (
            name
        )
        for called, call in calls(path):
            given = arguments(call)
            if FORBIDDEN.fullmatch(called):
                found.add((name, called))
            if called == "torch.load":
                loads += 1
                assert given.get("weights_only") == "True", f"{name}:{call.lineno}"
            if called in ("np.load", "numpy.load"):
                assert given.get("allow_pickle", "False") == "False", f"{name}:{call.lineno}"
            assert given.get("shell", "False") == "False", f"{name}:{call.lineno}"
    assert found == ALLOWED
    assert loads >= 2


# What asks


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    """A file that is there once somebody's code has run."""
    return tmp_path / "canary"


@pytest.fixture
def run(tmp_path: Path, canary: Path) -> RunFolder:
    """A run folder with two baselines and a candidate of a stranger, completed, with weights of its own making."""
    (tmp_path / "theirs.py").write_text(
        f"open({str(canary)!r}, 'w')\nfrom torch import nn\nclass CustomPool(nn.Module):\n"
        "    def forward(self, x): return x.mean((2, 3))\n"
    )
    entries = (*(Entry(pool.expand(name)[0], "baseline") for name in ("gap", "gem")),)
    entries += (Entry(pool.expand(str(tmp_path / "theirs.py"))[0]),)
    grid = Grid("theirs", entries, (Pair("resnet20", "digits"),), (1, 2), RECIPE)
    run = RunFolder(tmp_path / "run")
    run.create()
    run.write_grid(grid)
    for number, planned in enumerate(grid):
        history = [Epoch(1, 1.0, 50.0, 1.0, 50.0 + number % 4 / 3, 0.1, 1.0, 100.0)]
        run.epochs.write(planned.trial.id, epoch_rows(planned.trial, history))
        run.write_trial(row(planned, schema.COMPLETED, history, None))
        run.trial(planned.trial.id).weights.write(b"theirs")
    return run


def ask_everything(run: RunFolder, tmp_path: Path) -> dict[str, int]:
    """{command: its exit code} of all of `python -m results`; a traceback would be a failed test."""
    options = {
        "curves": ["--output", str(tmp_path / "pictures")],
        "watch": ["--every", "0.01"],
        "track": ["--to", "tensorboard"],
        "submit": ["theirs"],
        "cam": [f"{run.path.name}-none"],
    }
    (commands,) = (action for action in _parser()._actions if action.choices)
    assert {*options} < {*(commands.choices or ())}
    return {name: main([name, str(run.path), *options.get(name, [])]) for name in commands.choices or ()}


def test_what_asks_runs_no_code(
    run: RunFolder, tmp_path: Path, canary: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    space = "name: mine\npairs: [{arch: resnet20, dataset: digits}]\npools: [gap, {file: theirs.py}]\nseeds: [1]\n"
    (tmp_path / "mine.yaml").write_text(space)
    for option in ("--plan", "--status"):
        cli.main(["--space", str(tmp_path / "mine.yaml"), "--out", str(tmp_path / "new"), option, "--final"])
    codes = ask_everything(run, tmp_path)
    assert {name for name, code in codes.items() if code == 2} == {"cam"}, codes
    capsys.readouterr()
    assert main(["cam", str(run.path), "theirs-resnet20-digits-s1"]) == 2
    assert "pass --trust if you know whose it is" in capsys.readouterr().err
    assert not canary.exists()
    assert main(["cam", str(run.path), "theirs-resnet20-digits-s1", "--trust"]) == 2
    assert "do not fit its network" in capsys.readouterr().err
    assert canary.exists(), "so that the test would have seen it"


def test_a_folder_of_images_that_is_mistyped_is_not_made(run: RunFolder, tmp_path: Path) -> None:
    grid = Grid("g", (Entry(pool.expand("gap")[0]),), (Pair("resnet20", "cifar10"),), (1,), RECIPE)
    run.write_grid(grid)
    for planned in grid:
        run.write_trial(row(planned, schema.COMPLETED, [], None))
        run.trial(planned.trial.id).weights.write(b"x")
        assert main(["cam", str(run.path), planned.trial.id, "--data-dir", str(tmp_path / "typo")]) == 2
    assert not (tmp_path / "typo").exists()


# Pickles


class Evil:
    def __init__(self, canary: Path):
        self.canary = str(canary)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return open, (self.canary, "w")


def disguises(canary: Path) -> dict[str, bytes]:
    """A pickle that writes the canary, bare, as torch saves it, and as an extension type of Arrow's metadata."""
    bare = pickle.dumps(Evil(canary))
    saved = io.BytesIO()
    torch.save({"trial": Evil(canary), "state": Evil(canary)}, saved)
    old = io.BytesIO()
    torch.save(Evil(canary), old, _use_new_zipfile_serialization=False)
    names = {b"ARROW:extension:name": b"arrow.py_extension_type", b"ARROW:extension:metadata": bare}
    field = pa.field("trial_id", pa.string(), metadata=names)
    sink = io.BytesIO()
    pq.write_table(pa.table([pa.array(["gap-resnet20-digits-s1-0"])], pa.schema([field])), sink)
    return {"bare": bare, "torch": saved.getvalue(), "old torch": old.getvalue(), "parquet": sink.getvalue()}


@pytest.mark.parametrize("disguise", ["bare", "torch", "old torch", "parquet"])
def test_pickles_in_a_run_folder_stay_closed(
    run: RunFolder, tmp_path: Path, canary: Path, disguise: str, digits: Dataset
) -> None:
    data = disguises(canary)[disguise]
    job = Job(run.where)
    planned = next(iter(run.space.read() or ()))  # gap, built in
    for folder in ("checkpoints", "weights"):
        (run.path / folder / f"{planned.trial.id}.pt").write_bytes(data)
    assert main(["cam", str(run.path), planned.trial.id]) == 2, "these are no weights"

    fresh = tmp_path / "fresh"
    shutil.copytree(run.path, fresh)
    for file in fresh.rglob("*"):
        if file.is_file():
            file.write_bytes(data)  # space.yaml, each JSON, each Parquet file, whatever there is
    codes = ask_everything(RunFolder(fresh), tmp_path)
    assert {*codes.values()} <= {0, 1, 2}
    assert not canary.exists()

    (run.path / "trials" / f"{planned.trial.id}.parquet").unlink()
    run_pack([planned], digits, job)  # a rerun, from that checkpoint
    assert run.status(planned.trial.id) == schema.COMPLETED
    assert not canary.exists()
    with pytest.raises(OSError, match=r"nowhere"):
        pickle.loads(pickle.dumps(Evil(Path("/nowhere/at/all"))))


# Secrets

SECRETS = {
    "AWS_SECRET_ACCESS_KEY": "s3cr3t-aws-0123456789",
    "WANDB_API_KEY": "s3cr3t-wandb-0123456789",
    "MLFLOW_TRACKING_URI": "http://user:s3cr3t-mlflow@127.0.0.1:1/",
    "POOLSWEEP_TOKEN": "s3cr3t-own-0123456789",
}


def test_the_environment_stays_out_of_the_run_folder(
    tmp_path: Path, digits: Dataset, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    (tmp_path / "fails.py").write_text(
        "from torch import nn\nclass CustomPool(nn.Module):\n    def forward(self, x): raise ValueError('no')\n"
    )
    entries = tuple(Entry(pool.expand(name)[0]) for name in ("gap", str(tmp_path / "fails.py")))
    grid = Grid("secrets", entries, (Pair("resnet20", "digits"),), (1,), RECIPE)
    run = RunFolder(tmp_path / "run")
    run.create()
    run.write_grid(grid)
    job = Job(run.where, keep_weights=True)
    run_pack(list(grid), digits, job)
    assert {ended.status for ended in run.ended().values()} == {schema.COMPLETED, schema.FAILED}
    assert (
        main(["report", str(run.path)]) == main(["leaderboard", str(run.path)]) == main(["status", str(run.path)]) == 0
    )
    everything = {str(file): file.read_bytes() for file in run.path.rglob("*") if file.is_file()}
    assert len(everything) >= 8
    for folder in ("trials", "epochs"):  # compressed: as text
        for file in (run.path / folder).iterdir():
            everything[f"{file} as text"] = str(pq.read_table(file).to_pylist()).encode()
    everything["said"] = "".join(capfd.readouterr()).encode()
    for where, text in everything.items():
        for name, value in SECRETS.items():
            assert value.encode() not in text, where
            assert name.encode() not in text, where
        assert os.environ["PATH"].encode() not in text, where
