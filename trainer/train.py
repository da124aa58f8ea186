"""The training of a trial, on one page: the network and its state, a step, an epoch, and the trial from end to end.

What is trained: `head(pool(features(x)))` from random weights, on 32x32 images, by cross-entropy and SGD with momentum.
The numbers are those of `search_spaces.recipe.Recipe`: 200 epochs in batches of 128 at lr 0.1, momentum 0.9 and weight
decay 5e-4 on every parameter; `learning_rate` is the schedule, cosine to 0 stepped once an epoch. The metric is the
best test accuracy of all epochs; the last epoch's is kept too.

Time, on 2 cores of an AMD EPYC (Zen 4), fp32, evaluation included (README, How fast):

    ResNet-56      178 images/s    200 epochs of CIFAR-100 in some 16 hours
    VGG-16-BN      109 images/s    26 hours
    MobileNetV2    137 images/s    200 epochs of Fashion-MNIST in 24 hours

On a GPU neither the time nor the accuracy (n = 0 seeds) of this protocol has been measured yet. The published figures
to compare with are in `results/table/published.csv`.

What is executed where and when (streams, CUDA graphs, turns) is in `trainer.device`; which images an epoch sees, in
`trainer.augment`; what a change here means for trials on record, in `search_spaces.trial.PROTOCOL`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from collections.abc import Generator, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from search_spaces.errors import RequestError
from search_spaces.messages import log
from search_spaces.recipe import Recipe
from search_spaces.trial import Trial
from trainer import checkpoint, network
from trainer.archs.dropout import Dropout
from trainer.augment import Images, epoch_draws
from trainer.checkpoint import Slot
from trainer.data import subset
from trainer.device.execution import Execution, seconds, set_matmul_precision
from trainer.device.graphs import RecordError
from trainer.outcome import Epoch, collapsed
from trainer.pools import load_class
from trainer.randomness import Purpose, key

CHECKPOINT_EVERY_S = 60.0  # what a machine that is taken away costs at most, beside the epoch it is in
# Images evaluated at once. On a CPU, ResNet-56 evaluates 20 % slower at 512, out of cache; on a GPU fewer launches win.
EVAL_BATCH = {"cpu": 128, "cuda": 1000}


# --- The schedule ----------------------------------------------------------------------------------------------------


def learning_rate(recipe: Recipe, done: int) -> float:
    """Return the learning rate once `done` epochs (0..epochs) are done: lr/2 (1 + cos(pi e/E)).

    Epoch e (from 1) trains at `learning_rate(recipe, e - 1)`; the log shows that of e, as the benchmark's does:
    0.009549 after epoch 160 of 200. SGDR without restarts (Loshchilov and Hutter, 2017).
    """
    return recipe.lr / 2 * (1 + math.cos(math.pi * done / recipe.epochs))


# --- A trial on a device: what is trained, and all that a step reads and writes ---------------------------------------


class Program:
    """A trial on a device.

    Everything that a step reads and writes is a tensor at a fixed address. A step finds its batch by a cursor on the
    device, in the epoch's draws, and adds its loss and its hits to sums on the device.

    Args:
        images: the trial's dataset, on the device that trains.
        compiled: let torch.compile make the network's kernels. The same function, to rounding.
        graphs: on a GPU, record the steps as CUDA graphs. The same kernels, without their launches.
        channels_last: how activations and weights lie in memory. The same function, to rounding.
        tail: train the architecture's last layer, the pool and the head alone, as the gate does.

    Attributes:
        network: [B, 3, 32, 32] -> [B, classes].
        optimizer: of the network's parameters, with their momentum.
        lr: a tensor, so that a step never depends on a Python number.
        test_images: how many it is evaluated on.

    Raises:
        RequestError: the recipe does not fit the data.
        torch.OutOfMemoryError: no room beside what is there already.
        whatever the pool raises.
    """

    def __init__(
        self,
        trial: Trial,
        images: Images,
        *,
        compiled: bool = False,
        graphs: bool = True,
        channels_last: bool = True,
        tail: bool = False,
    ):
        load_class(trial.pool)  # a user's file runs before anything is set, in its first trial as in its last
        self.trial, self.images, self.device = trial, images, images.device
        self._tail, self._compiled = tail, compiled
        self._half = trial.recipe.precision == "bf16"
        self._layout = torch.channels_last if channels_last else torch.contiguous_format
        recipe = trial.recipe
        self._train_index = subset(len(images.train_labels), recipe.train_samples)
        test_index = subset(len(images.test_labels), recipe.test_samples)
        if problems := recipe.problems_with(len(self._train_index)):
            raise RequestError(problem.under("recipe") for problem in problems)
        self.test_images = len(test_index)
        eval_batch = EVAL_BATCH[self.device.type]
        self._train_sizes = _batches(len(self._train_index), recipe.batch_size)
        self._test_sizes = _batches(self.test_images, eval_batch)
        self._execution = Execution(self.device, self)
        set_matmul_precision(recipe.precision)
        with self._execution.lane():
            self._draws = torch.zeros(len(self._train_index), 4, dtype=torch.int64, device=self.device)
            self._test_index = torch.from_numpy(test_index).to(self.device)
            self._cursor = torch.zeros((), dtype=torch.int64, device=self.device)
            # (training, test) x (sum of losses, hits). In float64 both are exact enough for any number of images.
            self._sums = torch.zeros(2, 2, dtype=torch.float64, device=self.device)
            self._drawn: dict[int, Tensor] = {}  # {epoch: its draws}, of the one that comes next
            self._cold = 1  # steps not to be timed: the first of a process takes memory and chooses kernels
            self._build()
            if graphs and self.device.type == "cuda":
                self._record()

    def _build(self) -> None:
        """Make the network with its initial weights, and momentum at rest."""
        trial, recipe = self.trial, self.trial.recipe
        built = network.build(trial.pool, trial.arch, self.images.classes, trial.seed, tail=self._tail)
        self.network = self._execution.place(built, recipe.precision, self._layout, fast_layers=not self._compiled)
        self._forward = torch.compile(self.network) if self._compiled else self.network
        dropping = [layer for layer in self.network.head.modules() if isinstance(layer, Dropout)]
        self._masks = torch.Generator(self.device) if dropping else None
        for layer in dropping:
            layer.generator = self._masks
        self.lr = torch.tensor(recipe.lr, device=self.device)
        self.optimizer = self._execution.optimizer(self.network, self.lr, recipe.momentum, recipe.weight_decay)

    def _record(self) -> None:
        """Have the steps replayed as CUDA graphs from now on, if they can be recorded."""
        held = [*self.network.parameters(), *self.network.buffers(), *self.optimizer.momenta]
        before = [tensor.detach().clone() for tensor in held]
        self._load_draws(1)
        phases = {self._train_batch: self._train_sizes, self._test_batch: self._test_sizes}
        try:
            self._execution.record(phases, self.network, self._cursor.zero_, self._masks)
        except RecordError as error:
            log.warning(f"trains without CUDA graphs, which is slower: {error}")
            self._build()  # the pool may hold traces of the attempt
            return
        with torch.no_grad():
            for tensor, value in zip(held, before, strict=True):
                tensor.copy_(value)
        self.optimizer.follow()
        self.optimizer.settle()
        self._execution.synchronize()  # whoever reads the weights on another stream reads these

    # --- A step ---

    def step(self, images: Tensor, labels: Tensor) -> Tensor:
        """Take an SGD step on [B, 3, 32, 32] and [B]; return the sum of the losses and the hits, [2] float64."""
        logits = self._logits(images)
        found, gradient = self._execution.cross_entropy(logits, labels)
        self.optimizer.clear()
        logits.backward(gradient)
        self.optimizer.step()
        return found

    def _logits(self, images: Tensor) -> Tensor:
        """Map [B, 3, 32, 32] to [B, classes]; in bf16 the convolutions and products are, the loss never is."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self._half):
            return self._forward(images.contiguous(memory_format=self._layout))

    def _train_batch(self, size: int) -> None:
        """Train on the next `size` images of the epoch."""
        self.network.train()
        images, labels = self.images.training(self._draws, self._cursor, size, half=self._half)
        self._add(0, size, self.step(images, labels))

    @torch.inference_mode()
    def _test_batch(self, size: int) -> None:
        """Evaluate the next `size` test images."""
        self.network.eval()
        images, labels = self.images.testing(self._test_index, self._cursor, size, half=self._half)
        self._add(1, size, self._execution.cross_entropy(self._logits(images), labels)[0])

    def _add(self, row: int, size: int, found: Tensor) -> None:
        self._sums[row] += found
        self._cursor += size

    # --- An epoch ---

    def run(self, epoch: int) -> Generator[None, None, Epoch]:
        """Train for one epoch (from 1), then evaluate. Yields whenever others may take a turn."""
        recipe, execution = self.trial.recipe, self._execution
        started = time.perf_counter()
        execution.noise.seed(self.trial.seed, Purpose.NOISE, epoch)
        if self._masks is not None:
            self._masks.manual_seed(key(self.trial.seed, Purpose.DROPOUT, epoch))
        with execution.lane():
            self.lr.fill_(learning_rate(recipe, epoch - 1))
            self._sums.zero_()
            self._load_draws(epoch)
        untimed, timed = self._train_sizes[: self._cold], self._train_sizes[self._cold :]
        yield from execution.run(self._train_batch, untimed)
        timed_from = execution.mark()
        yield from execution.run(self._train_batch, timed)
        timed_to = execution.mark()
        self._cold = 0
        with execution.lane():
            self._cursor.zero_()
        yield from execution.run(self._test_batch, self._test_sizes)
        if epoch < recipe.epochs:  # while the device evaluates: 6 ms for CIFAR-100, which all of a pack want at once
            self._drawn[epoch + 1] = self._draw(epoch + 1)
        yield from execution.done()
        (train_loss, train_hits), (test_loss, test_hits) = self._sums.tolist()
        trained, tested = len(self._train_index), self.test_images
        return Epoch(
            epoch,
            train_loss / trained,
            100 * train_hits / trained,
            test_loss / tested,
            100 * test_hits / tested,
            learning_rate(recipe, epoch),
            time.perf_counter() - started,
            sum(timed) / seconds(timed_from, timed_to) if timed else None,
        )

    def _draw(self, epoch: int) -> Tensor:
        draws = epoch_draws(self.trial.seed, epoch, self._train_index, self.images.flip)
        return self._execution.for_transfer(draws)

    def _load_draws(self, epoch: int) -> None:
        drawn = self._drawn[epoch] if epoch in self._drawn else self._draw(epoch)
        self._draws.copy_(drawn, non_blocking=True)
        self._drawn.clear()
        self._cursor.zero_()

    def collapsed(self, history: Sequence[Epoch]) -> bool:
        """Whether a trial with this history has learned nothing: see `search_spaces.chance`."""
        return collapsed(history, self.images.classes, self.test_images)

    # --- What a checkpoint holds ---

    def state(self) -> dict[str, Any]:
        """Return the weights and the momentum, all that an epoch leaves to the next: the tensors that train."""
        return {"network": self.network.state_dict(), "momentum": self.optimizer.momenta}

    def load_state(self, state: dict[str, Any]) -> None:
        """Go where `state` was taken, in place.

        Raises:
            CheckpointError: it is of a network with other tensors; nothing has been changed.
        """
        mine, theirs = ({**held["network"], **dict(enumerate(held["momentum"]))} for held in (self.state(), state))
        shapes, expected = ({name: one.shape for name, one in held.items()} for held in (theirs, mine))
        if odd := dict(shapes.items() ^ expected.items()):
            others = ", ".join(sorted(map(str, odd)))
            raise checkpoint.CheckpointError(f"it has other tensors than the network ({others})")
        with self._execution.on_stream(), torch.no_grad():
            for name, tensor in mine.items():
                tensor.copy_(theirs[name])
            self.optimizer.follow()
        self._execution.synchronize()


def _batches(total: int, size: int) -> list[int]:
    """Return batch sizes: whole ones, and what is left."""
    return [size] * (total // size) + [total % size] * (total % size > 0)


# --- A trial, from its first epoch to its last ------------------------------------------------------------------------


def train(program: Program, *, slot: Slot | None = None, checkpoint_every: int = 10) -> Iterator[Epoch]:
    """Train a trial and yield every epoch from the first to the last, or to the one that diverged.

    With a `slot` it goes on from the checkpoint in there: the epochs behind it are yielded again at once, so a
    resumed trial looks to the caller like one that never stopped, and its numbers are bit-equal to it (CPU). A
    checkpoint is written every `checkpoint_every` epochs, after any epoch that ends `CHECKPOINT_EVERY_S` or more after
    the last one, and when the generator is closed early. One that cannot be used is said so and passed over.

    Raises:
        whatever the pool raises.
    """
    with contextlib.closing(turns(program, slot=slot, checkpoint_every=checkpoint_every)) as trial:
        yield from (epoch for epoch in trial if epoch is not None)


def turns(
    program: Program,
    *,
    slot: Slot | None = None,
    checkpoint_every: int = 10,
    git_commit: str | None = None,
    kernels: str | None = None,
) -> Generator[Epoch | None, None, None]:
    """Do what `train` does for trials that share a process: yield None wherever others may take a turn.

    Args:
        git_commit, kernels: what trains, which each epoch that is trained now says.
    """
    epochs = program.trial.recipe.epochs
    history = _restore(program, slot) if slot else []
    yield from history
    saved = time.monotonic()
    for number in range(len(history) + 1, epochs + 1):
        if history and history[-1].diverged:
            return
        epoch = yield from program.run(number)
        history.append(dataclasses.replace(epoch, git_commit=git_commit, kernels=kernels))
        due = number % checkpoint_every == 0 or time.monotonic() - saved >= CHECKPOINT_EVERY_S
        if slot and due and number < epochs:
            _save(program, slot, history)
            saved = time.monotonic()
        try:
            yield history[-1]
        except GeneratorExit:  # stopped between two epochs, where the state is whole
            if slot:
                _save(program, slot, history)
            raise


def _restore(program: Program, slot: Slot) -> list[Epoch]:
    """Put the program where the checkpoint left it; return the epochs behind it, none if there is no usable one."""
    data = slot.read()
    if data is None:
        return []
    try:
        state = checkpoint.decode(program.trial.id, data)
        history = [Epoch(**epoch) for epoch in state.pop("history")]
        program.load_state(state)
    except (checkpoint.CheckpointError, KeyError, TypeError) as error:
        log.warning(f"checkpoint passed over, the trial starts from its first epoch: {error}")
        return []
    log.info(f"resumed after epoch {len(history)}")
    return history


def _save(program: Program, slot: Slot, history: list[Epoch]) -> None:
    state = {**program.state(), "history": [dataclasses.asdict(epoch) for epoch in history]}
    slot.write(checkpoint.encode(program.trial.id, state))
