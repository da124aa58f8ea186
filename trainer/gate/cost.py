"""What a pool costs at an architecture's feature map, beside average pooling."""

from __future__ import annotations

import time

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from search_spaces import pool
from trainer import pools
from trainer.gate.case import Case, forward
from trainer.gate.report import Cost
from trainer.network import count_parameters

BATCH = 128
ROUNDS, SECONDS = 7, 0.1  # of each; the fastest counts


def measure(case: Case) -> Cost:
    module, gap = case.build().train(), pools.build(pool.expand("gap")[0], case.shape[0])
    maps = case.maps(batch=BATCH)
    few = case.maps(batch=2)
    with FlopCounterMode(display=False) as counter:
        _step(module, few)
    mine, theirs, began = [], [], time.perf_counter()
    while len(mine) < 2 or (len(mine) < ROUNDS and time.perf_counter() - began < SECONDS):
        mine.append(_seconds(module, maps))
        theirs.append(_seconds(gap, maps))
    flops = int(counter.get_total_flops() / len(few))
    is_gap = type(module) is type(gap)  # whose two measurements differ by chance
    return Cost(count_parameters(module), flops, 1000 * min(mine), 1.0 if is_gap else min(mine) / min(theirs))


def _seconds(module: nn.Module, maps: torch.Tensor) -> float:
    start = time.perf_counter()
    _step(module, maps)
    return time.perf_counter() - start


def _step(module: nn.Module, maps: torch.Tensor) -> None:
    forward(module, maps)[0].float().sum().backward()
