"""Many small Parquet files as one table, and the few large ones that `RunFolder.compact` makes of them.

A file of one trial is named by its id; of each only what a filter may keep is opened.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from results.store import schema
from results.store.disk import Files
from search_spaces.errors import Problem, RequestError, did_you_mean

MERGED = "merged."  # a trial's id has no dot
SUFFIX = ".parquet"
Where = Mapping[str, Any]  # {column: a value, or an iterable of those that are allowed}
_IN_NAME = ("arch", "dataset", "seed")


def read(files: Files, folder: str, whole: pa.Schema, columns: Sequence[str] | None, where: Where | None) -> pa.Table:
    """Read the rows of a folder that `where` asks for, each trial or epoch once.

    Raises:
        RequestError: there is no such column, or a value in `where` is none of its type, or a file cannot be read.
    """
    allowed = _allowed_values(whole, columns or (), where or {})
    shown = list(columns or whole.names)

    def keys(names: Sequence[str]) -> list[str]:
        """Return what tells repeated rows: a small file has none."""
        return [key for key in ("trial_id", "epoch") if key in whole.names] if any(map(is_merged, names)) else []

    def wanted(names: Sequence[str]) -> pa.Schema:
        return pa.schema([whole.field(column) for column in dict.fromkeys([*shown, *allowed, *keys(names)])])

    names, table = current(files, folder, _by_name(allowed), wanted, allowed)
    if repeated := keys(names):
        table = _without_repeats(table, repeated)  # before the filter: the newer row may not match
    return _matching(table, allowed).select(shown)


def current(
    files: Files,
    folder: str,
    keep: Callable[[str], bool],
    wanted: Callable[[Sequence[str]], pa.Schema],
    allowed: Mapping[str, pa.Array] | None = None,
) -> tuple[list[str], pa.Table]:
    """Read the files whose names `keep` lets pass, as they are now; return these names, and the rows."""
    while True:
        names = list(filter(keep, listed(files, folder)))
        try:
            with of_a_sweep(files, folder):
                return names, concatenated(files, names, wanted(names), allowed)
        except FileNotFoundError:
            continue  # `compact` has just put what was in it elsewhere


@contextlib.contextmanager
def of_a_sweep(files: Files, folder: str) -> Iterator[None]:
    """Turn the error of a file that no sweep wrote into a RequestError, within the block."""
    try:
        yield
    except (FileNotFoundError, RequestError):  # the second of a store, which has said what to do
        raise
    except (OSError, pa.ArrowException, LookupError) as error:
        mend = f"`python -m results verify {files.spell()} --set-aside` lists what is wrong there, and moves it away"
        raise RequestError.of(f"{files.spell(folder)} cannot be read: {error}; {mend}") from None


def listed(files: Files, folder: str) -> list[str]:
    """List the Parquet files of a folder: first the small ones, which are newer than a merged one with the same."""
    return sorted((f"{folder}/{name}" for name in files.names(folder) if name.endswith(SUFFIX)), key=is_merged)


def concatenated(
    files: Files, names: Sequence[str], wanted: pa.Schema, allowed: Mapping[str, pa.Array] | None = None
) -> pa.Table:
    """Read the rows of all files, and of merged ones only those with the allowed values."""
    sources = [schema.FILLED_IN_FROM[name] for name in wanted.names if name in schema.FILLED_IN_FROM]
    needed = pa.unify_schemas([wanted, *(pa.schema([schema.TRIALS.field(name)]) for name in sources)])
    filters = [(name, "in", values) for name, values in (allowed or {}).items() if name not in schema.FILLED_IN_FROM]
    tables = each(files, functools.partial(_read_file, files, wanted=needed, filters=filters), names)
    return as_declared(tables, needed).select(wanted.names)


def as_declared(tables: Iterable[pa.Table], wanted: pa.Schema) -> pa.Table:
    """Concatenate tables; what an older version of this project did not write is filled in, or null."""
    table = pa.concat_tables([*tables, wanted.empty_table()], promote_options="permissive")
    return schema.fill_in(table.select(wanted.names).combine_chunks().cast(wanted))


def each(files: Files, function: Callable[[str], Any], names: Sequence[str]) -> Iterator[Any]:
    """Call a function for each file, in order, with as many threads as pay where the files are."""
    with ThreadPoolExecutor(files.at_once) as threads:
        yield from threads.map(function, names)


def first_row(files: Files, name: str, columns: Sequence[str]) -> dict[str, Any] | None:
    """Return some columns of the first row of a small file; None if there is no such file."""
    try:
        return _read_small(files, name, columns).select(list(columns)).to_pylist()[0]
    except FileNotFoundError:
        return None


def written(rows: pa.Table, **how: Any) -> pa.Buffer:
    """Return rows as a Parquet file with a checksum for each page; `how` as `pyarrow.parquet.write_table` takes it."""
    sink = pa.BufferOutputStream()
    pq.write_table(rows, sink, write_page_checksum=True, **how)
    return sink.getvalue()


def opened(file: pa.NativeFile) -> pq.ParquetFile:
    """Open a Parquet file whose pages are checked when they are read."""
    return pq.ParquetFile(file, page_checksum_verification=True)


class WrongColumnsError(ValueError):
    """A Parquet file has not the declared columns."""


def whole(files: Files, name: str) -> pa.Table:
    """Read every byte of a file of `trials` or `epochs`, which may lack columns that `as_declared` fills in.

    Raises:
        FileNotFoundError: there is no such file.
        WrongColumnsError: its columns are not as declared.
        pa.ArrowException, OSError, ValueError, LookupError: it cannot be read.
    """
    folder = name.partition("/")[0]
    wanted, absent = schema.TABLES[folder], {*schema.FILLED_IN_FROM, *schema.ADDED[folder]}
    file = opened(pa.BufferReader(files.read(name)))
    found = file.schema_arrow
    if not found.equals(wanted) and (wrong := ", ".join(_differences(wanted, found, absent))):
        raise WrongColumnsError(wrong)
    table = file.read(use_threads=False)
    table.validate(full=True)  # for example that text is UTF-8
    return table


def _differences(wanted: pa.Schema, found: pa.Schema, absent: Collection[str]) -> Iterator[str]:
    for name in dict.fromkeys([*wanted.names, *found.names]):
        expected, got = (str(one.field(name).type) if name in one.names else "none" for one in (wanted, found))
        if expected != got and not (got == "none" and name in absent):
            yield f"column {name}: expected {expected}, got {got}"


def is_merged(name: str) -> bool:
    return name.rpartition("/")[2].startswith(MERGED)


def trial_id(name: str) -> str:
    """Return the id in the name of any file of a trial: an id has no dot."""
    return name.rpartition("/")[2].partition(".")[0]


def _read_file(files: Files, name: str, wanted: pa.Schema, filters: list[tuple[str, str, pa.Array]]) -> pa.Table:
    if not is_merged(name):
        return _read_small(files, name, wanted.names)

    def read(file: pa.NativeFile) -> pa.Table:
        if not filters:
            return opened(file).read(columns=wanted.names)
        # half a second for pyarrow.dataset
        return pq.read_table(file, schema=wanted, filters=filters, page_checksum_verification=True)

    return _named(name, lambda: files.scan(name, read))


def _read_small(files: Files, name: str, columns: Sequence[str]) -> pa.Table:
    # From memory, on one thread: for a file of one row, twice as fast as pyarrow's own reading of it.
    data = pa.BufferReader(files.read(name))
    return _named(name, lambda: opened(data).read(columns=list(columns), use_threads=False))


def _named(name: str, read: Callable[[], pa.Table]) -> pa.Table:
    try:
        return read()
    except (pa.ArrowException, OSError) as error:
        if getattr(error, "errno", None) is not None:
            raise  # it is not the file's contents that are wrong: a page's checksum is an OSError without a number
        raise pa.ArrowInvalid(f"{name.rpartition('/')[2]}: {error}") from None


def _allowed_values(whole: pa.Schema, columns: Sequence[str], where: Where) -> dict[str, pa.Array]:
    """Return `where` with its values as arrays of their columns' types."""
    wrong = [name for name in dict.fromkeys([*columns, *where]) if name not in whole.names]
    problems = [Problem(name, f"no such column; {did_you_mean(name, whole.names)}") for name in wrong]
    allowed = {}
    for name, given in where.items():
        if name in wrong:
            continue
        several = isinstance(given, Iterable) and not isinstance(given, str | bytes)
        kind = whole.field(name).type
        try:
            allowed[name] = pa.array(list(given) if several else [given], kind)
        except (pa.ArrowException, TypeError, ValueError, OverflowError):
            problems.append(Problem(name, f"expected a value of type {kind}, or a list of such, got {given!r}"))
    if problems:
        raise RequestError(problems)
    return allowed


def _by_name(allowed: Mapping[str, pa.Array]) -> Callable[[str], bool]:
    """Return a test of a file's name: its trial's id is <pool>-<arch>-<dataset>-s<seed>-<hash>."""
    texts = {name: set(map(str, allowed[name].to_pylist())) for name in ("trial_id", *_IN_NAME) if name in allowed}

    def may_match(name: str) -> bool:
        own = trial_id(name)
        told = {"trial_id": own}
        parts = own.split("-")
        if len(parts) == 5:
            told |= zip(_IN_NAME, (parts[1], parts[2], parts[3].removeprefix("s")), strict=True)
        return is_merged(name) or all(told[key] in texts[key] for key in told.keys() & texts.keys())

    return may_match


def _matching(table: pa.Table, allowed: Mapping[str, pa.Array]) -> pa.Table:
    for name, values in allowed.items():
        table = table.filter(pc.is_in(table[name], value_set=values))  # pyright: ignore
    return table


def _without_repeats(table: pa.Table, keys: Sequence[str]) -> pa.Table:
    """Keep the first row of each trial or epoch: `compact` may have been at work at the same moment."""
    repeated = table.select(keys).to_pandas().duplicated()
    return table.filter(pa.array(~repeated)) if repeated.any() else table
