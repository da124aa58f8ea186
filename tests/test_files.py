"""What a run folder may rely upon, wherever it lives: one contract, for a disk and for an object store."""

from __future__ import annotations

import faulthandler
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from results.store.disk import TEMPORARY, Disk, Files
from results.store.s3 import ObjectStore

MIB = 2**20
EACH = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(params=["disk", "store"])
def files(request: pytest.FixtureRequest, tmp_path: Path) -> Files:
    on_disk = request.param == "disk"
    found = Disk(tmp_path / "a run") if on_disk else ObjectStore(f"{request.getfixturevalue('s3')}/sweeps/a run")
    found.create(["trials/deeper", "trials-too", "epochs", "logs", "odd"])
    return found


def test_any_size(files: Files) -> None:
    large = bytes(range(256)) * (20 * MIB // 256)
    for data in (large, b"", "≡ ▲ π 池".encode(), large[:-1]):
        files.write("file", data)
        assert files.read("file") == data
        middle = len(data) // 2
        part = files.scan("file", lambda file, at=middle: (file.size(), file.read_at(5, at)))
        assert part == (len(data), data[middle : middle + 5])


def test_what_is_missing(files: Files) -> None:
    for name in ("trials/nothing", "no-folder/nothing"):
        for call in (files.read, lambda name: files.scan(name, lambda file: file.read())):
            with pytest.raises(FileNotFoundError, match=name):
                call(name)
        files.remove(name)
        assert not files.exists(name)
        assert not files.is_folder(name)
        assert files.modified(name) is None
    assert not files.is_folder("no-folder")
    assert files.names("no-folder") == files.names("trials") == files.names("") == []


def test_a_folder_shows_its_files_and_nothing_else(files: Files) -> None:
    for name in ("trials/b", "trials/a", "trials/deeper/c", f"trials/{TEMPORARY}d", "trials-too/e", "f"):
        files.write(name, b"x")
    assert files.names("trials") == ["a", "b"]
    assert files.names("") == ["f"]
    assert files.is_folder("trials")
    assert files.is_folder("trials/deeper")
    assert not files.is_folder("f")
    assert files.exists("f")
    assert not files.exists("trials")
    for name in ("b", "a"):
        files.remove(f"trials/{name}")
    assert files.names("trials") == []
    assert files.names("trials/deeper") == ["c"]


def test_names_as_people_give_them(files: Files) -> None:
    odd = ["a b", "100%25", "a+b", "ü池", "a#b", "a?b", "a&b=c", "(1)", "x" * 200]
    for name in odd:
        files.write(f"odd/{name}", name.encode())
    assert files.names("odd") == sorted(odd)
    assert [files.read(f"odd/{name}").decode() for name in odd] == odd


NAMES = ("trials/a", "trials/b", "epochs/a", "space.yaml")
STEPS = st.lists(st.tuples(st.sampled_from(NAMES), st.none() | st.binary(max_size=2000)), max_size=12)


@given(STEPS)
@EACH
def test_any_order_of_writing_and_removing(files: Files, steps: list[tuple[str, bytes | None]]) -> None:
    expected: dict[str, bytes] = {}
    for name, data in [*((name, None) for name in NAMES), *steps]:
        if data is None:
            files.remove(name)
            expected.pop(name, None)
        else:
            files.write(name, data)
            expected[name] = data
    found = {f"{folder}{name}" for folder in ("trials/", "epochs/", "") for name in files.names(folder.rstrip("/"))}
    assert {name: files.read(name) for name in found} == expected


def version(number: int) -> bytes:
    """No two are alike, and the next may be longer or shorter."""
    return f"{number} ".encode() * [300_000, 3, 200_000][number % 3]


def test_a_reader_never_sees_half_a_file(files: Files) -> None:
    files.write("file", version(0))
    over = threading.Event()

    def read() -> int:
        count = 0
        while not over.is_set() or not count:
            data = files.read("file")
            assert data == version(int(data.split()[0]))
            assert files.names("") == ["file"]
            count += 1
        return count

    with ThreadPoolExecutor(3) as threads:
        readers = [threads.submit(read) for _ in range(3)]
        try:
            for number in range(1, 31):
                files.write("file", version(number))
        finally:
            over.set()
        assert all(reader.result() for reader in readers)


def test_many_writers_leave_what_one_of_them_wrote(files: Files) -> None:
    def write(letter: int) -> None:
        for _ in range(5):
            files.write("epochs/file", bytes([letter]) * 100_000)
            files.write(f"epochs/{letter}", bytes([letter]))

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(write, range(8)))
    left = files.read("epochs/file")
    assert len(left) == 100_000
    assert len(set(left)) == 1
    assert files.names("epochs") == [*map(str, range(8)), "file"]
    assert files.leftovers() == []


def test_it_is_the_same_elsewhere(files: Files) -> None:
    before = time.time()
    files.write("trials/a", b"x")
    other = Disk(Path(files.where)) if files.on_disk else ObjectStore(files.where)
    assert other.read("trials/a") == b"x"
    assert (other.where, other.name) == (files.where, "a run")
    when = other.modified("trials/a")
    assert when is not None
    assert before - 2 <= when <= time.time() + 2, "a store's clock has seconds"


def test_a_log_is_added_to_line_by_line_with_any_text_and_stacks(files: Files) -> None:
    def published() -> str:
        """What somebody on another machine sees of it."""
        return files.read("logs/a.log").decode()

    with files.append("logs/a.log") as log:
        log.write("first: π\n")
        log.save()
        log.save()
        assert published() == "first: π\n"
        log.write("half a pair: \ud800\n")
    log.close()
    assert published() == "first: π\nhalf a pair: \\ud800\n"
    with files.append("logs/a.log") as log:
        print("third", file=log)
        faulthandler.dump_traceback(file=log)
    assert published().startswith("first: π\nhalf a pair: \\ud800\nthird\n")
    assert "test_a_log_is_added_to" in published()


# Of a disk alone


def test_leftovers_of_killed_writers(tmp_path: Path) -> None:
    files = Disk(tmp_path)
    files.create(["trials"])
    files.write("trials/a", b"x")
    (tmp_path / "trials" / f"{TEMPORARY}b").write_bytes(b"half")
    assert files.leftovers() == [f"trials/{TEMPORARY}b"]
    assert files.names("trials") == ["a"]


def test_only_empty_folders_are_discarded(tmp_path: Path) -> None:
    files = Disk(tmp_path / "run")
    files.create(["trials", "epochs"])
    files.write("trials/a", b"x")
    files.discard_if_empty()
    assert files.read("trials/a") == b"x"
    files.remove("trials/a")
    files.discard_if_empty()
    assert not (tmp_path / "run").exists()
