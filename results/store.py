"""The run folder: the only truth about what has been trained. This class owns every path in it.

    RUN/space.yaml                what was asked, resolved
    RUN/trials/<trial id>.parquet one row, written last: it marks the trial as ended
    RUN/epochs/<trial id>.parquet one row an epoch, rewritten as the trial goes
    RUN/checkpoints/<trial id>.pt for resuming; gone when the trial has completed or diverged
    RUN/weights/<trial id>.pt     its final weights, if the sweep keeps them and the trial has completed
    RUN/logs/<trial id>.log       what the trial printed; the traceback of a failure
    RUN/cam/<trial id>.png        its class activation maps, once they were asked for
    RUN/ray.log                   what Ray had to say
    RUN/{trials,epochs}/merged.*  what `compact` made of many such files
    RUN/packs.json                how many trials to train side by side, as measured
    RUN/checks.json               which pools the gate found to be one function
    RUN/pools.json                every pool that was ever asked for, with its text
    RUN/submitted.json            which revision of a candidate is its entry

Every file is written beside its place and renamed into it, so a reader never sees half of one.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from results import schema
from trainer.examination import SameFunction
from trainer.grid import Grid
from trainer.pool import Pool
from trainer.problems import RequestError

MERGED = "merged."  # a trial's id has no dot
MERGE = 20_000  # files at a time: 4 million epochs, 300 MB while they are merged


class Ended(NamedTuple):
    """How a trial ended, under what."""

    status: str
    recipe: str
    protocol: int


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
            for name in ("trials", "epochs", "checkpoints", "weights", "logs"):
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
        everything = {pool.key: pool for pool in [*self.pools(), *(entry.pool for entry in grid.entries)]}
        self._write_json("pools.json", [pool.to_dict() for pool in everything.values()])

    def pools(self) -> list[Pool]:
        """Every pool that a sweep on this folder has asked for, all revisions, under its newest label."""
        return [Pool.from_dict(pool) for pool in self._read_json("pools.json", [])]

    def submissions(self) -> dict[str, tuple[Pool, str]]:
        """{name of a candidate: the entry, when it was submitted}."""
        found = self._read_json("submitted.json", {})
        return {name: (Pool.from_dict(entry["pool"]), entry["when"]) for name, entry in found.items()}

    def write_submissions(self, submissions: Mapping[str, tuple[Pool, str]]) -> None:
        data = {name: {"pool": pool.to_dict(), "when": when} for name, (pool, when) in submissions.items()}
        self._write_json("submitted.json", data)

    def pack_sizes(self) -> dict[str, Any]:
        """What was measured about how many trials to train side by side: {what and where: measurements}."""
        return self._read_json("packs.json", {})

    def write_pack_sizes(self, sizes: Mapping[str, Any]) -> None:
        self._write_json("packs.json", sizes)

    def same_functions(self) -> list[SameFunction]:
        """Which pools of the newest sweep start as one function, by architecture."""
        found = self._read_json("checks.json", {}).get("same_function", [])
        return [SameFunction.from_dict(one) for one in found]

    def write_same_functions(self, found: Sequence[SameFunction]) -> None:
        self._write_json("checks.json", {"same_function": [one.to_dict() for one in found]})

    # What was measured

    def ended(self) -> dict[str, Ended]:
        """{trial id: how} of every trial that has ended."""
        table = self.read_trials(columns=["trial_id", "status", "recipe", "protocol"])
        ids, *rest = (column.to_pylist() for column in table.columns)
        return dict(zip(ids, map(Ended, *rest), strict=True))

    def status(self, trial_id: str) -> str | None:
        """Of one trial; None if it has not ended."""
        path = self.path / "trials" / f"{trial_id}.parquet"
        if path.exists():
            return _status_in(path)
        merged = [file for file in self._files("trials") if _is_merged(file)]
        if not merged:
            return None
        import pyarrow.dataset as ds  # half a second, which most workers need not pay

        found = ds.dataset(merged, schema=schema.TRIALS).to_table(["status"], ds.field("trial_id") == trial_id)
        return found["status"][0].as_py() if len(found) else None

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

    def compact(self) -> int:
        """Merges the small files of trials that have completed or diverged; how many.

        Readers and a running sweep go on meanwhile. A merged file appears first and the small ones go after, so that
        for a moment rows stand twice, which this class knows and other readers of the folder may see. Failed trials
        stay as they are: they may be run again.
        """
        small = [file for file in self._files("trials") if not _is_merged(file)]
        status = dict(zip(small, _each(_status_in, small), strict=True))
        done = [file.name for file in small if status[file] in (schema.COMPLETED, schema.DIVERGED)]
        self._merge("epochs", done, schema.EPOCHS)
        self._merge("trials", done, schema.TRIALS)
        return len(done)

    def _merge(self, name: str, file_names: Sequence[str], wanted: pa.Schema) -> None:
        merged = [file for file in self._files(name) if _is_merged(file)]
        before = {i for file in merged for i in _read_file(file, ["trial_id"])["trial_id"].unique().to_pylist()}
        files = [path for file_name in file_names if (path := self.path / name / file_name).exists()]
        new = [file for file in files if file.stem not in before]  # the others are what a killed merge left
        for start in range(0, len(new), MERGE):
            self.write_merged(name, _concatenated(new[start : start + MERGE], wanted))
        for file in files:
            file.unlink()

    def write_merged(self, name: str, rows: pa.Table) -> None:
        """Rows of many trials, as one file of `trials` or `epochs`."""
        sink = pa.BufferOutputStream()
        pq.write_table(rows, sink, compression="zstd")
        _replace(self.path / name / f"{MERGED}{uuid.uuid4().hex[:12]}.parquet", sink.getvalue())

    # What a trial needs while it runs

    def checkpoint(self, trial_id: str) -> CheckpointFile:
        return CheckpointFile(self.path / "checkpoints" / f"{trial_id}.pt")

    def weights(self, trial_id: str) -> CheckpointFile:
        """Its final weights, a state_dict as `torch.save` writes it; there before its row is."""
        return CheckpointFile(self.path / "weights" / f"{trial_id}.pt")

    def log_path(self, trial_id: str) -> Path:
        return self.path / "logs" / f"{trial_id}.log"

    def open_log(self, trial_id: str) -> TextIO:
        """The trial's log, open for appending: a second attempt adds to what the first one left."""
        return self.log_path(trial_id).open("a", encoding="utf-8", buffering=1)

    def ray_log(self) -> TextIO:
        """What Ray itself had to say, over all sweeps on this folder; open for appending."""
        return (self.path / "ray.log").open("a", encoding="utf-8", buffering=1)

    def write_picture(self, trial_id: str, png: bytes) -> Path:
        """The trial's class activation maps; where they are."""
        path = self.path / "cam" / f"{trial_id}.png"
        path.parent.mkdir(exist_ok=True)
        _replace(path, png)
        return path

    def _read_json(self, name: str, default: Any) -> Any:
        path = self.path / name
        try:
            return json.loads(path.read_text(encoding="utf-8")) if path.exists() else default
        except (OSError, ValueError) as error:
            raise RequestError.of(f"{path} is not what a sweep wrote: {error}") from None

    def _write_json(self, name: str, data: Any) -> None:
        _replace(self.path / name, json.dumps(data, indent=1).encode())

    def _read(self, name: str, wanted: pa.Schema, columns: Sequence[str] | None) -> pa.Table:
        wanted = pa.schema([wanted.field(column) for column in columns or wanted.names])
        while True:
            files = self._files(name)
            try:
                table = _concatenated(files, wanted)
            except FileNotFoundError:
                continue  # `compact` has just put what was in it elsewhere
            except (OSError, pa.ArrowException) as error:
                what = f"{self.path / name} cannot be read: {error}; move what is no file of this run away"
                raise RequestError.of(what) from None
            return _without_repeats(table) if any(map(_is_merged, files)) else table

    def _files(self, name: str) -> list[Path]:
        """Small files first: where a trial stands in a merged one too, its own is the newer."""
        return sorted((self.path / name).glob("[!.]*.parquet"), key=lambda file: (_is_merged(file), file.name))

    def _write(self, name: str, trial_id: str, rows: Sequence[Mapping[str, Any]], wanted: pa.Schema) -> None:
        unknown = {key for row in rows for key in row} - set(wanted.names)
        if unknown:
            raise ValueError(f"no such column in {name}: {', '.join(sorted(unknown))}")
        sink = pa.BufferOutputStream()
        pq.write_table(pa.Table.from_pylist(list(rows), schema=wanted), sink)
        _replace(self.path / name / f"{trial_id}.parquet", sink.getvalue())


@dataclass(frozen=True, slots=True)
class CheckpointFile:
    """The place of one trial's checkpoint (`trainer.checkpoint.Slot`), or of its weights."""

    path: Path

    def read(self) -> bytes | None:
        return self.path.read_bytes() if self.path.exists() else None

    def write(self, data: bytes) -> None:
        _replace(self.path, data)

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)


def _concatenated(files: Sequence[Path], wanted: pa.Schema) -> pa.Table:
    tables = list(_each(functools.partial(_read_file, columns=wanted.names), files))
    # Whatever an older version of this project did not write yet is null.
    table = pa.concat_tables([*tables, wanted.empty_table()], promote_options="permissive")
    return table.select(wanted.names).cast(wanted).combine_chunks()


def _read_file(file: Path, columns: Sequence[str]) -> pa.Table:
    try:
        if _is_merged(file):
            return pq.ParquetFile(file).read(columns=list(columns))
        # From memory, on one thread: for a file of one row, twice as fast as pyarrow's own reading of it.
        return pq.ParquetFile(pa.BufferReader(file.read_bytes())).read(columns=list(columns), use_threads=False)
    except pa.ArrowException as error:
        raise pa.ArrowInvalid(f"{file.name}: {error}") from None


def _status_in(file: Path) -> str:
    return _read_file(file, ["status"])["status"][0].as_py()


def _each(function: Callable[[Path], Any], files: Sequence[Path]) -> Iterator[Any]:
    """In parallel, in order: pyarrow lets go of the interpreter lock."""
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as threads:
        yield from threads.map(function, files)


def _is_merged(file: Path) -> bool:
    return file.name.startswith(MERGED)


def _without_repeats(table: pa.Table) -> pa.Table:
    """The first row of each trial, or of each epoch of it, where `compact` was at work at the same moment."""
    keys = [name for name in ("trial_id", "epoch") if name in table.column_names]
    if "trial_id" not in keys:
        return table
    frame = table.select(keys).to_pandas()
    repeated = frame.duplicated()
    return table.filter(pa.array(~repeated)) if repeated.any() else table


def _replace(path: Path, data: bytes | pa.Buffer) -> None:
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
