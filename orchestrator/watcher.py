"""What a sweep does about the trials that it hears of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from orchestrator.packs import Pack
from orchestrator.progress import Progress
from orchestrator.record import FolderError, Job, folder_faults, give_up
from orchestrator.trackers import Trackers
from results.store import schema
from results.store.lease import Lease
from search_spaces.grid import Planned


class Watcher:
    """Shows how trials go, has those that end logged, and decides what becomes of those whose workers died."""

    def __init__(self, progress: Progress, job: Job, claim: Lease, logged: Trackers | None = None):
        self._progress = progress
        self._logged = logged
        self._job = job
        self._claim = claim
        self._ended: set[str] = set()
        self._again: list[Pack] = []
        self._fault: FolderError | None = None

    def take_again(self) -> list[Pack]:
        """The packs that are to run once more, whole or split into single trials; the caller has them from now on."""
        again, self._again = self._again, []
        return again

    def step(self) -> None:
        """Now and then.

        Raises:
            FolderError: the sweep cannot go on.
        """
        if taken_by := self._claim.lost_to:
            raise FolderError(f"the run folder was taken over by {taken_by}, while this sweep did not run")
        if self._fault:
            raise self._fault

    def started(self, pack: Pack) -> None:
        for planned in pack:
            self._progress.started(planned)

    def reported(self, planned: Planned, result: Mapping[str, Any]) -> None:
        self._progress.reported(planned, result)

    def ended(self, planned: Planned, result: Mapping[str, Any]) -> None:
        if self._logged and planned.trial.id not in self._ended:
            self._logged.ended(planned, result)
        self._ended.add(planned.trial.id)
        self._progress.ended(planned, result)

    def left(self, pack: Pack) -> None:
        if (behind := self._behind(pack)) and self._claim.stands():
            self._give_up(behind, "its worker left without a result; see ray.log")

    def lost(self, pack: Pack) -> None:
        self._again += [behind] if (behind := self._behind(pack)) else []

    def died(self, pack: Pack, error: str) -> None:
        behind = self._behind(pack)
        if len(pack) > 1:
            self._again += [[planned] for planned in behind]
        else:
            self._give_up(behind, error)

    def folder_lost(self, why: str) -> None:
        self._fault = FolderError(why)

    def stopping(self, why: str) -> None:
        self._progress.say(why)

    def _behind(self, pack: Pack) -> Pack:
        return [planned for planned in pack if planned.trial.id not in self._ended]

    def _give_up(self, trials: Pack, error: str) -> None:
        if self._fault:  # of which they know nothing
            return
        for planned in trials:
            try:
                with folder_faults():
                    reason = give_up(planned, error, self._job)
            except FolderError as fault:
                self._fault = fault
                return
            self.ended(planned, {"status": schema.FAILED, "best_test_acc": None, "train_s": None, "error": reason})
