"""Images/s of the trainer against the plain loop, end to end, in one run.

    python -m benchmarks.throughput [--arch resnet56 mobilenetv2 ...] [--output FILE]

An epoch of each, evaluation included, in turn, several rounds: the ratio is taken round by round, so that it holds
when the machine's speed drifts. The images are random bytes in the shape of CIFAR-100, which take as long as real ones.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from benchmarks import plain, record
from trainer import network, pool
from trainer.data import PAD, SIZE, Dataset
from trainer.recipe import PRECISIONS, Recipe
from trainer.train import Program, default_device
from trainer.trial import Trial


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--arch", nargs="+", default=["resnet56", "vgg16bn", "mobilenetv2"])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of both, on a CPU")
    parser.add_argument("--workers", type=int, default=2, help="of the plain loop's DataLoader")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--images", type=int, default=1024, help="training images an epoch; a fifth more for the test")
    parser.add_argument("--precision", choices=PRECISIONS, default="fp32")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

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
    recipe = Recipe(precision=args.precision, train_samples=args.images, test_samples=args.images // 5)
    data = random_images(args.images, args.images // 5)
    device = default_device()
    trial = Trial(pool.expand("gap")[0], arch, "cifar100", 0, recipe)
    program = Program(trial, data, device)
    reference = plain.PlainTrainer(network.build(trial.pool, arch, data.classes, trial.seed), recipe, device)
    train, test = plain.loaders(data, recipe, args.workers)

    ours, theirs = [], []
    for epoch in range(args.rounds + 1):
        rates = (
            _rate(args.images, lambda e=epoch: program.run_epoch(e + 1)),
            _rate(args.images, lambda: reference.run_epoch(train, test)),
        )
        if epoch:  # the first round warms up: kernels are chosen, DataLoader workers start
            ours.append(rates[0])
            theirs.append(rates[1])
    ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
    return {
        "arch": arch,
        "ours": statistics.median(ours),
        "plain": statistics.median(theirs),
        "ratio": statistics.median(ratios),
        "ratios": ratios,
    }


def random_images(train: int, test: int) -> Dataset:
    draws = np.random.default_rng(0)
    images = [draws.integers(0, 256, (n, s, s, 3), np.uint8) for n, s in ((train, SIZE + 2 * PAD), (test, SIZE))]
    labels = [draws.integers(0, 100, n) for n in (train, test)]
    return Dataset("random", 100, True, images[0], labels[0], images[1], labels[1], (0.5,) * 3, (0.29,) * 3)


def _rate(images: int, run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return images / (time.perf_counter() - start)


if __name__ == "__main__":
    main()
