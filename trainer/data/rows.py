"""The rows of Parquet files as images and labels: every one of them, or a refusal that names file and row."""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from search_spaces.errors import Problem, RequestError, first_line, gather, short
from trainer.data import pictures
from trainer.data.pictures import Bytes, CellError, to_rgb

IMAGES = ("img", "image")  # what the column of images is called
SHOWN = 5  # problems; a hundred shards may all have the same

Labels = npt.NDArray[np.int64]
Split = tuple[Bytes, Labels]


@dataclass(frozen=True, slots=True)
class _Shard:
    """What one file holds; `outside` is whether it names files in which some images are."""

    file: Path
    images: Bytes
    labels: Labels
    outside: bool


def read(
    splits: Mapping[str, Sequence[Path]], labels: Sequence[str], classes: int, data_dir: Path
) -> tuple[dict[str, Split], bool]:
    """Return images [N, S, S, C] and labels [N] of each split, and whether some images are in files of their own.

    C is 1 if every image of every split is grey, else 3 in all of them, so that the training images are what the test
    images are.

    Args:
        labels: what the column of labels may be called; the first that any file has is that of all files.
        data_dir: where the files that a row names may be, besides beside its own.

    Raises:
        RequestError: what no such dataset can be made of, in all files.
    """
    files = [file for of_split in splits.values() for file in of_split]
    try:
        columns = _columns(files, labels)
        read = [functools.partial(_shard, file, columns, classes, data_dir) for file in files]
        shards = dict(zip(files, gather(*(("", one) for one in read)), strict=True))
        filled = {split: [shards[one] for one in of if len(shards[one].labels)] for split, of in splits.items()}
        _refuse(f"{splits[split][0]}: expected one row or more, got none" for split in splits if not filled[split])
        first, *others = itertools.chain.from_iterable(filled.values())
        size = _size(first)
        _refuse(
            f"{one.file}, row 0: expected {size} pixels, as in {first.file}, got {_size(one)}"
            for one in others
            if _size(one) != size
        )
    except RequestError as error:
        left = len(error.problems) - SHOWN
        more = [Problem("", f"and {left} more problems of this kind")] if left > 0 else []
        raise RequestError([*error.problems[:SHOWN], *more]) from None
    colour = any(one.images.ndim == 4 for one in (first, *others))
    outside = any(one.outside for one in (first, *others))
    return {split: _joined(parts, colour) for split, parts in filled.items()}, outside


def _size(shard: _Shard) -> str:
    return "{1}x{2}".format(*shard.images.shape)


def _joined(parts: Sequence[_Shard], colour: bool) -> Split:
    alike = [to_rgb(part.images) if colour and part.images.ndim == 3 else part.images for part in parts]
    images = np.concatenate(alike)
    return images if colour else images[..., None], np.concatenate([part.labels for part in parts])


def _columns(files: Sequence[Path], labels: Sequence[str]) -> tuple[str, str]:
    """Return the columns of images and of labels, which are the same in all files."""
    import pyarrow.parquet as pq

    schemas = gather(*(("", functools.partial(_opened, pq.read_schema, file)) for file in files))
    has = {file: Counter(schema.names) for file, schema in zip(files, schemas, strict=True)}
    every = {name for found in has.values() for name in found}
    chosen = [next((name for name in names if name in every), " or ".join(names)) for names in (IMAGES, labels)]
    problems = []
    for file, found in has.items():
        got = ", ".join(found.elements())
        problems += [f"{file}: expected one column {name}, got {got}" for name in chosen if found[name] != 1]
        if all(found[name] for name in IMAGES):
            problems.append(f"{file}: expected one of {' and '.join(IMAGES)}, got both; remove one")
    _refuse(problems)
    return chosen[0], chosen[1]


def _shard(file: Path, columns: tuple[str, str], classes: int, data_dir: Path) -> _Shard:
    import pyarrow.parquet as pq

    def read(file: Path) -> Any:
        with pq.ParquetFile(file) as parquet:
            return parquet.read(columns=list(columns))

    table = _opened(read, file)
    if not len(table):
        return _Shard(file, np.zeros((0, 0, 0), np.uint8), np.zeros(0, np.int64), outside=False)

    def taken(name: str, decode: Callable[[Any], Any]) -> Any:
        try:
            return decode(table[name])
        except CellError as error:
            raise RequestError.of(f"{file}, column {name}, {error}") from None

    (images, outside), labels = gather(
        ("", lambda: taken(columns[0], functools.partial(pictures.decode, folders=(file.parent, data_dir)))),
        ("", lambda: taken(columns[1], functools.partial(_labels, classes=classes))),
    )
    return _Shard(file, images, labels, outside)


def _labels(column: Any, classes: int) -> Labels:
    """Return the integers of a chunked array of Arrow's."""
    import pyarrow as pa

    expected = f"expected integers from 0 to {classes - 1}"
    if column.null_count:
        rows = np.flatnonzero(column.is_null().to_numpy()).tolist()
        raise CellError(f"{expected}, got nothing (null); fill it, or remove the row", rows)
    kind = column.type
    if pa.types.is_dictionary(kind):
        column = column.cast(kind.value_type)
    if not pa.types.is_integer(column.type):
        raise CellError(f"{expected}, got the type {kind}, {short(column[0].as_py())} in row 0")
    values = column.to_numpy()
    if len(outside := np.flatnonzero((values < 0) | (values >= classes))):
        got = values[outside[0]]
        hint = ", which is how labels are withheld" if got == -1 else ""
        raise CellError(f"{expected}, got {got}{hint}", outside.tolist())
    return values.astype(np.int64)


def _opened(read: Callable[[Path], Any], file: Path) -> Any:
    import pyarrow as pa

    try:
        return read(file)
    except (OSError, ValueError, pa.ArrowException) as error:
        hint = "copy it again"
        with contextlib.suppress(OSError), file.open("rb") as opened:
            if opened.read(40).startswith(b"version https://git-lfs"):
                hint = "it is a pointer of Git LFS: fetch the file by `git lfs pull`"
        raise RequestError.of(f"cannot read {file}: {first_line(error)}; {hint}") from None


def _refuse(problems: Iterable[str]) -> None:
    if listed := list(problems):
        raise RequestError(Problem("", what) for what in listed)
