"""Pixels, against what they were made from and plain Pillow: one conversion, whatever a cell holds."""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from search_spaces.errors import RequestError
from tests.parquet_images import as_read_by_pandas, cells, encoded, noise, write, write_both
from trainer import data
from trainer.data import PAD, pictures
from trainer.data.pictures import CellError

GREY, RGB, RGBA = noise(1, 1, (32, 32))[0], noise(2, 1)[0], noise(3, 1, (32, 32, 4))[0]
DEEP = np.random.default_rng(4).integers(0, 65536, (32, 32)).astype(np.uint16)


def one(cell: Any) -> np.ndarray:
    """What a cell becomes."""
    images, _ = pictures.decode(pa.chunked_array([pa.array([cell])]), ())
    return images[0]


def palette() -> tuple[Image.Image, np.ndarray]:
    """16 colours, and the image in RGB."""
    colours, index = noise(5, 16, (3,)), noise(6, 1, (32, 32))[0] % 16
    image = Image.new("P", (32, 32))
    image.putpalette(colours.tobytes())
    image.putdata(index.ravel().tolist())
    return image, colours[index]


def test_eight_bits_are_as_they_are() -> None:
    assert np.array_equal(one(encoded(GREY)), GREY)
    assert np.array_equal(one(encoded(RGB)), RGB)


@pytest.mark.parametrize("form", ["PNG", "TIFF", "PPM"])
def test_sixteen_bits_are_scaled_and_not_clipped(form: str) -> None:
    expected = np.rint(DEEP / 257).astype(np.uint8)
    assert np.array_equal(one(encoded(Image.fromarray(DEEP), form)), expected)
    assert expected.max() == 255
    assert len(np.unique(expected)) > 200


def test_sixteen_bits_the_other_way_round() -> None:
    big = Image.frombytes("I;16B", (32, 32), DEEP.astype(">u2").tobytes())
    assert np.array_equal(one(encoded(big, "TIFF")), np.rint(DEEP / 257))


def test_integers_of_32_bits_that_fit_in_16_are_read_so_and_no_others() -> None:
    assert np.array_equal(one(encoded(Image.fromarray(DEEP.astype(np.int32)), "TIFF")), np.rint(DEEP / 257))
    for value in (-1, 65536):
        with pytest.raises(CellError, match="expected greys from 0 to 65535"):
            one(encoded(Image.fromarray(np.full((32, 32), value, np.int32)), "TIFF"))


def test_floats_are_refused() -> None:
    with pytest.raises(CellError, match=r"row 0 .* expected 8 or 16 bits, got an image of floats"):
        one(encoded(Image.fromarray(GREY.astype(np.float32)), "TIFF"))


def test_one_bit_is_black_and_white() -> None:
    assert np.array_equal(one(encoded(Image.fromarray(GREY > 99))), np.where(GREY > 99, 255, 0))


@pytest.mark.parametrize("form", ["PNG", "GIF"])
def test_a_palette_is_its_colours(form: str) -> None:
    image, expected = palette()
    assert np.array_equal(one(encoded(image, form)), expected)


def test_transparency_is_dropped_and_the_colours_stay() -> None:
    assert np.array_equal(one(encoded(RGBA)), RGBA[..., :3])
    assert np.array_equal(one(encoded(np.dstack([GREY, RGBA[..., 3]]))), GREY)
    image, expected = palette()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.array_equal(one(encoded(image, transparency=bytes(range(0, 256, 16)))), expected)
        assert np.array_equal(one(encoded(image, transparency=3)), expected)
    assert np.array_equal(one(encoded(GREY, transparency=7)), GREY)
    assert np.array_equal(one(encoded(RGB, transparency=(1, 2, 3))), RGB)


@pytest.mark.parametrize("mode", ["CMYK", "YCbCr"])
def test_other_modes_are_as_pillow_converts_them(mode: str) -> None:
    data = encoded(Image.fromarray(RGB).convert(mode), "JPEG" if mode == "YCbCr" else "TIFF")
    assert np.array_equal(one(data), np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))


TURNED = {  # what a viewer shows of an image that is stored so
    1: lambda a: a,
    2: np.fliplr,
    3: lambda a: np.rot90(a, 2),
    4: np.flipud,
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a, 2).swapaxes(0, 1),
    8: np.rot90,
}


@pytest.mark.parametrize("orientation", TURNED)
@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP"])
def test_images_stand_as_viewers_show_them(form: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    how = {"lossless": True} if form == "WEBP" else {}
    plain = np.asarray(Image.open(io.BytesIO(encoded(RGB, form, **how))))
    assert np.array_equal(one(encoded(RGB, form, exif=exif.tobytes(), **how)), TURNED[orientation](plain))


def load(tmp_path: Path, train: Any, test: Any) -> tuple[np.ndarray, np.ndarray]:
    write(tmp_path / "cifar10" / "train.parquet", train)
    write(tmp_path / "cifar10" / "test.parquet", test)
    dataset = data.load("cifar10", tmp_path)
    return dataset.train_images[:, PAD:-PAD, PAD:-PAD], dataset.test_images


def test_a_dataset_is_grey_if_all_of_it_is(tmp_path: Path) -> None:
    """Whichever image is the one in colour, both splits are RGB."""
    grey = list(noise(7, 4, (32, 32)))
    for n, (train, test) in enumerate([(grey, grey), ([*grey, RGB], grey), (grey, [RGB, *grey]), ([RGB], grey)]):
        colour = n > 0
        folder = tmp_path / str(n)
        for found, file in zip(load(folder, cells(train), cells(test)), ("train", "test"), strict=True):
            expected = as_read_by_pandas(folder / "cifar10" / f"{file}.parquet")
            as_rgb = [np.dstack([a] * 3) if a.ndim == 2 else a for a in expected]
            assert np.array_equal(found, as_rgb if colour else np.stack(expected)[..., None])


def test_shards_of_grey_and_of_colour_are_one_dataset(tmp_path: Path) -> None:
    for i, image in enumerate((GREY, RGB)):
        write(tmp_path / "cifar10" / f"train-{i}-of-2.parquet", cells([image]))
    write(tmp_path / "cifar10" / "test.parquet", cells([GREY]))
    dataset = data.load("cifar10", tmp_path)
    assert np.array_equal(dataset.train_images[:, PAD:-PAD, PAD:-PAD], [np.dstack([GREY] * 3), RGB])


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary(), pa.dictionary(pa.int32(), pa.binary())])
def test_bytes_without_a_struct(tmp_path: Path, kind: pa.DataType) -> None:
    images = noise()
    found, _ = load(tmp_path, pa.array(map(encoded, images)).cast(kind), pa.array(map(encoded, images)).cast(kind))
    assert np.array_equal(found, images)


NESTED = {
    "lists": lambda images: pa.array(images.tolist()),
    "lists of uint8": lambda images: pa.array(images.tolist(), nested(pa.uint8(), images.ndim - 1)),
    "large lists": lambda images: pa.array(images.tolist(), nested(pa.int32(), images.ndim - 1, pa.large_list)),
    "lists of fixed size": lambda images: pa.array(
        images.tolist(), pa.list_(nested(pa.uint8(), images.ndim - 2), images.shape[1])
    ),
    "tensors": lambda images: pa.FixedShapeTensorArray.from_numpy_ndarray(np.ascontiguousarray(images)),
}


def nested(kind: Any, levels: int, of: Any = pa.list_) -> Any:
    return of(nested(kind, levels - 1, of)) if levels else kind


@pytest.mark.parametrize("form", NESTED)
@pytest.mark.parametrize("shape", [(32, 32, 3), (32, 32), (32, 32, 1), (8, 8, 3)])
def test_numbers_in_rows(form: str, shape: tuple[int, ...]) -> None:
    images = noise(8, 5, shape)
    array = NESTED[form](images)
    found, _ = pictures.decode(pa.chunked_array([array[:3], array[3:]]), ())  # the second begins at an offset
    assert np.array_equal(found, images[..., 0] if shape[2:] == (1,) else images)


def test_tensors_with_axes_in_another_order_are_refused() -> None:
    by_colour = np.ascontiguousarray(noise(9, 4).transpose(0, 3, 1, 2)).transpose(0, 2, 3, 1)
    with pytest.raises(CellError, match=r"expected tensors whose axes .* got the order"):
        pictures.decode(pa.chunked_array([pa.FixedShapeTensorArray.from_numpy_ndarray(by_colour)]), ())


def test_numbers_in_a_file_are_a_dataset(tmp_path: Path) -> None:
    images = noise()
    for form, make in NESTED.items():
        found, test = load(tmp_path / form, make(images), make(images[::-1]))
        assert np.array_equal(found, images)
        assert np.array_equal(test, images[::-1])


def changed(place: tuple[int, ...], value: Any) -> list[Any]:
    rows = noise(10, 4).tolist()
    inner: Any = rows
    for index in place[:-1]:
        inner = inner[index]
    inner[place[-1]] = value
    return rows


@pytest.mark.parametrize(
    ("array", "says"),
    [
        (noise(0, 2).reshape(2, -1).tolist(), "expected lists of HxW, HxWx1 or HxWx3 numbers, in that order, got 3072"),
        (noise(0, 2).transpose(0, 3, 1, 2).tolist(), "numbers, in that order, got 3x32x32"),
        (noise(0, 2, (32, 32, 4)).tolist(), "numbers, in that order, got 32x32x4"),
        (
            noise(0, 2, (32, 28, 3)).tolist(),
            "row 0 (counted from 0): expected a square of 32x32 pixels at most, got 32x28",
        ),
        (noise(0, 2, (40, 40)).tolist(), "expected a square of 32x32 pixels at most, got 40x40 (1 more rows"),
        ((noise(0, 2) / 255).tolist(), "got the type list<"),
        (changed((2, 5, 6, 1), 256), "row 2 (counted from 0): expected pixels from 0 to 255, got 256"),
        (changed((3, 5, 6, 1), -1), "row 3 (counted from 0): expected pixels from 0 to 255, got -1"),
        (changed((3, 5, 6, 1), None), "row 3 (counted from 0): expected pixels from 0 to 255, got nothing (null)"),
        (changed((1, 5, 6), [1, 2]), "row 1 (counted from 0): expected a list of 3, as above, got 2"),
        (changed((1, 5), None), "row 1 (counted from 0): expected a list of 32, as above, got nothing (null)"),
        (
            changed((1,), noise(0, 1, (28, 28, 3))[0].tolist()),
            "row 1 (counted from 0): expected a list of 32, as above, got 28",
        ),
        (changed((1,), None), "row 1 (counted from 0): expected an image, got nothing (null); fill it, or remove"),
        ([1, 2], "as nested lists of HxW or HxWxC, got the type int64"),
        ([{"pixels": b""}], "expected an image"),
        ([{"bytes": [1, 2], "path": None}], "got the type struct<bytes: list<"),
        ([None, None], "expected an image, got neither bytes nor a path"),
        ([b"", b""], "got 0 bytes that are none"),
        ([encoded(RGB), RGB.tobytes()], "row 1 (counted from 0): expected an image (PNG, JPEG, WEBP"),
        ([encoded(RGB), encoded(RGB)[:1500]], "row 1 (counted from 0): its image cannot be read: "),
        ([encoded(RGB, "EPS")], "bytes that are none"),
        ([encoded(RGB), encoded(RGB[:28, :28])], "row 1 (counted from 0): expected 32x32 pixels, as above, got 28x28"),
        ([encoded(np.zeros((9000, 9000), np.uint8))], "expected a square of 32x32 pixels at most, got 9000x9000"),
        ([encoded(RGB), encoded(RGB[:28]), None], "expected a square of 32x32 pixels at most, got 28x32"),
    ],
)
def test_what_is_no_picture_is_named(array: Any, says: str) -> None:
    with pytest.raises(CellError) as caught:
        pictures.decode(pa.chunked_array([pa.array(array)]), (Path("here"),))
    assert says in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("form", ["struct", "text"])
def test_images_in_files_of_their_own(tmp_path: Path, form: str) -> None:
    """Beside the Parquet file first, then in the data directory; and where bytes are given, those."""
    images = noise()
    (tmp_path / "cifar10" / "pictures").mkdir(parents=True)
    paths = [f"pictures/{i}.png" for i in range(6)]
    for i, path in enumerate(paths):
        folder = tmp_path / "cifar10" if i % 2 else tmp_path
        (folder / path).parent.mkdir(exist_ok=True)
        (folder / path).write_bytes(encoded(images[i]))
    structs = [{"bytes": None, "path": path} for path in paths]
    structs[0] = {"bytes": encoded(images[0]), "path": "of another machine"}
    found, _ = load(tmp_path, paths if form == "text" else structs, paths)
    assert np.array_equal(found, images)


@pytest.mark.parametrize("path", ["none.png", "../secret.png", "/etc/hostname", "https://example.org/0.png", ""])
def test_a_file_that_is_not_there_is_named_with_its_row(tmp_path: Path, path: str) -> None:
    (tmp_path / "secret.png").write_bytes(encoded(RGB))
    folder = write_both(tmp_path / "data" / "cifar10", [*cells([RGB]), {"bytes": None, "path": path}])
    with pytest.raises(RequestError) as caught:
        data.load("cifar10", tmp_path / "data")
    said = str(caught.value).splitlines()
    assert [line.split(" (counted")[0] for line in said] == [
        f"{folder / f'{split}-00000-of-00001.parquet'}, column img, row 1" for split in ("train", "test")
    ]
    assert all(repr(path) in line and str(folder) in line for line in said) or not path


def test_paths_beside_bytes_do_not_matter() -> None:
    for path in ("/of/another/machine.png", 7, ["a", "b"]):
        assert np.array_equal(one({"bytes": encoded(RGB), "path": path}), RGB)


def test_both_splits_have_one_size(tmp_path: Path) -> None:
    with pytest.raises(
        RequestError, match=r"test\.parquet, row 0: expected 32x32 pixels, as in .*train\.parquet, got 28"
    ):
        load(tmp_path, cells([RGB]), cells([RGB[:28, :28]]))
