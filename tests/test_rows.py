"""Labels and columns of Parquet files: as they are, or a refusal that names file, row and value."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from search_spaces.errors import RequestError
from tests.parquet_images import cells, noise, write, write_both
from trainer import data

LABELS = [3, 0, 9, 3, 1, 2]
CELLS = cells(noise())
INTEGERS = [kind() for kind in (pa.int8, pa.uint8, pa.int16, pa.uint16, pa.int32, pa.uint32, pa.int64, pa.uint64)]


def refused(data_dir: Path, name: str = "cifar10") -> str:
    with pytest.raises(RequestError) as caught:
        data.load(name, data_dir)
    return str(caught.value)


@pytest.mark.parametrize("kind", [*INTEGERS, pa.dictionary(pa.int8(), pa.int64())], ids=str)
def test_integers_of_any_kind(tmp_path: Path, kind: pa.DataType) -> None:
    labels = pa.array(LABELS).dictionary_encode() if pa.types.is_dictionary(kind) else pa.array(LABELS, kind)
    write_both(tmp_path / "cifar10", CELLS, labels)
    dataset = data.load("cifar10", tmp_path)
    theirs = pd.read_parquet(tmp_path / "cifar10" / "train-00000-of-00001.parquet")["label"]
    assert dataset.train_labels.tolist() == theirs.tolist() == LABELS
    assert dataset.train_labels.dtype == "int64"


@pytest.mark.parametrize(
    ("labels", "says"),
    [
        ([0, 1, None, 3, None, 5], "nothing (null)"),
        (pa.array([0, 1, None, 3, 4, 5], pa.int32()), "nothing (null)"),
        (pa.array([0.0, 1.0, None, 3.0, 4.0, 5.0]), "nothing (null)"),
        ([0, 1, 10, 3, 4, 10], "10"),
        ([0, 1, -1, -1, -1, -1], "-1, which is how labels are withheld"),
        (pa.array([0, 1, 2**64 - 1, 3, 4, 5], pa.uint64()), f"{2**64 - 1}"),
        ([0.0, 1.0, 2.0, 3.0, 4.0, 5.0], "the type double, 0.0 in row 0"),
        (["cat", *"abcde"], "the type string, 'cat' in row 0"),
        (pa.array(["cat"] * 6).dictionary_encode(), "the type dictionary<"),
        ([True, False] * 3, "the type bool, True in row 0"),
        ([[0]] * 6, "the type list<"),
    ],
)
def test_labels_that_are_none_are_named(tmp_path: Path, labels: Any, says: str) -> None:
    write(tmp_path / "cifar10" / "train.parquet", CELLS)
    write(tmp_path / "cifar10" / "test.parquet", CELLS, labels)
    said = refused(tmp_path)
    row = "" if says.startswith("the type") else "row 2 (counted from 0): "
    where = f"{tmp_path / 'cifar10' / 'test.parquet'}, column label, {row}"
    assert said.startswith(f"{where}expected integers from 0 to 9, got {says}")
    assert len(said.splitlines()) == 1


def test_everything_that_is_wrong_is_said_at_once(tmp_path: Path) -> None:
    """Both columns of both files; of many files, the first five problems."""
    for split in ("train", "test"):
        write(tmp_path / "cifar10" / f"{split}.parquet", [*CELLS[:5], None], [0, 1, 2, 3, 4, 10])
    assert len(refused(tmp_path).splitlines()) == 4
    for split in ("train", "test"):
        (tmp_path / "cifar10" / f"{split}.parquet").unlink()
        for i in range(8):
            write(tmp_path / "cifar10" / f"{split}-{i}-of-8.parquet", CELLS, [10] * 6)
    assert refused(tmp_path).splitlines()[5:] == ["and 11 more problems of this kind"]


@pytest.mark.parametrize("name", ["img", "image"])
@pytest.mark.parametrize("label", ["fine_label", "label"])
def test_columns_as_people_call_them(tmp_path: Path, name: str, label: str) -> None:
    write_both(tmp_path / "cifar100", CELLS, LABELS, columns=(name, label))
    assert data.load("cifar100", tmp_path).test_labels.tolist() == LABELS


def test_other_columns_do_not_matter(tmp_path: Path) -> None:
    table = pa.table({"id": LABELS, "coarse_label": [99] * 6, "fine_label": LABELS, "label": [99] * 6, "img": CELLS})
    (tmp_path / "cifar100").mkdir()
    for split in ("train", "test"):
        pq.write_table(table, tmp_path / "cifar100" / f"{split}.parquet")
    assert data.load("cifar100", tmp_path).train_labels.tolist() == LABELS


@pytest.mark.parametrize(
    ("columns", "says"),
    [
        (("img", "lbl"), "expected one column label, got img, lbl"),
        (("image", "label"), "expected one column img, got image, label"),
    ],
)
def test_a_column_that_one_shard_lacks(tmp_path: Path, columns: tuple[str, str], says: str) -> None:
    write(tmp_path / "cifar10" / "train-0-of-2.parquet", CELLS)
    other = write(tmp_path / "cifar10" / "train-1-of-2.parquet", CELLS, columns=columns)
    write(tmp_path / "cifar10" / "test.parquet", CELLS)
    assert refused(tmp_path).startswith(f"{other}: {says}")


def test_columns_that_no_file_has(tmp_path: Path) -> None:
    write_both(tmp_path / "cifar10", CELLS, columns=("picture", "coarse_label"))
    said = refused(tmp_path)
    assert "expected one column img or image, got picture, coarse_label" in said
    assert "expected one column label, got picture, coarse_label" in said


def test_two_columns_of_images_are_both_named(tmp_path: Path) -> None:
    table = pa.table({"img": CELLS, "image": CELLS, "label": LABELS})
    write_both(tmp_path / "cifar10")
    pq.write_table(table, tmp_path / "cifar10" / "test-00000-of-00001.parquet")
    assert "expected one of img and image, got both" in refused(tmp_path)


def test_files_that_are_no_parquet(tmp_path: Path) -> None:
    write_both(tmp_path / "cifar10")
    for text, hint in ((b"", "copy it again"), (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull")):
        (tmp_path / "cifar10" / "test-00000-of-00001.parquet").write_bytes(text)
        said = refused(tmp_path)
        assert said.startswith(f"cannot read {tmp_path / 'cifar10' / 'test-00000-of-00001.parquet'}: ")
        assert hint in said


def test_a_file_that_was_damaged_on_its_way(tmp_path: Path) -> None:
    folder = write_both(tmp_path / "cifar10")
    file = folder / "train-00000-of-00001.parquet"
    whole = file.read_bytes()
    file.write_bytes(whole[:4] + b"\xff" * 2000 + whole[2004:])
    assert str(file) in refused(tmp_path)


def test_an_empty_shard_is_no_fault_and_an_empty_split_is(tmp_path: Path) -> None:
    none = pa.table({"img": pa.nulls(0), "label": pa.nulls(0)})
    write(tmp_path / "cifar10" / "train-0-of-2.parquet", CELLS, LABELS)
    pq.write_table(none, tmp_path / "cifar10" / "train-1-of-2.parquet")
    write(tmp_path / "cifar10" / "test.parquet", CELLS, LABELS)
    assert data.load("cifar10", tmp_path).train_labels.tolist() == LABELS
    pq.write_table(none, tmp_path / "cifar10" / "test.parquet")
    assert f"{tmp_path / 'cifar10' / 'test.parquet'}: expected one row or more, got none" in refused(tmp_path)
