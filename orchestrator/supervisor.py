"""What a sweep does about packs whose workers ended, by what the run folder says of their trials."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

from orchestrator.packs import Pack
from orchestrator.record import FolderError, Job, folder_faults, give_up
from results.store import schema
from results.store.folder import RunFolder
from results.store.lease import Lease


class Supervisor:
    """Decides what becomes of the trials of a worker that died, was lost or left.

    Args:
        before: {trial id: the attempt of its last row}, of the trials that are tried again.
    """

    def __init__(self, job: Job, lease: Lease, before: Mapping[str, int | None] | None = None):
        self._run = RunFolder(job.run)
        self._job = job
        self._lease = lease
        self._before = before or {}
        self._again: list[Pack] = []
        self._fault: FolderError | None = None

    def take_again(self) -> list[Pack]:
        """Return the packs that are to run once more, whole or split into single trials; once."""
        again, self._again = self._again, []
        return again

    def step(self) -> None:
        """Look, now and then, whether the sweep can go on.

        Raises:
            FolderError: it cannot.
        """
        if taken_by := self._lease.lost_to:
            raise FolderError(f"the run folder was taken over by {taken_by}, while this sweep did not run")
        if self._fault:
            raise self._fault

    def left(self, pack: Pack) -> None:
        """Its worker is done with the pack, and was not asked to stop: every trial of it has a row."""
        if (unfinished := self._unfinished(pack)) and self._lease.stands():
            self._give_up(unfinished, "its worker left without a result; see ray.log")

    def lost(self, pack: Pack) -> None:
        """Its machine was taken away, which is nobody's fault."""
        self._again += [unfinished] if (unfinished := self._unfinished(pack)) else []

    def died(self, pack: Pack, error: str) -> None:
        """Its workers died more often than they may; `error` says why."""
        unfinished = self._unfinished(pack)
        if len(pack) > 1:  # nobody knows whose fault it was
            self._again += [[planned] for planned in unfinished]
        else:
            self._give_up(unfinished, error)

    def folder_lost(self, why: str) -> None:
        """A worker cannot write the run folder."""
        self._fault = FolderError(why)

    def _unfinished(self, pack: Pack) -> Pack:
        with self._faults_kept():
            return [planned for planned in pack if not self._has_ended(planned.trial.id)]
        return []

    def _has_ended(self, trial_id: str) -> bool:
        """Whether the trial has a row, and not only that of an attempt before this sweep."""
        ended = self._run.trial(trial_id).ended()
        status = ended.status if ended else self._run.status(trial_id)
        if status is None or status in schema.TRAINED:
            return status is not None
        return trial_id not in self._before or (ended and ended.attempt) != self._before[trial_id]

    def _give_up(self, trials: Pack, error: str) -> None:
        if self._fault:  # of which they know nothing
            return
        with self._faults_kept():
            for planned in trials:
                give_up(planned, error, self._job)

    @contextlib.contextmanager
    def _faults_kept(self) -> Iterator[None]:
        """For the next step: Tune would take an exception in one of its callbacks for the trial's."""
        try:
            with folder_faults():
                yield
        except FolderError as fault:
            self._fault = fault
