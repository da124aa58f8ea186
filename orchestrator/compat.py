"""Ray's private parts that this project touches, all of them, for ray >= 2.60, < 2.62.

Each has its reason, and what is lost where a version of Ray does not have it: `missing` names those in words. None has
a part in any number of a trial.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator
from typing import Any

LOOPBACK = "ray._private.ray_constants.ENABLE_RAY_CLUSTER: a local Ray listens on all interfaces of this machine"
ADDRESSES = "ray._private.services: --address auto finds no cluster; give HOST:PORT"
SIGTERM = "ray._private.utils.set_sigterm_handler: SIGTERM while Ray starts ends a sweep without a word"
PROCESSES = "ray._private.worker._global_node: that Ray has died is seen after a minute, and not at once"
TAGS = "ray.air._internal.usage.tag_callbacks: Tune imports MLflow where it is installed, 1.4 s and 54 MiB"

# {what is lost without it: the module, the name}
PARTS = {
    LOOPBACK: ("ray._private.ray_constants", "ENABLE_RAY_CLUSTER"),
    ADDRESSES: ("ray._private.services", "find_gcs_addresses"),
    SIGTERM: ("ray._private.utils", "set_sigterm_handler"),
    PROCESSES: ("ray._private.worker", "_global_node"),
    TAGS: ("ray.air._internal.usage", "tag_callbacks"),
}


def _part(module: str, name: str) -> Any:
    """Return an attribute of a module of Ray's; None where there is none."""
    with contextlib.suppress(ImportError):
        return getattr(importlib.import_module(module), name, None)
    return None


def missing() -> list[str]:
    """Return what this version of Ray lacks, each with what is lost."""
    return [lost for lost, (module, name) in PARTS.items() if not _has(module, name)]


def _has(module: str, name: str) -> bool:
    with contextlib.suppress(ImportError):
        return hasattr(importlib.import_module(module), name)
    return False


def listen_on_loopback(only: bool) -> None:
    """Say whether what this process starts of Ray can be reached from this machine only.

    Ray resolves 127.0.0.1, given as a node's address, to that of the network, and then listens on all interfaces,
    except where it may not form a cluster: on Windows and macOS, where this is the default.
    """
    if _has("ray._private.ray_constants", "ENABLE_RAY_CLUSTER"):
        importlib.import_module("ray._private.ray_constants").ENABLE_RAY_CLUSTER = not only  # type: ignore[attr-defined]


def last_started() -> str | None:
    """Return the HOST:PORT of the last `ray start` on this machine, which may be long over; None if nobody knows."""
    find = _part("ray._private.services", "find_bootstrap_address")
    return find(None) if find else None


def running() -> list[str]:
    """Return HOST:PORT of every Ray that runs on this machine, private ones of other sweeps too."""
    find = _part("ray._private.services", "find_gcs_addresses")
    return list(find()) if find else []


def is_node() -> bool:
    """Whether this machine is a node of a cluster; true where nobody knows, for Ray itself refuses otherwise."""
    find = _part("ray._private.services", "find_node_ids")
    return bool(find()) if find else True


@contextlib.contextmanager
def sigterm_left_alone() -> Iterator[None]:
    """Within the block Ray sets no handler: it would end this process at SIGTERM, without a word."""
    theirs = _part("ray._private.utils", "set_sigterm_handler")
    if theirs is None:
        yield
        return
    utils: Any = importlib.import_module("ray._private.utils")
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
    node = _part("ray._private.worker", "_global_node")
    started = getattr(node, "all_processes", {})
    for name in ("gcs_server", "raylet"):
        if any(one.process.poll() is not None for one in started.get(name, ())):
            return name
    return None


def count_no_callbacks() -> None:
    """Keep Tune from counting which loggers people use: it imports every one that it knows, MLflow for one."""
    if _has("ray.air._internal.usage", "tag_callbacks"):
        usage: Any = importlib.import_module("ray.air._internal.usage")
        usage.tag_callbacks = lambda *_: False
