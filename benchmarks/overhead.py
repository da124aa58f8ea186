"""Seconds a trial that are not training: a sweep of trials too small to matter, beside plain Ray Tune.

    python -m benchmarks.overhead [--trials 200] [--plain-trials 6] [--output FILE]

Ours is the whole command, Ray's start, logs, Parquet and table included, over trials of 64 images and one epoch. Plain
Tune is its defaults: a function that imports torch and reports once. Both pay for Ray's start once.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml
from rich.console import Console
from rich.table import Table

from benchmarks import record

ROOT = Path(__file__).resolve().parents[1]
POOLS = ["gap", "gem", "avg_max", "global_max"]

PLAIN_TUNE = """
import sys
from ray import tune

def trainable(config):
    import torch
    tune.report({"accuracy": float(torch.rand(()))})

tune.Tuner(trainable, param_space={"seed": tune.grid_search(list(range(int(sys.argv[1]))))}).fit()
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--plain-trials", type=int, default=6)
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    rows = [
        {"what": "this project, whole command", "trials": args.trials, "seconds": ours(args.trials)},
        {"what": "plain Ray Tune, its defaults", "trials": args.plain_trials, "seconds": plain_tune(args.plain_trials)},
    ]
    table = Table("", "trials", "seconds", "seconds a trial")
    for row in rows:
        row["seconds_per_trial"] = row["seconds"] / row["trials"]
        table.add_row(row["what"], str(row["trials"]), f"{row['seconds']:.1f}", f"{row['seconds_per_trial']:.2f}")
    Console().print(table)
    if args.output:
        record.save(args.output, "overhead", rows)


def ours(trials: int) -> float:
    space = {
        "name": "overhead",
        "recipe": {"epochs": 1, "batch_size": 64, "train_samples": 64, "test_samples": 32},
        "pairs": [{"arch": "resnet20", "dataset": "digits"}],
        "pools": POOLS,
        "seeds": list(range(trials // len(POOLS))),
    }
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "space.yaml"
        file.write_text(yaml.safe_dump(space))
        command = [sys.executable, "run_sweep.py", "--space", str(file), "--out", str(Path(folder) / "run")]
        return _seconds(command)


def plain_tune(trials: int) -> float:
    with tempfile.TemporaryDirectory() as home:  # by default its results go to ~/ray_results
        return _seconds([sys.executable, "-c", PLAIN_TUNE, str(trials)], HOME=home)


def _seconds(command: list[str], **environment: str) -> float:
    start = time.perf_counter()
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, env=os.environ | environment)
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
