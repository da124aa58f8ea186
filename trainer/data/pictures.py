"""A column of pictures, encoded or as numbers, as one array of uint8; training and test images alike.

Encoded pictures are PNG, JPEG, WebP, GIF, BMP, TIFF, PPM or JPEG 2000. They are turned as their EXIF orientation says,
which is what viewers do, and then become grey or RGB:

- 8 bits of grey are grey as they are, and 1 bit is 0 and 255;
- 16 bits of grey are divided by 257 and rounded, so that 65535 becomes 255 (of 16-bit colour Pillow takes the upper 8);
- transparency is dropped: the colours are those that are stored, whatever hides them;
- a palette is RGB, by its colours, and so is all else, such as CMYK, by Pillow's own conversion.

Floats, and greys beyond 16 bits, are refused: they do not say what is black and what is white. Pictures as numbers are
integers from 0 to 255, pixels in rows (HxW or HxWx1: grey; HxWx3: RGB), as nested lists or tensors of a fixed shape.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt

from search_spaces import machine
from search_spaces.errors import first_line, short

LARGEST = 32  # pixels a side
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000")  # none that Pillow starts a program for
EXPECTED = (
    "expected encoded images (PNG, JPEG, ...) as binary or struct<bytes, path>, paths as strings, or integers as "
    "nested lists of HxW or HxWxC"
)
LISTS = ("list", "large_list", "fixed_size_list")
TEXTS = ("string", "large_string", "string_view", "null")
BINARIES = ("binary", "large_binary", "fixed_size_binary", "binary_view", "null")

Bytes = npt.NDArray[np.uint8]


class CellError(ValueError):
    """A column, or rows of it, that cannot be taken; `rows` are counted from 0, and the first is named."""

    def __init__(self, what: str, rows: Sequence[int] | npt.NDArray[np.int64] = ()):
        where = f"row {rows[0]} (counted from 0): " if len(rows) else ""
        more = f" ({len(rows) - 1} more rows are at fault)" if len(rows) > 1 else ""
        super().__init__(f"{where}{what}{more}")


def decode(column: Any, folders: Sequence[Path]) -> tuple[Bytes, bool]:
    """Return the pictures of a chunked array of Arrow's, and whether some of them are in files of their own.

    They are [N, S, S] where all are grey, else [N, S, S, 3].

    Args:
        folders: where the files are that a row names.

    Raises:
        CellError: a column whose type holds no pictures, or rows that hold none.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    kind = column.type
    if pa.types.is_dictionary(kind):
        column = column.cast(kind.value_type)
    if isinstance(column.type, pa.BaseExtensionType) or _is(column, LISTS):
        return _numbers(column), False
    encoded = paths = pa.nulls(len(column))
    if pa.types.is_struct(column.type):
        fields = {field.name: pc.struct_field(column, field.name) for field in column.type}  # type: ignore[attr-defined]
        encoded, paths = fields.get("bytes", encoded), fields.get("path", paths)
    elif _is(column, TEXTS):
        paths = column
    else:
        encoded = column
    if not encoded.null_count:
        paths = pa.nulls(len(column))  # where the images once were, in whatever form
    if not (_is(encoded, BINARIES) and _is(paths, TEXTS)):
        raise CellError(f"{EXPECTED}, got the type {kind}")
    cells = zip(encoded.to_pylist(), paths.to_pylist(), strict=True)
    with ThreadPoolExecutor(machine.cores()) as threads:
        found = list(threads.map(lambda cell: _decoded(cell[0], cell[1], folders), cells))
    return _stacked(found), encoded.null_count > 0


def to_rgb(images: Bytes) -> Bytes:
    """Map [..., S, S] to [..., S, S, 3]."""
    return np.repeat(images[..., None], 3, axis=-1)


def check_size(height: int, width: int) -> None:
    """Raise CellError if it is no square, or too large."""
    if height != width or not 0 < height <= LARGEST:
        raise CellError(f"expected a square of {LARGEST}x{LARGEST} pixels at most, got {height}x{width}")


def _stacked(found: Sequence[Bytes | str]) -> Bytes:
    """Stack pictures; or raise what is wrong with those that are none."""
    images = [image for image in found if not isinstance(image, str)]
    size = _by(images[0].shape[:2]) if images else ""
    faults = {}
    for row, image in enumerate(found):
        if isinstance(image, str):
            faults[row] = image
        elif _by(image.shape[:2]) != size:
            faults[row] = f"expected {size} pixels, as above, got {_by(image.shape[:2])}"
    if faults:
        raise CellError(next(iter(faults.values())), list(faults))
    if not images:
        return np.zeros((0, 0, 0), np.uint8)
    grey = all(image.ndim == 2 for image in images)
    return np.stack(images if grey else [to_rgb(image) if image.ndim == 2 else image for image in images])


def _decoded(data: bytes | None, path: str | None, folders: Sequence[Path]) -> Bytes | str:
    """Return a picture, [S, S] or [S, S, 3], or what is wrong with it. Pillow lets go of the interpreter's lock."""
    from PIL import Image

    try:
        data = _read(path, folders) if data is None else data
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            check_size(image.height, image.width)  # before it is unpacked: a few bytes may be a great many pixels
            return _pixels(image)
    except CellError as error:
        return str(error)
    except Image.UnidentifiedImageError:
        return f"expected an image ({', '.join(FORMATS)}), got {len(data or b'')} bytes that are none"
    except Exception as error:  # of damaged bytes Pillow raises what its parts raise: SyntaxError, struct.error, ...
        return f"its image cannot be read: {first_line(error)}; replace it, or remove the row"


def _read(path: str | None, folders: Sequence[Path]) -> bytes:
    if not path:
        raise CellError("expected an image, got neither bytes nor a path; fill it, or remove the row")
    inside = not PurePosixPath(path).is_absolute() and ".." not in PurePosixPath(path).parts
    for folder in folders if inside else ():
        if (folder / path).is_file():
            return (folder / path).read_bytes()
    either = " or ".join(dict.fromkeys(map(str, folders)))
    raise CellError(f"expected an image, or the path of one from {either}, got no bytes and the path {short(path)}")


def _pixels(image: Any) -> Bytes:
    """Return [S, S] or [S, S, 3], by the rules at the top of this file."""
    from PIL import ImageOps

    ImageOps.exif_transpose(image, in_place=True)
    mode = image.mode
    if mode in ("L", "RGB"):
        return np.asarray(image)
    if mode == "1":
        return np.asarray(image.convert("L"))
    if mode in ("LA", "La"):
        return np.asarray(image.convert("LA").convert("L"))
    if mode.startswith("I"):  # I;16, I;16B; I is what older Pillows make of a PNG of 16 bits
        levels = np.asarray(image).astype(np.int64)
        if not 0 <= levels.min() <= levels.max() <= 65535:
            raise CellError(f"expected greys from 0 to 65535, got {levels.min()} to {levels.max()}")
        return ((levels + 128) // 257).astype(np.uint8)
    if mode == "F":
        raise CellError("expected 8 or 16 bits, got an image of floats")
    if mode in ("P", "PA", "RGBA", "RGBa"):
        image = image.convert("RGBA")  # a palette with transparency is warned of on its straight way to RGB
    return np.asarray(image.convert("RGB"))


def _numbers(column: Any) -> Bytes:
    """Read nested lists or tensors, without a Python object a pixel: 50,000 images of 32x32x3 have 154 million."""
    import pyarrow as pa

    array = pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)
    if array.null_count:
        raise CellError("expected an image, got nothing (null); fill it, or remove the row", _true(array.is_null()))
    shape, values = _flattened(array.storage if isinstance(array, pa.ExtensionArray) else array)
    each = int(np.prod(shape))
    if not pa.types.is_integer(values.type):
        raise CellError(f"{EXPECTED}, got the type {column.type}")
    if values.null_count:
        raise CellError("expected pixels from 0 to 255, got nothing (null)", _rows(_true(values.is_null()), each))
    if not len(array):
        return np.zeros((0, 0, 0), np.uint8)
    if isinstance(array, pa.FixedShapeTensorArray):
        shape, order = list(array.type.shape), array.type.permutation
        if order not in (None, sorted(order or ())):  # of which pyarrow 26 writes one and reads another
            raise CellError(f"expected tensors whose axes are stored in their own order, got the order {order}")
    if len(shape) not in (2, 3) or shape[2:] not in ([], [1], [3]):
        raise CellError(f"expected lists of HxW, HxWx1 or HxWx3 numbers, in that order, got {_by(shape)}")
    try:
        check_size(*shape[:2])
    except CellError as error:
        raise CellError(str(error), range(len(array))) from None
    pixels = values.to_numpy(zero_copy_only=False)
    if len(outside := np.flatnonzero((pixels < 0) | (pixels > 255))):
        raise CellError(f"expected pixels from 0 to 255, got {pixels[outside[0]]}", _rows(outside, each))
    pixels = pixels.astype(np.uint8).reshape(len(array), *shape)
    return pixels[..., 0] if shape[2:] == [1] else pixels


def _flattened(values: Any) -> tuple[list[int], Any]:
    """Return the shape that every row of nested lists has, and their numbers in one array of Arrow's."""
    import pyarrow.compute as pc

    shape: list[int] = []
    while _is(values, LISTS):
        lengths = pc.list_value_length(values).fill_null(-1).to_numpy(zero_copy_only=False)  # type: ignore[attr-defined]
        length = int(lengths[0]) if len(lengths) else 0
        if len(other := np.flatnonzero((lengths != length) | (lengths < 0))):
            got = "nothing (null)" if lengths[other[0]] < 0 else lengths[other[0]]
            raise CellError(f"expected a list of {length}, as above, got {got}", _rows(other, int(np.prod(shape))))
        shape.append(length)
        values = values.flatten()
    return shape, values


def _true(mask: Any) -> npt.NDArray[np.int64]:
    return np.flatnonzero(mask.to_numpy(zero_copy_only=False))


def _rows(places: npt.NDArray[np.int64], each: int) -> list[int]:
    """Return the rows that places in a flat array are in."""
    return np.unique(places // max(each, 1)).tolist()


def _by(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))


def _is(column: Any, kinds: Sequence[str]) -> bool:
    import pyarrow as pa

    return any(getattr(pa.types, f"is_{kind}")(column.type) for kind in kinds)
