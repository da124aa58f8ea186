"""The columns of the run folder, declared once and never inferred.

An inferred schema breaks a reader as soon as the first file has a column of nothing but nulls.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

# 3 added `pool_name` and `pool_revision`, which `fill_in` gives to rows of version 1. There was no version 2.
# 4 added what trained an epoch, and with which kernels: null in older rows.
SCHEMA_VERSION = 4

COMPLETED = "completed"
DIVERGED = "diverged"  # a loss is not finite
COLLAPSED = "collapsed"  # never better than guessing (`search_spaces.chance`)
FAILED = "failed"
INVALID = "invalid"  # refused by the gate, never started
TRAINED = (COMPLETED, DIVERGED, COLLAPSED)  # to its own end: never again
STATUSES = (*TRAINED, FAILED, INVALID)

_IDENTITY = [
    ("trial_id", pa.string()),
    ("pool", pa.string()),
    ("arch", pa.string()),
    ("dataset", pa.string()),
    ("seed", pa.int64()),
]

# One row a trial. Accuracies in percent, times in seconds, instants in UTC.
TRIALS = pa.schema(
    [
        *_IDENTITY,
        ("pool_name", pa.string()),  # as in the trial's id
        ("pool_revision", pa.string()),  # 8 hex digits of `pool_source_sha`; null for a built-in pool
        ("pool_params", pa.string()),  # JSON
        ("pool_source_sha", pa.string()),  # null for a built-in pool
        ("role", pa.string()),
        ("hidden", pa.bool_()),
        ("status", pa.string()),  # one of STATUSES
        ("best_test_acc", pa.float64()),
        ("best_epoch", pa.int64()),
        ("final_test_acc", pa.float64()),
        ("final_test_loss", pa.float64()),
        ("final_train_acc", pa.float64()),
        ("final_train_loss", pa.float64()),
        ("epochs", pa.int64()),  # how many were trained
        ("test_images", pa.int64()),  # that its test accuracies are over; null before protocol 2
        ("params", pa.int64()),  # of the whole network
        ("pool_params_count", pa.int64()),
        ("pool_flops", pa.int64()),  # an image, forward and backward, in convolutions and matrix products
        ("pool_times_gap", pa.float64()),  # its forward and backward by average pooling's, on one CPU thread
        ("train_s", pa.float64()),  # all epochs, evaluation included
        ("images_per_s", pa.float64()),  # median over epochs, of training alone
        ("peak_memory_mb", pa.float64()),  # of the process: all trials of a pack together
        ("device", pa.string()),
        ("compiled", pa.bool_()),  # by torch.compile
        ("kernels", pa.string()),  # of the last attempt: their version and which were off; null on a CPU
        ("recipe", pa.string()),  # JSON
        ("protocol", pa.int64()),
        ("attempt", pa.int64()),  # from 1
        ("error", pa.string()),
        ("host", pa.string()),
        ("git_commit", pa.string()),  # of the last attempt
        ("versions", pa.string()),  # JSON
        ("started_at", pa.timestamp("us", tz="UTC")),
        ("finished_at", pa.timestamp("us", tz="UTC")),
        ("schema_version", pa.int64()),
    ]
)

# One row an epoch, from 1. `lr` is the benchmark's: the rate once the epoch is done.
EPOCHS = pa.schema(
    [
        *_IDENTITY,
        ("epoch", pa.int64()),
        ("train_loss", pa.float64()),
        ("train_acc", pa.float64()),
        ("test_loss", pa.float64()),
        ("test_acc", pa.float64()),
        ("lr", pa.float64()),
        ("epoch_s", pa.float64()),
        ("git_commit", pa.string()),  # that trained it, which a resumed trial may have several of
        ("kernels", pa.string()),  # as in TRIALS, but of the attempt that trained it
    ]
)

TABLES = {"trials": TRIALS, "epochs": EPOCHS}
ADDED = {"trials": {"kernels"}, "epochs": {"git_commit", "kernels"}}  # by version 4
# {a column that rows from before version 3 lack: (the column that it follows from, how)}
_FILLED_IN: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "pool_name": ("trial_id", lambda ids: pc.replace_substring_regex(ids, "-.*", "")),  # pyright: ignore
    "pool_revision": ("pool_source_sha", lambda hashes: pc.utf8_slice_codeunits(hashes, 0, 8)),  # pyright: ignore
}
FILLED_IN_FROM = {name: source for name, (source, _) in _FILLED_IN.items()}


def fill_in(table: pa.Table) -> pa.Table:
    """Fill in the columns of `FILLED_IN_FROM` that the table has, in rows from before version 3."""
    for name, (source, derive) in _FILLED_IN.items():
        if name in table.column_names:
            column = pc.coalesce(table[name], derive(table[source]))  # pyright: ignore
            table = table.set_column(table.column_names.index(name), name, column)
    return table
