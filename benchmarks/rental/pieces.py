"""The images in pieces that fit through a transfer, joined again there; and what comes back, unpacked here."""

from __future__ import annotations

import contextlib
import hashlib
import io
import itertools
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks.rental.settings import read_json, write
from search_spaces import machine
from search_spaces.errors import RequestError

FOLDERS = ("fashion_mnist", "cifar100")  # of Parquet files, the first first
PIECE = 60 * 2**20  # bytes, of the 64 MiB that a command carries: the code is two
FILE = 15 * 2**20  # of the 16 MiB that a file that comes back may have
COMMIT = "commit"
CHECKPOINTS = "checkpoints.json"  # {name: SHA-256} of those that were packed


def cut(data_dir: Path, target: Path) -> Iterator[str]:
    """Lay the files of the images into the folders 0, 1, 2 ... of `target`; say what is where.

    Raises:
        RequestError: images are missing, or a file of them is larger than a piece.
    """
    files = [file for name in FOLDERS for file in sorted((data_dir / name).glob("*.parquet"))]
    if missing := [name for name in FOLDERS if not list((data_dir / name).glob("*.parquet"))]:
        raise RequestError.of(f"there are no Parquet files of {', '.join(missing)} in {data_dir}")
    held: list[int] = []
    for file in files:
        size = file.stat().st_size
        if size > PIECE:
            raise RequestError.of(f"{file} has {size / 2**20:.0f} MiB, which no transfer takes")
        number = next((index for index, bytes in enumerate(held) if bytes + size <= PIECE), len(held))
        held[number:] = [(held[number] if number < len(held) else 0) + size, *held[number + 1 :]]
        write(target / str(number) / file.parent.name / file.name, file.read_bytes())
    for number, size in enumerate(held):
        yield f"{target / str(number)}: {size / 2**20:.1f} MiB"


def join(target: Path) -> list[str]:
    """Link the files of the pieces that are there into `target/data`; return the names of all that is in it."""
    for file in sorted(target.glob("[0-9]*/*/*.parquet")):
        place = target / "data" / file.parent.name / file.name
        place.parent.mkdir(parents=True, exist_ok=True)
        if not place.exists():
            os.link(file, place)
    return sorted(str(file.relative_to(target / "data")) for file in (target / "data").glob("*/*.parquet"))


def commit(target: Path) -> str | None:
    """Return the commit of the code: on a machine without git, or with the tree alone, what `note` noted, or None."""
    told = target / "0" / COMMIT
    return machine.commit() or (told.read_text(encoding="utf-8").strip() if told.exists() else None)


def note(target: Path) -> Iterator[str]:
    """Note the commit for a machine that has no git, in the first piece; outside a checkout none; say which."""
    found, file = machine.commit(), target / "0" / COMMIT
    file.unlink(missing_ok=True)  # of what was sent before
    if found:
        write(file, f"{found}\n".encode())
    yield f"{file}: {found or 'none, outside a checkout'}"


def unpack(out: Path, run: Path) -> Iterator[str]:
    """Make a run folder of what came back: the evidence, and of the checkpoints, which are in parts, the whole ones.

    Raises:
        RequestError: at the end, if checkpoints that were packed are not among those.
    """
    with tarfile.open(out / "evidence.tar.gz") as archive:
        archive.extractall(run, filter="data")
        yield f"evidence.tar.gz: {len(archive.getnames())} files into {run}"
    lost: dict[str, str] = read_json(run / CHECKPOINTS, {})
    for name, data in _checkpoints(out):
        if hashlib.sha256(data).hexdigest() == lost.get(name):
            write(run / "checkpoints" / name, data)
            yield f"checkpoints/{name}"
            del lost[name]
    if lost:
        raise RequestError.of(
            f"not all parts of checkpoints.tar came back, or not of one time; missing: {', '.join(lost)}"
        )


def _checkpoints(out: Path) -> Iterator[tuple[str, bytes]]:
    """Yield (name, bytes) of the checkpoints in the parts before the first that is missing; the last may be cut."""
    numbered = (out / f"checkpoints.tar.{number}" for number in itertools.count())
    data = b"".join(part.read_bytes() for part in itertools.takewhile(Path.exists, numbered))
    with contextlib.suppress(tarfile.TarError), tarfile.open(fileobj=io.BytesIO(data)) as archive:
        for entry in archive:
            yield Path(entry.name).name, (archive.extractfile(entry) or io.BytesIO()).read()
