"""The cache of decoded datasets: an answer is never another file's, and never missing."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from search_spaces import machine
from search_spaces.messages import shown_by
from tests.parquet_images import cells, noise, write
from trainer import data
from trainer.data import Dataset


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("POOLSWEEP_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A data directory with a tiny fmnist."""
    for seed, split in enumerate(("train", "test")):
        write_split(tmp_path / "data", split, seed)
    return tmp_path / "data"


def write_split(folder: Path, split: str, seed: int) -> None:
    file = folder / "fashion_mnist" / f"{split}-00000-of-00001.parquet"
    write(file, cells(noise(seed, 20, (28, 28))), [row % 10 for row in range(20)])


def load(folder: Path) -> tuple[Dataset, bool]:
    """The dataset, and whether it was decoded for it."""
    said: list[str] = []
    with shown_by(said.append):
        return data.load("fmnist", folder), bool(said)


def same(a: Dataset, b: Dataset) -> bool:
    arrays = ("train_images", "train_labels", "test_images", "test_labels")
    return all(np.array_equal(getattr(a, n), getattr(b, n)) for n in arrays) and str(a) == str(b) and a.flip == b.flip


def test_it_is_decoded_once_and_mapped_after(cache: Path, images: Path) -> None:
    first, decoded_first = load(images)
    again, decoded_again = load(images)
    assert (decoded_first, decoded_again) == (True, False)
    assert same(first, again)
    assert isinstance(again.mean, tuple)
    base = again.train_images
    while isinstance(base.base, np.ndarray):
        base = base.base
    assert isinstance(base, np.memmap)
    assert not again.train_images.flags.writeable
    assert type(again.train_images) is np.ndarray, "a subclass would be copied on its way to the workers"


def test_another_file_is_another_dataset(cache: Path, images: Path) -> None:
    first, _ = load(images)
    write_split(images, "train", seed=7)
    second, was_decoded = load(images)
    assert was_decoded
    assert not same(first, second)
    os.utime(images / "fashion_mnist" / "test-00000-of-00001.parquet", ns=(0, 0))
    assert load(images)[1]


def test_the_splits_exchanged_are_another_dataset(cache: Path, images: Path) -> None:
    """By links that lead to the same two files, as in the Hub's cache."""
    folder = images / "fashion_mnist"
    for name in ("train", "test"):
        (folder / f"{name}-00000-of-00001.parquet").rename(images / f"{name}.blob")
    loaded = []
    for train, test in (("train", "test"), ("test", "train")):
        for name, blob in (("train", train), ("test", test)):
            link = folder / f"{name}.parquet"
            link.unlink(missing_ok=True)
            link.symlink_to(images / f"{blob}.blob")
        loaded.append(load(images)[0])
    assert np.array_equal(loaded[0].test_images, loaded[1].train_images[:, data.PAD : -data.PAD, data.PAD : -data.PAD])


def test_images_in_files_of_their_own_are_read_every_time(cache: Path, images: Path) -> None:
    """Another such file is another dataset, and only its row knows its name."""
    picture = images / "fashion_mnist" / "0.png"
    write(images / "fashion_mnist" / "test-00000-of-00001.parquet", [{"bytes": None, "path": "0.png"}])
    for grey in (0, 200):
        Image.new("L", (28, 28), grey).save(picture)
        dataset, was_decoded = load(images)
        assert was_decoded
        assert (dataset.test_images == grey).all()
    assert not cache.exists()


@pytest.mark.parametrize("file", ["values.json", "train_images.npy", "test_labels.npy"])
@pytest.mark.parametrize("junk", [None, b"junk", b""], ids=["gone", "junk", "empty"])
def test_a_spoilt_cache_is_made_anew(cache: Path, images: Path, file: str, junk: bytes | None) -> None:
    load(images)
    (place,) = cache.iterdir()
    (place / file).unlink()  # and not over it: what is mapped must not change under its readers
    if junk is not None:
        (place / file).write_bytes(junk)
    second, was_decoded = load(images)
    assert was_decoded
    third, was_decoded = load(images)
    assert not was_decoded
    assert same(second, third)


def test_without_a_place_for_it_there_is_none(tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("POOLSWEEP_CACHE", str(tmp_path / "file" / "cache"))
    first, _ = load(images)
    second, was_decoded = load(images)
    assert was_decoded
    assert same(first, second)


def test_where_it_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("POOLSWEEP_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert machine.cache() == tmp_path / "poolsweep"
