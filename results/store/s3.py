"""A run folder's files in an object store: `s3://BUCKET/RUN`, and `gs://` and `abfs://` where pyarrow has them.

An object is there when its upload is complete, so nothing has to be renamed. Faults of the network and of a store that
is busy pass: every request is tried again for two minutes, with pauses that double, each drawn at random so that a
hundred workers don't come back at one moment. What no waiting can mend is said at once, with what to do.

Credentials and the endpoint come from the environment, as for every other tool:

    AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN, or a profile, or the machine's own role
    AWS_ENDPOINT_URL or AWS_ENDPOINT_URL_S3   of a store that is not Amazon's
    AWS_REGION or AWS_DEFAULT_REGION          asked for at Amazon's if neither is set

or from the URI, as pyarrow spells it: `s3://bucket/run?endpoint_override=localhost:9000&scheme=http&region=eu-west-1`.
"""

from __future__ import annotations

import contextlib
import errno
import fnmatch
import functools
import glob
import itertools
import mimetypes
import os
import random
import re
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar
from urllib.parse import parse_qsl, unquote, urlencode

import pyarrow as pa
from pyarrow import fs

from results.store import logs
from results.store.logs import Log, UploadedLog
from search_spaces.errors import Problem, RequestError, did_you_mean, unknown

PATIENCE_S = 120.0
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.2, 15.0
ANSWER_S = 30.0  # without a byte; the default of 3 s is less than a busy store takes to put a large object together
CONNECT_S = 5.0
SDK_ATTEMPTS = 3  # of the AWS SDK itself, within a second or two
AT_ONCE = 24  # pyarrow's S3 client keeps 25 connections

S3_OPTIONS = ("endpoint_override", "region", "scheme")  # of a URI, as pyarrow spells them; none is secret
_AZURE = "give it as abfs://CONTAINER@ACCOUNT.dfs.core.windows.net/RUN, and log in, or set AZURE_CLIENT_ID and the like"
HELP = {  # what to set, by scheme
    "s3": "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_REGION, and AWS_ENDPOINT_URL if it is not Amazon's",
    "gs": "set GOOGLE_APPLICATION_CREDENTIALS",
    "gcs": "set GOOGLE_APPLICATION_CREDENTIALS",
    "abfs": _AZURE,
    "abfss": _AZURE,
}
# What the store says where no waiting helps. A missing bucket may also be one that is not yet seen everywhere.
_REFUSED = re.compile(
    "NO_SUCH_BUCKET|ACCESS_DENIED|INVALID_ACCESS_KEY_ID|INVALID_CLIENT_TOKEN_ID|SIGNATURE_DOES_NOT_MATCH|"
    "MISSING_AUTHENTICATION_TOKEN|UNRECOGNIZED_CLIENT|EXPIRED_?TOKEN|InvalidAccessKeyId|SignatureDoesNotMatch|"
    "AuthorizationHeaderMalformed|InvalidBucketName|PermanentRedirect|Bucket '.*' not found|PERMISSION_DENIED|"
    r"UNAUTHENTICATED|AuthenticationFailed|AuthorizationFailure|HTTP status (301|307|400|401|403|405|409|501)"
)
_PARQUET = b"PAR1"  # a whole Parquet file's last bytes
T = TypeVar("T")


class StoreError(OSError, RequestError):
    """A store that refuses, or did not answer for so long: as any file that cannot be had, and to be said as it is."""

    def __init__(self, what: str):
        RequestError.__init__(self, [Problem("", what)])
        self.errno = errno.EIO

    def __str__(self) -> str:
        return "\n".join(map(str, self.problems))

    def __reduce__(self) -> tuple[type[StoreError], tuple[str]]:
        return StoreError, (str(self),)


def is_uri(where: object) -> bool:
    return isinstance(where, str) and "://" in where


class ObjectStore:
    """The objects below a URI; see `results.store.disk.Files`. Nothing is asked for before the first of them is.

    Args:
        patience_s: how long a request is tried again.

    Raises:
        RequestError: no such kind of store, or no such URI.
    """

    on_disk = False
    at_once = AT_ONCE

    def __init__(self, uri: str, patience_s: float = PATIENCE_S):
        self._scheme, _, rest = uri.partition("://")
        place, _, query = rest.partition("?")  # no URL: what else stands in it is the object's name, as it is
        self._login, _, self._place = place.rstrip("/").rpartition("@")
        self._options = dict(parse_qsl(query, keep_blank_values=True))
        self._patience_s = patience_s
        self.where = f"{self._scheme}://{place.rstrip('/')}{f'?{query}' if query else ''}"
        if problem := self._problem():
            raise RequestError.of(f"{self.spell()}: {problem}")

    def _problem(self) -> str | None:
        if self._scheme not in HELP:
            return f"{unknown('store', f'{self._scheme}://', [f'{name}://' for name in HELP])}, or a path on a disk"
        if not set(self._place.split("/")).isdisjoint(("", ".", "..")):
            return f"found {self._place!r}, allowed is {self._scheme}://BUCKET/RUN, without empty parts, `.` and `..`"
        if self._scheme == "s3" and (strange := [name for name in self._options if name not in S3_OPTIONS]):
            return f"unknown option {strange[0]!r}; {did_you_mean(strange[0], S3_OPTIONS)}"
        return None

    @property
    def name(self) -> str:
        return self._place.rpartition("/")[2]

    def spell(self, name: str = "") -> str:
        container = self._login.partition(":")[0] if self._scheme in ("abfs", "abfss") else ""
        path = "/".join(filter(None, (self._place, name)))
        shown = urlencode({name: self._options[name] for name in S3_OPTIONS if name in self._options}, safe=":/")
        return f"{self._scheme}://{container and f'{container}@'}{path}{shown and f'?{shown}'}"

    def create(self, folders: Sequence[str]) -> None:
        """Nothing has to be there."""

    def discard_if_empty(self) -> None:
        """Nothing was made."""

    def read(self, name: str) -> bytes:
        return self._ask(name, _read)

    def scan(self, name: str, read: Callable[[pa.NativeFile], T]) -> T:
        def scan(store: fs.FileSystem, path: str) -> T:
            with store.open_input_file(path) as file:
                return read(file)

        return self._ask(name, scan)

    def write(self, name: str, data: bytes | pa.Buffer) -> None:
        kind = mimetypes.guess_type(name)[0] or "application/octet-stream"  # so that a browser shows the report

        def write(store: fs.FileSystem, path: str) -> None:
            with store.open_output_stream(path, metadata={"Content-Type": kind}) as stream:
                stream.write(data)

        self._ask(name, write)

    def append(self, name: str) -> Log:
        return UploadedLog(self.spell(name), self._uploaded(name), functools.partial(self.write, name))

    def log(self, name: str) -> bytes | None:
        return logs.recovered(self.spell(name), self._uploaded(name)) or None

    def _uploaded(self, name: str) -> bytes:
        try:
            return self.read(name)
        except FileNotFoundError:
            return b""

    def remove(self, name: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            self._ask(name, lambda store, path: store.delete_file(path))

    def exists(self, name: str) -> bool:
        return self._about(name).type == fs.FileType.File

    def is_folder(self, name: str) -> bool:
        """Whether there is an object below that.

        Raises:
            StoreError: there is none, for there is no such bucket.
        """
        if self._about(name).type == fs.FileType.Directory:
            return True
        bucket = self._place.partition("/")[0]
        if self._ask("", lambda store, path: store.get_file_info(path.partition("/")[0])).type == fs.FileType.NotFound:
            raise StoreError(f"{self.spell()}: there is no bucket {bucket!r}; make it, or give another")
        return False

    def names(self, folder: str) -> list[str]:
        found = [one.base_name for one in self._below(folder) if one.type == fs.FileType.File]
        return sorted(name for name in found if not name.startswith("."))

    def folders(self, folder: str) -> list[str]:
        """Those in a folder, in order."""
        return sorted(one.base_name for one in self._below(folder) if one.type == fs.FileType.Directory)

    def modified(self, name: str) -> float | None:
        when = self._about(name).mtime
        return when and when.timestamp()

    def leftovers(self, older_s: float) -> list[str]:  # noqa: ARG002
        """None: what is not complete is not there."""
        return []

    def _about(self, name: str) -> fs.FileInfo:
        return self._ask(name, lambda store, path: store.get_file_info(path))

    def _below(self, folder: str) -> list[fs.FileInfo]:
        return self._ask(folder, lambda store, path: store.get_file_info(fs.FileSelector(path, allow_not_found=True)))

    def _ask(self, name: str, request: Callable[[fs.FileSystem, str], T]) -> T:
        """What a request comes to, however often it has to be made; all of them may be made twice.

        Raises:
            FileNotFoundError: there is no such object.
            StoreError: the store refuses, or `patience_s` have passed.
        """
        begun, pause = time.monotonic(), FIRST_PAUSE_S
        for attempt in itertools.count(1):
            try:
                store, base = self._store
                return request(store, f"{base}/{name}" if name else base)
            except FileNotFoundError:
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), self.spell(name)) from None
            except OSError as error:
                said = " ".join(str(error).split())
                if _REFUSED.search(said):
                    help = f"{self.spell(name)}: the store refuses: {said}; {HELP[self._scheme]}"
                    raise StoreError(help) from None
                waited = time.monotonic() - begun
                if waited + pause > self._patience_s:
                    raise StoreError(
                        f"{self.spell(name)}: no success in {attempt} attempts over {waited:.0f} s: {said}; is the "
                        f"network there, and the endpoint the right one? If so, {HELP[self._scheme]}"
                    ) from None
                time.sleep(random.uniform(0.5, 1.0) * pause)  # noqa: S311 - no secret
                pause = min(2 * pause, LONGEST_PAUSE_S)
        raise AssertionError

    @functools.cached_property
    def _store(self) -> tuple[fs.FileSystem, str]:
        """pyarrow's, and the path in it. The AWS SDK starts with the first, in 25 ms, and ends with the interpreter."""
        if self._scheme != "s3":
            return fs.FileSystem.from_uri(self.where)
        user, _, password = map(unquote, self._login.partition(":"))
        scheme, endpoint = _endpoint(self._options)
        store = fs.S3FileSystem(
            access_key=user or None,
            secret_key=password or None,
            region=self._options.get("region") or _region(self._place.partition("/")[0], endpoint),
            scheme=scheme,
            endpoint_override=endpoint,
            connect_timeout=CONNECT_S,
            request_timeout=ANSWER_S,
            retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=SDK_ATTEMPTS),
            allow_delayed_open=True,  # a small object is one request then, and not three
        )
        return store, self._place


def _read(store: fs.FileSystem, path: str) -> bytes:
    """All of an object. pyarrow asks for its size first, and then for so many bytes: of a newer, longer one perhaps."""
    while True:
        with store.open_input_file(path) as file:
            version, data = file.metadata(), file.read()
        if data.endswith(_PARQUET):  # which saves the many small files a third request
            return data
        with store.open_input_file(path) as file:
            if file.metadata() == version:
                return data


def _endpoint(options: Mapping[str, str]) -> tuple[str, str | None]:
    """(http or https, HOST:PORT), of the URI or the environment; None for Amazon's."""
    given = (
        options.get("endpoint_override") or os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    )
    scheme, _, place = (given or "").rpartition("://")
    return options.get("scheme") or scheme or "https", place.rstrip("/") or None


def _region(bucket: str, endpoint: str | None) -> str | None:
    """As the environment has it, or as Amazon says; None where another store does not care."""
    if given := os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION"):
        return given
    return None if endpoint else fs.resolve_s3_region(bucket)


def find(pattern: str) -> list[str]:
    """The folders of a store that a pattern with `*` and `[...]` finds, as URIs, in order.

    Raises:
        RequestError: as `ObjectStore`.
    """
    scheme, _, rest = pattern.partition("://")
    place, _, query = rest.partition("?")
    parts = place.rstrip("/").split("/")
    fixed = next((at for at, part in enumerate(parts) if glob.has_magic(part)), len(parts))
    tail = f"?{query}" if query else ""
    store = ObjectStore(f"{scheme}://{'/'.join(parts[:fixed])}{tail}")
    found: list[tuple[str, ...]] = [()]
    for part in parts[fixed:]:
        below = [(*folder, name) for folder in found for name in store.folders("/".join(folder))]
        found = [folder for folder in below if fnmatch.fnmatchcase(folder[-1], part)]
    return [f"{scheme}://{'/'.join((*parts[:fixed], *folder))}{tail}" for folder in found]


def is_pattern(uri: str) -> bool:
    """A `?` begins the options."""
    return glob.has_magic(uri.partition("?")[0])
