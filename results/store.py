"""The run folder: the only truth about what has been trained. This class owns every path in it.

    RUN/space.yaml                what was asked, resolved
    RUN/trials/<trial id>.parquet one row, written last: it marks the trial as ended
    RUN/epochs/<trial id>.parquet one row an epoch, rewritten as the trial goes
    RUN/checkpoints/<trial id>.pt for resuming; gone when the trial has completed or diverged
    RUN/logs/<trial id>.log       what the trial printed; the traceback of a failure
    RUN/ray.log                   what Ray had to say
    RUN/packs.json                how many trials to train side by side, as measured

Every file is written beside its place and renamed into it, so a reader never sees half of one.
"""

from __future__ import annotations

import contextlib
import json
import os
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import yaml

from results import schema
from trainer.grid import Grid
from trainer.problems import RequestError


class RunFolder:
    """A sweep's results at `path`.

    Reading needs nothing but the files; writing is safe from many processes at once, since no two trials share a file.
    """

    def __init__(self, path: Path | str):
        self.path = Path(path).resolve()

    def __str__(self) -> str:
        with contextlib.suppress(ValueError):
            return str(self.path.relative_to(Path.cwd()))
        return str(self.path)

    def create(self) -> None:
        """Makes the folders.

        Raises:
            RequestError: nothing can be written there.
        """
        try:
            for name in ("trials", "epochs", "checkpoints", "logs"):
                (self.path / name).mkdir(parents=True, exist_ok=True)
            probe = self.path / f".tmp-{uuid.uuid4().hex}"
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise RequestError.of(f"the run folder {self} cannot be written: {error.strerror or error}") from None

    # What was asked

    def grid(self) -> Grid | None:
        """The trials of the newest sweep on this folder; None if there was none.

        Raises:
            RequestError: its space.yaml cannot be read.
        """
        path = self.path / "space.yaml"
        if not path.exists():
            return None
        try:
            return Grid.from_dict(yaml.safe_load(path.read_text(encoding="utf-8")))
        except (yaml.YAMLError, KeyError, TypeError, ValueError, OSError) as error:
            raise RequestError.of(f"{path} is not what a sweep wrote: {error}") from None

    def write_grid(self, grid: Grid) -> None:
        text = yaml.safe_dump(grid.to_dict(), sort_keys=False, allow_unicode=True)
        _replace(self.path / "space.yaml", text.encode())

    def pack_sizes(self) -> dict[str, Any]:
        """What was measured about how many trials to train side by side: {what and where: measurements}."""
        path = self.path / "packs.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}

    def write_pack_sizes(self, sizes: Mapping[str, Any]) -> None:
        _replace(self.path / "packs.json", json.dumps(sizes, indent=1).encode())

    # What was measured

    def recipes(self) -> set[tuple[str, int]]:
        """(recipe as JSON, protocol) of every trial that has ended."""
        table = self.read_trials(columns=["recipe", "protocol"])
        return set(zip(table["recipe"].to_pylist(), table["protocol"].to_pylist(), strict=True))

    def statuses(self) -> dict[str, str]:
        """{trial id: status} of every trial that has ended."""
        table = self.read_trials(columns=["trial_id", "status"])
        return dict(zip(table["trial_id"].to_pylist(), table["status"].to_pylist(), strict=True))

    def status(self, trial_id: str) -> str | None:
        """Of one trial; None if it has not ended."""
        path = self.path / "trials" / f"{trial_id}.parquet"
        return pq.read_table(path, columns=["status"])["status"][0].as_py() if path.exists() else None

    def read_trials(self, columns: Sequence[str] | None = None) -> pa.Table:
        """Every trial that has ended, as `schema.TRIALS`."""
        return self._read("trials", schema.TRIALS, columns)

    def read_epochs(self, columns: Sequence[str] | None = None) -> pa.Table:
        """Every epoch on record, of running trials too, as `schema.EPOCHS`."""
        return self._read("epochs", schema.EPOCHS, columns)

    def write_trial(self, row: Mapping[str, Any]) -> None:
        self._write("trials", row["trial_id"], [row], schema.TRIALS)

    def write_epochs(self, trial_id: str, rows: Sequence[Mapping[str, Any]]) -> None:
        self._write("epochs", trial_id, rows, schema.EPOCHS)

    # What a trial needs while it runs

    def checkpoint(self, trial_id: str) -> CheckpointFile:
        return CheckpointFile(self.path / "checkpoints" / f"{trial_id}.pt")

    def log_path(self, trial_id: str) -> Path:
        return self.path / "logs" / f"{trial_id}.log"

    def open_log(self, trial_id: str) -> TextIO:
        """The trial's log, open for appending: a second attempt adds to what the first one left."""
        return self.log_path(trial_id).open("a", encoding="utf-8", buffering=1)

    def ray_log(self) -> TextIO:
        """What Ray itself had to say, over all sweeps on this folder; open for appending."""
        return (self.path / "ray.log").open("a", encoding="utf-8", buffering=1)

    def _read(self, name: str, wanted: pa.Schema, columns: Sequence[str] | None) -> pa.Table:
        folder = self.path / name
        try:
            files = sorted(folder.glob("[!.]*.parquet")) if folder.is_dir() else []
            return ds.dataset(files, schema=wanted, format="parquet").to_table(columns=columns and list(columns))
        except (OSError, pa.ArrowException) as error:
            raise RequestError.of(f"{folder} cannot be read: {error}; move what is no file of this run away") from None

    def _write(self, name: str, trial_id: str, rows: Sequence[Mapping[str, Any]], wanted: pa.Schema) -> None:
        unknown = {key for row in rows for key in row} - set(wanted.names)
        if unknown:
            raise ValueError(f"no such column in {name}: {', '.join(sorted(unknown))}")
        sink = pa.BufferOutputStream()
        pq.write_table(pa.Table.from_pylist(list(rows), schema=wanted), sink)
        _replace(self.path / name / f"{trial_id}.parquet", sink.getvalue().to_pybytes())


@dataclass(frozen=True, slots=True)
class CheckpointFile:
    """The place of one trial's checkpoint (`trainer.checkpoint.Slot`)."""

    path: Path

    def read(self) -> bytes | None:
        return self.path.read_bytes() if self.path.exists() else None

    def write(self, data: bytes) -> None:
        _replace(self.path, data)

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)


def _replace(path: Path, data: bytes) -> None:
    """Writes a file wholly or not at all. A name that starts with a dot is passed over by every Parquet reader."""
    beside = path.parent / f".tmp-{path.name}-{uuid.uuid4().hex[:8]}"
    try:
        with beside.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
