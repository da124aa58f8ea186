"""Real sweeps, by real Ray: what they leave behind, what a second one does, and what a fault costs."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd
import pytest

import results
from orchestrator import cli
from orchestrator.record import Job
from orchestrator.worker import run_pack
from results.__main__ import main as results_command
from results.store import schema
from results.store.folder import RunFolder
from search_spaces import machine
from search_spaces import space as spaces
from tests.compare import epochs_of
from tests.watching import remount, trained_once, wait_until, written
from trainer import checkpoint, data

ROOT = Path(__file__).parents[1]
SPACE = """
name: small
recipe: {epochs: 2, batch_size: 32, lr: 0.02, train_samples: 64, test_samples: 40}
architectures: [resnet20, mobilenetv2_s32]
datasets: [digits]
pools:
  - {name: gap, role: baseline}
  - gem
seeds: [1, 2]
max_failures: 1
checkpoint_every: 1
"""
BOTH, ONE = "[resnet20, mobilenetv2_s32]", "[resnet20]"
LEARNS = "{epochs: 2, batch_size: 16, lr: 0.01, train_samples: 640, test_samples: 200}"  # 24 % and up
INFINITE = """
from torch import nn
class CustomPool(nn.Module):
    def forward(self, x):
        return x.mean((2, 3)) / 0
"""
DRIVER = """
import atexit, os, runpy, sys
heavy = {"torch", "torchvision", "mlflow", "tensorboard"}
atexit.register(lambda: print("imported:", sorted({name.partition(".")[0] for name in sys.modules} & heavy)))
sys.argv[0], sys.path[0] = "run_sweep.py", os.getcwd()
runpy.run_path("run_sweep.py", run_name="__main__")
"""


@pytest.fixture
def space_file(tmp_path: Path) -> Path:
    path = tmp_path / "space.yaml"
    path.write_text(SPACE)
    return path


@pytest.fixture
def sweep(space_file: Path, tmp_path: Path, ray_address: str) -> Callable[..., int]:
    """Runs a sweep on the session's cluster; the exit code."""

    def run(*arguments: str) -> int:
        return cli.main(
            ["--space", str(space_file), "--out", str(tmp_path / "run"), "--address", ray_address, *arguments]
        )

    return run


def test_a_sweep_is_interrupted_and_run_again(command: Command, space_file: Path, tmp_path: Path, capfd) -> None:
    """One sweep for what any sweep does: a real one pays half a minute for its gate, its Ray and its workers."""
    run = command.run
    (tmp_path / "mine.py").write_text(INFINITE)
    text = re.sub("recipe: .*", f"recipe: {LEARNS}", space_file.read_text())
    text = text.replace("- gem", "- gem\n  - {file: mine.py}") + "skip_invalid: true\n"
    # A hundred seeds: the interrupt comes in the middle, however late this process or Ray notices.
    space_file.write_text(text.replace("[1, 2]", str(list(range(1, 101)))))
    interrupted = command.start()
    command.wait_for_trials(interrupted, ended=101)
    os.killpg(interrupted.pid, signal.SIGINT)
    said, _ = interrupted.communicate(timeout=90)
    assert interrupted.returncode == cli.INTERRUPTED, said
    assert "interrupted by SIGINT; what has finished is kept. To go on: python run_sweep.py --space" in said
    assert "imported: []" in said
    assert "Traceback" not in said
    before = written(run)
    assert 101 <= len(before) < 300

    space_file.write_text(text)
    again = command.start("--set", "keep_weights=true")
    said, _ = again.communicate(timeout=300)
    assert again.returncode == cli.INCOMPLETE, said
    assert "[6/6]" in said
    assert "2 invalid" in said
    assert "imported: []" in said, "nor does one that goes to its end"
    assert re.search(r"6 trials, of which \d+ completed", said)
    assert "best baseline" in said
    spoken = said.lower().replace("starting ray", "").replace(str(tmp_path), "")
    assert "ray" not in spoken, "Ray's own words go to its log"
    after = written(run)
    assert {name: after[name] for name in before} == before, "a finished trial was trained again"
    assert {path.stem for path in (run / "weights").iterdir()} == {Path(name).stem for name in after.keys() - before}

    trials = pd.read_parquet(run / "trials").query("seed <= 2")
    epochs = pd.read_parquet(run / "epochs").query("seed <= 2")
    assert list(trials.columns) == schema.TRIALS.names
    assert list(epochs.columns) == schema.EPOCHS.names
    assert trials.groupby("pool")["status"].apply(list).to_dict() == {
        "gap": ["completed"] * 2,
        "gem": ["completed"] * 2,
        "mine": ["invalid"] * 2,
    }
    assert trials.loc[trials["pool"] == "mine", "error"].str.contains("finite-output").all()
    trained = trials[trials["status"] == "completed"]
    assert (trained["test_images"] == 200).all()
    assert epochs.groupby("trial_id")["epoch"].apply(list).map(lambda found: found == [1, 2]).all()
    assert (trained.set_index("trial_id")["best_test_acc"] == epochs.groupby("trial_id")["test_acc"].max()).all()
    for column in (
        "params",
        "pool_params_count",
        "train_s",
        "peak_memory_mb",
        "device",
        "versions",
        "pool_flops",
        "pool_times_gap",
    ):
        assert trained[column].notna().all(), column
    assert (trained["finished_at"] > trained["started_at"]).all()
    log = (run / "logs" / f"{trained['trial_id'].iloc[0]}.log").read_text()
    assert "TRAIN_METRICS: epoch=2 " in log
    assert "Final metrics" in log
    assert results.load(run).leaderboard().set_index("pool")["n"].to_dict() == {"gap": 2, "gem": 2, "mine": 0}

    capfd.readouterr()
    assert cli.main(["--space", str(space_file), "--out", str(run)]) == cli.INCOMPLETE
    assert "nothing to do" in capfd.readouterr().out
    assert written(run) == after


FAULTS = {  # {name: what the pool does, the attempts, the row's error, what its log says}
    "raises": ("raise ValueError('forty')", 1, "ValueError: forty", 'raises.py"'),
    "dies": ("os._exit(7)", 2, "its worker failed 2 times", "the process that runs it has ended: exit code 7"),
    "leaves": ("raise SystemExit(0)", 1, "SystemExit: 0", 'leaves.py"'),
    # in C, and keeps Python's lock
    "hangs": ("re.fullmatch('(a+)+b', 'a' * 60)", 2, "it hung: no epoch for 8 s (stall_timeout)", 'hangs.py"'),
    "chokes": (  # and can write nothing any more
        "resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))",
        2,
        "its worker failed 2 times",
        "in the process of this pool, and there alone: the run folder cannot be written",
    ),
}


@pytest.mark.soak
def test_a_trial_that_raises_and_one_whose_worker_dies_leave_the_others_alone(
    sweep, space_file: Path, tmp_path: Path, capfd
) -> None:
    # The gate gives it batches of 4, 20, 32 and 128 maps, evaluation those of 40 images.
    head = "import os, re, resource\nfrom torch import nn\nclass CustomPool(nn.Module):\n    def forward(self, x):\n"
    for name, (fault, *_) in FAULTS.items():
        body = f"        if len(x) == 40: {fault}\n        return x.mean((2, 3))\n"
        (tmp_path / f"{name}.py").write_text(head + body)
    text = SPACE.replace("  - gem\n", "".join(f"  - {{file: {name}.py}}\n" for name in FAULTS)).replace(BOTH, ONE)
    space_file.write_text(text.replace("[1, 2]", "[1]\nstall_timeout: 8"))
    assert sweep() == cli.INCOMPLETE
    said = capfd.readouterr().out
    assert "5 failed; why stands in" in said
    assert "Failed, not in any mean" in said
    run = tmp_path / "run"
    trials = pd.read_parquet(run / "trials").set_index("pool")
    assert trials["status"].to_dict() == {"gap": "collapsed", **dict.fromkeys(FAULTS, "failed")}, "after four steps"
    for name, (_, attempts, error, told) in FAULTS.items():
        log = (run / "logs" / f"{trials.loc[name, 'trial_id']}.log").read_text()
        assert str(trials.loc[name, "error"]).startswith(error)
        assert trials.loc[name, "attempt"] == attempts, "a candidate's own exception is not tried again"
        assert told in log
        assert log.count("Timeout (0:00:08)!") == (2 if name == "hangs" else 0)

    before = written(run)
    assert sweep() == cli.INCOMPLETE
    assert "nothing to do" in capfd.readouterr().out
    assert written(run) == before
    assert sweep("--retry-failed", "--only", "pool=raises") == cli.INCOMPLETE
    assert pd.read_parquet(run / "trials").set_index("pool").loc["raises", "attempt"] == 2
    assert {name for name, at in written(run).items() if at != before[name]} == {
        f"{trials.loc['raises', 'trial_id']}.parquet"
    }


@pytest.mark.soak
def test_the_published_pairs_on_real_images(
    sweep, space_file: Path, tmp_path: Path, shared_data: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Two pools, two seeds, and one seed more: nothing is trained twice, and `reproduce` says what can be said."""
    text = """
name: real
recipe: {epochs: 2, batch_size: 32, lr: 0.02, train_samples: 320, test_samples: 100}
pairs:
  - {arch: resnet56, dataset: cifar100}
  - {arch: vgg16bn, dataset: cifar100}
  - {arch: mobilenetv2, dataset: fmnist}
pools: [{name: gap, role: baseline}, {name: global_max, role: baseline}]
seeds: [1, 2]
"""
    run = tmp_path / "run"
    space_file.write_text(text)
    assert sweep("--data-dir", str(shared_data)) in (cli.OK, cli.INCOMPLETE)
    before = written(run)
    assert len(before) == 12
    space_file.write_text(text.replace("[1, 2]", "[1, 2, 3]"))
    assert sweep("--data-dir", str(shared_data)) in (cli.OK, cli.INCOMPLETE)
    assert len(trained_once(run, (1, 2), before)) == 18
    capfd.readouterr()
    assert results_command(["reproduce", str(run)]) == 0
    said = capfd.readouterr().out
    assert "6 cells that are both published and measured" in said
    assert "agrees" not in said.partition("6 cells")[0]


class Command:
    """A sweep as a person starts it: a process group of its own, on a Ray of its own."""

    def __init__(self, space_file: Path, run: Path):
        self.run = run
        self.arguments = [sys.executable, "-c", DRIVER, "--space", str(space_file), "--out", str(run)]
        self.started: list[subprocess.Popen[str]] = []

    def start(self, *options: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [*self.arguments, *options],
            cwd=ROOT,
            text=True,
            start_new_session=True,
            preexec_fn=heed_interrupts,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        self.started.append(process)
        return process

    def wait_for_trials(self, process: subprocess.Popen[str], ended: int) -> None:
        """Until that many trials have ended and another has left a checkpoint, or the process has ended."""

        def are_there() -> bool:
            return len(written(self.run)) >= ended and any((self.run / "checkpoints").glob("[!.]*"))

        wait_until(lambda: process.poll() is not None or are_there())


def heed_interrupts() -> None:
    """As at a terminal, whoever runs the tests."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])


@pytest.fixture
def command(space_file: Path, tmp_path: Path) -> Iterator[Command]:
    """One trial at a time: when the first has ended and a checkpoint is there, the second has just begun."""
    text = SPACE.replace("epochs: 2", "epochs: 12").replace(BOTH, ONE)
    space_file.write_text(f"{text}resources: {{cpus_per_trial: {machine.cores()}}}\n")
    command = Command(space_file, tmp_path / "run")
    yield command
    for process in command.started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def undisturbed(space_file: Path, folder: Path) -> RunFolder:
    """The same sweep, trial by trial in this process: what an undisturbed one comes to."""
    space = spaces.load(space_file)
    run = RunFolder(folder)
    run.create()
    job = Job(run.where, threads=machine.cores(), checkpoint_every=100)
    for planned in space.grid:
        run_pack([planned], data.load("digits", Path()), job)
    return run


@pytest.mark.soak  # two sweeps and a half: 150 s of 2 cores
def test_kill_9_and_run_again(command: Command, space_file: Path, tmp_path: Path) -> None:
    process = command.start()
    command.wait_for_trials(process, ended=1)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    before = written(command.run)
    assert 1 <= len(before) < 4

    again = subprocess.run(command.arguments, cwd=ROOT, capture_output=True, text=True, check=False)
    assert again.returncode in (cli.OK, cli.INCOMPLETE), again.stderr
    assert f", {4 - len(before)} to run" in again.stdout
    assert len(trained_once(command.run, range(1, 13), before)) == 4
    logs = "".join(path.read_text() for path in (command.run / "logs").iterdir())
    assert "resumed after epoch" in logs
    expected = undisturbed(space_file, tmp_path / "undisturbed")
    pd.testing.assert_frame_equal(epochs_of(RunFolder(command.run)), epochs_of(expected))


@pytest.mark.soak
@pytest.mark.parametrize("sent", ["while Ray starts", "before the first trial"])
def test_sigterm_is_heard_from_the_first_word_on(command: Command, sent: str) -> None:
    process = command.start()
    assert process.stdout is not None
    word = "starting Ray" if sent == "while Ray starts" else "trials run on the CPU"
    before = list[str]()
    while not before or word not in before[-1]:
        before.append(process.stdout.readline())
        assert before[-1], before
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=90)
    assert process.returncode == cli.INTERRUPTED, said
    assert "interrupted by SIGTERM; what has finished is kept. To go on: python run_sweep.py --space" in said
    assert "Traceback" not in said
    assert not list((command.run / "trials").iterdir())


@pytest.mark.soak
def test_a_second_driver_is_refused_and_sigterm_loses_nothing(command: Command, space_file: Path) -> None:
    text = space_file.read_text().replace("[1, 2]", str(list(range(100)))).replace("epochs: 12", "epochs: 60")
    space_file.write_text(text.replace("checkpoint_every: 1", "checkpoint_every: 10"))
    process = command.start()
    command.wait_for_trials(process, ended=0)
    second = subprocess.run(command.arguments, cwd=ROOT, capture_output=True, text=True, check=False)
    assert second.returncode == cli.REFUSED
    assert f"is in use by another sweep: process {process.pid} on" in second.stderr
    assert "nothing was started" in second.stderr

    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=90)
    assert process.returncode == cli.INTERRUPTED, said
    assert "stopping: trials write checkpoints first" in said
    assert "interrupted by SIGTERM; what has finished is kept. To go on: python run_sweep.py --space" in said
    assert "Traceback" not in said
    assert not (command.run / "driver.json").exists()
    (running,) = [path for path in (command.run / "logs").iterdir() if "Final metrics" not in path.read_text()]
    left = re.search(r"stopped after epoch (\d+), as the sweep was asked to", running.read_text())
    assert left, running.read_text()
    epochs = pd.read_parquet(command.run / "epochs" / f"{running.stem}.parquet")["epoch"]
    assert list(epochs) == list(range(1, int(left[1]) + 1))
    slot = RunFolder(command.run).trial(running.stem).checkpoint.read()
    assert slot is not None
    assert len(checkpoint.decode(running.stem, slot)["history"]) == len(epochs)


@pytest.mark.soak
def test_a_disk_that_is_full_stops_the_sweep_and_fails_no_trial(sweep, small_disk: Path, capfd) -> None:
    run = RunFolder(small_disk / "run")
    options = ("--only", "arch=resnet20", "--out", run.where)
    assert sweep(*options) == cli.INCOMPLETE
    said = capfd.readouterr().err
    assert "error: stopped: the run folder cannot be written on" in said
    assert "No space left on device" in said
    assert "To go on: python run_sweep.py" in said
    assert "Traceback" not in said
    assert run.ended() == {}
    remount(small_disk, "size=50m")
    assert sweep(*options) == cli.INCOMPLETE, "all of them have collapsed, after four steps"
    assert {one.status for one in run.ended().values()} == {schema.COLLAPSED}


@pytest.mark.soak
def test_a_row_that_cannot_be_read_is_set_aside_and_trained_anew(sweep, tmp_path: Path, capfd) -> None:
    run = tmp_path / "run"
    only = ("--only", "arch=resnet20,seed=1")
    assert sweep(*only) == cli.INCOMPLETE, "two steps an epoch: they are no better than guessing"
    before = epochs_of(RunFolder(run))
    broken, other = sorted((run / "trials").iterdir())
    whole, kept = broken.read_bytes(), other.stat().st_mtime_ns
    broken.write_bytes(whole[: len(whole) // 2])
    capfd.readouterr()
    assert sweep("--plan", *only) == cli.REFUSED
    assert broken.name in capfd.readouterr().err
    assert sweep(*only) == cli.INCOMPLETE
    assert f"set aside, into {RunFolder(run)}/set-aside: unreadable: trials/{broken.name}" in capfd.readouterr().out
    assert (run / "set-aside" / "trials" / broken.name).read_bytes() == whole[: len(whole) // 2]
    assert other.stat().st_mtime_ns == kept
    pd.testing.assert_frame_equal(epochs_of(RunFolder(run)), before)


@pytest.mark.soak
def test_a_pool_may_be_invalid_on_one_architecture_alone(sweep, space_file: Path, tmp_path: Path, capfd) -> None:
    (tmp_path / "mine.py").write_text(INFINITE.replace("/ 0", "+ x.std((2, 3))"))  # NaN where there is one value
    space_file.write_text(SPACE.replace("- gem", "- {file: mine.py}").replace("[1, 2]", "[1]"))
    assert sweep() == cli.REFUSED
    assert "check finite-output: on mobilenetv2_s32's feature map" in capfd.readouterr().err
    assert not (tmp_path / "run" / "space.yaml").exists()
    assert sweep("--set", "skip_invalid=true") == cli.INCOMPLETE
    trials = results.load(tmp_path / "run").trials().set_index(["pool", "arch"])
    assert trials["status"].to_dict() == {
        ("gap", "resnet20"): "collapsed",  # after four steps
        ("gap", "mobilenetv2_s32"): "collapsed",
        ("mine", "resnet20"): "collapsed",
        ("mine", "mobilenetv2_s32"): "invalid",
    }
    assert "finite-output" in str(trials.loc[("mine", "mobilenetv2_s32"), "error"])
