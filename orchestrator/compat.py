"""Ray's private parts that this project touches, all of them, for ray >= 2.60, < 2.62.

Each has its reason, and what is lost where a version of Ray does not have it: `missing` names those in words. None has
a part in any number of a trial.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator
from typing import Any

_AUTO = "--address auto finds no cluster; give HOST:PORT"

# {where it is: what is lost without it}
PARTS = {
    "ray._private.services.find_gcs_addresses": _AUTO,
    "ray._private.services.find_bootstrap_address": _AUTO,
    "ray._private.services.find_node_ids": "that this machine is no node of a cluster is said by Ray, in its own words",
    "ray._private.utils.set_sigterm_handler": "SIGTERM while Ray starts ends a sweep without a word",
    "ray._private.worker._global_node": "that Ray has died is seen after a minute, and not at once",
    "ray.air._internal.usage.tag_callbacks": "Tune imports MLflow where it is installed, 1.4 s and 54 MiB",
}


def missing() -> list[str]:
    """Return what this version of Ray lacks, in words: `ray._private.worker._global_node: that Ray has died ...`."""
    split = ((place.rpartition("."), place, lost) for place, lost in PARTS.items())
    return [f"{place}: {lost}" for (module, _, name), place, lost in split if not hasattr(_module(module), name)]


def _module(name: str) -> Any:
    with contextlib.suppress(ImportError):
        return importlib.import_module(name)
    return None


def last_started() -> str | None:
    """Return the HOST:PORT of the last `ray start` on this machine, which may be long over; None if nobody knows."""
    find = getattr(_module("ray._private.services"), "find_bootstrap_address", lambda _: None)
    return find(None)


def running() -> list[str]:
    """Return HOST:PORT of every Ray that runs on this machine, private ones of other sweeps too."""
    return list(getattr(_module("ray._private.services"), "find_gcs_addresses", list)())


def is_node() -> bool:
    """Return whether this machine is a node of a cluster; true where nobody knows, for Ray itself refuses otherwise."""
    return bool(getattr(_module("ray._private.services"), "find_node_ids", lambda: True)())


@contextlib.contextmanager
def sigterm_left_alone() -> Iterator[None]:
    """Within the block Ray sets no handler: it would end this process at SIGTERM, without a word."""
    utils = _module("ray._private.utils")
    theirs = getattr(utils, "set_sigterm_handler", None)
    if theirs is None:
        yield
        return
    utils.set_sigterm_handler = lambda _: None
    try:
        yield
    finally:
        utils.set_sigterm_handler = theirs


def dead_process() -> str | None:
    """Return which process of this machine's own Ray has ended, if one has.

    Ray itself waits for its control store for 60 s, and for its raylet for 14, and then ends this process without a
    word.
    """
    node = getattr(_module("ray._private.worker"), "_global_node", None)
    started = getattr(node, "all_processes", {})
    for name in ("gcs_server", "raylet"):
        if any(one.process.poll() is not None for one in started.get(name, ())):
            return name
    return None


def count_no_callbacks() -> None:
    """Keep Tune from counting which loggers people use: it imports every one that it knows, MLflow for one."""
    usage = _module("ray.air._internal.usage")
    if hasattr(usage, "tag_callbacks"):
        usage.tag_callbacks = lambda *_: False
