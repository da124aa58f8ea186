"""The seal of a Parquet file: a checksum of its footer, which the format has for pages alone.

A footer says where everything is, and what a filter may pass over. With one bit of it turned over a reader may show
other rows, or end its process: pyarrow aborts on some. So `seal` keeps the CRC-32 of the footer in the file's own
metadata, as `results.seal=<8 hexadecimal digits>`, reckoned with zeros in their place, and `check` compares it before
anything is parsed. To whoever does not know it, such a file is a Parquet file like any other.
"""

from __future__ import annotations

import re
import zlib

import pyarrow as pa
import pyarrow.parquet as pq

_BLANK = b"00000000"
_SEAL = re.compile(rb"results\.seal=([0-9a-f]{8})")
_METADATA = {b"results": b"results.seal=" + _BLANK}
_END = 8  # bytes after the footer: its length, and PAR1
_TAIL = 65_536  # bytes in which the seal is, whatever the footer's length is said to be


def seal(rows: pa.Table, **how: object) -> bytes:
    """Rows as the bytes of a Parquet file, sealed, each page with a checksum of its own.

    Args:
        how: as of `pyarrow.parquet.write_table`.
    """
    sink = pa.BufferOutputStream()
    pq.write_table(rows.replace_schema_metadata(_METADATA), sink, write_page_checksum=True, **how)  # pyright: ignore
    data = bytearray(sink.getvalue())
    footer = _footer(data)
    at = len(data) - len(footer) + _seal(footer).start(1)  # pyright: ignore[reportOptionalMemberAccess]
    data[at : at + len(_BLANK)] = b"%08x" % zlib.crc32(footer)
    return bytes(data)


def opened(file: pa.NativeFile) -> pq.ParquetFile:
    """A file of which a bit that has turned over is an error, and no wrong number.

    One without a seal, which somebody else has written, is taken as it is.

    Raises:
        pa.ArrowInvalid: it is no Parquet file, or its footer is not as it was written.
    """
    check(file)
    return pq.ParquetFile(file, page_checksum_verification=True)


def check(file: pa.NativeFile) -> None:
    """That a file's footer is as it was written; as `opened`."""
    size = file.size()
    tail = file.read_at(min(size, _TAIL), max(0, size - _TAIL))
    found = _seal(tail)
    if found is None:
        return
    length = _END + int.from_bytes(tail[-_END:-4], "little")
    if len(tail) < length <= size:
        tail = file.read_at(length, size - length)
    footer = _footer(tail)
    if found := _seal(footer):
        blank = footer[: found.start(1)] + _BLANK + footer[found.end(1) :]
        if zlib.crc32(blank) == int(found[1], 16):
            return
    raise pa.ArrowInvalid("its footer is not as it was written: a bit has turned over, or it was rewritten")


def _footer(data: bytes | bytearray) -> bytes:
    """With what comes after it."""
    return bytes(data[-_END - int.from_bytes(data[-_END:-4], "little") :])


def _seal(data: bytes) -> re.Match[bytes] | None:
    """The last that looks like one: there may be others among the rows, before it."""
    *_, found = [None, *_SEAL.finditer(data)]
    return found
