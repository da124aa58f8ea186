"""A footer of which a bit has turned over is refused before anything is made of it."""

from __future__ import annotations

import io

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from results.store import seal

ROWS = pa.table({"name": ["gem", "gap", None], "acc": [70.5, None, 71.25]})


def refused(data: bytes) -> bool:
    try:
        seal.check(pa.BufferReader(data))
    except pa.ArrowInvalid:
        return True
    return False


@given(st.lists(st.text()))
@example(["results.seal=01234567", "results.seal=00000000"])  # among the rows, and in a footer's minimum and maximum
def test_a_sealed_file_is_a_parquet_file_like_any_other(names: list[str]) -> None:
    rows = pa.table({"name": pa.array(names, pa.string())})
    data = bytes(seal.seal(rows))
    assert pq.read_table(io.BytesIO(data)).equals(rows)
    assert seal.opened(pa.BufferReader(data)).read().equals(rows)


def test_every_bit_of_a_footer() -> None:
    """All but some of the seal itself, which is then none, while the rest is as it was."""
    data = bytes(seal.seal(ROWS))
    start = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    let_pass = []
    for place in range(start, len(data)):
        for bit in range(8):
            spoilt = bytearray(data)
            spoilt[place] ^= 1 << bit
            if not refused(bytes(spoilt)):
                let_pass.append(place)
                assert seal.opened(pa.BufferReader(spoilt)).read().equals(ROWS, check_metadata=False)
    name = data.rindex(b"results.seal=")
    assert len(let_pass) > 0
    assert set(let_pass) <= set(range(name, name + len(b"results.seal=01234567")))


def test_a_footer_longer_than_what_is_looked_through_for_the_seal() -> None:
    rows = pa.table({"name": [f"{number:0100d}" for number in range(2000)]})
    data = bytes(seal.seal(rows, row_group_size=4))
    length = int.from_bytes(data[-8:-4], "little")
    assert length > 65_536
    assert seal.opened(pa.BufferReader(data)).read().equals(rows)
    for place in (len(data) - length, len(data) - length // 2, len(data) - 7):
        spoilt = bytearray(data)
        spoilt[place] ^= 1
        assert refused(bytes(spoilt))


def test_what_somebody_else_has_written_has_no_seal() -> None:
    sink = io.BytesIO()
    pq.write_table(ROWS, sink)
    assert seal.opened(pa.BufferReader(sink.getvalue())).read().equals(ROWS)


@pytest.mark.parametrize("data", [b"", b"PAR1", b"\xff" * 7, b"\xff" * 100, b"results.seal=00000000"])
def test_what_is_no_parquet_file(data: bytes) -> None:
    with pytest.raises(pa.ArrowInvalid):
        seal.opened(pa.BufferReader(data))
