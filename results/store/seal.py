"""The seal of a Parquet file: a checksum of its footer, which the format has for pages alone.

A footer says where everything is, and what a filter may pass over. With one bit of it turned over a reader may show
other rows, or end its process: pyarrow aborts on some. So `seal` keeps the CRC-32 of the footer in the file's own
metadata, as `results.seal=<8 hexadecimal digits>`, reckoned with zeros in their place, and `check` compares it before
anything is parsed. To whoever does not know it, such a file is a Parquet file like any other.
"""

from __future__ import annotations

import zlib
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

_NAME = b"results.seal="
_BLANK = b"00000000"
_END = 8  # bytes after the footer: its length, and PAR1
_TAIL = 65_536  # bytes in which the seal is, whatever the footer's length is said to be


def seal(rows: pa.Table, **how: Any) -> pa.Buffer:
    """Rows as a Parquet file, sealed, each page with a checksum of its own.

    Args:
        how: as of `pyarrow.parquet.write_table`.
    """
    sink = pa.BufferOutputStream()
    rows = rows.replace_schema_metadata({"results": _NAME + _BLANK})
    pq.write_table(rows, sink, write_page_checksum=True, **how)
    data = sink.getvalue()
    view = memoryview(data).cast("B")  # in place: a merged file may have hundreds of megabytes
    footer = view[-_length(view[-_END:]) :]
    at, digits = _reckoned(bytes(footer))
    footer[at : at + len(digits)] = digits
    return data


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
    if _NAME not in tail:
        return
    length = _length(tail[-_END:])
    if len(tail) < length <= size:
        tail = file.read_at(length, size - length)
    footer = tail[-length:]
    if _NAME in footer:
        at, digits = _reckoned(footer)
        if footer[at : at + len(digits)] == digits:
            return
    raise pa.ArrowInvalid("its footer is not as it was written: a bit has turned over, or it was rewritten")


def _length(end: bytes | memoryview) -> int:
    """Of the footer, with what comes after it."""
    return _END + int.from_bytes(end[:4], "little")


def _reckoned(footer: bytes) -> tuple[int, bytes]:
    """Where its seal has its digits, and what they have to be."""
    at = footer.rindex(_NAME) + len(_NAME)  # the last: there may be others among the rows' minima and maxima
    return at, b"%08x" % zlib.crc32(footer[:at] + _BLANK + footer[at + len(_BLANK) :])
