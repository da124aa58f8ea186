"""Small Parquet files of images, as people have them; and what is in them, read without this project's code."""

from __future__ import annotations

import io
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

ROWS = 6


def noise(seed: int = 0, n: int = ROWS, shape: tuple[int, ...] = (32, 32, 3)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, *shape), np.uint8)


def encoded(image: Image.Image | np.ndarray, form: str = "PNG", **how: Any) -> bytes:
    sink = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(sink, form, **how)
    return sink.getvalue()


def cells(images: Iterable[Any]) -> list[dict[str, Any]]:
    """The Hub's: structs of encoded bytes and a path."""
    return [{"bytes": encoded(image), "path": None} for image in images]


def write(file: Path, images: Any, labels: Any = None, columns: tuple[str, str] = ("img", "label")) -> Path:
    """A Parquet file of cells (or an Arrow array of them) and labels, 0, 1, 2, ... unless given."""
    file.parent.mkdir(parents=True, exist_ok=True)
    labels = list(range(len(images))) if labels is None else labels
    pq.write_table(pa.table({columns[0]: images, columns[1]: labels}), file)
    return file


def write_both(folder: Path, images: Any = None, labels: Any = None, **how: Any) -> Path:
    """The same rows as both splits, of one shard each."""
    for split in ("train", "test"):
        write(folder / f"{split}-00000-of-00001.parquet", cells(noise()) if images is None else images, labels, **how)
    return folder


def as_read_by_pandas(file: Path, column: str = "img") -> list[np.ndarray]:
    """The pixels of each row's bytes, as Pillow has them."""
    return [np.asarray(Image.open(io.BytesIO(cell["bytes"]))) for cell in pd.read_parquet(file)[column]]
