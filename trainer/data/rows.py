"""The rows of Parquet files as images and labels: every one of them, or a refusal that names file and row."""

from __future__ import annotations

import contextlib
import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from search_spaces.errors import Problem, RequestError, first_line, short
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
    """Images [N, S, S, C] and labels [N] of each split, and whether some images are in files of their own.

    C is 1 if every image of every split is grey, else 3 in all of them, so that the training images are what the test
    images are.

    Args:
        labels: what the column of labels may be called; the first that any file has is that of all files.
        data_dir: where the files that a row names may be, besides beside its own.

    Raises:
        RequestError: what no such dataset can be made of, in all files.
    """
    columns = _columns([file for files in splits.values() for file in files], labels)
    problems: list[str] = []
    shards: dict[str, list[_Shard]] = {}
    for split, files in splits.items():
        shards[split] = [shard for file in files if (shard := _shard(file, columns, classes, data_dir, problems))]
    _refuse(problems)
    filled = {split: [part for part in parts if len(part.labels)] for split, parts in shards.items()}
    for split, parts in filled.items():
        if not parts:
            problems.append(f"{splits[split][0]}: found no rows of {split}, allowed is one or more")
    _refuse(problems)
    first, *others = itertools.chain.from_iterable(filled.values())
    for part in others:
        if (size := part.images.shape[1]) != (other := first.images.shape[1]):
            what = f"found {size}x{size} pixels, and {other}x{other} in {first.file}; allowed is one size for all"
            problems.append(f"{part.file}, row 0: {what}")
    _refuse(problems)
    colour = any(part.images.ndim == 4 for part in (first, *others))
    outside = any(part.outside for part in (first, *others))
    return {split: _joined(parts, colour) for split, parts in filled.items()}, outside


def _joined(parts: Sequence[_Shard], colour: bool) -> Split:
    alike = [to_rgb(part.images) if colour and part.images.ndim == 3 else part.images for part in parts]
    images = np.concatenate(alike)
    return images if colour else images[..., None], np.concatenate([part.labels for part in parts])


def _columns(files: Sequence[Path], labels: Sequence[str]) -> tuple[str, str]:
    """The columns of images and of labels, which are the same in all files."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    problems: list[str] = []
    has: dict[Path, Counter[str]] = {}
    for file in files:
        try:
            has[file] = Counter(pq.read_schema(file).names)
        except (OSError, ValueError, pa.ArrowException) as error:
            problems.append(_unreadable(file, error))
    _refuse(problems)
    every = {name for found in has.values() for name in found}
    chosen = [next((name for name in names if name in every), "") for names in (IMAGES, labels)]
    for file, found in has.items():
        listed = ", ".join(found.elements())
        for name, names, what in zip(chosen, (IMAGES, labels), ("images", "labels"), strict=True):
            if found[name] != 1:
                allowed = f"a column {name}, as other files have" if name else f"one called {' or '.join(names)}"
                problems.append(f"{file}: found the columns {listed}, none or two of {what}; allowed is {allowed}")
        if all(found[name] for name in IMAGES):
            problems.append(f"{file}: found both {' and '.join(IMAGES)}; remove the one that is not to be trained on")
    _refuse(problems)
    return chosen[0], chosen[1]


def _shard(file: Path, columns: tuple[str, str], classes: int, data_dir: Path, problems: list[str]) -> _Shard | None:
    """One file; None where `problems` has grown by what is wrong with it."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    before = len(problems)
    images, labels, outside = np.zeros((0, 0, 0), np.uint8), np.zeros(0, np.int64), False
    try:
        with pq.ParquetFile(file) as parquet:
            table = parquet.read(columns=list(columns))
    except (OSError, ValueError, pa.ArrowException) as error:
        problems.append(_unreadable(file, error))
        return None
    if not len(table):
        return _Shard(file, images, labels, outside)
    try:
        images, outside = pictures.decode(table[columns[0]], (file.parent, data_dir))
    except CellError as error:
        problems.append(f"{file}, column {columns[0]}, {error}")
    try:
        labels = _labels(table[columns[1]], classes)
    except CellError as error:
        problems.append(f"{file}, column {columns[1]}, {error}")
    return _Shard(file, images, labels, outside) if len(problems) == before else None


def _labels(column: Any, classes: int) -> Labels:
    """The integers of a chunked array of Arrow's."""
    import pyarrow as pa

    allowed = f"allowed are integers from 0 to {classes - 1}"
    if column.null_count:
        rows = np.flatnonzero(column.is_null().to_numpy()).tolist()
        raise CellError(f"found no label (null); {allowed}: fill it, or remove the row", rows)
    kind = column.type
    if pa.types.is_dictionary(kind):
        column = column.cast(kind.value_type)
    if not pa.types.is_integer(column.type):
        raise CellError(f"found the type {kind}, {short(column[0].as_py())} in row 0; {allowed}")
    values = column.to_numpy()
    if len(outside := np.flatnonzero((values < 0) | (values >= classes))):
        found = values[outside[0]]
        hint = ", and -1 is how labels are withheld" if found == -1 else ""
        raise CellError(f"found the label {found}; {allowed}{hint}", outside.tolist())
    return values.astype(np.int64)


def _unreadable(file: Path, error: Exception) -> str:
    hint = "copy it again"
    with contextlib.suppress(OSError), file.open("rb") as opened:
        if opened.read(40).startswith(b"version https://git-lfs"):
            hint = "it is a pointer of Git LFS: fetch the file by `git lfs pull`"
    return f"cannot read {file}: {first_line(error)}; {hint}"


def _refuse(problems: Sequence[str]) -> None:
    if problems:
        more = [f"and {len(problems) - SHOWN} more problems of this kind"] if len(problems) > SHOWN else []
        raise RequestError(Problem("", what) for what in (*problems[:SHOWN], *more))
