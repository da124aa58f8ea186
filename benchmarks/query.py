"""How long answers take: what has ended, the leaderboard, loading, at run folders of many trials of 200 epochs.

    python -m benchmarks.query [--trials 1000 10000 100000] [--small-files-up-to 10000] [--output FILE]

Folders are made as sweeps leave them, a file a trial and a file of its epochs, with random accuracies; then compacted.
Beyond `--small-files-up-to` they are only made in the compacted form, and without epochs.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from benchmarks import common
from benchmarks.common import Row
from orchestrator import record
from results.store import schema
from results.store.folder import RunFolder
from search_spaces import pool
from search_spaces.grid import BASELINE, CANDIDATE, Entry, Grid, Pair, Planned
from search_spaces.recipe import Recipe
from trainer.outcome import Epoch
from trainer.train import learning_rate

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
    parser = common.options(__doc__)
    parser.add_argument("--trials", type=int, nargs="+", default=[1000, 10_000, 100_000])
    parser.add_argument("--small-files-up-to", type=int, default=10_000)
    args = parser.parse_args()
    rows = []
    for trials in args.trials:
        with tempfile.TemporaryDirectory() as folder:
            run, grid = RunFolder(Path(folder) / "run"), grid_of(trials)
            run.create()
            run.write_grid(grid)
            questions = list(QUESTIONS)
            if trials <= args.small_files_up_to:
                write_small(run, grid)
                rows.append({"trials": trials, "files": "small", **ask(run, questions)})
                run.compact()
            else:
                table = pa.Table.from_pylist([row for _, row, _ in _results(grid)], schema=schema.TRIALS)
                run.trials.write_merged(table)
                questions = [one for one in QUESTIONS if one not in ABOUT_EPOCHS]
            rows.append({"trials": trials, "files": "compacted", **ask(run, questions)})
    columns = {f"{question}, s": f"{{{question}[seconds]:.2f}}" for question in QUESTIONS}
    common.show({"trials": "{trials:,}", "files": "{files}", **columns}, rows)
    common.save(args, "query", rows)


def ask(run: RunFolder, questions: Iterable[str]) -> Row:
    """Ask each question in a process of its own, so that none is answered from memory."""
    return {name: common.in_a_process(ASK.format(question=QUESTIONS[name]), str(run.path)) for name in questions}


def grid_of(trials: int) -> Grid:
    """Return twenty pools, three pairs, and as many seeds as it takes."""
    powers = [round(1 + i / 10, 1) for i in range(POOLS - 2)]
    pools = [*pool.expand("gap"), *pool.expand("global_max"), *pool.expand("gem", {"p": powers})]
    entries = tuple(Entry(each, BASELINE if i < 2 else CANDIDATE) for i, each in enumerate(pools))
    seeds = tuple(range(-(-trials // (len(entries) * len(PAIRS)))))
    return Grid("query", entries, PAIRS, seeds, Recipe(epochs=EPOCHS))


def write_small(run: RunFolder, grid: Grid) -> None:
    for planned, row, history in _results(grid):
        run.epochs.write(planned.trial.id, record.epoch_rows(planned.trial, history))
        run.write_trial(row)


def _results(grid: Grid) -> Iterator[tuple[Planned, dict[str, Any], list[Epoch]]]:
    random = np.random.default_rng(0)
    steps = np.arange(1, EPOCHS + 1)
    times = dict.fromkeys(["started_at", "finished_at"], datetime.now(UTC))
    more = {"host": "a", "device": "a GPU", "attempt": 1, "versions": record.versions(), **times}
    for planned in grid:
        accuracy = 70 * (1 - np.exp(-steps / 30)) + random.normal(0, 0.4, EPOCHS)
        history = [
            Epoch(int(e), 1.0, 50.0, 1.0, float(a), learning_rate(grid.recipe, int(e)), 3.0, 1000.0)
            for e, a in zip(steps, accuracy, strict=True)
        ]
        yield planned, record.row(planned, schema.COMPLETED, history, None) | more, history


if __name__ == "__main__":
    main()
