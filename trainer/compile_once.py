"""The kernels of a trial compiled before it starts: once a machine, in as many processes as it has cores.

Triton compiles a kernel where it is first launched, one after another: half a minute for ResNet-56, in every process
that trains, at the same time. What it has compiled it keeps in the user's cache folder (`~/.triton/cache`, or
$TRITON_CACHE_DIR), each file written beside its place and renamed, under a hash of its source: Ray leaves HOME and the
variables of a node as they are, so all workers of a machine share it, whatever folder their code came to.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

from search_spaces import kernels, machine
from search_spaces.messages import log
from search_spaces.trial import Trial
from trainer import precompile
from trainer.data import Dataset

if TYPE_CHECKING:
    import torch

WAIT_S = 300.0  # for another process that compiles; a machine with two cores takes a minute and a half


def for_trial(trial: Trial, data: Dataset, device: torch.device) -> None:
    """Have the kernels of a trial compiled by the time this returns, if it trains on a GPU, and if they can be."""
    if device.type != "cuda":
        return
    case, capability = precompile.Case.of(trial, data), precompile.this_capability()

    def compile_all() -> None:
        if failed := [one for one in precompile.precompile([case], capability) if one.error]:
            raise RuntimeError(f"{failed[0].kernel}: {failed[0].error}")

    for_case(case, capability, compile_all)


def for_case(case: precompile.Case, capability: int, compile_all: Callable[[], object] = lambda: None) -> None:
    """Call `compile_all` unless this machine has compiled the kernels of such trials; remember that it has."""
    from triton import __version__ as version
    from triton import knobs

    key = f"{case} {capability} {kernels.used(kernels.off())} {version} {_sources()}"
    once(f"the kernels of {case.arch} in {case.precision}", key, compile_all, Path(knobs.cache.dir))


@functools.cache
def _sources() -> str:
    """What the kernels, and which of them are launched, are written in."""
    texts = (path.read_bytes() for path in sorted((machine.ROOT / "trainer").rglob("*.py")))
    return hashlib.sha256(b"".join(texts)).hexdigest()


def once(what: str, key: str, compile_all: Callable[[], object], cache: Path, wait_s: float = WAIT_S) -> None:
    """Call `compile_all` unless a process of this machine has; wait for one that does. Says so, and raises nothing.

    A call that fails is not repeated: whoever trains compiles what it needs, and that is then in the cache.

    Args:
        what: is compiled, for people.
        key: what it depends on.
        cache: that it is kept in; with it goes the memory of what was compiled.
    """
    done = cache / f"poolsweep-{hashlib.sha256(key.encode()).hexdigest()[:16]}"
    started = time.monotonic()
    try:
        if done.exists():
            return
        cache.mkdir(parents=True, exist_ok=True)
        with _turn(FileLock(f"{done}.lock"), what, wait_s):
            if done.exists():
                log.info(f"waited for {time.monotonic() - started:.1f} s")
                return
            try:
                compile_all()
            except Exception as error:
                log.info(f"note: {what} cannot be compiled ahead: {error}")
            else:
                log.info(f"compiled {what} in {time.monotonic() - started:.1f} s")
            done.touch()
    except Timeout:
        log.info(f"note: it has taken {wait_s:.0f} s; what is missing is compiled as it is needed")
    except (OSError, NotImplementedError) as error:  # the latter from filelock, where a file system has no locks
        log.info(f"note: {what} cannot be compiled ahead: {error}")


def _turn(lock: FileLock, what: str, wait_s: float) -> contextlib.AbstractContextManager[object]:
    """Take a lock, and say so if that takes a while; raise Timeout if it takes longer than that."""
    try:
        return lock.acquire(timeout=0)
    except Timeout:
        log.info(f"waits for another process, which compiles {what}")
        return lock.acquire(timeout=wait_s)
