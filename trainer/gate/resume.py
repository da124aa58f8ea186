"""A user's pool trained for two epochs as a trial is, between its architecture's own last layer and head.

By the same program: its optimizer's kernel, its autocast, its inference mode, its batches and a last one that is not
whole. It is done twice, in two processes. One trains both epochs, pool after pool; the other, which has seen nothing of
that, takes the weights after the first epoch and trains the second, in the opposite order. They must come to the same,
to the bit: then what the pool is stands in its checkpoint, and no trial depends on which came before it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from search_spaces.pool import Pool, expand
from search_spaces.recipe import Recipe
from search_spaces.trial import Trial
from trainer import checkpoint, user_module
from trainer.augment import Images
from trainer.data import PAD, SIZE, Dataset
from trainer.gate import process_state, python_state
from trainer.gate.checks import failure
from trainer.gate.reads import Reads
from trainer.gate.report import Finding
from trainer.packs import take_turns
from trainer.train import EVAL_BATCH, Program

CLASSES = 10
LARGEST_BATCH = 512


class Setup:
    """What both processes do alike, for the pools of one file under one recipe."""

    def __init__(self, recipe: Recipe):
        batch = min(recipe.batch_size, LARGEST_BATCH)
        self._recipe = dataclasses.replace(recipe, epochs=2, batch_size=batch, train_samples=None, test_samples=None)
        self._images = Images(_noise(self._recipe.batch_size), torch.device("cpu"))

    def trial(self, pool: Pool, arch: str) -> Trial:
        return Trial(pool, arch, "digits", 0, self._recipe)

    def program(self, trial: Trial) -> Program:
        return Program(trial, self._images, tail=True)


class Uninterrupted:
    """The process that trains both epochs, and watches what the file does to it meanwhile."""

    def __init__(self, recipe: Recipe):
        self._setup = Setup(recipe)
        self._reads = Reads()
        self._before: process_state.State | None = None
        self._imported: list[Finding] = []

    def run(self, pool: Pool, arch: str, place: Path) -> dict[str, Any]:
        """Its findings, and what the second epoch came to; leaves the state after the first in a file at `place`."""
        if self._before is None:
            _run(self._setup.program(self._setup.trial(expand("gap")[0], arch)), 1)  # imports, first calls
            before = process_state.snapshot()
            with self._reads:
                user_module.load_class(pool.source)  # type: ignore[arg-type]
            self._before = process_state.snapshot()
            self._imported = list(process_state.findings(process_state.changes(before, self._before), "import"))
            if user_module.draws():
                what = "it draws or seeds random numbers, which come out the same for every seed of its trials"
                self._imported.append(Finding("process-state", "import", what, "Draw in __init__.", refused=False))
        trial = self._setup.trial(pool, arch)
        try:
            with self._reads:
                program = self._setup.program(trial)
                initial, start = _initial(program), _held(program)
                _run(program, 1)
                place.write_bytes(checkpoint.encode(trial.id, program.state()))
                second = _run(program, 2)
                state = _held(program)
        except (Exception, SystemExit) as error:
            raised = [] if any(each.refused for each in self._imported) else [failure(_where(arch), error, "training")]
            return {"findings": [dataclasses.asdict(each) for each in (*self._imported, *raised)]}
        findings = [*self._imported, *(self._reads.findings(pool.source) if pool.source else ())]
        after = process_state.changes(self._before, process_state.snapshot())
        findings += process_state.findings(after, "building and training")
        found = {"epoch": second, "initial": initial, "held": state}
        found["still"] = [name for name, value in state.items() if start.get(name) == value]
        return {"findings": [dataclasses.asdict(finding) for finding in findings], **found}


def resume(setup: Setup, pool: Pool, arch: str, place: Path, whole: dict[str, Any]) -> list[Finding]:
    """What differs when the second epoch is trained from the file at `place`, after a trial of another seed."""
    trial = setup.trial(pool, arch)
    try:
        setup.program(dataclasses.replace(trial, seed=1))
        program = setup.program(trial)
        if odd := [name for name, value in _initial(program).items() if whole["initial"].get(name) != value]:
            what = (
                f"{', '.join(odd[:3])} start from other values in another process, or after a trial of another seed: a "
                "trial depends on what ran before it"
            )
            mend = "Draw in __init__ from torch's own generator, which is seeded, and keep nothing for the next one."
            return [Finding("repeatability", _where(arch), what, mend)]
        program.load_state(checkpoint.decode(trial.id, place.read_bytes()))
        second, state = _run(program, 2), _held(program)
    except (Exception, SystemExit) as error:
        return [failure(_where(arch), error, "resume")]
    return list(_differences(arch, whole, second, state))


def _differences(
    arch: str, whole: dict[str, Any], second: dict[str, float], state: dict[str, str]
) -> Iterator[Finding]:
    then = whole["held"]
    hidden = sorted(name for name in then.keys() | state.keys() if then.get(name) != state.get(name))
    hidden.sort(key=set(whole["still"]).__contains__)  # what moves first
    named = ", ".join(hidden[:3])
    mend = "Make it a buffer and change it in place, self.calls.add_(1), so that a checkpoint finds it."
    parted = [(name, was, second[name]) for name, was in whole["epoch"].items() if repr(was) != repr(second[name])]
    if parted:
        name, was, now = parted[0]
        because = f": {named} are not where a checkpoint finds them" if named else ""
        what = f"the second epoch's {name} is {was:.8g} when it is not stopped, and {now:.8g} when it is{because}"
        yield Finding("resume", _where(arch), what, mend)
    elif set(hidden) <= set(whole["still"]):
        if named:
            what = f"{named} differ from process to process, and no figure with them as far as was seen"
            yield Finding("resume", _where(arch), what, "Take them out if you can.", refused=False)
    else:
        what = f"{named} change in Python from step to step, where no checkpoint finds them"
        yield Finding("resume", _where(arch), what, mend)


def _run(program: Program, epoch: int) -> dict[str, float]:
    (found,) = take_turns([program], epoch)
    return {name: getattr(found, name) for name in ("train_loss", "train_acc", "test_loss", "test_acc")}


def _held(program: Program) -> dict[str, str]:
    """What the pool and its files hold beside what is in the checkpoint."""
    root, pool = user_module.folder(), program.network.pool
    saved = {f"self.{name}" for name in pool.state_dict()}
    here = str(root.parent) if root else "\0"  # where it is laid out is another place in every process
    held = python_state.held(pool, user_module.modules())
    return {name: value.replace(here, "") for name, value in held.items() if name not in saved}


def _initial(program: Program) -> dict[str, str]:
    """What the pool starts from."""
    return {name: python_state.digest(tensor) for name, tensor in program.network.pool.state_dict().items()}


def _where(arch: str) -> str:
    return f"{arch}'s last layer and head, two epochs of training"


def _noise(batch: int) -> Dataset:
    """A batch and five eighths of one to train on, as CIFAR's last batch is of 80 in 128; and as many to be tested on
    that the last batch there is of the size of the first in training: what a pool keeps by size meets the next epoch.
    """
    draws = np.random.default_rng(0)
    rest, whole = batch * 5 // 8, EVAL_BATCH["cpu"]
    train = batch + (rest if rest > 1 else batch)
    test = whole + min(batch, whole)
    sizes = (train, SIZE + 2 * PAD), (test, SIZE)
    images = [draws.integers(0, 256, (count, side, side, 3), np.uint8) for count, side in sizes]
    labels = [draws.integers(0, CLASSES, n) for n in (train, test)]
    third = (0.5,) * 3
    return Dataset("noise", CLASSES, False, images[0], labels[0], images[1], labels[1], third, third)
