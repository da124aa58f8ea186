"""Stage `profile`: what the kernels of one step of each network take, run eagerly, by torch's profiler."""

from __future__ import annotations

import torch
from torch.profiler import ProfilerActivity

from benchmarks.rental import networks
from benchmarks.rental.settings import Rows, from_argv
from trainer.device.execution import default_device
from trainer.train import Program

MOST = 30


def main() -> None:
    settings = from_argv()
    sizes, device = settings.sizes, default_device()
    rows = Rows(settings.result("profile.json"))
    images = networks.images(4 * sizes.batch, sizes.batch, device)
    cuda = device.type == "cuda"
    for arch in sizes.archs:
        program = Program(networks.trial(arch, batch_size=sizes.batch), images, graphs=False)
        for _ in program.run(1):  # loads libraries, chooses kernels
            pass
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
        with torch.profiler.profile(activities=activities) as profiled, program._execution.lane():
            program._cursor.zero_()
            program._train_batch(sizes.batch)
            program._execution.synchronize()
        kernels = [one for one in profiled.key_averages() if not cuda or one.device_type.name == "CUDA"]
        time_of = "self_device_time_total" if cuda else "self_cpu_time_total"
        kernels.sort(key=lambda one: -getattr(one, time_of))
        total = sum(getattr(one, time_of) for one in kernels)
        rows.add({"arch": arch, "kernel": "all", "launches": sum(one.count for one in kernels), "us": total})
        for one in kernels[:MOST]:
            us = getattr(one, time_of)
            share = 100 * us / total if total else None
            rows.add({"arch": arch, "kernel": one.key[:120], "launches": one.count, "us": us, "percent": share})


if __name__ == "__main__":
    main()
