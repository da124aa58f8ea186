"""Scheduling by Ray Tune: the only module that imports Ray.

Tune schedules and nothing else. What has been trained stands in the run folder; Tune's own experiment state is scratch,
its loggers and tables are off, and `Tuner.restore` is not used: it cannot extend a grid, reruns finished trials after a
driver crash, and unpickles what it finds.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import FrameType, TracebackType
from typing import Any, Protocol, Self, TextIO

os.environ |= {
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C comes as KeyboardInterrupt, at once
    "TUNE_MAX_PENDING_TRIALS_PG": "64",  # else 1 with a searcher, and actors start one after another
    "TUNE_GLOBAL_CHECKPOINT_S": "1000000000",  # no snapshots of a state that nothing reads
}

import ray
from ray import tune
from ray.tune.search import Searcher

from orchestrator.packs import Pack
from orchestrator.record import Job
from orchestrator.resources import Node, Share
from trainer import code
from trainer.data import Dataset
from trainer.grid import Grid, Planned
from trainer.problems import RequestError

# A trial trains in a thread, whose own heap glibc gives back to the system and faults in again, 2,000 to 5,000 pages a
# MobileNetV2 step, whatever trainer.cpu.keep_memory says; with one heap for all threads it is none.
WORKER_ENV = {"MALLOC_ARENA_MAX": "1"}
TRAVELS = ("orchestrator", "results", "search_spaces", "trainer")


Work = Callable[[Pack, Dataset, Job, Callable[[Planned, Mapping[str, Any]], None]], None]


class Watcher(Protocol):
    """Who is told how the trials go, on the driver."""

    def started(self, pack: Pack) -> None: ...

    def reported(self, planned: Planned, result: Mapping[str, Any]) -> None: ...

    def ended(self, planned: Planned, result: Mapping[str, Any]) -> None: ...

    def left(self, pack: Pack, error: str) -> None:
        """The pack's worker will not come back: it is done, or died more often than it may. Then, why."""
        ...


@contextlib.contextmanager
def cluster(address: str, here: Node, log: TextIO) -> Iterator[list[Node]]:
    """Ray for the length of the block; its nodes.

    Args:
        address: `local` starts Ray on this machine alone, with what `here` has, and ends it; `auto` or HOST:PORT joins
            a running cluster, to which the code travels.
        log: where Ray's and Tune's own messages go; within the block they have stdout and stderr.
    """
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    with contextlib.redirect_stdout(log), contextlib.redirect_stderr(log), _logging_to(log):
        try:
            _connect(address, here, quiet)
        except (ConnectionError, OSError, RuntimeError, ValueError) as error:
            raise RequestError.of(f"Ray cannot be reached or started: {error}", f"--address {address}") from None
        try:
            totals = [node["Resources"] for node in ray.nodes() if node["Alive"]]
            yield [Node(int(total.get("CPU", 0)), int(total.get("GPU", 0))) for total in totals]
        finally:
            ray.shutdown()


def _connect(address: str, here: Node, quiet: dict[str, Any]) -> None:
    if address == "local":
        # Workers inherit the environment: no upload, and no runtime environment to be made before the first one starts.
        os.environ |= WORKER_ENV | {"PYTHONPATH": code.python_path()}
        ray.init(address="local", include_dashboard=False, num_cpus=here.cpus, num_gpus=here.gpus, **quiet)
    else:
        others = [path.name for path in code.ROOT.iterdir() if path.name not in TRAVELS]
        runtime_env = {"working_dir": str(code.ROOT), "excludes": others, "env_vars": WORKER_ENV}
        ray.init(address=address, runtime_env=runtime_env, **quiet)


@contextlib.contextmanager
def _logging_to(log: TextIO) -> Iterator[None]:
    """Ray's own log handlers, which took hold of stderr when Ray was imported, write there instead.

    Not by setStream, which flushes the stream before: that one may be closed by now.
    """
    handlers = [h for h in logging.getLogger("ray").handlers if type(h).__module__.startswith("ray.")]
    for handler in handlers:
        handler.stream = log  # type: ignore[attr-defined]
    try:
        yield
    finally:
        for handler in handlers:
            handler.stream = sys.__stderr__  # type: ignore[attr-defined]


def run(
    grid: Grid,
    packs: Sequence[Pack],
    data: Mapping[str, Dataset],
    job: Job,
    share: Share,
    max_failures: int,
    watcher: Watcher,
    work: Work | None = None,
) -> None:
    """Runs packs until each has ended or its worker died more than `max_failures` times.

    The data go through the object store: one copy a node, which its workers read in place.

    Args:
        work: what trains a pack, `orchestrator.worker.run_pack` unless given.
    """
    places = [[planned.place for planned in pack] for pack in packs]
    trainable = tune.with_parameters(_train, grid=grid, places=places, data=data, job=job, work=work)
    scratch_folder = tempfile.TemporaryDirectory(prefix="sweep-", ignore_cleanup_errors=True)
    with scratch_folder as scratch, _Interrupt() as interrupt:
        tune.Tuner(
            tune.with_resources(trainable, {"cpu": share.cpus, "gpu": share.gpus}),
            tune_config=tune.TuneConfig(
                search_alg=_InOrder(),
                num_samples=len(packs),
                # A fresh actor that imports torch costs 12 s a trial on 2 cores, a reused one 0.02 s.
                reuse_actors=True,
                trial_dirname_creator=lambda trial: trial.trial_id,
            ),
            run_config=tune.RunConfig(
                storage_path=scratch,
                name="packs",
                verbose=0,
                callbacks=[_Relay(packs, watcher, interrupt)],
                failure_config=tune.FailureConfig(max_failures=max_failures),
            ),
        ).fit()
        interrupt.raise_if_pending()


def on_worker(function: Callable[..., Any], share: Share, *arguments: Any) -> Any:
    """Calls a function on a worker with a trial's share of a machine; what it returns or raises."""
    return ray.get(ray.remote(num_cpus=share.cpus, num_gpus=share.gpus)(function).remote(*arguments))


def _train(
    config: dict[str, Any],
    grid: Grid,
    places: Sequence[Sequence[tuple[int, int, int]]],
    data: Mapping[str, Dataset],
    job: Job,
    work: Work | None,
) -> None:
    from orchestrator.worker import DeviceLostError, run_pack  # torch, which the driver does without

    pack = [grid.at(place) for place in places[config["pack"]]]
    members = {planned.place: index for index, planned in enumerate(pack)}

    def report(planned: Planned, result: Mapping[str, Any]) -> None:
        tune.report({"member": members[planned.place], **result})

    try:
        (work or run_pack)(pack, data[pack[0].trial.dataset], job, report)
    except DeviceLostError:
        os._exit(1)  # whoever comes next must not be given this process


class _InOrder(Searcher):
    """Pack after pack, each made when it is its turn: a grid search makes all of them before the first may start."""

    def __init__(self) -> None:
        super().__init__(metric="member", mode="max")  # it has to have some
        self._numbers = itertools.count()

    def suggest(self, trial_id: str) -> dict[str, int]:
        return {"pack": next(self._numbers)}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None: ...

    def save(self, checkpoint_path: str) -> None: ...

    def restore(self, checkpoint_path: str) -> None: ...


class _Interrupt:
    """Ctrl-C, remembered for the length of the block.

    A KeyboardInterrupt that happens to be raised inside a destructor or a callback from C is printed and forgotten by
    Python, and the sweep would go on: so it is raised again at Tune's next step.
    """

    def __init__(self) -> None:
        self._pending = False

    def __enter__(self) -> Self:
        in_main_thread = threading.current_thread() is threading.main_thread()
        self._before = signal.getsignal(signal.SIGINT)
        self._handles = in_main_thread and self._before is signal.default_int_handler  # nohup's ignoring is kept
        if self._handles:
            signal.signal(signal.SIGINT, self._remember)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._handles:
            signal.signal(signal.SIGINT, self._before)

    def raise_if_pending(self) -> None:
        if self._pending:
            raise KeyboardInterrupt

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self._pending = True
        signal.default_int_handler(number, frame)


class _Relay(tune.Callback):
    """Tune's callbacks, as a Watcher's."""

    def __init__(self, packs: Sequence[Pack], watcher: Watcher, interrupt: _Interrupt):
        self._packs = packs
        self._watcher = watcher
        self._interrupt = interrupt

    def __reduce__(self) -> tuple[type[tune.Callback], tuple[()]]:
        return tune.Callback, ()  # Tune pickles callbacks into its scratch state; a terminal cannot be pickled

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        self._interrupt.raise_if_pending()

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._watcher.started(self._packs[trial.config["pack"]])

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        if "member" not in result:
            return
        planned = self._packs[trial.config["pack"]][result["member"]]
        if "status" in result:
            self._watcher.ended(planned, result)
        else:
            self._watcher.reported(planned, result)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._watcher.left(self._packs[trial.config["pack"]], "its worker left without a result; see ray.log")

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        reason = f"its worker failed {trial.num_failures} times, and max_failures is {trial.max_failures}; see ray.log"
        self._watcher.left(self._packs[trial.config["pack"]], reason)
