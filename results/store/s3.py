"""A run folder in S3, or in a store that speaks its protocol: `s3://BUCKET/RUN`.

An object is there when its upload is complete, so nothing has to be renamed. Every request is tried again for two
minutes, with pauses that double, each drawn at random so that a hundred workers don't come back at one moment. What
waiting cannot mend is an error at once, with what to do.

Credentials and the endpoint come from the environment, as for every other tool: AWS_ACCESS_KEY_ID and
AWS_SECRET_ACCESS_KEY, a profile, or the machine's own role; AWS_ENDPOINT_URL (or AWS_ENDPOINT_URL_S3) of a store other
than Amazon's; AWS_REGION (or AWS_DEFAULT_REGION), asked for at Amazon's if neither is set. Or they come from the URI,
as pyarrow spells it: `s3://key:secret@bucket/run?endpoint_override=localhost:9000&scheme=http&region=eu-west-1`.
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
from collections.abc import Callable, Mapping
from typing import TypeVar
from urllib.parse import parse_qsl, unquote, urlencode

import pyarrow as pa
from pyarrow import fs

from results.store.disk import Files
from results.store.logs import Log, UploadedLog
from search_spaces.errors import Problem, RequestError, unknown

PATIENCE_S = 120.0
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.2, 15.0
ANSWER_S = 30.0  # without a byte; the default of 3 s is less than a busy store takes to put a large object together
CONNECT_S = 5.0
SDK_ATTEMPTS = 3  # of the AWS SDK itself, within a second or two
AT_ONCE = 24  # pyarrow's S3 client keeps 25 connections

S3_OPTIONS = ("endpoint_override", "region", "scheme")  # of a URI, as pyarrow spells them; none is secret
HELP = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_REGION, and AWS_ENDPOINT_URL if it is not Amazon's"
# Answers after which waiting does not help. A missing bucket may also be one that is not yet seen everywhere.
_REFUSED = re.compile(
    "NO_SUCH_BUCKET|ACCESS_DENIED|INVALID_ACCESS_KEY_ID|INVALID_CLIENT_TOKEN_ID|SIGNATURE_DOES_NOT_MATCH|"
    "MISSING_AUTHENTICATION_TOKEN|UNRECOGNIZED_CLIENT|EXPIRED_?TOKEN|InvalidAccessKeyId|SignatureDoesNotMatch|"
    "AuthorizationHeaderMalformed|InvalidBucketName|PermanentRedirect|Bucket '.*' not found|"
    "HTTP status (301|307|400|401|403|405|409|501)"
)
_PARQUET = b"PAR1"  # a whole Parquet file's last bytes
T = TypeVar("T")


class StoreError(OSError, RequestError):
    """A store that refuses, or does not answer: an OSError like that of any file, and a message for the user."""

    def __init__(self, what: str):
        RequestError.__init__(self, [Problem("", what)])
        self.errno = errno.EIO

    def __str__(self) -> str:
        return "\n".join(map(str, self.problems))

    def __reduce__(self) -> tuple[type[StoreError], tuple[str]]:
        return StoreError, (str(self),)


def is_uri(where: object) -> bool:
    return isinstance(where, str) and "://" in where


class ObjectStore(Files):
    """The objects below a URI. The first request connects, and each is tried again for `patience_s`.

    Raises:
        RequestError: it is not the URI of a place in S3.
    """

    on_disk = False
    at_once = AT_ONCE

    def __init__(self, uri: str, patience_s: float = PATIENCE_S):
        scheme, _, rest = uri.partition("://")
        place, _, query = rest.partition("?")  # not as in a URL: all that comes before it is the object's name
        self._login, _, self._place = place.rstrip("/").rpartition("@")
        self._options = dict(parse_qsl(query, keep_blank_values=True))
        self._patience_s = patience_s
        self.name = self._place.rpartition("/")[2]
        self.where = f"s3://{place.rstrip('/')}{f'?{query}' if query else ''}"
        if scheme != "s3":
            raise RequestError.of(f"{unknown('store', f'{scheme}://', ['s3://'])}, or a path on a disk")
        if not set(self._place.split("/")).isdisjoint(("", ".", "..")):
            what = f"expected s3://BUCKET/RUN without empty parts, `.` and `..`, got {self._place!r}"
            raise RequestError.of(f"{self.spell()}: {what}")
        if strange := [name for name in self._options if name not in S3_OPTIONS]:
            raise RequestError.of(f"{self.spell()}: {unknown('option', strange[0], S3_OPTIONS)}")

    def spell(self, name: str = "") -> str:
        path = "/".join(filter(None, (self._place, name)))
        shown = urlencode({name: self._options[name] for name in S3_OPTIONS if name in self._options}, safe=":/")
        return f"s3://{path}{shown and f'?{shown}'}"

    def read(self, name: str) -> bytes:
        return self._ask(name, _read)

    def scan(self, name: str, read: Callable[[pa.NativeFile], T]) -> T:
        def scan(store: fs.S3FileSystem, path: str) -> T:
            with store.open_input_file(path) as file:
                return read(file)

        return self._ask(name, scan)

    def write(self, name: str, data: bytes | pa.Buffer) -> None:
        kind = mimetypes.guess_type(name)[0] or "application/octet-stream"  # so that a browser shows the report

        def write(store: fs.S3FileSystem, path: str) -> None:
            with store.open_output_stream(path, metadata={"Content-Type": kind}) as stream:
                stream.write(data)

        self._ask(name, write)

    def append(self, name: str) -> Log:
        return UploadedLog(self.spell(name), self._uploaded(name), functools.partial(self.write, name))

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
        """Return whether there is an object below that; raise a StoreError if there is no such bucket."""
        if self._about(name).type == fs.FileType.Directory:
            return True
        if self._ask("", lambda store, _: store.get_file_info(self._bucket)).type == fs.FileType.NotFound:
            raise StoreError(f"{self.spell()}: there is no bucket {self._bucket!r}; make it, or give another")
        return False

    def names(self, folder: str) -> list[str]:
        found = [one.base_name for one in self._below(folder) if one.type == fs.FileType.File]
        return sorted(name for name in found if not name.startswith("."))

    def folders(self, folder: str) -> list[str]:
        """Return the folders in a folder, in order."""
        return sorted(one.base_name for one in self._below(folder) if one.type == fs.FileType.Directory)

    def modified(self, name: str) -> float | None:
        when = self._about(name).mtime
        return when and when.timestamp()

    def _about(self, name: str) -> fs.FileInfo:
        return self._ask(name, lambda store, path: store.get_file_info(path))

    def _below(self, folder: str) -> list[fs.FileInfo]:
        return self._ask(folder, lambda store, path: store.get_file_info(fs.FileSelector(path, allow_not_found=True)))

    def _ask(self, name: str, request: Callable[[fs.S3FileSystem, str], T]) -> T:
        """Make a request, as often as it takes; `request` must not mind being called twice.

        Raises:
            FileNotFoundError: there is no such object.
            StoreError: the store refuses, or `patience_s` have passed.
        """
        begun, pause = time.monotonic(), FIRST_PAUSE_S
        for attempt in itertools.count(1):
            try:
                return request(self._store, f"{self._place}/{name}" if name else self._place)
            except FileNotFoundError:
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), self.spell(name)) from None
            except OSError as error:
                said = " ".join(str(error).split())
                if _REFUSED.search(said):
                    raise StoreError(f"{self.spell(name)}: the store refuses: {said}; {HELP}") from None
                waited = time.monotonic() - begun
                if waited + pause > self._patience_s:
                    raise StoreError(
                        f"{self.spell(name)}: no success in {attempt} attempts over {waited:.0f} s: {said}; is the "
                        f"network there, and the endpoint the right one? If so, {HELP}"
                    ) from None
                time.sleep(random.uniform(0.5, 1.0) * pause)  # noqa: S311 - no secret
                pause = min(2 * pause, LONGEST_PAUSE_S)
        raise AssertionError

    @property
    def _bucket(self) -> str:
        return self._place.partition("/")[0]

    @functools.cached_property
    def _store(self) -> fs.S3FileSystem:
        """Connect. The AWS SDK starts with the first store, in 25 ms, and ends with the interpreter."""
        user, _, password = map(unquote, self._login.partition(":"))
        scheme, endpoint = _endpoint(self._options)
        return fs.S3FileSystem(
            access_key=user or None,
            secret_key=password or None,
            region=self._options.get("region") or _region(self._bucket, endpoint),
            scheme=scheme,
            endpoint_override=endpoint,
            connect_timeout=CONNECT_S,
            request_timeout=ANSWER_S,
            retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=SDK_ATTEMPTS),
            allow_delayed_open=True,  # a small object is one request then, and not three
        )


def _read(store: fs.S3FileSystem, path: str) -> bytes:
    """Read a whole object. pyarrow asks for its size and then for so many bytes, perhaps of a newer, longer object."""
    while True:
        with store.open_input_file(path) as file:
            version, data = file.metadata(), file.read()
        if data.endswith(_PARQUET):  # which saves the many small files a third request
            return data
        with store.open_input_file(path) as file:
            if file.metadata() == version:
                return data


def _endpoint(options: Mapping[str, str]) -> tuple[str, str | None]:
    """Return (http or https, HOST:PORT) by the URI or the environment; None for Amazon's."""
    variables = [os.environ.get(name) for name in ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")]
    given = next(filter(None, [options.get("endpoint_override"), *variables]), "")
    scheme, _, place = given.rpartition("://")
    return options.get("scheme") or scheme or "https", place.rstrip("/") or None


def _region(bucket: str, endpoint: str | None) -> str | None:
    """Return the region by the environment, or by Amazon; None for another store, which does not care."""
    if given := os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION"):
        return given
    return None if endpoint else fs.resolve_s3_region(bucket)


def find(pattern: str) -> list[str]:
    """Return the folders of a store that match a pattern with `*` and `[...]`, as URIs, in order.

    Raises:
        RequestError: as `ObjectStore`.
    """
    base, _, query = pattern.partition("?")
    parts = base.rstrip("/").split("/")
    fixed = next((at for at, part in enumerate(parts) if glob.has_magic(part)), len(parts))
    tail = f"?{query}" if query else ""
    store = ObjectStore("/".join(parts[:fixed]) + tail)
    found = [""]
    for part in parts[fixed:]:
        below = [f"{folder}/{name}" for folder in found for name in store.folders(folder[1:])]
        found = [folder for folder in below if fnmatch.fnmatchcase(folder.rpartition("/")[2], part)]
    return ["/".join(parts[:fixed]) + folder + tail for folder in found]


def is_pattern(uri: str) -> bool:
    """Return whether it has `*` or `[...]`; a `?` begins the options."""
    return glob.has_magic(uri.partition("?")[0])
