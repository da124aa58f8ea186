"""Microseconds of work on the device: as a graph on a GPU, so that no launch of the host's is in it."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable

import torch

REPEATS, ROUNDS = 20, 5
FLUSH = 2**28  # bytes written between two calls: four times the L2 of an H100


def microseconds(work: Callable[[], object], device: torch.device, cold: bool = False) -> float:
    """Return the time of one call, by the fastest of some rounds; calls follow one another on one stream.

    Args:
        cold: after a write that leaves nothing of it in the L2, whose own time is taken off.
    """
    if device.type != "cuda":
        return min(_seconds(work) for _ in range(ROUNDS)) * 1e6
    if not cold:
        return _of_graph([work] * REPEATS, device) / REPEATS
    flush, alone = _flush(device)
    return _of_graph([flush, work] * REPEATS, device) / REPEATS - alone


@functools.cache
def _flush(device: torch.device) -> tuple[Callable[[], object], float]:
    """Return what leaves nothing in the L2, and the microseconds that it takes."""
    scratch = torch.empty(FLUSH, dtype=torch.uint8, device=device)
    return scratch.zero_, _of_graph([scratch.zero_] * REPEATS, device) / REPEATS


def _seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def _of_graph(works: list[Callable[[], object]], device: torch.device) -> float:
    """Return microseconds of all of them in one graph."""
    lane, graph = torch.cuda.Stream(device), torch.cuda.CUDAGraph()
    lane.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(lane):
        for work in dict.fromkeys(works):
            work()
            work()
        lane.synchronize()
        graph.capture_begin()  # `torch.cuda.graph` collects garbage first, 0.1 s for each of a thousand
        try:
            for work in works:
                work()
        finally:
            graph.capture_end()  # or nothing else of this process can be done any more
        found = []
        for _ in range(ROUNDS):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record(lane)
            graph.replay()
            end.record(lane)
            end.synchronize()
            found.append(start.elapsed_time(end))
    return 1000 * min(found)
