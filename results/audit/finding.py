"""What an audit finds, and a Parquet file as an audit opens it: with every bit of it read."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from results.store import parquet, schema, seal
from results.store.disk import Files
from search_spaces.errors import first_line
from search_spaces.text import visible

AGAIN = "set its files aside (--set-aside) and run the sweep again, which then trains it anew"
RESTORE = "restore the file from a copy, or set it aside (--set-aside) and run the sweep again"
RESTORE_MERGED = "it stands in a merged file: restore that from a copy"


@dataclass(frozen=True, slots=True, order=True)
class Finding:
    """What is wrong with one file of a run folder.

    Attributes:
        kind: see `results.audit.verify`.
        name: of the file, within the run folder.
        what: what was found, what is allowed, what to do next.
        aside: the files that `--set-aside` moves; none where that would mend nothing.
    """

    kind: str
    name: str
    what: str
    aside: tuple[str, ...] = ()

    @classmethod
    def of_trial(cls, kind: str, trial_id: str | None, what: str, name: str, row_in: str) -> Finding:
        """About what a file says of one trial, which is trained anew once its row, in the file `row_in`, is gone."""
        if parquet.is_merged(name) or parquet.is_merged(row_in):
            return cls(kind, name, f"{trial_id}: {what}; {RESTORE_MERGED}")
        return cls(kind, name, f"{what}; {AGAIN}", (name,))

    def __str__(self) -> str:
        return visible(f"{self.kind}: {self.name}: {self.what}")


def twice(trial_id: str, first: str, second: str, alike: bool) -> Finding | None:
    """About a trial that stands in a second file; None where `compact` has left it so, for a moment or when killed."""
    if alike and parquet.is_merged(second) and not parquet.is_merged(first):
        return None
    aside = () if parquet.is_merged(first) else (first,)
    how = "too, alike" if alike else "too, and is not the same there"
    do = (
        "keep one of them (--set-aside moves the small one)"
        if aside
        else "remove one of the files if the other has all"
    )
    return Finding("twice", second, f"{trial_id} stands in {first} {how}; {do}", aside)


def misplaced(name: str, rows: pa.Table) -> Finding:
    """About a file of one trial that has `rows` in it."""
    ids = rows["trial_id"].to_pylist()
    held = ", ".join(f"{ids.count(one)} of {one}" for one in list(dict.fromkeys(ids))[:3]) or "none"
    return Finding("misplaced", name, f"allowed are rows of the trial of that name, found {held}; {AGAIN}", (name,))


def alike(one: pa.Table, other: pa.Table) -> bool:
    """Whether rows are the same, NaN for NaN."""
    return repr(one.to_pydict()) == repr(other.to_pydict())


def open_small(files: Files, name: str, wanted: pa.Schema) -> pa.Table | Finding | None:
    """The rows of a file of one trial, or what is wrong with it as a file; None if it has just gone."""
    try:
        return _rows(seal.opened(pa.BufferReader(files.read(name))), wanted)
    except FileNotFoundError:
        return None
    except _NOT_TO_BE_READ as error:
        return _unreadable(name, error)


def open_merged(files: Files, name: str, wanted: pa.Schema) -> Iterator[pa.Table | Finding]:
    """A merged file's rows, part by part, or what is wrong with it: then that comes last."""
    try:
        count = files.scan(name, lambda file: seal.opened(file).num_row_groups)
        for part in range(count):
            yield files.scan(name, lambda file, part=part: _rows(seal.opened(file), wanted, part))
    except FileNotFoundError:
        return
    except _NOT_TO_BE_READ as error:
        yield _unreadable(name, error)


class _WrongColumnsError(ValueError):
    """The columns of a Parquet file are not the declared ones."""


_NOT_TO_BE_READ = (pa.ArrowException, OSError, ValueError)


def _rows(file: pq.ParquetFile, wanted: pa.Schema, row_group: int | None = None) -> pa.Table:
    """Rows as declared; columns that a version did not write yet as nulls.

    Raises:
        _WrongColumnsError: its columns are not as declared.
        pa.ArrowException, OSError: it cannot be read.
    """
    has = {column.name: column.type for column in file.schema_arrow}
    wrong = [f"unknown column {name!r}" for name in has if name not in wanted.names]
    wrong += [
        f"{column.name} is of type {has[column.name]}, declared is {column.type}"
        for column in wanted
        if has.get(column.name, column.type) != column.type
    ]
    if wrong:
        raise _WrongColumnsError(", ".join(wrong))
    table = file.read(use_threads=False) if row_group is None else file.read_row_group(row_group)
    table.validate(full=True)  # text that is no UTF-8
    missing = [column for column in wanted if column.name not in has]
    if missing and not _is_older(table, wanted):
        raise _WrongColumnsError(f"there is no column {', '.join(column.name for column in missing)}")
    for column in missing:
        table = table.append_column(column, pa.nulls(len(table), column.type))
    return table.select(wanted.names).replace_schema_metadata(None)


def _is_older(table: pa.Table, wanted: pa.Schema) -> bool:
    """Whether a version has written it that may not have known all columns. Epochs do not say which."""
    if wanted is schema.EPOCHS:
        return schema.SCHEMA_VERSION > 1
    if "schema_version" not in table.column_names:
        return False
    newest = pc.max(table["schema_version"]).as_py()  # pyright: ignore[reportAttributeAccessIssue]
    return newest is not None and newest < schema.SCHEMA_VERSION


def _unreadable(name: str, error: Exception) -> Finding:
    kind = "schema" if isinstance(error, _WrongColumnsError) else "unreadable"
    return Finding(kind, name, f"{first_line(error)}; {RESTORE}", (name,))
