"""Which files hold a split: each shard once, in any layout that people have, or a refusal that names files."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from search_spaces.errors import RequestError
from tests.parquet_images import as_read_by_pandas, cells, noise, write, write_both
from trainer import data
from trainer.data import PAD, Dataset, torchvision_files


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Which datasets torchvision was asked to download; nothing comes."""
    asked: list[str] = []

    def read(name: str, root: Path) -> None:
        raise OSError(f"Dataset not found or corrupted in {root}")

    def download(name: str, root: Path) -> None:
        asked.append(name)
        raise OSError("no network")

    monkeypatch.setattr(torchvision_files, "read", read)
    monkeypatch.setattr(torchvision_files, "download", download)
    return asked


def split(data_dir: Path, files: list[str], seed: int) -> list[np.ndarray]:
    """Written as files with two rows each, labels 0 to 9 and again; its pixels, as pandas and Pillow see them."""
    for i, file in enumerate(files):
        write(data_dir / file, cells(noise(seed + i, 2)), [2 * i % 10, (2 * i + 1) % 10])
    return [image for file in files for image in as_read_by_pandas(data_dir / file)]


def same(dataset: Dataset, train: list[np.ndarray], test: list[np.ndarray]) -> bool:
    inner = dataset.train_images[:, PAD:-PAD, PAD:-PAD]
    in_order = np.array_equal(dataset.train_labels, np.arange(len(train)) % 10)
    return in_order and np.array_equal(inner, train) and np.array_equal(dataset.test_images, test)


def refused(data_dir: Path, name: str = "cifar10") -> str:
    with pytest.raises(RequestError) as caught:
        data.load(name, data_dir)
    return str(caught.value)


LAYOUTS = {
    "one shard": (["train-00000-of-00001.parquet"], ["test-00000-of-00001.parquet"]),
    "hashes": (
        ["train-00000-of-00002-3f1b2c0e4c2ab9a3.parquet", "train-00001-of-00002-9a3f1b2c0e4c2ab3.parquet"],
        ["test-00000-of-00001-0123456789abcdef.parquet"],
    ),
    "no counts": (["train-0.parquet", "train-1.parquet"], ["test-0.parquet"]),
    "as numbers are sorted": ([f"train-{i}.parquet" for i in range(11)], ["test_0.parquet"]),
    "one file": (["train.parquet"], ["test.parquet"]),
    "folders": (["train/0000.parquet", "train/0001.parquet"], ["test/0000.parquet"]),
    "folders of shards": (["train/train-00000-of-00001.parquet"], ["test/test-00000-of-00001.parquet"]),
    "folders of parts": (["train/part-0.parquet", "train/part-1.parquet"], ["test/data.parquet"]),
}


ABOVE = ["cifar10", "cifar-10", "CIFAR_10", "cifar10/plain_text", "cifar10/cifar10", "cifar10/refs/any", "data", "."]


@pytest.mark.parametrize(
    ("layout", "above"), [*((layout, "cifar10") for layout in LAYOUTS), *(("folders", above) for above in ABOVE[1:])]
)
def test_layouts_that_people_have(tmp_path: Path, layout: str, above: str) -> None:
    train, test = LAYOUTS[layout]
    folder = tmp_path / "images"
    pixels = split(folder / above, train, 0), split(folder / above, test, 100)
    roots = {folder, folder / above, folder / "cifar10" if above.startswith("cifar10") else folder}
    for root in roots:  # the folder of the set, or of its splits, is --data-dir too
        assert same(data.load("cifar10", root), *pixels)


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        *(("fmnist", called) for called in ("fashion_mnist", "fashion-mnist", "fmnist", "FashionMNIST")),
        *(("cifar100", called) for called in ("cifar-100", "CIFAR100", "uoft-cs/cifar100")),
        ("cifar100", "datasets--uoft-cs--cifar100/snapshots/0a1b2c/cifar100"),
    ],
)
def test_folders_as_people_call_them(tmp_path: Path, name: str, folder: str) -> None:
    column = "fine_label" if name == "cifar100" else "label"
    write_both(tmp_path / folder, columns=("image", column))
    assert len(data.load(name, tmp_path).train_labels) == 6


@pytest.mark.parametrize(
    ("files", "says"),
    [
        (["train-00000-of-00002-abc.parquet"], "missing: train-00001-of-00002;"),
        (["train-00002-of-00003.parquet"], "expected 3 files train-*.parquet in"),
        (["train-00001.parquet"], "missing: train-00000;"),
        (["train-00000-of-00001-abc.parquet", "train-00000-of-00001-def.parquet"], "expected each shard of train once"),
        (["train-00000-of-00001.parquet", "train-00000-of-00001 (1).parquet"], "expected each shard of train once"),
        (["train-00000-of-00001.parquet", "train-00000-of-00002.parquet"], "expected the shards of one whole of train"),
        (["train-00000-of-00001.parquet", "train.parquet"], "expected the shards of one whole of train"),
        (["train-0.parquet", "train/0000.parquet"], "expected the shards of one whole of train"),
        (["train.parquet", "train-1.parquet"], "expected the shards of one whole of train"),
        (["train.parquet", "train-old.parquet"], "expected each shard of train once"),
        (["train-00001-of-00001.parquet"], "expected numbers of shards below 1"),
        (["train-00000-of-99999999999.parquet"], "missing: train-00001-of-99999999999, "),
    ],
)
def test_a_split_that_is_not_each_shard_once(tmp_path: Path, files: list[str], says: str) -> None:
    split(tmp_path / "cifar10", [*files, "test.parquet"], 0)
    said = refused(tmp_path)
    assert says in said
    assert all(str(tmp_path / "cifar10" / file) in said for file in files) or "missing" in said or len(files) == 1
    assert "\n" not in said


def test_both_splits_are_told_of_at_once(tmp_path: Path) -> None:
    split(tmp_path / "cifar10", ["train-0-of-2.parquet", "test-1-of-2.parquet"], 0)
    said = refused(tmp_path)
    assert said.count("expected 2 files") == said.count(", got 1; missing: ") == 2


@pytest.mark.parametrize("other", ["validation", "val"])
def test_a_split_of_another_name_is_not_the_test_set(tmp_path: Path, other: str) -> None:
    split(tmp_path / "cifar10", ["train.parquet", f"{other}.parquet"], 0)
    assert f"expected train and test in {tmp_path / 'cifar10'}, got train, {other}" in refused(tmp_path)
    split(tmp_path / "cifar10", ["test.parquet"], 0)
    data.load("cifar10", tmp_path)


@pytest.mark.parametrize(
    ("first", "second"),
    [("cifar10", "cifar-10"), ("cifar10", "."), ("cifar10/data", "cifar10/plain_text"), ("cifar10", "data")],
)
def test_two_layouts_are_both_named(tmp_path: Path, first: str, second: str) -> None:
    for folder in (first, second):
        write_both(tmp_path / folder)
    said = refused(tmp_path)
    assert f"{tmp_path / first} (test, train)" in said
    assert f"{tmp_path / second} (test, train)" in said


def test_splits_in_two_folders_are_both_named(tmp_path: Path) -> None:
    split(tmp_path, ["cifar10/a/train.parquet", "cifar10/b/test.parquet"], 0)
    assert f"{tmp_path / 'cifar10' / 'a'} (train) and in {tmp_path / 'cifar10' / 'b'} (test)" in refused(tmp_path)


STRAYS = {
    "a folder of any name": "svhn/train.parquet",
    "a file that is called as no split": "cifar10/everything.parquet",
    "a part of a split": "cifar10/partial-train/0000.parquet",
    "a file beside": "0000.parquet",
    "pictures in folders": "cifar10/train/cat/0.png",
    "an archive": "cifar-10/images.zip",
}


@pytest.mark.parametrize("stray", STRAYS)
def test_nothing_is_downloaded_where_images_lie(tmp_path: Path, no_network: list[str], stray: str) -> None:
    file = tmp_path / STRAYS[stray]
    if file.suffix == ".parquet":
        write(file, cells(noise()))
    else:
        file.parent.mkdir(parents=True)
        file.touch()
    before = sorted(tmp_path.rglob("*"))
    said = refused(tmp_path)
    assert str(tmp_path / Path(STRAYS[stray]).parts[0]) in said
    assert "expected train.parquet, train-00000-of-00001.parquet or train/0000.parquet, and test likewise" in said
    assert sorted(tmp_path.rglob("*")) == before, "not even a lock"
    assert not no_network
    with pytest.raises(RequestError, match=r"expected train\.parquet"):
        data.load("cifar10", tmp_path, download=False)


def test_beside_another_dataset_it_is_downloaded(tmp_path: Path, no_network: list[str]) -> None:
    write_both(tmp_path / "cifar100", columns=("img", "fine_label"))
    (tmp_path / "cifar10").mkdir()
    assert "the download failed" in refused(tmp_path)
    assert no_network


def test_the_folder_of_another_dataset_is_not_read(tmp_path: Path, no_network: list[str]) -> None:
    for folder in ("cifar10", "cifar-10/plain_text"):
        write_both(tmp_path / folder)
        assert "in a folder that is called as cifar10 is" in refused(tmp_path / Path(folder).parts[0], "fmnist")
    assert not no_network


def test_one_folder_is_not_two_datasets(tmp_path: Path) -> None:
    write_both(tmp_path)
    data.refuse_shared(["cifar10", "digits"], tmp_path)
    with pytest.raises(RequestError, match=r"cifar10 and fmnist would both be read from .*train-00000"):
        data.refuse_shared(["cifar10", "fmnist"], tmp_path)
    shutil.rmtree(tmp_path)
    data.refuse_shared(["cifar10", "fmnist"], tmp_path)


def test_a_data_directory_that_is_a_link_is_what_either_name_says(tmp_path: Path) -> None:
    write_both(tmp_path / "there" / "any")
    (tmp_path / "cifar10").symlink_to(tmp_path / "there")
    assert len(data.load("cifar10", tmp_path / "cifar10").train_labels) == 6


def test_hidden_folders_and_others_files_are_passed_over(tmp_path: Path) -> None:
    write_both(tmp_path / "cifar10")
    write_both(tmp_path / "cifar10" / ".cache")
    write(tmp_path / "cifar10" / "extra.parquet", cells(noise()))
    write_both(tmp_path / "svhn")
    (tmp_path / "lost+found").mkdir(mode=0)
    assert len(data.load("cifar10", tmp_path).train_labels) == 6
