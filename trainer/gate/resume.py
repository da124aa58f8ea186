"""A user's pool trained for two epochs as a trial is, between its architecture's own last layer and head.

By the same program: its optimizer's kernel, its autocast, its inference mode, its batches and a last one that is not
whole. It is done twice, in two processes. One trains both epochs, pool after pool; the other, which has seen nothing of
that, takes the weights after the first epoch and trains the second, in the opposite order. They must come to the same,
to the bit: then what the pool is stands in its checkpoint, and no trial depends on which came before it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

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


@dataclass
class Trained:
    """What is known of a pool that was trained for two epochs.

    Attributes:
        checkpoint: after the first.
        epoch: what the second came to.
        initial: what the pool's state_dict started from, as digests.
        held: what the pool and its files hold in the end beside their checkpoint.
        still: names of what of that was the same from the start.
    """

    findings: Sequence[Finding]
    checkpoint: bytes = b""
    epoch: Mapping[str, float] = field(default_factory=dict)
    initial: Mapping[str, str] = field(default_factory=dict)
    held: Mapping[str, str] = field(default_factory=dict)
    still: frozenset[str] = frozenset()


class _Training:
    """What both processes do alike, for the pools of one file under one recipe."""

    def __init__(self, recipe: Recipe):
        batch = min(recipe.batch_size, LARGEST_BATCH)
        self._recipe = dataclasses.replace(recipe, epochs=2, batch_size=batch, train_samples=None, test_samples=None)
        self._images = Images(_noise(batch), torch.device("cpu"))

    def program(self, pool: Pool, arch: str, seed: int = 0) -> Program:
        return Program(Trial(pool, arch, "digits", seed, self._recipe), self._images, tail=True)


class Uninterrupted(_Training):
    """The process that trains both epochs, and watches what the file does to it meanwhile."""

    def __init__(self, recipe: Recipe):
        super().__init__(recipe)
        self._reads = Reads()
        self._before: process_state.State | None = None
        self._imported: list[Finding] = []

    def run(self, pool: Pool, arch: str) -> Trained:
        if pool.source and self._before is None:
            self._before = self._import(pool, arch)
        try:
            with self._reads:
                program = self.program(pool, arch)
                initial, start = _initial(program), _held(program)
                _run(program, 1)
                saved = checkpoint.encode(program.trial.id, program.state())
                second, held = _run(program, 2), _held(program)
        except (Exception, SystemExit) as error:
            refused = any(each.refused for each in self._imported)
            return Trained([*self._imported, *([] if refused else [failure(_where(arch), error, "training")])])
        findings = list(self._imported)
        if pool.source and self._before is not None:
            findings += self._reads.findings(pool.source)
            findings += process_state.findings(self._before, process_state.snapshot(), "building and training")
        still = frozenset(name for name, value in held.items() if start.get(name) == value)
        return Trained(findings, saved, second, initial, held, still)

    def _import(self, pool: Pool, arch: str) -> process_state.State:
        """Run the file; what the process is after that."""
        _run(self.program(expand("gap")[0], arch), 1)  # imports, first calls
        before = process_state.snapshot()
        with self._reads:
            user_module.load_class(pool.source)  # type: ignore[arg-type]
        after = process_state.snapshot()
        self._imported += process_state.findings(before, after, "import")
        if user_module.draws():
            what = "it draws or seeds random numbers, which come out the same for every seed of its trials"
            self._imported.append(Finding("process-state", "import", what, "Draw in __init__.", refused=False))
        return after


class Resumed(_Training):
    """The process that trains the second epoch from the checkpoint, after a trial of another seed."""

    def __init__(self, recipe: Recipe, trained: Mapping[tuple[Pool, str], Trained]):
        super().__init__(recipe)
        self._trained = trained

    def run(self, pool: Pool, arch: str) -> list[Finding]:
        """Return what differs."""
        whole = self._trained[pool, arch]
        try:
            self.program(pool, arch, seed=1)
            program = self.program(pool, arch)
            if odd := [name for name, value in _initial(program).items() if whole.initial.get(name) != value]:
                what = (
                    f"{', '.join(odd[:3])} start from other values in another process, or after a trial of another "
                    "seed: a trial depends on what ran before it"
                )
                mend = "Draw in __init__ from torch's own generator, which is seeded, and keep nothing for the next."
                return [Finding("repeatability", _where(arch), what, mend)]
            program.load_state(checkpoint.decode(program.trial.id, whole.checkpoint))
            second, held = _run(program, 2), _held(program)
        except (Exception, SystemExit) as error:
            return [failure(_where(arch), error, "resume")]
        return list(_differences(arch, whole, second, held))


def _differences(arch: str, whole: Trained, second: Mapping[str, float], held: Mapping[str, str]) -> Iterator[Finding]:
    hidden = sorted(name for name in whole.held.keys() | held.keys() if whole.held.get(name) != held.get(name))
    hidden.sort(key=whole.still.__contains__)  # what moves first
    named = ", ".join(hidden[:3])
    mend = "Make it a buffer and change it in place, self.calls.add_(1), so that a checkpoint finds it."
    parted = [name for name, value in whole.epoch.items() if repr(value) != repr(second[name])]
    if parted:
        was, now = whole.epoch[parted[0]], second[parted[0]]
        because = f": {named} are not where a checkpoint finds them" if named else ""
        what = f"the second epoch's {parted[0]} is {was:.8g} when it is not stopped, and {now:.8g} when it is{because}"
        yield Finding("resume", _where(arch), what, mend)
    elif not whole.still.issuperset(hidden):
        what = f"{named} change in Python from step to step, where no checkpoint finds them"
        yield Finding("resume", _where(arch), what, mend)


def _run(program: Program, epoch: int) -> dict[str, float]:
    (found,) = take_turns([program], epoch)
    return {name: getattr(found, name) for name in ("train_loss", "train_acc", "test_loss", "test_acc")}


def _held(program: Program) -> dict[str, str]:
    """What the pool and its files hold beside what is in the checkpoint."""
    root = user_module.folder()
    here = str(root.parent) if root else "\0"  # where it is laid out is another place in every process
    held = python_state.held(program.network.pool, user_module.modules())
    return {name: value.replace(here, "") for name, value in held.items()}


def _initial(program: Program) -> dict[str, str]:
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
