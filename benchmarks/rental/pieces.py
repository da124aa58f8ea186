"""The images in pieces that fit through a transfer, joined again there; and what comes back, unpacked here."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks.rental.settings import write
from search_spaces import machine
from search_spaces.errors import RequestError

FOLDERS = ("fashion_mnist", "cifar100")  # of Parquet files, the first first
PIECE = 60 * 2**20  # bytes, of the 64 MiB that a command carries: the code is two
FILE = 15 * 2**20  # of the 16 MiB that a file that comes back may have
COMMIT = "commit"


def cut(data_dir: Path, target: Path) -> Iterator[str]:
    """Lay the files of the images into the folders 0, 1, 2 ... of `target`, and the commit beside; say what is where.

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
    write(target / "0" / COMMIT, f"{machine.commit()}\n".encode())
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
    """Return the commit of the code: a machine that has no git, or only the tree, is told by the first piece."""
    told = target / "0" / COMMIT
    return machine.commit() or (told.read_text(encoding="utf-8").strip() if told.exists() else None)


def unpack(out: Path, run: Path) -> Iterator[str]:
    """Make a run folder of what came back: the evidence, and checkpoints, which may be in parts."""
    parts = sorted(out.glob("checkpoints.tar.*"), key=lambda part: int(part.suffix[1:]))
    whole = run.with_name(f"{run.name}.tar")
    run.mkdir(parents=True, exist_ok=True)
    with whole.open("wb") as file:
        for part in parts:
            file.write(part.read_bytes())
    for archive in [out / "evidence.tar.gz", *([whole] if parts else [])]:
        with tarfile.open(archive) as opened:
            opened.extractall(run, filter="data")
            yield f"{archive.name}: {len(opened.getnames())} files into {run}"
    whole.unlink()
