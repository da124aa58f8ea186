"""The gate trains a user's pool as a trial does, and resumes it in another process: which state it finds, and where."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from search_spaces import architectures, pool
from search_spaces.recipe import Recipe
from trainer import archs, network
from trainer.gate import Gate
from trainer.gate.report import Validation
from trainer.gate.resume import Resumed, Uninterrupted

HEAD = "import collections, itertools, os, random, numpy as np, torch\nfrom pathlib import Path\nfrom torch import nn\n"
POOL = "class CustomPool(nn.Module):\n    def __init__(self):\n        super().__init__()\n        {init}\n"
POOL += "    def forward(self, x):\n        {forward}\n"
AVERAGE = "return x.mean((2, 3))"
WEIGHED = "return x.mean((2, 3)) * (1 + 1e-3 * {})"
CACHED = "if self.grid is None or self.grid.shape != x.shape or self.grid.device != x.device:\n"


def file(folder: Path, name: str, init: str = "pass", forward: str = AVERAGE, before: str = "") -> Path:
    path = folder / f"{name}.py"
    path.write_text(HEAD + before + "\n" + POOL.format(init=init, forward=forward), encoding="utf-8")
    return path


Validated = dict[str, Validation]


def validated(files: list[Path], precision: str = "fp32", batch_size: int = 32) -> Validated:
    recipe = Recipe(batch_size=batch_size, lr=0.02, precision=precision)
    with Gate([pool.expand(str(path))[0] for path in files], ["resnet20"], recipe) as gate:
        return {one.pool.name: one for one in gate.report.validations}


def validated_all(folder: Path, pools: dict[str, dict[str, str]]) -> Validated:
    return validated([file(folder, name, **parts) for name, parts in pools.items()])


CALLS = "self.calls = self.calls + 1 if self.training else self.calls\n        "
HIDDEN: dict[str, dict[str, str]] = {  # each where no checkpoint looks, and late enough that a few steps show nothing
    "attribute": {"init": "self.calls = 0", "forward": CALLS + f"{AVERAGE} if self.calls < 999 else x.amax((2, 3))"},
    "object": {
        "before": "class Schedule:\n    step = 0\n    def late(self):\n        self.step += 1\n"
        "        return self.step > 999",
        "init": "self.schedule = Schedule()",
        "forward": f"self.schedule.late()\n        {AVERAGE}",
    },
    "global": {"before": "STEPS = 0", "forward": f"global STEPS\n        STEPS += self.training\n        {AVERAGE}"},
    "of_the_class": {
        "before": "",
        "forward": f"CustomPool.steps = getattr(CustomPool, 'steps', 0) + 1\n        {AVERAGE}",
    },
    "list": {"init": "self.seen = []", "forward": f"self.seen.append(len(x))\n        {AVERAGE}"},
    "deque": {"init": "self.seen = collections.deque([0])", "forward": f"self.seen[0] += 1\n        {AVERAGE}"},
    "counter": {"init": "self.steps = itertools.count()", "forward": f"next(self.steps)\n        {AVERAGE}"},
    "closure": {
        "before": "def counting():\n    n = 0\n    def count():\n        nonlocal n\n        n += 1\n    return count",
        "init": "self.count = counting()",
        "forward": f"self.count()\n        {AVERAGE}",
    },
    "array": {"init": "self.rate = np.zeros(1)", "forward": f"self.rate += 1\n        {AVERAGE}"},
    "unregistered": {
        "init": "self.held = {'average': torch.zeros(())}",
        "forward": "self.held['average'] += self.training\n        " + WEIGHED.format("(self.held['average'] > 99)"),
    },
    "not_persistent": {
        "init": "self.register_buffer('average', torch.zeros(()), persistent=False)",
        "forward": "self.average += self.training\n        " + WEIGHED.format("(self.average > 99)"),
    },
    "generator": {
        "init": "self.random = random.Random(0)",
        "forward": "self.random.random() if self.training else 0\n        " + AVERAGE,
    },
}


QUICK = {"attribute", "closure", "not_persistent", "buffer", "batch_norm", "noise"}  # one for each of the ways


def each(pools: dict[str, dict[str, str]]) -> list[Any]:
    return [pytest.param(name, marks=() if name in QUICK else pytest.mark.soak) for name in pools]


@pytest.fixture(scope="module")
def found(selected: set[str], tmp_path_factory: pytest.TempPathFactory) -> Validated:
    pools = {name: parts for name, parts in (HIDDEN | FINE).items() if name in selected}
    return validated_all(tmp_path_factory.mktemp("found"), pools)


@pytest.mark.parametrize("name", each(HIDDEN))
def test_state_that_no_checkpoint_finds_is_refused(found: Validated, name: str) -> None:
    refused = [finding.check for finding in found[name].findings if finding.refused]
    assert refused, found[name].findings
    assert set(refused) <= {"resume", "repeatability", "device"}
    assert found[name].cost is None


SHARED: dict[str, dict[str, str]] = {  # so that a trial starts from what another left
    "cache": {
        "before": "import functools\n@functools.lru_cache(None)\ndef basis(c):\n    return torch.randn(c)",
        "init": "self.register_buffer('basis', basis(64).clone())",
        "forward": "return x.mean((2, 3)) * self.basis",
    },
    "bank": {
        "before": "BANK = {}",
        "init": "self.register_buffer('basis', BANK.setdefault(64, torch.randn(64)).clone())",
        "forward": "return x.mean((2, 3)) * self.basis",
    },
    "unseeded": {
        "init": "g = torch.Generator()\n        g.seed()\n        self.w = nn.Parameter(torch.rand(64, generator=g))",
        "forward": "return x.mean((2, 3)) * self.w",
    },
}


@pytest.mark.soak
def test_a_trial_that_starts_from_what_another_left_is_refused(tmp_path: Path) -> None:
    found = validated_all(tmp_path, SHARED)
    for name in SHARED:
        assert found[name].verdict == "repeatability", (name, found[name].findings)
        assert "start from other values" in found[name].findings[-1].what


FINE: dict[str, dict[str, str]] = {
    "buffer": {
        "init": "self.register_buffer('steps', torch.zeros(()))",
        "forward": "self.steps += self.training\n        " + WEIGHED.format("(self.steps > 3)"),
    },
    "by_shape": {
        "init": "self.grid = None",
        "forward": CACHED + "            with torch.inference_mode(False):\n"
        "                self.grid = torch.ones_like(x)\n        return (x * self.grid).mean((2, 3))",
    },
    "noise": {"forward": WEIGHED.format("torch.rand(()) * self.training")},
    "scripted": {
        "before": "class Inner(nn.Module):\n    def __init__(self):\n        super().__init__()\n"
        "        self.w = nn.Parameter(torch.tensor(0.5))\n"
        "    def forward(self, x: torch.Tensor) -> torch.Tensor:\n        return self.w * x.mean(dim=[2, 3])\n",
        "init": "self.inner = torch.jit.script(Inner())",
        "forward": "return self.inner(x)",
    },
    "batch_norm": {"init": "self.norm = nn.BatchNorm1d(64)", "forward": "return self.norm(x.mean((2, 3)))"},
    "lazy": {"init": "self.norm = nn.LazyBatchNorm1d()", "forward": "return self.norm(x.mean((2, 3)))"},
    "where_it_is": {
        "before": "HERE = Path(__file__).resolve().parent\nROOT = os.path.dirname(os.path.abspath(__file__))",
        "init": "self.folder = HERE / 'data'",
    },
    "when_it_was": {"before": "import time, uuid\nSTART, RUN = time.time(), str(uuid.uuid4())"},
    "compiled": {
        "before": "@torch.compile\ndef pooled(x):\n    return x.mean((2, 3))",
        "forward": "return pooled(x)",
    },
    "deterministic": {"before": "torch.backends.cudnn.deterministic = True\ntorch.manual_seed(0)\nrandom.seed(0)"},
    "shown": {"init": "self.map = None", "forward": "self.map = x.softmax(1).detach()\n        " + AVERAGE},
}


@pytest.mark.parametrize("name", each(FINE))
def test_state_that_a_checkpoint_finds_passes(found: Validated, name: str) -> None:
    assert found[name].verdict == "ok", found[name].findings
    if name in ("buffer", "scripted", "lazy", "where_it_is"):
        assert found[name].findings == (), "nothing to be said of it"


@pytest.mark.soak
def test_what_fails_in_training_alone_is_found(tmp_path: Path) -> None:
    cached = CACHED + "            self.grid = torch.ones_like(x)\n"
    found = validated(
        [
            file(tmp_path, "cached", "self.grid = None", cached + "        return (x * self.grid).mean((2, 3))"),
            file(tmp_path, "in_place", forward="if self.training:\n            x += 1\n        " + AVERAGE),
            file(tmp_path, "by_size", forward="if len(x) == 20: raise ValueError('twenty')\n        " + AVERAGE),
        ]
    )
    for name, says in (("cached", "Inference tensors"), ("in_place", "inplace operation"), ("by_size", "twenty")):
        (finding,) = (each for each in found[name].findings if each.refused)
        assert finding.check == "training"
        assert says in finding.what


@pytest.mark.parametrize("batch_size", [*(pytest.param(size, marks=pytest.mark.soak) for size in (2, 3, 100)), 128])
def test_what_evaluation_leaves_behind_meets_the_next_epoch(tmp_path: Path, batch_size: int) -> None:
    cached = CACHED + "            self.grid = torch.ones_like(x)\n        return (x * self.grid).mean((2, 3))"
    found = validated([file(tmp_path, "cached", "self.grid = None", cached)], batch_size=batch_size)
    assert found["cached"].verdict == "training"


def test_the_autocast_is_the_recipes(tmp_path: Path) -> None:
    half = file(tmp_path, "half", forward=f"assert torch.is_autocast_enabled('cpu') or len(x) != 20\n        {AVERAGE}")
    assert validated([half], "bf16")["half"].verdict == "ok"
    assert validated([half], "fp32")["half"].verdict == "training"


READS = {
    "elsewhere": ("open({far!r}).read()", "it reads {far}"),
    "beside_by_formula": ("(Path(__file__).parent / ('ta' + 'ble.txt')).read_text()", "it reads table.txt beside it"),
    "listing": ("os.listdir(Path(__file__).parent)", "it lists the folder"),
    "by_numpy": ("np.load({array!r})", "it reads {array}"),
    "from_a_path": (
        "__import__('sys').path.insert(0, {modules!r}); import farmodule",
        "it imports farmodule from {modules}",
    ),
    "by_c": ("torch.jit.load({far!r}) if False else None", "it reads {far}"),
    "by_name": ("import socket\ntry: socket.getaddrinfo('a.host', 80)\nexcept OSError: pass", "it connects to a.host"),
    "from_a_host": (
        "import socket\n__import__('contextlib').suppress(OSError).__enter__()\n"
        "try: socket.create_connection(('127.0.0.1', 9), 0.1)\nexcept OSError: pass",
        "it connects to 127.0.0.1",
    ),
}


@pytest.mark.soak
def test_what_it_takes_from_elsewhere_is_refused_by_name(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    far = tmp_path_factory.mktemp("far")
    (far / "weights.txt").write_text("1")
    (far / "farmodule.py").write_text("")
    np.save(far / "array.npy", np.ones(1))
    (tmp_path / "table.txt").write_text("1")
    places = {"far": str(far / "weights.txt"), "array": str(far / "array.npy"), "modules": str(far)}
    files = []
    for name, (code, _) in READS.items():
        caught = code if "\n" in code else f"try: {code}\nexcept FileNotFoundError: pass"
        files.append(file(tmp_path, name, before=caught.format(**places)))
    mine = "Path('own.txt').write_text('1'); Path('own.txt').read_text()"
    harmless = f"import json.tool, this\nopen(torch.__file__).read()\nos.chdir({str(tmp_path)!r})\n{mine}"
    drawn = file(tmp_path, "draws", before="torch.manual_seed(1)\nSHARE = torch.rand(())")
    pattern = file(tmp_path, "pattern", before="assert len(list(Path(__file__).parent.glob('*.txt'))) == 1")
    found = validated([*files, file(tmp_path, "harmless", before=harmless), drawn, pattern])
    for name, (_, says) in READS.items():
        refused = [each for each in found[name].findings if each.refused]
        assert [each.check for each in refused] == ["reads"], (name, found[name].findings)
        assert says.format(**places) in refused[0].what
    (tmp_path / "lab").mkdir()
    (tmp_path / "lab" / "__init__.py").write_text("")
    (tmp_path / "lab" / "conf_1.json").write_text("1")
    code = "try: open(Path(__file__).parent / f'conf_{1}.json')\nexcept FileNotFoundError: pass"
    found |= validated([file(tmp_path / "lab", "packed", before=code)])
    assert found["packed"].verdict == "reads", "it lies in the folder of a package"
    for name in ("harmless", "draws", "pattern"):
        assert found[name].verdict == "ok", found[name].findings
    assert "draws or seeds random numbers" in found["draws"].findings[0].what


@pytest.mark.soak
def test_every_builtin_pool_can_be_trained_and_resumed() -> None:
    """In this process, where its pools share their state with nobody."""
    recipe = Recipe(batch_size=4, lr=0.02)
    for name in pool.names():
        (one,) = pool.expand(name)
        trained = Uninterrupted(recipe).run(one, "resnet20")
        assert trained.findings == [], name
        assert Resumed(recipe, {(one, "resnet20"): trained}).run(one, "resnet20") == [], name


@pytest.mark.parametrize("arch", architectures.ARCHS)
def test_the_last_layer_makes_the_feature_map_of_the_whole(arch: str) -> None:
    spec = architectures.get(arch)
    tail = network.build(pool.expand("gap")[0], arch, 10, 0, tail=True)
    assert tail.features(torch.rand(2, 3, 32, 32)).shape == (2, *spec.feature_map)
    last, _ = archs.last(spec)
    features = archs.features(spec)
    assert isinstance(features, nn.Sequential)

    def kinds(module: nn.Module) -> list[type]:
        return [type(part) for part in module.modules() if not isinstance(part, nn.Sequential)]

    assert kinds(features)[-len(kinds(last)) :] == kinds(last), "it is the architecture's own"
