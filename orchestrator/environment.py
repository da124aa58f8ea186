"""What of the environment Ray gets to see, and the folder for temporary files that it names.

Ray and Tune read some 300 variables. Tune is how trials are scheduled here, and nobody's to steer: TUNE_RESULT_DIR
alone ends it with a deprecation. A Ray of our own is the same wherever it is started, in another Ray's job too: of its
variables it is given those of its system configuration, which begin in lower case (RAY_memory_usage_threshold), and
those that say where its files go. A cluster that is joined may be named by RAY_ADDRESS, and by a job's variables.
"""

from __future__ import annotations

import functools
import os
import re
import sys
import tempfile

from search_spaces.errors import RequestError, gather

_OF_TUNE = re.compile("TUNE_|RAY_(AIR|TRAIN|TUNE)_|RAY_CHDIR_TO_TRIAL_DIR$")
_OF_A_CLUSTER = re.compile("RAY_(?![a-z])")
_WHERE_FILES_GO = ("RAY_TMPDIR", "RAY_OBJECT_STORE_ALLOW_SLOW_STORAGE")
FOLDERS = ("TMPDIR", "RAY_TMPDIR")  # Ray takes the second for its own, if there is one


def prepare(address: str) -> None:
    """Take out what Ray is not to see, before it is imported: that is when it reads, and when we set what we need.

    A Ray of our own listens on loopback only. Ray resolves 127.0.0.1, given as a node's address, to that of the
    network, except where it may not form a cluster: on Windows and macOS, where this variable has it do so.
    """
    if "ray" in sys.modules:
        return
    is_local = address == "local"
    for name in list(os.environ):
        foreign = is_local and _OF_A_CLUSTER.match(name) and name not in _WHERE_FILES_GO
        if foreign or _OF_TUNE.match(name):
            del os.environ[name]
    os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0" if is_local else "1"


def check_folders() -> None:
    """Make the folders of $TMPDIR and $RAY_TMPDIR absolute, and forget empty ones, which Ray takes for where it is.

    Raises:
        RequestError: nothing can be written there. Python would take another folder without a word, and Ray does not
            start.
    """
    gather(*((f"${name}", functools.partial(_check, name)) for name in FOLDERS))


def _check(name: str) -> None:
    if not os.environ.get(name):
        os.environ.pop(name, None)
        return
    os.environ[name] = folder = os.path.abspath(os.environ[name])  # noqa: PTH100
    try:
        if name == "RAY_TMPDIR":  # as Ray does
            os.makedirs(folder, exist_ok=True)  # noqa: PTH103
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(4096))
    except OSError as error:
        what = f"expected a folder that can be written, got {folder}: {error.strerror}"
        raise RequestError.of(f"{what}; make it, or set {name} to a folder for temporary files") from None
