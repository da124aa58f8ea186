"""The run folder: the only truth about what has been trained. This class owns every path in it.

    RUN/space.yaml                what was asked, resolved
    RUN/trials/<trial id>.parquet one row, written last: it marks the trial as ended
    RUN/epochs/<trial id>.parquet one row an epoch, rewritten as the trial goes
    RUN/checkpoints/<trial id>.pt for resuming; gone when the trial has completed or diverged
    RUN/weights/<trial id>.pt     its final weights, if the sweep keeps them and the trial has completed
    RUN/logs/<trial id>.log       what the trial printed; the traceback of a failure
    RUN/cam/<trial id>.png        its class activation maps, once they were asked for
    RUN/report.html               all of it as one page, once it was asked for
    RUN/ray.log                   what Ray had to say
    RUN/{trials,epochs}/merged.*  what `compact` made of many such files
    RUN/packs.json                how many trials to train side by side, as measured
    RUN/checks.json               which pools the gate found to be one function
    RUN/pools.json                every pool that was ever asked for, with its text
    RUN/submitted.json            which revision of a candidate is its entry
    RUN/topups.json               when seeds were added after looking, and RUN/topup-*.yaml, the spaces that add them
    RUN/tensorboard, RUN/mlruns   what trackers make of it, if the sweep names them

Every file is written beside its place and renamed into it, so a reader never sees half of one.
"""

from __future__ import annotations

import contextlib
import functools
import json
import operator
import os
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import yaml

from results import schema
from trainer.examination import SameFunction
from trainer.grid import Grid
from trainer.pool import Pool
from trainer.problems import Problem, RequestError, did_you_mean

MERGED = "merged."  # a trial's id has no dot
Where = Mapping[str, Any]  # {column: a value, or an iterable of those that are allowed}
MERGE = 20_000  # files at a time: 4 million epochs, 300 MB while they are merged
ROW_GROUP = 65_536  # of a merged file: sorted by id, so that a filter skips most, in a tenth of the time for one trial


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

    def topups(self) -> dict[str, Any]:
        """Which seeds were asked for after looking: {arch-dataset: {target, seeds}}."""
        return self._read_json("topups.json", {})

    def write_topups(self, topups: Mapping[str, Any]) -> None:
        self._write_json("topups.json", topups)

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

    def read_trials(self, columns: Sequence[str] | None = None, where: Where | None = None) -> pa.Table:
        """Every trial that has ended, as `schema.TRIALS`; of those only what `where` asks for.

        Raises:
            RequestError: there is no such column, or a value in `where` is none of its type.
        """
        return self._read("trials", schema.TRIALS, columns, where)

    def read_epochs(self, columns: Sequence[str] | None = None, where: Where | None = None) -> pa.Table:
        """Every epoch on record, of running trials too, as `schema.EPOCHS`; as `read_trials`."""
        return self._read("epochs", schema.EPOCHS, columns, where)

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
        pq.write_table(rows, sink, compression="zstd", row_group_size=ROW_GROUP)
        _replace(self.path / name / f"{MERGED}{uuid.uuid4().hex[:12]}.parquet", sink.getvalue())

    # What a trial needs while it runs

    def checkpoint(self, trial_id: str) -> CheckpointFile:
        return CheckpointFile(self.path / "checkpoints" / f"{trial_id}.pt")

    def weights(self, trial_id: str) -> CheckpointFile:
        """Its final weights, a state_dict as `torch.save` writes it; there before its row is."""
        return CheckpointFile(self.path / "weights" / f"{trial_id}.pt")

    def tracker_path(self, name: str) -> Path:
        """Where a tracker may write; RUN/`name`."""
        return self.path / name

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

    def write_report(self, page: str) -> Path:
        """The page of the run; where it is."""
        path = self.path / "report.html"
        _replace(path, page.encode())
        return path

    def _read_json(self, name: str, default: Any) -> Any:
        path = self.path / name
        try:
            return json.loads(path.read_text(encoding="utf-8")) if path.exists() else default
        except (OSError, ValueError) as error:
            raise RequestError.of(f"{path} is not what a sweep wrote: {error}") from None

    def _write_json(self, name: str, data: Any) -> None:
        _replace(self.path / name, json.dumps(data, indent=1).encode())

    def _read(self, name: str, whole: pa.Schema, columns: Sequence[str] | None, where: Where | None = None) -> pa.Table:
        allowed = _allowed_values(whole, columns or (), where or {})
        shown = list(columns or whole.names)
        while True:
            files = list(filter(_by_name(allowed), self._files(name)))
            keys = [key for key in ("trial_id", "epoch") if key in whole.names] if any(map(_is_merged, files)) else []
            wanted = pa.schema([whole.field(column) for column in dict.fromkeys([*shown, *allowed, *keys])])
            try:
                table = _concatenated(files, wanted, allowed)
            except FileNotFoundError:
                continue  # `compact` has just put what was in it elsewhere
            except (OSError, pa.ArrowException) as error:
                what = f"{self.path / name} cannot be read: {error}; move what is no file of this run away"
                raise RequestError.of(what) from None
            table = _without_repeats(table, keys) if keys else table  # before the filter: the newer row may not match
            return _matching(table, allowed).select(shown)

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


def _concatenated(files: Sequence[Path], wanted: pa.Schema, allowed: Mapping[str, pa.Array] | None = None) -> pa.Table:
    """The rows of all files, and of merged ones only those with the allowed values."""
    filtered = [file for file in files if allowed and _is_merged(file)]
    whole = files[: len(files) - len(filtered)]  # merged ones come last
    tables = list(_each(functools.partial(_read_file, columns=wanted.names), whole))
    if filtered:
        tables.append(_read_merged(filtered, wanted, allowed or {}))
    # Whatever an older version of this project did not write yet is null.
    table = pa.concat_tables([*tables, wanted.empty_table()], promote_options="permissive")
    return table.select(wanted.names).cast(wanted).combine_chunks()


def _read_merged(files: Sequence[Path], wanted: pa.Schema, allowed: Mapping[str, pa.Array]) -> pa.Table:
    import pyarrow.dataset as ds  # half a second, which most readers need not pay

    tests = [ds.field(name).isin(values) for name, values in allowed.items()]
    return ds.dataset(files, schema=wanted).to_table(filter=functools.reduce(operator.and_, tests))


def _allowed_values(whole: pa.Schema, columns: Sequence[str], where: Where) -> dict[str, pa.Array]:
    """`where` with its values as arrays of their columns' types."""
    problems = [Problem(name, f"no such column; {did_you_mean(name, whole.names)}") for name in columns]
    problems = [problem for problem in problems if problem.where not in whole.names]
    allowed = {}
    for name, given in where.items():
        if name not in whole.names:
            problems.append(Problem(name, f"no such column; {did_you_mean(name, whole.names)}"))
            continue
        several = isinstance(given, Iterable) and not isinstance(given, str | bytes)
        kind = whole.field(name).type
        try:
            allowed[name] = pa.array(list(given) if several else [given], kind)
        except (pa.ArrowException, TypeError, ValueError, OverflowError):
            problems.append(Problem(name, f"found {given!r}, allowed is a value of type {kind}, or a list of such"))
    if problems:
        raise RequestError(problems)
    return allowed


def _by_name(allowed: Mapping[str, pa.Array]) -> Callable[[Path], bool]:
    """Whether a file may have such rows: a trial's file is named by its id, <pool>-<arch>-<dataset>-s<seed>-<hash>."""
    texts = {name: set(map(str, allowed[name].to_pylist())) for name in ("trial_id", *_IN_NAME) if name in allowed}

    def may_match(file: Path) -> bool:
        if _is_merged(file):
            return True
        if "trial_id" in texts and file.stem not in texts["trial_id"]:
            return False
        parts = file.stem.split("-")
        if len(parts) != 5:
            return True
        told = dict(zip(_IN_NAME, (parts[1], parts[2], parts[3].removeprefix("s")), strict=True))
        return all(told[name] in texts[name] for name in _IN_NAME if name in texts)

    return may_match


_IN_NAME = ("arch", "dataset", "seed")


def _matching(table: pa.Table, allowed: Mapping[str, pa.Array]) -> pa.Table:
    for name, values in allowed.items():
        table = table.filter(pc.is_in(table[name], value_set=values))  # pyright: ignore
    return table


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


def _without_repeats(table: pa.Table, keys: Sequence[str]) -> pa.Table:
    """The first row of each trial, or of each epoch of it, where `compact` was at work at the same moment."""
    repeated = table.select(keys).to_pandas().duplicated()
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
