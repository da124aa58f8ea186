"""How long answers take: what has ended, the leaderboard, loading, at run folders of many trials of 200 epochs.

    python -m benchmarks.query [--trials 1000 10000 100000] [--small-files-up-to 10000] [--output FILE]

Folders are made as sweeps leave them, a file a trial and a file of its epochs, with random accuracies; then compacted.
Beyond `--small-files-up-to` they are only made in the compacted form.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from rich.console import Console
from rich.table import Table

from benchmarks import record as machine
from orchestrator import record
from results.store import schema
from results.store.folder import RunFolder
from search_spaces import pool
from search_spaces.grid import BASELINE, CANDIDATE, Entry, Grid, Pair, Planned
from search_spaces.recipe import Recipe
from trainer.outcome import Epoch
from trainer.train import learning_rate

ROOT = Path(__file__).resolve().parents[1]
EPOCHS = 200
PAIRS = (Pair("resnet56", "cifar100"), Pair("vgg16bn", "cifar100"), Pair("mobilenetv2", "fmnist"))
POOLS = 20
QUESTIONS = {
    "what has ended": "from results.store.folder import RunFolder; answer = len(RunFolder(run).ended())",
    "leaderboard": "import results; answer = len(results.load(run).leaderboard())",
    "as text": "import results; answer = len(results.load(run).leaderboard(format='text'))",
    "load trials": "import results; answer = len(results.load(run).trials())",
    "load epochs": "import results; answer = len(results.load(run).epochs())",
    "audit": "import results; from results.store.verify import audit; answer = audit(results.load(run).folder).trials",
}
ABOUT_EPOCHS = ("load epochs", "audit")
ASK = """
import sys, time, resource, json
import pandas, pyarrow.dataset, results.table.leaderboard, results.__main__  # not what is measured
run = sys.argv[1]
start = time.perf_counter()
{question}
seconds = time.perf_counter() - start
mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
print(json.dumps({{"seconds": seconds, "rows": answer, "mib": mib}}))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--trials", type=int, nargs="+", default=[1000, 10_000, 100_000])
    parser.add_argument("--small-files-up-to", type=int, default=10_000)
    parser.add_argument("--epochs-up-to", type=int, default=10_000, help="no epochs are made beyond that many trials")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    rows = []
    table = Table("trials", "files", *(f"{question}, s" for question in QUESTIONS))
    for trials in args.trials:
        with tempfile.TemporaryDirectory() as folder:
            run, grid = RunFolder(Path(folder) / "run"), grid_of(trials)
            run.create()
            run.write_grid(grid)
            with_epochs = trials <= args.epochs_up_to
            if trials <= args.small_files_up_to:
                write_small(run, grid, with_epochs)
                rows.append({"trials": trials, "files": "small", **ask(run, with_epochs)})
                run.compact()
            else:
                write_compacted(run, grid, with_epochs)
            rows.append({"trials": trials, "files": "compacted", **ask(run, with_epochs)})
    for row in rows:
        seconds = (f"{row[question]['seconds']:.2f}" if row.get(question) else "" for question in QUESTIONS)
        table.add_row(f"{row['trials']:,}", row["files"], *seconds)
    Console(width=110).print(table)
    if args.output:
        machine.save(args.output, "query", rows)


def ask(run: RunFolder, with_epochs: bool) -> dict[str, Any]:
    """Each question in a process of its own, so that none is answered from memory."""
    questions = {name: text for name, text in QUESTIONS.items() if with_epochs or name not in ABOUT_EPOCHS}
    return {name: _answer(run, text) for name, text in questions.items()}


def _answer(run: RunFolder, question: str) -> dict[str, Any]:
    command = [sys.executable, "-c", ASK.format(question=question), str(run.path)]
    return json.loads(subprocess.run(command, cwd=ROOT, check=True, capture_output=True, encoding="utf-8").stdout)


def grid_of(trials: int) -> Grid:
    """Twenty pools, three pairs, and as many seeds as it takes."""
    powers = [round(1 + i / 10, 1) for i in range(POOLS - 2)]
    pools = [*pool.expand("gap"), *pool.expand("global_max"), *pool.expand("gem", {"p": powers})]
    entries = tuple(Entry(each, BASELINE if i < 2 else CANDIDATE) for i, each in enumerate(pools))
    seeds = tuple(range(-(-trials // (len(entries) * len(PAIRS)))))
    return Grid("query", entries, PAIRS, seeds, Recipe(epochs=EPOCHS))


def write_small(run: RunFolder, grid: Grid, with_epochs: bool) -> None:
    for planned, row, history in _results(grid):
        if with_epochs:
            run.epochs.write(planned.trial.id, record.epoch_rows(planned.trial, history))
        run.write_trial(row)


def write_compacted(run: RunFolder, grid: Grid, with_epochs: bool) -> None:
    rows, epochs = [], []
    for planned, row, history in _results(grid):
        rows.append(row)
        epochs += record.epoch_rows(planned.trial, history) if with_epochs else []
    run.trials.write_merged(pa.Table.from_pylist(rows, schema=schema.TRIALS))
    if with_epochs:
        run.epochs.write_merged(pa.Table.from_pylist(epochs, schema=schema.EPOCHS))


def _results(grid: Grid) -> Iterator[tuple[Planned, dict[str, Any], list[Epoch]]]:
    random = np.random.default_rng(0)
    steps = np.arange(1, EPOCHS + 1)
    now = datetime.now(UTC)
    versions = record.versions()
    for planned in grid:
        accuracy = 70 * (1 - np.exp(-steps / 30)) + random.normal(0, 0.4, EPOCHS)
        history = [
            Epoch(int(e), 1.0, 50.0, 1.0, float(a), learning_rate(grid.recipe, int(e)), 3.0, 1000.0)
            for e, a in zip(steps, accuracy, strict=True)
        ]
        row = record.row(planned, schema.COMPLETED, history, None)
        more = {
            "host": "a",
            "device": "a GPU",
            "attempt": 1,
            "versions": versions,
            "started_at": now,
            "finished_at": now,
        }
        yield planned, row | more, history


if __name__ == "__main__":
    main()
