"""The trainer: one pack after the other until the time is up, each in a process of its own, and the evidence of it.

It outlives the command that started it, and ends in good order at SIGTERM. A pack that fails is tried again without the
kernels that its log blames, else without one family more; then without graphs; then one trial at a time. What is known
of paces and faults is in `train.json`, in the run folder, for whoever goes on.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.rental import evidence, plan
from benchmarks.rental.settings import Settings, from_argv, read_json, write_json
from benchmarks.rental.train import MARK
from results.store import schema
from results.store.folder import RunFolder
from results.store.lease import Lease
from search_spaces.grid import Planned
from search_spaces.kernels import SWITCH

PACK_EVERY_S = 30.0
LOOK_EVERY_S = 0.5
LEAVE_S = 12.0  # before the time is up: an epoch, checkpoints, the evidence
TRUSTED = 3  # epochs after which a pace is one: the first loads, records and warms up
OVER = 1.05  # of the time that is left: a pack whose own pace says so is ended
IMAGES = {"cifar100": 50_000, "fmnist": 60_000, "digits": 160}  # of an epoch


@dataclass
class Way:
    """How packs of an architecture are run: as fast as they can be, until something fails."""

    off: list[str] = field(default_factory=list)
    graphs: bool = True
    alone: bool = False
    given_up: bool = False
    proven: bool = False  # it has trained something to its end: what fails is a pool's own fault

    def step_back(self, families: Sequence[str]) -> str:
        """Do without one thing more, the first of these families that is left; return which."""
        self.proven = False
        left = [family for family in families if family not in self.off]
        if left:
            self.off.append(left[0])
            return f"kernels of {left[0]} off"
        if self.graphs:
            self.graphs = False
            return "graphs off"
        if not self.alone:
            self.alone = True
            return "one trial at a time"
        self.given_up = True
        return "given up"


class Trainer:
    def __init__(self, settings: Settings):
        self._settings = settings
        self._place = Path(settings.run).parent
        self._run = RunFolder(settings.run)
        self._run.create()
        self._grid = plan.grid(settings)
        self._run.space.write(self._grid)
        self._run.pools.write([entry.pool for entry in self._grid.entries])  # unread: reading takes pydantic
        self._paces = plan.Paces(4.0 if settings.rehearse else 15.0)
        for file in (settings.table, self._place / "packs.json"):
            off = os.environ.get(SWITCH, "")
            self._paces.learn(row for row in read_json(file, []) if row.get("off", "") == off and "size" in row)
        self._memory = Path(settings.run) / "train.json"
        held = read_json(self._memory, {})
        for arch, paces in held.get("paces", {}).items():
            for size, ms in paces.items():
                self._paces.add(arch, int(size), ms)
        self._ways = {arch: Way(**way) for arch, way in held.get("ways", {}).items()}
        self._rows: list[dict[str, Any]] = held.get("packs", [])
        self._failed: set[str] = set()  # trials whose pools are to blame
        self._asked = False
        self._packed = 0.0

    def leave(self, *_: Any) -> None:
        self._asked = True

    @property
    def _left(self) -> float:
        return 0.0 if self._asked else self._settings.train_until - LEAVE_S - time.time()

    def train(self) -> None:
        """Run packs until there is none that can be started."""
        self._say(f"{self._left:.0f} s to train; {len(self._run.ended())} trials have ended; paces {self._paces.known}")
        while self._left > 0:
            requests = self._wanted()
            missing = plan.missing(self._settings, requests)
            images = {name: count for name, count in IMAGES.items() if name not in missing}
            pack = plan.choose(requests, self._left, self._epochs_done(), images, self._paces)
            if pack is not None:
                self._train(pack)
            elif missing and any(Path(self._settings.data).glob("*/*.parquet")):
                time.sleep(LOOK_EVERY_S)  # more images may come with the next command
            else:
                break
        self._pack()
        self._say(f"over, with {self._left:.0f} s left; {len(self._run.ended())} trials have ended")
        self._pack()

    def has_trained(self) -> bool:
        """Whether the run folder holds an epoch of anything, of whatever day."""
        ended = any(how.status in schema.TRAINED for how in self._run.ended().values())
        return ended or any(attempt.epoch for attempt, _ in self._run.under_way().values())

    def _wanted(self) -> list[list[Planned]]:
        ended = self._run.trials.read(["trial_id", "status", "best_test_acc"]).to_pylist()
        trained = {row["trial_id"]: row["best_test_acc"] for row in ended if row["status"] in schema.TRAINED}
        best = {trial_id: accuracy for trial_id, accuracy in trained.items() if accuracy is not None}
        requests = []
        for request in plan.wanted(self._settings, self._grid, best):
            way = self._way(request[0].trial.arch)
            todo = [one for one in request if one.trial.id not in trained and one.trial.id not in self._failed]
            requests.append([] if way.given_up else todo[:1] if way.alone else todo)
        return requests

    def _way(self, arch: str) -> Way:
        return self._ways.setdefault(arch, Way())

    def _epochs_done(self) -> dict[str, int]:
        """Return {trial id: epochs behind it}, of trials that have a checkpoint to go on from."""
        held = set(self._run.files.names("checkpoints"))
        return {name: attempt.epoch for name, (attempt, _) in self._run.under_way().items() if f"{name}.pt" in held}

    # One pack

    def _train(self, pack: Sequence[Planned]) -> None:
        """Train a pack to its end, or until the time is up or its own pace says that it will be before."""
        trial, way = pack[0].trial, self._way(pack[0].trial.arch)
        what = f"{len(pack)} x {trial.arch} {trial.dataset}: " + ", ".join(
            f"{planned.trial.pool.label} s{planned.trial.seed}" for planned in pack
        )
        needs = plan.seconds(pack, self._epochs_done(), IMAGES[trial.dataset], self._paces)
        self._say(f"{what}; needs {needs and round(needs)} s of {self._left:.0f}; {way}")
        began, stopped, told = time.time(), "", {"places": [planned.place for planned in pack], "graphs": way.graphs}
        before = [len(text) for text in self._logs(pack)]
        with Lease(self._run) as lease:
            off = ",".join(dict.fromkeys(filter(None, (*os.environ.get(SWITCH, "").split(","), *way.off))))
            command = [sys.executable, "-u", "-m", "benchmarks.rental.pack", self._settings.to_json()]
            child = subprocess.Popen(
                [*command, json.dumps(told | {"token": lease.token})],
                env=os.environ | {SWITCH: off},
                stdin=subprocess.DEVNULL,
            )
            while child.poll() is None:
                time.sleep(LOOK_EVERY_S)
                self._pack_now_and_then()
                if not stopped and (stopped := self._reason_to_stop(pack)):
                    self._say(f"stops: {stopped}")
                    lease.ask_to_stop()
                if stopped and self._settings.train_until + LEAVE_S / 2 < time.time():
                    child.kill()
        row = {"pack": what, "seconds": round(time.time() - began, 1), "needs": needs, "exit_code": child.returncode}
        row |= {"off": off, "graphs": way.graphs, "stopped": stopped, "status": self._statuses(pack)}
        row |= self._judge(pack, way, child.returncode, stopped, before)
        self._rows.append(row)
        self._say(str(row))
        self._pack()

    def _judge(
        self, pack: Sequence[Planned], way: Way, code: int, stopped: str, before: Sequence[int]
    ) -> dict[str, Any]:
        """Decide what a pack that has ended, however it has, says of the way in which its architecture is run."""
        ids = [planned.trial.id for planned in pack]
        status = dict(zip(ids, self._statuses(pack), strict=True))
        way.proven |= any(how in schema.TRAINED for how in status.values())
        failed = [trial_id for trial_id, how in status.items() if how == schema.FAILED]
        if code == 0 and not failed:
            if not stopped:
                self._learn(pack)
            return {}
        if stopped and self._left <= 0:
            return {}
        blamed = self._blamed(pack, before)
        if code == 0 and way.proven and not set(blamed) - set(way.off):
            self._failed |= set(failed)
            return {"then": "left out, as others train"}
        return {"then": way.step_back([*blamed, *plan.families_of(pack[0].trial.arch)])}

    def _reason_to_stop(self, pack: Sequence[Planned]) -> str:
        """Return why a pack that trains has to stop, and learn its pace; empty while it need not."""
        if self._left <= 0:
            return "it was told to" if self._asked else "the time is up"
        live = self._run.under_way()
        attempts = [live[planned.trial.id][0] for planned in pack if planned.trial.id in live]
        paced = [attempt for attempt in attempts if attempt.epoch >= TRUSTED and attempt.epoch_s]
        if not paced or len(paced) < len(pack):  # of others one has ended, and the rest go faster
            return ""
        trial = pack[0].trial
        epoch_s = max(attempt.epoch_s or 0.0 for attempt in paced)
        steps = -(-IMAGES[trial.dataset] // trial.recipe.batch_size)
        self._paces.add(trial.arch, len(pack), 1000 * epoch_s / (steps * len(pack)))
        needs = epoch_s * max(trial.recipe.epochs - attempt.epoch for attempt in paced)
        if needs > OVER * self._left and not plan.travels(trial.arch):
            return f"at {epoch_s:.2f} s an epoch it needs {needs:.0f} s of {self._left:.0f}, and cannot travel"
        return ""

    def _learn(self, pack: Sequence[Planned]) -> None:
        """Learn the pace of a pack that has come to its end, whose epochs may have been too fast to be seen."""
        wanted = {"trial_id": {planned.trial.id for planned in pack}}
        rows = self._run.trials.read(["train_s", "epochs"], wanted).to_pylist()
        steps = len(pack) * -(-IMAGES[pack[0].trial.dataset] // pack[0].trial.recipe.batch_size)
        epoch_s = max((row["train_s"] / row["epochs"] for row in rows if row["train_s"]), default=None)
        if epoch_s:
            self._paces.add(pack[0].trial.arch, len(pack), 1000 * epoch_s / steps)

    def _statuses(self, pack: Sequence[Planned]) -> list[str | None]:
        return [self._run.status(planned.trial.id) for planned in pack]

    def _blamed(self, pack: Sequence[Planned], before: Sequence[int]) -> list[str]:
        """Return the families of kernels in whose files the last tracebacks of a pack are, innermost first.

        Args:
            before: how long each of its logs was when it began: what is older blames what others did.
        """
        texts = [text[length:][-4000:] for text, length in zip(self._logs(pack), before, strict=True)]
        found = [name for text in texts for name in reversed(re.findall(r"kernels/(\w+)\.py", text))]
        return [name for name in dict.fromkeys(found) if name in plan.families_of(pack[0].trial.arch)]

    def _logs(self, pack: Sequence[Planned]) -> list[str]:
        """Return all that the trials of a pack have printed so far, and then what all packs have."""
        said = self._place / "train.txt"
        texts = [self._run.trial(planned.trial.id).log_text() or "" for planned in pack]
        return [*texts, said.read_text(encoding="utf-8", errors="replace") if said.exists() else ""]

    # What it leaves

    def _say(self, line: str) -> None:
        print(f"{time.strftime('%H:%M:%S')} {line}", flush=True)

    def _pack_now_and_then(self) -> None:
        if time.time() - self._packed >= PACK_EVERY_S:
            self._pack()

    def _pack(self) -> None:
        """Pack the evidence; training goes on if it cannot be."""
        ways = {arch: vars(way) for arch, way in self._ways.items()}
        try:
            write_json(self._memory, {"packs": self._rows, "paces": self._paces.known, "ways": ways})
            with evidence.undisturbed(self._place):
                try:
                    evidence.pack_checkpoints(Path(self._settings.run), self._place)
                finally:  # which says which checkpoints those are, and is worth more than they
                    evidence.pack(Path(self._settings.run), self._place)
        except OSError as error:
            self._say(f"the evidence could not be packed: {error}")
        self._packed = time.time()


def main() -> None:
    settings = from_argv()
    place = Path(settings.run).parent
    with (place / "lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        lock.truncate(0)
        print(os.getpid(), file=lock, flush=True)
        trainer = Trainer(settings)
        signal.signal(signal.SIGTERM, trainer.leave)
        trainer.train()
        write_json(place / MARK, {"trained": trainer.has_trained()})


if __name__ == "__main__":
    main()
