"""A sweep: what is left of a plan, run."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from orchestrator import environment, inline, pack_table
from orchestrator.packs import Measurements, Pack, group, measured_sizes
from orchestrator.plan import Plan
from orchestrator.record import Job, refuse
from orchestrator.resources import Node, Share, share, slow_precision, this_machine
from orchestrator.shutdown import GRACE_S, Shutdown
from orchestrator.supervisor import Supervisor
from results import track
from results.status import Screen
from results.store.folder import RunFolder
from results.store.lease import Driver, Lease
from search_spaces import kernels, machine
from search_spaces.errors import RequestError, gather
from search_spaces.grid import Planned
from search_spaces.messages import log
from search_spaces.space import Space
from trainer import data
from trainer.data import Dataset
from trainer.gate import Gate, Report

LOCAL, INLINE = "local", "inline"
SHOWN_EVERY_S = 0.5


@dataclass(frozen=True, slots=True)
class Sweep:
    """A sweep, and what it runs on.

    Attributes:
        data_dir: where the images are.
        address: `local` for a Ray of its own on this machine, `inline` for this process, without Ray, else the address
            of a Ray cluster.
        console: where people see how far it is.
        stop_at: when to end early and in good order, by `time.monotonic`.
    """

    space: Space
    run: RunFolder
    plan: Plan
    data_dir: Path
    address: str
    console: Console
    stop_at: float = float("inf")

    def start(self) -> None:
        """Run what is left of the plan; every trial of it has a row in the run folder afterwards.

        Raises:
            RequestError: what keeps it from starting, all of it, and nothing was started.
            KeyboardInterrupt: what has finished is on record, what runs goes on from its checkpoint next time.
            FolderError: likewise, and nothing more can be written.
        """
        lease = Lease(self.run, here=Driver.here(self.plan.only, self.plan.final))
        datasets, report = self._prepare(lease)
        for note in (*report.notes, *report.missing):
            log.info(f"note: {note}")
        with lease:
            self.run.tidy()
            self.run.write_grid(self.space.grid)
            self.run.equivalences.write(report.equivalences())
            if todo := self._refuse_invalid(report):
                with track.following(self.space.loggers, self.run):
                    self._train(todo, datasets, report, lease)
            self.run.tidy()

    def _prepare(self, lease: Lease) -> tuple[dict[str, Dataset], Report]:
        """Load the data, and have every pool validated meanwhile, in processes of the gate's own."""
        space = self.space
        names = sorted({planned.trial.dataset for planned in self.plan.todo})
        trained = sorted({planned.trial.dataset for planned in self.plan.planned})
        on_this_machine = self.address in (LOCAL, INLINE)
        with Gate.over(space.grid) as gate:
            try:
                loaded = gather(
                    *((f"dataset {name}", functools.partial(self._load, name)) for name in names),
                    ("", functools.partial(data.refuse_shared, trained, self.data_dir)),
                    ("", lambda: None if space.skip_invalid else gate.report.refuse()),
                    ("", lease.check),
                    ("", kernels.off),
                    ("", self.run.create),
                    ("", lambda: share(space.resources, [this_machine(gate.report.gpus)]) if on_this_machine else None),
                    ("", lambda: inline.refuse_several(self.plan.todo) if self.address == INLINE else None),
                    ("loggers", functools.partial(track.check, space.loggers, self.run)),
                )
            except RequestError:
                self.run.discard_if_empty()
                raise
            return dict(zip(names, loaded, strict=False)), gate.report

    def _load(self, name: str) -> Dataset:
        dataset = data.load(name, self.data_dir)
        if problems := self.space.grid.recipe.problems_with(len(dataset.train_labels)):
            raise RequestError(problem.under("recipe") for problem in problems)
        log.info(str(dataset))
        return dataset

    def _refuse_invalid(self, report: Report) -> list[Planned]:
        """Mark the trials whose pools the gate refuses as invalid; return the others."""
        problems = {(one.pool, one.arch): one.refused for one in report.validations}
        for problem in report.refused:
            log.info(f"invalid: {problem}")
        passed = []
        for planned in self.plan.todo:
            if found := problems.get((planned.trial.pool, planned.trial.arch)):
                refuse(planned, "\n".join(map(str, found)), self.run)
            else:
                passed.append(planned)
        return passed

    def _train(self, todo: Sequence[Planned], datasets: Mapping[str, Dataset], report: Report, lease: Lease) -> None:
        if self.address == INLINE:
            each = share(self.space.resources, [this_machine(report.gpus)])
            inline.run(todo, datasets, self._job(each, report, lease), lease, self.stop_at)
            return
        environment.prepare(self.address)
        # Only now: whoever mistypes a key must not wait ten seconds for Ray to hear of it.
        from orchestrator import cluster

        log.info(f"starting Ray on {'this machine' if self.address == LOCAL else self.address} ...")
        with (
            self.run.ray_log() as ray_log,
            cluster.connected(self.address, this_machine(report.gpus), ray_log) as nodes,
        ):
            each = share(self.space.resources, nodes)
            fitting = [node for node in nodes if each.fits(node)]
            if unseen := cluster.unseen_by(fitting, self.run):
                what = f"{self.run} is another folder, or none, on {', '.join(unseen)}"
                raise RequestError.of(f"{what}; give one that all machines share, or s3://BUCKET/RUN", "--out")
            if not each.gpus:
                self._say_what_is_slow(todo, each, report)
            job = self._job(each, report, lease)
            self._schedule(self._packs(todo, datasets, job, each, fitting), datasets, job, each, lease)

    def _job(self, each: Share, report: Report, lease: Lease) -> Job:
        entry = {one.pool: index for index, one in enumerate(self.space.grid.entries)}
        return Job(
            self.run.where,
            gpu=bool(each.gpus),
            threads=each.cpus,
            checkpoint_every=self.space.checkpoint_every,
            compiled=self.space.compiled,
            git_commit=machine.commit(),
            costs={(entry[one.pool], one.arch): one.cost for one in report.validations if one.cost},
            keep_weights=self.space.keep_weights,
            stall_timeout=self.space.stall_timeout,
            driver=lease.token,
        )

    def _schedule(
        self, packs: Sequence[Pack], datasets: Mapping[str, Dataset], job: Job, each: Share, lease: Lease
    ) -> None:
        from orchestrator import ray_tune

        supervisor = Supervisor(job, lease, self.plan.before)
        shutdown = Shutdown(functools.partial(_ask_to_stop, lease), self.stop_at)
        with Screen(self.run, self.console) as screen, screen.follow(SHOWN_EVERY_S):
            while packs:
                # Packs of several first. One that died twice is split: nobody knows whose fault it was.
                several = [pack for pack in packs if len(pack) > 1]
                now, failures = (several, 1) if several else (packs, self.space.max_failures)
                ray_tune.run(self.space.grid, now, datasets, job, each, failures, supervisor, shutdown)
                packs = [pack for pack in packs if several and len(pack) == 1] + supervisor.take_again()
            supervisor.step()

    def _packs(
        self, todo: Sequence[Planned], datasets: Mapping[str, Dataset], job: Job, each: Share, nodes: Sequence[Node]
    ) -> Sequence[Pack]:
        """The trials that are to run, by the process that they run in. On the CPU each has its own."""
        from orchestrator import ray_tune

        gpus = sum(node.gpus for node in nodes)
        asked = self.space.resources.trials_per_gpu if each.gpus else 1
        if asked != "auto":
            return group(todo, lambda _: asked, gpus)

        def measure(pack: Pack) -> tuple[dict[str, Any], Measurements]:
            return ray_tune.on_worker("measure", each, pack, datasets[pack[0].trial.dataset], job)

        gpu = ray_tune.on_worker("gpu", each, job)
        if len(types := {node.accelerator_type or "of unknown type" for node in nodes}) > 1:
            what = f"GPUs differ ({', '.join(sorted(types))}), and packs are of the size that is best on {gpu['gpu']}"
            log.info(f"note: {what}; resources.accelerator_type keeps to one type")
        sizes = measured_sizes(todo, self.run, gpu, measure, pack_table.read())
        return group(todo, sizes.__getitem__, gpus)

    def _say_what_is_slow(self, todo: Sequence[Planned], each: Share, report: Report) -> None:
        if self.space.resources.gpus_per_trial:
            log.info(f"no GPU here: trials run on the CPU, {each.cpus} thread{'s' * (each.cpus > 1)} each")
        archs = {planned.trial.arch for planned in todo}
        if warning := slow_precision(self.space.grid.recipe.precision, archs, report.cpu_bf16):
            log.warning(f"warning: {warning}")


def _ask_to_stop(lease: Lease) -> None:
    log.info(f"stopping: trials write checkpoints first, within {GRACE_S:.0f} s; Ctrl-C again stops at once")
    with contextlib.suppress(OSError):  # then they are ended when the time is up
        lease.ask_to_stop()
