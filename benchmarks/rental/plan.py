"""What `train` trains: the published table as one grid, in packs in order of worth, and which of them end in time."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.rental.settings import Row, Settings
from search_spaces import kernels, pool, strict_yaml
from search_spaces.datasets import DATASETS
from search_spaces.errors import RequestError
from search_spaces.grid import BASELINE, CANDIDATE, Entry, Grid, Pair, Planned
from search_spaces.machine import ROOT
from search_spaces.recipe import Recipe
from trainer.data.shards import NEEDED, Place

SPACES = ROOT / "search_spaces"
READINGS = ("mobilenetv2", "mobilenetv2_2x2")  # of the benchmark's MobileNetV2: which it is, is to be measured first
EITHER = "mobilenetv2*"  # the one of them that has come closer
PUBLISHED_GAP = 94.66  # percent, of gap in MobileNetV2 on Fashion-MNIST: results/table/published.csv
PAIRS = (
    *(Pair(arch, "fmnist", hidden=arch == READINGS[0]) for arch in READINGS),
    Pair("resnet56", "cifar100"),
    Pair("vgg16bn", "cifar100"),
)
PUBLISHED = (f"{EITHER} fmnist", "resnet56 cifar100", "vgg16bn cifar100")
SEEDS = (42, 123)
WORTH = (
    *(f"{arch} fmnist gap 42" for arch in READINGS),
    *(f"{pair} {role} {seed}" for seed in SEEDS for role in (BASELINE, CANDIDATE) for pair in PUBLISHED),
)
SPECIFIC = {  # kernels that a network alone has
    "mobilenetv2": ("depthwise", "pointwise", "inverted_residual"),
    "resnet": ("convolution", "basic_block"),
    "vgg": ("convolution",),
}
MARGIN = 1.08  # of a pack's time, which may be of another dataset and other pools
TRAVEL = {"resnet": 6.9e6, "mobilenetv2": 17.8e6}  # bytes of a checkpoint; one of VGG has 118 MB, and stays
UNKNOWN = 4  # trials side by side where nothing has been measured


def grid(settings: Settings) -> Grid:
    """Return all that may be trained; trials are by their places in it."""
    if settings.rehearse:
        specs = {
            "gap": BASELINE,
            "gem": BASELINE,
            "candidates/maximum.py": CANDIDATE,
            "candidates/channel_gate.py": CANDIDATE,
        }
        entries = tuple(Entry(pool.expand(spec, root=SPACES)[0], role) for spec, role in specs.items())
        recipe = Recipe(epochs=4, batch_size=16, lr=0.02, precision="bf16", train_samples=160, test_samples=40)
        return Grid("rehearsal", entries, (Pair("resnet20", "digits"),), SEEDS, recipe)
    asked = strict_yaml.load((SPACES / "published.yaml").read_text(encoding="utf-8"))
    entries = tuple(
        Entry(
            pool.expand(one.get("name") or one["file"], label=one.get("label"), root=SPACES)[0],
            one.get("role", CANDIDATE),
        )
        for one in asked["pools"]
    )
    recipe = dataclasses.replace(Recipe.of(asked["recipe"]), precision="bf16")
    return Grid("published", entries, PAIRS, SEEDS, recipe)


def wanted(settings: Settings, of: Grid, best: Mapping[str, float]) -> list[list[Planned]]:
    """Return the trials of each request, in order of worth.

    Args:
        best: {trial id: its best accuracy} of trials that have ended.
    """
    trials = list(of)
    gap = {
        planned.trial.arch: abs(best[planned.trial.id] - PUBLISHED_GAP)
        for planned in trials
        if planned.trial.pool.name == "gap" and planned.trial.seed == SEEDS[0] and planned.trial.id in best
    }
    reading = min((arch for arch in READINGS if arch in gap), key=lambda arch: gap[arch], default=READINGS[0])
    asked = settings.packs or (("resnet20 digits baseline,candidate 42",) if settings.rehearse else WORTH)
    found = []
    for request in asked:
        arch, dataset, pools, seeds = request.replace(EITHER, reading).split()
        found.append(
            [
                planned
                for planned in trials
                if (planned.trial.arch, planned.trial.dataset) == (arch, dataset)
                and {planned.role, planned.trial.pool.name, planned.trial.pool.label} & set(pools.split(","))
                and str(planned.trial.seed) in seeds.split(",")
            ]
        )
        if not found[-1]:
            raise RequestError.of(
                f"no trial of {of.name} is of {request!r}: arch dataset pool,pool seed,seed", "--pack"
            )
    return found


def missing(settings: Settings, requests: Iterable[Sequence[Planned]]) -> list[str]:
    """Return the datasets of these requests whose images are not there, or not whole."""
    names = {planned.trial.dataset for request in requests for planned in request}
    return sorted(name for name in names - {"digits"} if not _is_there(Path(settings.data), name))


def _is_there(data: Path, name: str) -> bool:
    try:
        return set(NEEDED) <= set(Place(data, name, {name: DATASETS[name].called}).splits())
    except RequestError:  # a part of it
        return False


@dataclass
class Paces:
    """Milliseconds of a step of each trial of a pack, by how many are in it.

    Attributes:
        start_s: seconds until a pack trains: imports, CUDA's context, images, graphs.
        known: {arch: {trials side by side: milliseconds}}.
    """

    start_s: float = 15.0
    known: dict[str, dict[int, float]] = field(default_factory=dict)

    def learn(self, rows: Iterable[Row]) -> None:
        """Take rows of `packs.json`, those of packs as they train: as graphs, and without a search of cuDNN's."""
        for row in rows:
            if row.get("graphs", True) and not row.get("cudnn_benchmark") and row.get("precision") == "bf16":
                self.add(row["arch"], row["size"], row["ms_a_step"])

    def add(self, arch: str, size: int, ms: float) -> None:
        self.known.setdefault(arch, {})[size] = ms

    def of(self, arch: str, size: int) -> float | None:
        """Return what is known of a pack of that size, or of the nearest smaller one, which is no faster; else None."""
        sizes = self.known.get(arch, {})
        return sizes[max((one for one in sizes if one <= size), default=min(sizes))] if sizes else None

    def best(self, arch: str) -> int:
        """Return how many trials side by side are fastest."""
        sizes = self.known.get(arch, {})
        return min(sizes, key=lambda size: (sizes[size], size)) if sizes else UNKNOWN


def seconds(pack: Sequence[Planned], epochs_done: Mapping[str, int], images: int, paces: Paces) -> float | None:
    """Return how long a pack takes to its end, evaluation included; None if its pace is not known.

    Args:
        epochs_done: {trial id: by its checkpoint}.
        images: of an epoch.
    """
    ms = paces.of(pack[0].trial.arch, len(pack))
    if ms is None:
        return None
    recipe = pack[0].trial.recipe
    steps = -(-images // recipe.batch_size)
    epochs = sum(recipe.epochs - epochs_done.get(planned.trial.id, 0) for planned in pack)
    return paces.start_s + MARGIN * epochs * steps * ms / 1000


def choose(
    requests: Sequence[Sequence[Planned]],
    left: float,
    epochs_done: Mapping[str, int],
    images: Mapping[str, int],
    paces: Paces,
) -> list[Planned] | None:
    """Return the pack to start next; None if there is none that ends in time, and none whose checkpoints travel.

    Packs are as large as pays; smaller, if only that ends in time. One of unknown pace is started, and measures it.

    Args:
        requests: what is left of each, in order of worth.
        left: seconds.
        images: {dataset: of an epoch}, of those that are there.
    """
    ready = [request for request in requests if request and request[0].trial.dataset in images]
    for request in ready:
        for size in range(min(len(request), paces.best(request[0].trial.arch)), 0, -1):
            pack = list(request[:size])
            needs = seconds(pack, epochs_done, images[pack[0].trial.dataset], paces)
            if needs is None or needs <= left:
                return pack if needs is not None or left > 3 * paces.start_s else None
    for request in ready:
        if travels(request[0].trial.arch) and left > 3 * paces.start_s:
            return list(request[: paces.best(request[0].trial.arch)])
    return None


def families_of(arch: str) -> tuple[str, ...]:
    """Return the families of kernels that an architecture trains with, the newest, which are the riskiest, first."""
    mine = next((own for name, own in SPECIFIC.items() if arch.startswith(name)), ())
    others = {family for own in SPECIFIC.values() for family in own} - set(mine)
    return tuple(family for family in reversed(kernels.FAMILIES) if family not in others)


def travels(arch: str) -> float | None:
    """Return how many bytes a checkpoint has, if it is small enough to be taken to the next machine."""
    return next((size for family, size in TRAVEL.items() if arch.startswith(family)), None)
