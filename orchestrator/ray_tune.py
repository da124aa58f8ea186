"""Scheduling by Ray Tune: with `orchestrator.cluster`, the only module that imports Ray.

Tune schedules and nothing else. What has been trained stands in the run folder; Tune's own experiment state is scratch,
its loggers and tables are off, and `Tuner.restore` is not used: it cannot extend a grid, reruns finished trials after a
driver crash, and unpickles what it finds.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import os
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

os.environ |= {
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C comes as KeyboardInterrupt, at once
    "TUNE_MAX_PENDING_TRIALS_PG": "64",  # else 1 with a searcher, and actors start one after another
    "TUNE_GLOBAL_CHECKPOINT_S": "1000000000",  # no snapshots of a state that nothing reads
}

import ray
from ray import tune
from ray.tune.search import Searcher

from orchestrator import cluster, compat
from orchestrator.packs import Pack
from orchestrator.record import FolderError, Job, StoppedError
from orchestrator.resources import Share
from orchestrator.shutdown import Shutdown
from orchestrator.supervisor import Supervisor
from orchestrator.watchdog import Heartbeat
from results.store.folder import RunFolder
from search_spaces.grid import Grid, Planned
from search_spaces.messages import log
from trainer import isolation
from trainer.data import Dataset

DONE, FAULT = "done", "fault"  # keys of what a worker reports

Work = Callable[[Pack, Dataset, Job, Heartbeat], None]


def run(
    grid: Grid,
    packs: Sequence[Pack],
    data: Mapping[str, Dataset],
    job: Job,
    share: Share,
    max_failures: int,
    supervisor: Supervisor,
    shutdown: Shutdown,
    work: Work | None = None,
) -> None:
    """Run packs until each has ended or its worker died more than `max_failures` times.

    The data go through the object store: one copy a node, which its workers read in place. `work` is what trains a
    pack, `orchestrator.worker.run_pack` unless given.

    Raises:
        KeyboardInterrupt: `shutdown` was asked for, and the trials have stopped or had their time.
        StoppedError: Ray has died, or `supervisor.step` says so.
    """
    places = [[planned.place for planned in pack] for pack in packs]
    trainable = tune.with_parameters(_train, grid=grid, places=places, data=data, job=job, work=work)
    compat.count_no_callbacks()
    relay = _Relay(packs, supervisor, shutdown)
    with tempfile.TemporaryDirectory(prefix="sweep-", ignore_cleanup_errors=True) as scratch, shutdown:
        tune.Tuner(
            tune.with_resources(trainable, cluster.request(share)),
            tune_config=tune.TuneConfig(
                search_alg=_InOrder(shutdown),
                num_samples=len(packs),
                # A fresh actor that imports torch costs 3 to 12 s a trial on 2 cores, a reused one 0.02 s.
                reuse_actors=True,
                trial_dirname_creator=lambda trial: trial.trial_id,
            ),
            run_config=tune.RunConfig(
                storage_path=scratch,
                name="packs",
                verbose=0,
                callbacks=[relay],
                failure_config=tune.FailureConfig(max_failures=max_failures),
            ),
        ).fit()
        relay.step()


def on_worker(name: str, share: Share, *arguments: Any) -> Any:
    """Return what a function of `orchestrator.worker` does, called with a trial's share of a machine.

    The process is used once: if it has run a user's file, nothing else may come after.
    """
    return ray.get(ray.remote(max_calls=1, **cluster.options(share))(_call).remote(name, *arguments))


def _call(name: str, *arguments: Any) -> Any:
    from orchestrator import worker  # torch, which the driver does without

    return getattr(worker, name)(*arguments)


def _train(
    config: dict[str, Any],
    grid: Grid,
    places: Sequence[Sequence[tuple[int, int, int]]],
    data: Mapping[str, Dataset],
    job: Job,
    work: Work | None,
) -> None:
    from orchestrator.worker import run_pack  # torch, which the driver does without, and no child has to import again

    def pack_at(number: int) -> list[Planned]:
        return [grid.at(place) for place in places[number]]

    def serve(asked: Connection) -> None:
        """Train one pack after another; the answer is why it cannot be written down, or nothing."""
        while (number := asked.recv()) is not None:
            pack = pack_at(number)
            try:
                (work or run_pack)(pack, data[pack[0].trial.dataset], job, _heartbeat)
            except FolderError as error:
                asked.send(str(error))
            asked.send(None)

    run, pack = RunFolder(job.run), pack_at(config["pack"])
    code = pack[0].trial.pool.code
    try:
        for fault in isolation.child(code, serve).ask(config["pack"]):
            if code and cluster.can_write(run):
                raise RuntimeError(f"in the process of this pool, and there alone: {fault}")
            tune.report({DONE: 0, FAULT: fault})  # the one thing that the run folder cannot say
    except isolation.ChildDiedError:
        member, silent_s = _heartbeat.silent()
        if job.stall_timeout is not None and silent_s >= job.stall_timeout:
            with contextlib.suppress(OSError):  # whoever cannot write it down fails otherwise
                files = run.trial(pack[member].trial.id)
                if attempt := files.attempt():
                    files.write_attempt(dataclasses.replace(attempt, hung=True))
        raise
    tune.report({DONE: 1})


_heartbeat = Heartbeat()  # one a process, whose children train one after another


class _InOrder(Searcher):
    """Pack after pack, each made when it is its turn: a grid search makes all of them before the first may start."""

    def __init__(self, shutdown: Shutdown) -> None:
        super().__init__(metric=DONE, mode="max")  # it has to have some
        self._numbers = itertools.count()
        self._shutdown = shutdown

    def __reduce__(self) -> tuple[type[Searcher], tuple[()]]:
        return Searcher, ()  # as `_Relay`

    def suggest(self, trial_id: str) -> Any:
        return Searcher.FINISHED if self._shutdown.asked else {"pack": next(self._numbers)}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None: ...

    def save(self, checkpoint_path: str) -> None: ...

    def restore(self, checkpoint_path: str) -> None: ...


class _Relay(tune.Callback):
    """Tune's callbacks, as the supervisor's."""

    def __init__(self, packs: Sequence[Pack], supervisor: Supervisor, shutdown: Shutdown):
        self._packs = packs
        self._supervisor = supervisor
        self._shutdown = shutdown
        self._running = set[str]()
        self._machines_lost = Counter[str]()

    def __reduce__(self) -> tuple[type[tune.Callback], tuple[()]]:
        return tune.Callback, ()  # Tune pickles callbacks into its scratch state; a terminal cannot be pickled

    def step(self) -> None:
        if process := compat.dead_process():
            why = f"Ray's {process} has died, and the sweep with it; the same command goes on"
            log.error(why)  # now, for Ray may end this process before anybody else can say so
            raise StoppedError(why)
        self._supervisor.step()
        self._shutdown.check(len(self._running))

    def on_step_begin(self, iteration: int, trials: list[Any], **info: Any) -> None:
        self._shutdown.insist()

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        self.step()

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._running.add(trial.trial_id)

    def on_trial_result(self, iteration: int, trials: Any, trial: Any, result: dict[str, Any], **info: Any) -> None:
        if FAULT in result:
            self._supervisor.folder_lost(result[FAULT])

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._running.discard(trial.trial_id)
        # Tune keeps the means of the last 5 and 10 values of each of a dozen metrics: 30 kB a trial that nobody reads.
        trial.metric_analysis.clear()
        trial.metric_n_steps.clear()
        if not self._shutdown.asked:
            self._supervisor.left(self._pack(trial))

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._running.discard(trial.trial_id)
        # Tune itself knows only of nodes that were drained.
        self._machines_lost[trial.trial_id] += "its node has died" in _last_error(trial)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.on_trial_recover(iteration, trials, trial)
        failures = trial.num_failures - self._machines_lost[trial.trial_id]
        if failures <= trial.max_failures:
            self._supervisor.lost(self._pack(trial))
            return
        reason = f"its worker failed {failures} times, and max_failures is {trial.max_failures}; see its log"
        self._supervisor.died(self._pack(trial), f"{reason}\n{_last_error(trial)}")

    def _pack(self, trial: Any) -> Pack:
        return self._packs[trial.config["pack"]]


def _last_error(trial: Any) -> str:
    """What Ray had to say, over several lines; Tune keeps one file of all failures of a trial."""
    with contextlib.suppress(OSError, TypeError):  # TypeError: there is none
        return Path(trial.error_file).read_text(encoding="utf-8", errors="replace").rpartition("Failure # ")[2]
    return ""
