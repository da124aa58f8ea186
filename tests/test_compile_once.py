"""Kernels are compiled once a machine: by one process, for which the others wait. With real processes."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from orchestrator.record import Job
from orchestrator.worker import run_pack
from results.store.folder import RunFolder
from search_spaces import machine, pool
from search_spaces.grid import BASELINE, Planned
from search_spaces.messages import log, shown_by
from search_spaces.recipe import Recipe
from search_spaces.trial import Trial
from trainer import compile_once
from trainer.compile_once import once
from trainer.data import Dataset

RECIPE = Recipe(epochs=1, batch_size=32, precision="bf16", train_samples=64, test_samples=32)
TRIAL = Trial(pool.expand("gap")[0], "resnet20", "digits", 0, RECIPE)

WAITS = "waits for another process, which compiles kernels"
WORKER = """
import sys
from pathlib import Path
from search_spaces.messages import shown_by
from trainer.compile_once import once

def compile_all():
    print("compiles", flush=True)
    if sys.stdin.readline() == "fail\\n":
        raise RuntimeError("no ptxas")

print("begins", flush=True)
with shown_by(lambda line: print(line, flush=True)):
    once("kernels", sys.argv[1], compile_all, Path(sys.argv[2]), float(sys.argv[3]))
"""


@contextmanager
def worker(cache: Path, key: str = "key", wait_s: float = 60.0) -> Iterator[subprocess.Popen[str]]:
    """A process that compiles into a cache, if nobody else has; it is at work when it says `compiles`, and ends by
    a line on its stdin."""
    command = [sys.executable, "-c", WORKER, key, str(cache), str(wait_s)]
    with subprocess.Popen(
        command, env=machine.environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def says(process: subprocess.Popen[str]) -> str:
    assert process.stdout
    return process.stdout.readline().strip()


def is_told(process: subprocess.Popen[str], line: str) -> list[str]:
    """Let it go on; return what it says until it ends."""
    return process.communicate(f"{line}\n", timeout=60)[0].splitlines()


def test_of_two_processes_one_compiles_and_the_other_waits(tmp_path: Path) -> None:
    with worker(tmp_path / "cache") as first:
        assert [says(first), says(first)] == ["begins", "compiles"]
        with worker(tmp_path / "cache") as second, worker(tmp_path / "cache", "other") as third:
            assert [says(second), says(second)] == ["begins", WAITS]
            assert [says(third), says(third)] == ["begins", "compiles"], "other kernels are nobody's to wait for"
            (compiled,) = is_told(first, "go on")
            (waited,) = is_told(second, "go on")
            is_told(third, "go on")
    assert compiled.startswith("compiled kernels in ")
    assert waited.startswith("waited for ")
    with worker(tmp_path / "cache") as late:
        assert is_told(late, "go on") == ["begins"], "it is done, and there is nothing to say"


def test_a_process_that_is_killed_while_it_compiles_is_followed_by_another(tmp_path: Path) -> None:
    with worker(tmp_path) as first:
        assert [says(first), says(first)] == ["begins", "compiles"]
        with worker(tmp_path) as second:
            assert [says(second), says(second)] == ["begins", WAITS]
            first.kill()
            assert says(second) == "compiles"
            assert is_told(second, "go on")[0].startswith("compiled kernels in ")


def test_nobody_waits_for_ever(tmp_path: Path) -> None:
    with worker(tmp_path) as first:
        assert [says(first), says(first)] == ["begins", "compiles"]
        with worker(tmp_path, wait_s=0.0) as second:
            note = "note: it has taken 0 s; what is missing is compiled as it is needed"
            assert is_told(second, "go on") == ["begins", WAITS, note]


def test_what_fails_is_a_note_and_is_left_to_who_trains(tmp_path: Path) -> None:
    with worker(tmp_path) as first:
        assert is_told(first, "fail") == ["begins", "compiles", "note: kernels cannot be compiled ahead: no ptxas"]
    with worker(tmp_path) as second:
        assert is_told(second, "go on") == ["begins"]


def test_a_cache_that_cannot_be_written_is_a_note(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    said: list[str] = []
    with shown_by(said.append):
        once("kernels", "key", lambda: pytest.fail("compiled for nobody"), tmp_path / "file" / "cache")
    assert said == [
        "note: kernels cannot be compiled ahead: [Errno 20] Not a directory: " + repr(str(tmp_path / "file" / "cache"))
    ]


def test_on_a_cpu_nothing_is_compiled(digits: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compile_once, "once", lambda *_: pytest.fail("compiled for nobody"))
    compile_once.for_trial(TRIAL, digits, torch.device("cpu"))


def test_a_trials_log_says_how_long_its_kernels_took(
    digits: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunFolder(tmp_path / "run")
    run.create()
    monkeypatch.setattr(compile_once, "for_trial", lambda trial, *_: log.info(f"compiled for {trial.pool.label}"))
    planned = Planned(TRIAL, BASELINE, False, (0, 0, 0))
    run_pack([planned], digits, Job(run.where))
    attempt, compiled, *_ = (tmp_path / "run" / "logs" / f"{TRIAL.id}.log").read_text().splitlines()
    assert attempt.startswith("attempt 1")
    assert compiled == "compiled for gap"


REAL = """
import sys
from pathlib import Path
import torch
from search_spaces.messages import shown_by
from tests.test_compile_once import TRIAL
from trainer import compile_once, data, precompile

precompile.this_capability = lambda: 90
digits = data.load("digits", Path("unused"))
with shown_by(print):
    compile_once.for_trial(TRIAL, digits, torch.device("cuda", 0))
    compile_once.for_trial(TRIAL, digits, torch.device("cuda", 0))
kernels = precompile.precompile([precompile.Case.of(TRIAL, digits)], 90)
print(len(kernels) > 10, {kernel.cached for kernel in kernels})
"""


@pytest.mark.soak
def test_a_trials_kernels_are_in_tritons_cache_afterwards(tmp_path: Path) -> None:
    """Those of a GPU that is not there: compiling takes none."""
    pytest.importorskip("triton")
    environment = machine.environment() | {"TRITON_CACHE_DIR": str(tmp_path / "cache")}
    environment.pop("TRITON_INTERPRET", None)
    done = subprocess.run([sys.executable, "-c", REAL], env=environment, capture_output=True, text=True, check=False)
    first, cached = done.stdout.splitlines() or pytest.fail(done.stderr)
    assert first.startswith("compiled the kernels of resnet20 in bf16 in "), "the second time there is nothing to do"
    assert cached == "True {True}"
