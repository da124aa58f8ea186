"""Stage `ceilings`: what the GPU can do at most, and how many kernels it takes in a second.

The audit takes bandwidth for the wall. If small kernels come at under a million a second, whatever the stream, their
number is one as well, and fewer kernels come before fewer bytes.
"""

from __future__ import annotations

import functools
import time

import torch

from benchmarks.rental.settings import Rows, from_argv
from benchmarks.rental.timing import microseconds
from trainer.device.execution import default_device

REPEATS = 10


def main() -> None:
    settings = from_argv()
    sizes, device = settings.sizes, default_device()
    rows = Rows(settings.result("ceilings.json"))
    source = torch.randint(256, (sizes.copied,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    us = microseconds(functools.partial(target.copy_, source), device)
    rows.add({"what": "copy", "GB/s": 2 * sizes.copied / us / 1e3, "bytes": sizes.copied})
    del source, target  # for what comes next
    for kind in (torch.bfloat16, torch.float32):
        a, b = (torch.randn(sizes.square, sizes.square, device=device).to(kind) for _ in range(2))
        us = microseconds(functools.partial(torch.mm, a, b), device)
        rows.add({"what": f"mm {kind}", "TFLOP/s": 2 * sizes.square**3 / us / 1e6, "rows": sizes.square})
    if device.type != "cuda":
        print("there are no graphs on a CPU")
        return
    for streams in sizes.streams:
        rows.add(small_kernels(streams, sizes.chain))


def small_kernels(streams: int, chain: int) -> dict[str, object]:
    """Replay a graph of so many kernels, each of one small block, on each of so many streams at once."""
    lanes = [torch.cuda.Stream() for _ in range(streams)]
    graphs = []
    for lane in lanes:
        value, graph = torch.zeros(32, device="cuda"), torch.cuda.CUDAGraph()
        torch.cuda.synchronize()
        with torch.cuda.stream(lane):
            value.add_(1)
            lane.synchronize()
            with torch.cuda.graph(graph, stream=lane):
                for _ in range(chain):
                    value.add_(1)
        graphs.append((lane, graph, value))

    def replay() -> None:
        for lane, graph, _ in graphs:
            with torch.cuda.stream(lane):
                graph.replay()

    replay()
    torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(REPEATS):
        replay()
    launched = time.perf_counter() - began
    torch.cuda.synchronize()
    seconds = time.perf_counter() - began
    return {
        "what": "small kernels",
        "streams": streams,
        "kernels/s": REPEATS * streams * chain / seconds,
        "us a kernel": 1e6 * seconds / (REPEATS * streams * chain),
        "us of the CPU a replay": 1e6 * launched / (REPEATS * streams),
    }


if __name__ == "__main__":
    main()
