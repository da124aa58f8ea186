"""Images/s of the trainer against the plain loop, end to end, in one run.

    python -m benchmarks.throughput [--arch resnet56 mobilenetv2 ...] [--output FILE]

An epoch of each, evaluation included, in turn, several rounds: the ratio is taken round by round, so that it holds
when the machine's speed drifts. Each has a process of its own, so that neither works in the other's heap. The images
are random bytes in the shape of CIFAR-100, which take as long as real ones.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from benchmarks import plain, record
from trainer import network, pool
from trainer.augment import Images
from trainer.data import PAD, SIZE, Dataset
from trainer.pack import take_turns
from trainer.program import Program, default_device
from trainer.recipe import PRECISIONS, Recipe
from trainer.trial import Trial


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--arch", nargs="+", default=["resnet56", "vgg16bn", "mobilenetv2"])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of both, on a CPU")
    parser.add_argument("--workers", type=int, default=2, help="of the plain loop's DataLoader")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--images", type=int, default=4096, help="training images an epoch; a fifth more for the test")
    parser.add_argument("--precision", choices=PRECISIONS, default="fp32")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()

    results = [measure(arch, args) for arch in args.arch]
    table = Table("arch", "ours, images/s", "plain loop, images/s", "ratio (min-max)", title=args.precision)
    for row in results:
        spread = f"{min(row['ratios']):.2f}-{max(row['ratios']):.2f}"
        table.add_row(row["arch"], f"{row['ours']:.0f}", f"{row['plain']:.0f}", f"{row['ratio']:.2f} ({spread})")
    Console().print(table)
    if args.output:
        record.save(args.output, "throughput", {"arguments": {**vars(args), "output": None}, "rows": results})


def measure(arch: str, args: argparse.Namespace) -> dict[str, Any]:
    """Medians over rounds of training images/s, and the ratio round by round."""
    rates: dict[str, list[float]] = {"ours": [], "plain": []}
    contenders = {name: _Contender(prepare, arch, args) for name, prepare in (("ours", _ours), ("plain", _plain))}
    for epoch in range(args.rounds + 1):
        for name, contender in contenders.items():
            rate = args.images / contender.seconds()
            if epoch:  # the first round warms up: kernels are chosen, DataLoader workers start
                rates[name].append(rate)
    for contender in contenders.values():
        contender.stop()
    ratios = [ours / theirs for ours, theirs in zip(rates["ours"], rates["plain"], strict=True)]
    medians = {name: statistics.median(values) for name, values in rates.items()}
    return {"arch": arch, **medians, "ratio": statistics.median(ratios), "ratios": ratios}


class _Contender:
    """A process that runs an epoch whenever it is told to."""

    def __init__(self, prepare: Callable[[str, argparse.Namespace], Callable[[], object]], *arguments: Any):
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, prepare, *arguments))
        self._process.start()

    def seconds(self) -> float:
        self._pipe.send(True)
        return self._pipe.recv()

    def stop(self) -> None:
        self._pipe.send(False)
        self._process.join()


def _serve(pipe: Connection, prepare: Callable[..., Callable[[], object]], arch: str, args: argparse.Namespace) -> None:
    torch.set_num_threads(args.threads)
    run_epoch = prepare(arch, args)
    while pipe.recv():
        start = time.perf_counter()
        run_epoch()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        pipe.send(time.perf_counter() - start)


def _ours(arch: str, args: argparse.Namespace) -> Callable[[], object]:
    images = Images(random_images(args.images, args.images // 5), default_device())
    program = Program(_trial(arch, args), images)
    epochs = iter(range(1, args.rounds + 2))
    return lambda: take_turns([program], next(epochs))


def _plain(arch: str, args: argparse.Namespace) -> Callable[[], object]:
    trial, data = _trial(arch, args), random_images(args.images, args.images // 5)
    net = network.build(trial.pool, arch, data.classes, trial.seed)
    reference = plain.PlainTrainer(net, trial.recipe, default_device())
    train, test = plain.loaders(data, trial.recipe, args.workers)
    return lambda: reference.run_epoch(train, test)


def _trial(arch: str, args: argparse.Namespace) -> Trial:
    recipe = Recipe(precision=args.precision, train_samples=args.images, test_samples=args.images // 5)
    return Trial(pool.expand("gap")[0], arch, "cifar100", 0, recipe)


def random_images(train: int, test: int) -> Dataset:
    """Random bytes in the shape of CIFAR-100."""
    draws = np.random.default_rng(0)
    images = [draws.integers(0, 256, (n, s, s, 3), np.uint8) for n, s in ((train, SIZE + 2 * PAD), (test, SIZE))]
    labels = [draws.integers(0, 100, n) for n in (train, test)]
    return Dataset("random", 100, True, images[0], labels[0], images[1], labels[1], (0.5,) * 3, (0.29,) * 3)


if __name__ == "__main__":
    main()
