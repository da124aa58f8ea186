"""Stage `packs`: milliseconds of a step in bf16, of packs of 1, 2, 4 ..., and without each family of kernels.

Rows as those of `benchmarks.packs`: an epoch of 100 steps of 128 images of trials of different pools and seeds, after
one that warms up, evaluation of 2,000 included; `ms_a_step` is its wall time by the steps of all trials. The
packs of all networks come first, then a step run eagerly, then cuDNN's own search, then what each family is worth.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.packs import endless, figures
from benchmarks.rental import jobs, networks, pieces
from benchmarks.rental.plan import families_of
from benchmarks.rental.settings import Rows, Settings, Sizes, without
from orchestrator.packs import GAIN
from search_spaces import kernels
from search_spaces.messages import shown_by
from search_spaces.recipe import Recipe
from trainer.augment import Images
from trainer.device.execution import default_device
from trainer.packs import grow, while_it_pays

COMPARED = 2  # trials side by side, without each family of kernels


@functools.cache
def _images(sizes: Sizes, off: frozenset[str]) -> Images:
    del off  # of which they take note as they are made
    return networks.images(sizes.images, 2 * sizes.evaluation, default_device())


def all_packs(settings: Settings) -> Sequence[jobs.Job]:
    sizes, cuda = settings.sizes, default_device().type == "cuda"
    commit = pieces.commit(Path(settings.data).parent)
    work: list[jobs.Job] = []

    def add(
        what: str, arch: str, packs: Sequence[int], off: str = "", graphs: bool = True, search: bool = False
    ) -> None:
        done = functools.partial(measure, sizes, arch, packs, off, graphs and cuda, search, commit)
        work.append((f"{arch} {what}", done))

    for arch in sizes.archs:
        add("packs", arch, sizes.packs)
    if cuda:
        for arch in sizes.archs:
            add("eager", arch, [1], graphs=False)
        for arch in sizes.archs:
            add("cudnn.benchmark", arch, [COMPARED], search=True)
    for arch in sizes.archs:
        for family in families_of(arch) if cuda else families_of(arch)[:1]:
            add(f"without {family}", arch, [COMPARED], off=family)
    return work


def measure(
    sizes: Sizes, arch: str, packs: Sequence[int], off: str, graphs: bool, search: bool, commit: str | None, rows: Rows
) -> None:
    device = default_device()
    with without(off), networks.searching(search), shown_by(print):
        images = _images(sizes, kernels.off())
        growing = grow(endless(arch, Recipe(batch_size=sizes.batch, precision="bf16")), images, packs, graphs=graphs)
        for found in while_it_pays(growing, GAIN):
            row = figures(found, images, graphs=graphs, channels_last=True, batch_size=sizes.batch)
            told = {"off": os.environ.get(kernels.SWITCH, ""), "cudnn_benchmark": search}
            rows.add({"arch": arch, "precision": "bf16", **told, **row, "commit": commit})
    if device.type == "cuda":
        torch.cuda.synchronize()  # raises if it is lost, of which `grow` says only that no more fit


if __name__ == "__main__":
    jobs.run("packs.json", all_packs)
