"""The device program of a trial: everything of an epoch, as steps that read and write tensors at fixed addresses.

A step finds its batch by a cursor on the device, in the epoch's draws, and adds its loss and its hits to sums on the
device. So it takes nothing from the host and gives nothing to it: on a CPU it is called, on CUDA it is recorded once
and replayed, and the host waits for a trial once an epoch. No trial needs the host to itself: many programs can take
turns in one process, each on a stream of its own.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim.sgd import sgd

from search_spaces.errors import RequestError
from search_spaces.trial import Trial
from trainer import checkpoint, network
from trainer.archs.dropout import Dropout
from trainer.augment import Images, epoch_draws
from trainer.data import subset
from trainer.device import cpu, graphs
from trainer.device.graphs import Step
from trainer.epoch import Epoch, collapsed
from trainer.pools import load_class
from trainer.randomness import Noise, Purpose, key

Phase = Literal["train", "test"]

# Images evaluated at once. On a CPU, ResNet-56 evaluates 20 % slower at 512, out of cache; on a GPU fewer launches win.
EVAL_BATCH = {"cpu": 128, "cuda": 1000}
TURN = 8  # steps between two chances for others
PHASES: tuple[Phase, Phase] = "train", "test"

_Kind = tuple[Phase, int]  # a step: what it does, to how many images


class Program:
    """A trial on a device.

    Args:
        images: the trial's dataset, on the device that trains.
        compiled: let torch.compile make the network's kernels. The same function, to rounding.
        graphs: on a GPU, record the steps as CUDA graphs. The same kernels, without their launches.
        channels_last: how activations and weights lie in memory. The same function, to rounding.
        tail: train the architecture's last layer, the pool and the head alone, as the gate does.
        say: told in one line if the steps have to run without CUDA graphs.

    Attributes:
        network: [B, 3, 32, 32] -> [B, classes].
        test_images: how many it is evaluated on.
        lr: a tensor, so that a step never depends on a Python number.
        momentum: one buffer for each parameter, in their order.

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
        say: Callable[[str], None] = lambda _: None,
    ):
        load_class(trial.pool)  # a user's file runs before anything is set, in its first trial as in its last
        recipe = trial.recipe
        self._tail = tail
        self._train_index = subset(len(images.train_labels), recipe.train_samples)
        test_index = subset(len(images.test_labels), recipe.test_samples)
        if problems := recipe.problems_with(len(self._train_index)):
            raise RequestError(problem.under("recipe") for problem in problems)
        self.test_images = len(test_index)
        self.trial = trial
        self.images = images
        self.device = device = images.device
        self._compiled = compiled
        self._layout = torch.channels_last if channels_last else torch.contiguous_format
        self._noise = Noise(device)
        self._stream = None
        if device.type == "cuda":
            from trainer.device import gpu  # and Triton with it, which is not everywhere where there is a CPU

            self._stream = gpu.lend_stream(device, self)
            self._stream.wait_stream(torch.cuda.current_stream(device))  # which the images came by
        set_matmul_precision(recipe.precision)
        with self._lane():
            self._draws = torch.zeros(len(self._train_index), 4, dtype=torch.int64, device=device)
            self._test_index = torch.from_numpy(test_index).to(device)
            self._positions = torch.arange(max(recipe.batch_size, EVAL_BATCH[device.type]), device=device)
            self._cursor = torch.zeros((), dtype=torch.int64, device=device)
            # (training, test) x (sum of losses, hits). In float64 both are exact enough for any number of images.
            self._sums = torch.zeros(2, 2, dtype=torch.float64, device=device)
            self._drawn: dict[int, Tensor] = {}  # {epoch: its draws}, of the one that comes next
            self._warm = False  # the first step of a process takes memory and chooses kernels
            self._build()
            self._graphs = self._record(say) if graphs and device.type == "cuda" else {}

    def run(self, epoch: int) -> Generator[None, None, Epoch]:
        """Trains for one epoch (from 1) and evaluates. Yields whenever others may take a turn."""
        recipe = self.trial.recipe
        started = time.perf_counter()
        self._noise.seed(self.trial.seed, Purpose.NOISE, epoch)
        if self._masks is not None:
            self._masks.manual_seed(key(self.trial.seed, Purpose.DROPOUT, epoch))
        with self._lane():
            self.lr.fill_(recipe.lr_after(epoch - 1))
            self._sums.zero_()
            self._load_draws(epoch)
        kinds = self._kinds("train")
        trained, tested = len(self._train_index), self.test_images
        timed, timed_from = trained, self._mark()
        yield from self._enqueue(kinds[:1])
        if not self._warm:
            self._warm = True
            timed, timed_from = max(0, trained - recipe.batch_size), self._mark()
        yield from self._enqueue(kinds[1:])
        timed_to = self._mark()
        with self._lane():
            self._rewind()
        yield from self._enqueue(self._kinds("test"))
        if epoch < recipe.epochs:  # while the device evaluates: 6 ms for CIFAR-100, which all of a pack want at once
            self._drawn[epoch + 1] = self._draw(epoch + 1)
        yield from self._done()
        (train_loss, train_hits), (test_loss, test_hits) = self._sums.tolist()
        return Epoch(
            epoch,
            train_loss / trained,
            100 * train_hits / trained,
            test_loss / tested,
            100 * test_hits / tested,
            recipe.lr_after(epoch),
            time.perf_counter() - started,
            timed / _seconds(timed_from, timed_to) if timed else None,
        )

    def collapsed(self, history: Sequence[Epoch]) -> bool:
        """Whether a trial that came to this has learned nothing: see `search_spaces.chance`."""
        return collapsed(history, self.images.classes, self.test_images)

    def step(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """One SGD step on [B, 3, 32, 32] and [B]; the sum of the losses and the number of hits, on the device."""
        logits = self._logits(images)
        loss = F.cross_entropy(logits, labels)
        for parameter in self._parameters:
            parameter.grad = None
        loss.backward()
        if self._together:
            self._together.after()
        self._descend()
        return loss.detach() * len(labels), (logits.detach().argmax(1) == labels).sum()

    def state(self) -> dict[str, Any]:
        """The weights and the momentum: all that an epoch leaves to the next. The tensors are those that train."""
        return {"network": self.network.state_dict(), "momentum": self.momentum}

    def load_state(self, state: dict[str, Any]) -> None:
        """Goes where `state` was taken, in place.

        Raises:
            CheckpointError: it is of a network with other tensors; nothing has been changed.
        """
        mine = self.state()
        shapes = [
            {**{k: v.shape for k, v in s["network"].items()}, **dict(enumerate(v.shape for v in s["momentum"]))}
            for s in (mine, state)
        ]
        if shapes[0] != shapes[1]:
            odd = [str(k) for k in {**shapes[0], **shapes[1]} if shapes[0].get(k) != shapes[1].get(k)]
            raise checkpoint.CheckpointError(f"it has other tensors than the network ({', '.join(sorted(odd))})")
        with self._on_stream(), torch.no_grad():
            for name, tensor in mine["network"].items():
                tensor.copy_(state["network"][name])
            for tensor, theirs in zip(mine["momentum"], state["momentum"], strict=True):
                tensor.copy_(theirs)
        self._synchronize()

    def _build(self) -> None:
        """The network with its initial weights, and momentum at rest."""
        trial, recipe = self.trial, self.trial.recipe
        built = network.build(trial.pool, trial.arch, self.images.classes, trial.seed, tail=self._tail)
        if self.device.type == "cpu":
            cpu.keep_memory()
            if not self._compiled:  # torch.compile makes kernels of its own, and cannot read some of these layers
                cpu.speed_up(built.features)
        self.network = built.to(self.device).to(memory_format=self._layout)  # pyright: ignore[reportCallIssue]
        dropping = [layer for layer in self.network.head.modules() if isinstance(layer, Dropout)]
        self._masks = torch.Generator(self.device) if dropping else None
        for layer in dropping:
            layer.generator = self._masks
        self._together = None
        if self.device.type == "cuda" and not self._compiled:
            from trainer.device import gpu

            self._together = gpu.speed_up(self.network.features, recipe.precision)
        self._forward = torch.compile(self.network) if self._compiled else self.network
        self.lr = torch.tensor(recipe.lr, device=self.device)
        # At rest from the start: torch.optim would make these in its first step, where no graph could find them again.
        self._parameters = list(self.network.parameters())  # walking the modules twice: 1 % of mobilenetv2_s32's
        self.momentum = [torch.zeros_like(parameter) for parameter in self._parameters]

    def _descend(self) -> None:
        """SGD with momentum, torch's own kernel. Parameters that the loss does not depend on stay as they are."""
        moved = [(p, m) for p, m in zip(self._parameters, self.momentum, strict=True) if p.grad is not None]
        # The function and not the class, which imports all of torch._dynamo: 3 s in every process that trains.
        sgd(
            [parameter for parameter, _ in moved],
            [cast(Tensor, parameter.grad) for parameter, _ in moved],
            [momentum for _, momentum in moved],
            has_sparse_grad=False,
            fused=True,
            weight_decay=self.trial.recipe.weight_decay,
            momentum=self.trial.recipe.momentum,
            lr=cast(float, self.lr),  # fused, it may be a tensor
            dampening=0,
            nesterov=False,
            maximize=False,
        )

    # The steps of an epoch

    def _kinds(self, phase: Phase) -> list[_Kind]:
        """The steps of a phase of an epoch, in order."""
        if phase == "train":
            sizes = _batches(len(self._train_index), self.trial.recipe.batch_size)
        else:
            sizes = _batches(self.test_images, EVAL_BATCH[self.device.type])
        return [(phase, size) for size in sizes]

    def _record(self, say: Callable[[str], None]) -> dict[_Kind, Step]:
        """The steps as graphs; none, if they have to run eagerly."""
        before = copy.deepcopy((self.state(), dict(self.network.named_buffers())))  # a pool may keep some out of it
        self._load_draws(1)
        kinds = dict.fromkeys(kind for phase in PHASES for kind in self._kinds(phase))
        try:
            steps = [self._eager(kind) for kind in kinds]
            recorded = graphs.record(steps, self.network, rewind=self._rewind, generator=self._masks)
        except graphs.RecordError as error:
            say(f"trains without CUDA graphs, which is slower: {error}")
            self._noise = Noise(self.device)  # a generator may still take itself to be recorded; _build makes the other
            self._build()  # the pool may hold traces of the attempt
            return {}
        state, buffers = before
        self.load_state(state)
        for name, buffer in self.network.named_buffers():
            buffer.copy_(buffers[name])
        return dict(zip(kinds, recorded, strict=True))

    def _eager(self, kind: _Kind) -> Step:
        phase, size = kind
        return functools.partial(self._train_step if phase == "train" else self._test_step, size)

    def _train_step(self, size: int) -> None:
        self.network.train()
        draws = self._draws.index_select(0, self._cursor + self._positions[:size])
        loss, hits = self.step(self.images.crops(draws), self.images.train_labels.index_select(0, draws[:, 0]))
        self._add(0, size, loss, hits)

    @torch.inference_mode()
    def _test_step(self, size: int) -> None:
        self.network.eval()
        index = self._test_index.index_select(0, self._cursor + self._positions[:size])
        labels = self.images.test_labels.index_select(0, index)
        logits = self._logits(self.images.test(index))
        self._add(1, size, F.cross_entropy(logits, labels, reduction="sum"), (logits.argmax(1) == labels).sum())

    def _add(self, phase: int, size: int, loss: Tensor, hits: Tensor) -> None:
        self._sums[phase].add_(torch.stack((loss.double(), hits.double())))
        self._cursor += size

    def _logits(self, images: Tensor) -> Tensor:
        """[B, 3, 32, 32] -> [B, classes]; in bf16 the convolutions and products are, the loss never is."""
        half = self.trial.recipe.precision == "bf16"
        if self._together:
            self._together.before()
        with torch.autocast(self.device.type, torch.bfloat16, enabled=half):
            logits = self._forward(images.contiguous(memory_format=self._layout))
        return logits.float() if half else logits

    def _draw(self, epoch: int) -> Tensor:
        draws = epoch_draws(self.trial.seed, epoch, self._train_index, self.images.flip)
        return draws if self._stream is None else draws.pin_memory()

    def _load_draws(self, epoch: int) -> None:
        drawn = self._drawn.get(epoch)
        self._draws.copy_(self._draw(epoch) if drawn is None else drawn, non_blocking=True)
        self._drawn.clear()
        self._rewind()

    def _rewind(self) -> None:
        self._cursor.zero_()

    # Taking turns

    def _on_stream(self) -> contextlib.AbstractContextManager[Any]:
        return torch.cuda.stream(self._stream) if self._stream else contextlib.nullcontext()

    @contextlib.contextmanager
    def _lane(self) -> Iterator[None]:
        """This trial's stream and generators."""
        with self._on_stream(), self._noise:
            yield

    def _enqueue(self, kinds: Sequence[_Kind]) -> Iterator[None]:
        for start in range(0, len(kinds), TURN):
            # A graph draws from the generator that it was recorded with, and to swap those of the host takes 0.4 ms.
            with self._on_stream() if self._graphs else self._lane():
                for kind in kinds[start : start + TURN]:
                    step = self._graphs.get(kind) or self._eager(kind)
                    step()
            yield

    def _done(self) -> Iterator[None]:
        """Until the device is."""
        if self._stream is None:
            return
        end = self._stream.record_event()
        while not end.query():
            time.sleep(5e-5)  # an epoch of the fastest pack takes a thousand times as long
            yield

    def _mark(self) -> float | torch.cuda.Event:
        """A point in this trial's time."""
        if self._stream is None:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record(self._stream)
        return event

    def _synchronize(self) -> None:
        if self._stream is not None:
            self._stream.synchronize()


def _batches(total: int, size: int) -> list[int]:
    """Batch sizes: whole ones, and what is left."""
    return [size] * (total // size) + [total % size] * (total % size > 0)


def default_device() -> torch.device:
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def _seconds(start: float | torch.cuda.Event, end: float | torch.cuda.Event) -> float:
    if isinstance(start, torch.cuda.Event) and isinstance(end, torch.cuda.Event):
        return start.elapsed_time(end) / 1000
    return cast(float, end) - cast(float, start)


def set_matmul_precision(precision: str) -> None:
    """TF32 in CUDA convolutions and matrix products if, and only if, the recipe asks for it."""
    mode = "tf32" if precision == "tf32" else "ieee"
    torch.backends.cuda.matmul.fp32_precision = mode
    torch.backends.cudnn.conv.fp32_precision = mode  # type: ignore[attr-defined]
