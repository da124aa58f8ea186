"""What a step launches, found in two ways. For a process of its own: torch takes it to have a GPU."""

from __future__ import annotations

import torch

from benchmarks.rental import kernels, networks
from benchmarks.throughput import random_images
from trainer.augment import Images
from trainer.device import launches
from trainer.train import Program


def counted() -> tuple[list[tuple[int, int]], list[int]]:
    """Return (launches, bytes of each) by `kernels`' own record, and the bytes of each launch by `launches`."""
    with launches.fake_gpu():
        images = Images(random_images(16, 8), torch.device("cuda", 0))
        program = Program(networks.trial("resnet20", batch_size=8), images, graphs=False)
        program._train_batch(8)
        calls = kernels.calls_of(lambda: program._train_batch(8))
        with launches.recorded() as expected:
            program._train_batch(8)
        return [(call.count, call.bytes()) for call in calls], [one.bytes for one in expected if one.kernel]
