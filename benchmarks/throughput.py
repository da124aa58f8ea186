"""Images/s of the trainer, end to end, beside its bare steps, the plain loop, and what the machine can do at most.

    python -m benchmarks.throughput [--arch resnet56 vgg16bn mobilenetv2] [--precision fp32 bf16] [--output FILE]

An epoch of each contender in turn, loading and evaluation included, several rounds: ratios are taken round by round,
so that they hold when the machine's speed drifts. Each has a process of its own, that none may work in another's heap.
`of bare steps` is against the same network stepping over one batch that stays where it is; `of matrix rate` is the
arithmetic of the training steps against torch.mm in the same precision, which a convolution may well surpass (on this
kind of AMD CPU torch.mm in fp32 runs with half the vector width). The plain loop has a DataLoader with workers, PIL
transforms, torch.optim.SGD, the default memory layout, and autocast when asked. Images are random bytes in the shape of
CIFAR-100, which take as long as real ones.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import statistics
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import common, plain
from benchmarks.common import Row
from search_spaces import pool
from search_spaces.recipe import PRECISIONS, Recipe
from search_spaces.trial import Trial
from trainer import network
from trainer.augment import Images
from trainer.data import PAD, SIZE, Dataset
from trainer.device import graphs
from trainer.device.execution import default_device, set_matmul_precision
from trainer.packs import take_turns
from trainer.train import Program

COLUMNS = {
    "arch": "{arch}",
    "": "{precision}",
    "images/s": "{ours:,.0f}",
    "of bare steps": "{of_bare:.0%}",
    "plain loop": "{plain:,.0f}",
    "ratio (min-max)": "{ratio}",
    "of matrix rate": "{of_matrix_rate:.0%}",
    "speed by fp32": "{by_fp32:.2f}",
}


def main() -> None:
    parser = common.options(__doc__)
    parser.add_argument("--arch", nargs="+", default=common.ARCHS)
    parser.add_argument("--precision", nargs="+", choices=PRECISIONS, default=["fp32", "bf16"])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of each, on a CPU")
    parser.add_argument("--workers", type=int, default=2, help="of the plain loop's DataLoader")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, default=1536, help="training images an epoch; a fifth more for the test")
    parser.add_argument("--compile", action="store_true", help="ours with torch.compile, whose time is not counted")
    args = parser.parse_args()

    torch.set_num_threads(args.threads)
    limits = {precision: matrix_rate(precision) for precision in args.precision}
    rows = [row for arch in args.arch for row in measure(arch, args, limits)]
    common.show(COLUMNS, rows)
    print("; ".join(f"torch.mm {precision}: {rate / 1e9:,.0f} GFLOP/s" for precision, rate in limits.items()))
    common.save(args, "throughput", {"matrix_rate": limits, "rows": rows})


def measure(arch: str, args: argparse.Namespace, limits: dict[str, float]) -> list[Row]:
    """Return a row for each precision: medians over rounds of images/s, and the ratios round by round."""
    contenders = {
        (name, precision): Contender(prepare, arch, precision, args)
        for precision in args.precision
        for name, prepare in (("ours", ours), ("plain", _plain))
    }
    rates: dict[tuple[str, str], list[float]] = {}
    for number in range(args.rounds + 1):
        for (name, precision), contender in contenders.items():
            for what in ("epoch", "steps") if name == "ours" else ("epoch",):
                contender.start(what)
                rate = args.images / contender.finish()
                if number:  # the first round warms up: kernels are chosen, DataLoader workers start
                    rates.setdefault((f"{name} {what}", precision), []).append(rate)
    for contender in contenders.values():
        contender.stop()
    flops = step_flops(arch)
    rows = []
    for precision in args.precision:
        mine, bare, theirs = (rates[name, precision] for name in ("ours epoch", "ours steps", "plain epoch"))
        row = {
            "arch": arch,
            "precision": precision,
            "ours": statistics.median(mine),
            "bare": statistics.median(bare),
            "plain": statistics.median(theirs),
            "of_bare": statistics.median(common.ratios(mine, bare)),
            "ratios": common.ratios(mine, theirs),
            "ratio": common.spread(common.ratios(mine, theirs)),
            "of_matrix_rate": statistics.median(bare) * flops / limits[precision],
        }
        if precision != "fp32" and "fp32" in args.precision:
            row["by_fp32"] = statistics.median(common.ratios(mine, rates["ours epoch", "fp32"]))
        rows.append(row)
    return rows


class Contender:
    """A process that runs an epoch, or bare steps over as many images, whenever it is told to."""

    def __init__(self, prepare: Callable[..., dict[str, Callable[[], object]]], *arguments: Any):
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, prepare, *arguments))
        self._process.start()

    def start(self, what: str) -> None:
        self._pipe.send(what)

    def finish(self) -> float:
        """Return the seconds that what was started has taken."""
        return self._pipe.recv()

    def stop(self) -> None:
        self._pipe.send(None)
        self._process.join()


def _serve(pipe: Connection, prepare: Callable[..., Any], arch: str, precision: str, args: argparse.Namespace) -> None:
    torch.set_num_threads(args.threads)
    work = prepare(arch, precision, args)
    while what := pipe.recv():
        pipe.send(_timed(work[what]))


def ours(arch: str, precision: str, args: argparse.Namespace) -> dict[str, Callable[[], object]]:
    images = Images(random_images(args.images, args.images // 5), default_device())
    program = Program(_trial(arch, precision, args), images, compiled=args.compile)
    epochs = iter(range(1, args.rounds + 2))
    batch = images.normalise(torch.randint(0, 256, (128, SIZE, SIZE, 3), dtype=torch.uint8, device=images.device))
    labels = images.train_labels[:128]

    def bare_step() -> None:
        program.network.train()
        program.step(batch, labels)

    replay, stream = bare_step, torch.cuda.Stream() if images.device.type == "cuda" else None
    if stream:
        with torch.cuda.stream(stream):
            (replay,) = graphs.record([bare_step], program.network, rewind=lambda: None)

    def bare_steps() -> None:
        with torch.cuda.stream(stream) if stream else contextlib.nullcontext():
            for _ in range(args.images // 128):
                replay()

    return {"epoch": lambda: take_turns([program], next(epochs)), "steps": bare_steps}


def _plain(arch: str, precision: str, args: argparse.Namespace) -> dict[str, Callable[[], object]]:
    trial, data = _trial(arch, precision, args), random_images(args.images, args.images // 5)
    net = network.build(trial.pool, arch, data.classes, trial.seed)
    reference = plain.PlainTrainer(net, trial.recipe, default_device())
    train, test = plain.loaders(data, trial.recipe, args.workers)
    return {"epoch": lambda: reference.run_epoch(train, test)}


def _trial(arch: str, precision: str, args: argparse.Namespace) -> Trial:
    recipe = Recipe(precision=precision, train_samples=args.images, test_samples=args.images // 5)
    return Trial(pool.expand("gap")[0], arch, "cifar100", 0, recipe)


def random_images(train: int, test: int) -> Dataset:
    """Return random bytes in the shape of CIFAR-100."""
    draws = np.random.default_rng(0)
    images = [draws.integers(0, 256, (n, s, s, 3), np.uint8) for n, s in ((train, SIZE + 2 * PAD), (test, SIZE))]
    labels = [draws.integers(0, 100, n) for n in (train, test)]
    return Dataset("random", 100, True, images[0], labels[0], images[1], labels[1], (0.5,) * 3, (0.29,) * 3)


def step_flops(arch: str) -> float:
    """Return the operations of a training step by image, in convolutions and matrix products, forward and backward."""
    net = network.build(pool.expand("gap")[0], arch, 100, 0)
    with FlopCounterMode(display=False) as counter:
        net(torch.randn(2, 3, SIZE, SIZE)).sum().backward()
    return counter.get_total_flops() / 2


def matrix_rate(precision: str, size: int = 2048) -> float:
    """Return FLOP/s of torch.mm over square matrices, by the median of ten."""
    device = default_device()
    set_matmul_precision(precision)
    if device.type == "cuda":
        size *= 4
    kind = torch.bfloat16 if precision == "bf16" else torch.float32
    a, b = (torch.randn(size, size, device=device).to(kind) for _ in range(2))
    return 2 * size**3 / statistics.median([_timed(lambda: torch.mm(a, b)) for _ in range(12)][2:])


def _timed(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
