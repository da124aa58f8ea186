"""The fixed trainer: one trial, one result an epoch, the same program on a CPU and on a GPU."""

from __future__ import annotations

import dataclasses
import math
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from trainer import checkpoint, cpu, network
from trainer.augment import Augment, EpochDraws, Normalise
from trainer.checkpoint import Slot
from trainer.data import Dataset, subset
from trainer.problems import RequestError
from trainer.randomness import Purpose, seeded
from trainer.trial import Trial

# Images evaluated at once. On a CPU, ResNet-56 evaluates 20 % slower at 500, out of cache; on a GPU fewer launches win.
EVAL_BATCH = {"cpu": 128, "cuda": 1000}


@dataclass(frozen=True, slots=True)
class Epoch:
    """What one epoch came to. Losses are means over images; accuracies in percent.

    Attributes:
        epoch: from 1.
        lr: as the benchmark logs it: the learning rate once the epoch is done, which the next one trains at.
        epoch_s: seconds of training and evaluation.
        images_per_s: of training alone, without the process's first step; None where there was no other.
    """

    epoch: int
    train_loss: float
    train_acc: float
    test_loss: float
    test_acc: float
    lr: float
    epoch_s: float
    images_per_s: float | None

    @property
    def diverged(self) -> bool:
        return not (math.isfinite(self.train_loss) and math.isfinite(self.test_loss))


def train(
    program: Program, *, slot: Slot | None = None, checkpoint_every: int = 10, say: Callable[[str], None] = print
) -> Iterator[Epoch]:
    """Trains a trial and yields every epoch from the first to the last, or to the one that diverged.

    With a `slot` it goes on from the checkpoint in there: the epochs behind it are yielded again at once, so a
    resumed trial looks to the caller like one that never stopped, and its numbers are bit-equal to it (CPU). A
    checkpoint is written every `checkpoint_every` epochs, and when the generator is closed early. One that cannot be
    used is said so and passed over.

    Raises:
        whatever the pool raises.
    """
    epochs = program.trial.recipe.epochs
    history = _restore(program, slot, say) if slot else []
    yield from history
    try:
        for epoch in range(len(history) + 1, epochs + 1):
            if history and history[-1].diverged:
                return
            history.append(program.run_epoch(epoch))
            if slot and epoch % checkpoint_every == 0 and epoch < epochs:
                _save(program, slot, history)
            yield history[-1]
    except GeneratorExit:  # stopped between two epochs, where the state is whole
        if slot:
            _save(program, slot, history)
        raise


def default_device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


class Program:
    """A trial on a device: its network, optimizer and data, all that an epoch needs.

    Attributes:
        network: [B, 3, 32, 32] -> [B, classes], channels last.
        optimizer: SGD; its learning rate is a tensor, so that a step never depends on a Python number.

    Raises:
        RequestError: the recipe does not fit the data.
    """

    def __init__(self, trial: Trial, data: Dataset, device: torch.device):
        recipe = trial.recipe
        train_index = subset(len(data.train_labels), recipe.train_samples)
        test_index = subset(len(data.test_labels), recipe.test_samples)
        if problems := recipe.problems_with(len(train_index)):
            raise RequestError(problem.under("recipe") for problem in problems)
        self.trial = trial
        self.device = device
        _set_matmul_precision(recipe.precision)
        built = network.build(trial.pool, trial.arch, data.classes, trial.seed)
        if device.type == "cpu":
            cpu.speed_up(built.features)
            cpu.keep_memory()
        self.network = built.to(device).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        self.optimizer = torch.optim.SGD(
            self.network.parameters(),
            lr=torch.tensor(recipe.lr, device=device),
            momentum=recipe.momentum,
            weight_decay=recipe.weight_decay,
            fused=True,
        )
        self._flip = data.flip
        self._augment = Augment(_on(device, data.train_images), data.mean, data.std)
        self._train_index = _on(device, train_index)
        self._train_labels = _on(device, data.train_labels)
        self._normalise = Normalise(data.mean, data.std, device)
        self._test_images = _on(device, data.test_images)
        self._test_labels = _on(device, data.test_labels)
        self._test_index = _on(device, test_index)
        self._warm = False

    def run_epoch(self, epoch: int) -> Epoch:
        """Trains for one epoch (from 1) and evaluates."""
        recipe = self.trial.recipe
        start = time.perf_counter()
        self.optimizer.param_groups[0]["lr"].fill_(recipe.lr_after(epoch - 1))
        with seeded(self.trial.seed, Purpose.NOISE, epoch, self.device):
            train_loss, train_acc, images_per_s = self._train(epoch)
            test_loss, test_acc = self._evaluate()
        return Epoch(
            epoch,
            train_loss,
            train_acc,
            test_loss,
            test_acc,
            recipe.lr_after(epoch),
            time.perf_counter() - start,
            images_per_s,
        )

    def step(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """One SGD step on [B, 3, 32, 32] and [B]; the sum of the losses and the number of hits, on the device."""
        logits = self._logits(images)
        loss = F.cross_entropy(logits, labels)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        return loss.detach() * len(labels), (logits.detach().argmax(1) == labels).sum()

    def state(self) -> dict[str, Any]:
        return {"network": self.network.state_dict(), "momentum": self.optimizer.state_dict()["state"]}

    def load_state(self, state: dict[str, Any]) -> None:
        """Goes where `state` was taken.

        Raises:
            CheckpointError: it is of a network with other tensors; nothing has been changed.
        """
        mine, theirs = ({k: v.shape for k, v in s.items()} for s in (self.network.state_dict(), state["network"]))
        if mine != theirs:
            odd = sorted(key for key in mine.keys() | theirs.keys() if mine.get(key) != theirs.get(key))
            raise checkpoint.CheckpointError(f"it has other tensors than the network ({', '.join(odd)})")
        self.network.load_state_dict(state["network"])
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": state["momentum"], "param_groups": groups})

    def _train(self, epoch: int) -> tuple[float, float, float | None]:
        self.network.train()
        size = self.trial.recipe.batch_size
        total = len(self._train_index)
        draws = EpochDraws.of(self.trial.seed, epoch, total, self._flip, self.device)
        index = self._train_index[draws.order]
        # Sums stay on the device: an epoch waits for the host once, in _means.
        loss_sum = torch.zeros((), dtype=torch.float64, device=self.device)
        hits = torch.zeros((), dtype=torch.int64, device=self.device)
        timed_from, timed_images = time.perf_counter(), total
        for start in range(0, total, size):
            batch = slice(start, start + size)
            images = self._augment(index[batch], draws.top[batch], draws.left[batch], draws.flip[batch])
            loss, hit = self.step(images, self._train_labels[index[batch]])
            loss_sum += loss
            hits += hit
            if not self._warm:
                self._warm = True
                self._synchronize()
                timed_from, timed_images = time.perf_counter(), total - len(images)
        loss, accuracy = _means(loss_sum, hits, total)
        rate = timed_images / (time.perf_counter() - timed_from) if timed_images else None
        return loss, accuracy, rate

    @torch.inference_mode()
    def _evaluate(self) -> tuple[float, float]:
        self.network.eval()
        loss_sum = torch.zeros((), dtype=torch.float64, device=self.device)
        hits = torch.zeros((), dtype=torch.int64, device=self.device)
        for index in self._test_index.split(EVAL_BATCH[self.device.type]):
            labels = self._test_labels[index]
            logits = self._logits(self._normalise(self._test_images[index]))
            loss_sum += F.cross_entropy(logits, labels, reduction="sum")
            hits += (logits.argmax(1) == labels).sum()
        return _means(loss_sum, hits, len(self._test_index))

    def _logits(self, images: Tensor) -> Tensor:
        """[B, 3, 32, 32] -> [B, classes]; in bf16 the convolutions and products are, the loss never is."""
        half = self.trial.recipe.precision == "bf16"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=half):
            logits = self.network(images)
        return logits.float() if half else logits

    def _synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def _restore(program: Program, slot: Slot, say: Callable[[str], None]) -> list[Epoch]:
    """Puts the program where the checkpoint left it; the epochs behind it, none if there is no usable one."""
    data = slot.read()
    if data is None:
        return []
    try:
        state = checkpoint.decode(program.trial.id, data)
        history = [Epoch(**epoch) for epoch in state.pop("history")]
        program.load_state(state)
    except (checkpoint.CheckpointError, KeyError, TypeError) as error:
        say(f"checkpoint passed over, the trial starts from its first epoch: {error}")
        return []
    say(f"resumed after epoch {len(history)}")
    return history


def _save(program: Program, slot: Slot, history: list[Epoch]) -> None:
    state = {**program.state(), "history": [dataclasses.asdict(epoch) for epoch in history]}
    slot.write(checkpoint.encode(program.trial.id, state))


def _means(loss_sum: Tensor, hits: Tensor, total: int) -> tuple[float, float]:
    """Mean loss and accuracy in percent; waits for the device."""
    return loss_sum.item() / total, 100 * int(hits.item()) / total


def _set_matmul_precision(precision: str) -> None:
    """TF32 in CUDA convolutions and matrix products if, and only if, the recipe asks for it."""
    mode = "tf32" if precision == "tf32" else "ieee"
    torch.backends.cuda.matmul.fp32_precision = mode
    torch.backends.cudnn.conv.fp32_precision = mode  # type: ignore[attr-defined]


def _on(device: torch.device, array: Any) -> Tensor:
    """A numpy array on the device; on the CPU the same memory, which may be read-only and shared by workers."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable", UserWarning)  # nothing writes to it
        return torch.as_tensor(array, device=device)
