"""The gate: every way to be wrong is caught under its name, and no built-in pool is."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from search_spaces import pool
from search_spaces.equivalence import Equivalence
from search_spaces.errors import RequestError
from trainer.gate.case import Case
from trainer.gate.checks import check
from trainer.gate.cost import measure
from trainer.gate.report import Report, Validation
from trainer.gate.validate import Gate, _Worker

ARCHS = ["resnet56", "vgg16bn"]
HOG = "import os\nos.sched_setaffinity(0, {{{core}}})\nprint(flush=True)\nwhile True: pass"
BROKEN = sorted((Path(__file__).parent / "broken").glob("*.py"))


@pytest.fixture(scope="module")
def broken() -> dict[tuple[str, str], Validation]:
    """{(candidate, the architecture that it is broken on): what the gate says of it}."""
    found: dict[tuple[str, str], Validation] = {}
    for arch in ARCHS:
        pools = [pool.expand(str(file))[0] for file in BROKEN if _check_and_arch(file)[1] == arch]
        with Gate(pools, [arch], time_limit_s=8) as gate:
            found |= {(one.pool.name, one.arch): one for one in gate.report.validations}
    return found


def _check_and_arch(file: Path) -> tuple[str, str]:
    """What the docstring of a broken candidate says: "CHECK on ARCH: why"."""
    check, _, arch, *_ = file.read_text().strip('"').split()
    return check, arch.strip(":")


@pytest.mark.parametrize("file", BROKEN, ids=lambda file: file.stem)
def test_a_broken_candidate_is_refused_under_the_right_name(
    broken: dict[tuple[str, str], Validation], file: Path
) -> None:
    wanted, arch = _check_and_arch(file)
    found = broken[file.stem, arch]
    refused = [finding for finding in found.findings if finding.refused]
    assert wanted in [finding.check for finding in refused], found.findings
    finding = next(finding for finding in refused if finding.check == wanted)
    assert finding.what
    assert finding.mend.endswith(".")
    assert found.cost is None


@pytest.fixture(scope="module")
def built_in() -> Report:
    with Gate([pool.expand(name)[0] for name in pool.names()], ARCHS) as gate:
        return gate.report


def test_there_is_no_false_alarm_among_the_built_in(built_in: Report) -> None:
    assert len(built_in.validations) == len(pool.names()) * len(ARCHS)
    assert built_in.refused == []
    assert built_in.notes == []


def test_same_function(built_in: Report) -> None:
    classes = built_in.equivalences()
    at_8x8 = [set(one.pools) for one in classes if one.arch == "resnet56"]
    assert {"avg_max", "mixed", "gated"} in at_8x8, "a learned share of one half, before it has learned"
    assert not any({"gap", "gem"} <= names or {"gap", "global_max"} <= names for names in at_8x8)
    (identity,) = [one for one in classes if one.arch == "vgg16bn" and "gap" in one.pools]
    assert {"gap", "global_max", "avg_max", "gem", "softpool", "median", "stochastic"} <= set(identity.pools)
    assert not set(identity.pools) & {"se", "mean_std", "gap_mlp", "netvlad"}
    assert "gem" not in identity.parting, "no exponent changes the power mean of one value"
    assert identity.parting["spatial_pyramid"] == ("weight",)


@pytest.mark.soak
def test_the_other_maps_have_no_false_alarm_and_one_identity(built_in: Report) -> None:
    with Gate([pool.expand(name)[0] for name in pool.names()], ["mobilenetv2", "mobilenetv2_s32"]) as gate:
        report = gate.report
    assert len(report.validations) == len(pool.names()) * 2
    assert (report.refused, report.notes) == ([], [])
    (here,) = [one for one in report.equivalences() if one.arch == "mobilenetv2_s32" and "gap" in one.pools]
    (there,) = [one for one in built_in.equivalences() if one.arch == "vgg16bn" and "gap" in one.pools]
    assert (here.pools, here.parting) == (there.pools, there.parting)


def test_a_clamp_far_from_zero_is_another_function(tmp_path: Path) -> None:
    """As fast-reid's ClipGlobalAvgPool, an average of at most 1."""
    (tmp_path / "clipped.py").write_text(
        "from torch import nn\nclass CustomPool(nn.Module):\n    def forward(self, x):\n"
        "        return x.mean((2, 3)).clamp(0, 1)\n"
    )
    pools = [*pool.expand("gap"), *pool.expand(str(tmp_path / "clipped.py"))]
    with Gate(pools, ["resnet56", "vgg16bn"]) as gate:
        assert gate.report.equivalences() == []


def test_a_class_says_what_may_part_it() -> None:
    one = Equivalence("vgg16bn", ("gap", "gem", "mine"), {"mine": ("weight", "bias")})
    assert str(one) == "vgg16bn: gap, gem and mine start as the same function; learning may part mine by weight, bias"
    assert str(Equivalence("vgg16bn", ("gap", "gem"), {})).endswith(
        ", and nothing that they learn parts them: chance does"
    )
    assert Equivalence.from_dict(one.to_dict()) == one


def test_costs(built_in: Report) -> None:
    (concat,) = pool.expand("avg_max_concat")
    cost = built_in.of(concat, "vgg16bn").cost
    assert cost is not None
    assert cost.parameters == 2 * 512 * 512 + 512
    assert cost.flops == 3 * 2 * 1024 * 512, "a product forward and two backward, two operations a weight"
    assert cost.time_ms > 0
    assert all(one.cost and one.cost.times_gap > 0 for one in built_in.validations)
    assert measure(Case(pool.expand("gap")[0], "resnet56")).flops == 0


def test_the_precision_decides_whether_bf16_matters(tmp_path: Path) -> None:
    (tmp_path / "half.py").write_text(
        "from torch import nn\nclass CustomPool(nn.Module):\n    def forward(self, x):\n"
        "        return x.mean((2, 3)) if x.element_size() == 4 else x.mean((2, 3)) / 0\n"
    )
    (mine,) = pool.expand(str(tmp_path / "half.py"))
    (note,) = check(Case(mine, "resnet20"))
    assert (note.check, note.refused) == ("bf16", False)
    (finding,) = check(Case(mine, "resnet20", half=True))
    assert (finding.check, finding.refused) == ("finite-output", True)


def test_a_size_that_no_architecture_of_the_space_has_is_a_note(tmp_path: Path) -> None:
    (tmp_path / "eight.py").write_text(
        "import torch\nfrom torch import nn\nclass CustomPool(nn.Module):\n    def __init__(self):\n"
        "        super().__init__()\n        self.mask = nn.Parameter(torch.full((8, 8), 1 / 64))\n"
        "    def forward(self, x):\n        return (x * self.mask).sum((2, 3))\n"
    )
    (mine,) = pool.expand(str(tmp_path / "eight.py"))
    (note,) = check(Case(mine, "resnet20"))
    assert (note.check, note.refused) == ("other-size", False)
    assert "[4, 64, 7, 5]" in note.shown_by


def test_what_only_slows_it_down_is_a_note(tmp_path: Path) -> None:
    bodies = {
        "host-sync": "return x.mean((2, 3)) * (1 if x.sum().item() >= 0 else 2)",
        "rebinding": "self.attention = x.softmax(1)\n        return x.mean((2, 3))",
        "host-noise": "return x.mean((2, 3)) * (1 + random.random() * self.training)",
        "idle-parameter": "return x.mean((2, 3))",
    }
    for name, body in bodies.items():
        (tmp_path / "slow.py").write_text(
            "import random, torch\nfrom torch import nn\nclass CustomPool(nn.Module):\n    def __init__(self):\n"
            "        super().__init__()\n"
            + ("        self.weight = nn.Parameter(torch.ones(3))\n" if name == "idle-parameter" else "")
            + f"    def forward(self, x):\n        {body}\n"
        )
        found = check(Case(pool.expand(str(tmp_path / "slow.py"))[0], "resnet20"))
        assert [(finding.check, finding.refused) for finding in found] == [(name, False)]


def test_a_lazy_parameter_is_made_in_time(tmp_path: Path) -> None:
    (tmp_path / "lazy.py").write_text(
        "from torch import nn\nclass CustomPool(nn.Module):\n    def __init__(self):\n        super().__init__()\n"
        "        self.scale = nn.LazyLinear(64)\n    def forward(self, x):\n        return self.scale(x.mean((2, 3)))\n"
    )
    assert check(Case(pool.expand(str(tmp_path / "lazy.py"))[0], "resnet20")) == []


@pytest.mark.soak
def test_what_it_waits_for_a_core_is_not_its_own_time() -> None:
    """Beside forty that want the same core, what takes 0.06 s takes many times as long, and is not ended."""
    (gap,) = pool.expand("gap")
    worker, hogs = _Worker(), list[subprocess.Popen[bytes]]()
    try:
        asked = {"step": "check", "recipe": {}, "cases": [{"pool": gap.to_dict(), "arch": "resnet56"}]}
        list(worker.ask(asked, 60))
        core = min(os.sched_getaffinity(0))
        for thread in Path(f"/proc/{worker._process.pid}/task").iterdir():  # one of them forks
            os.sched_setaffinity(int(thread.name), {core})
        hogs = [subprocess.Popen([sys.executable, "-c", HOG.format(core=core)], stdout=-1) for _ in range(40)]
        for hog in hogs:
            assert hog.stdout is not None
            hog.stdout.readline()
        began = time.monotonic()
        list(worker.ask(asked, 1.2))
        took = time.monotonic() - began
        assert took > 1.2, f"so it was not tried: {took}"
    finally:
        worker.close()
        for hog in hogs:
            hog.kill()
            hog.communicate()


def test_a_report_refuses_all_at_once(broken: dict[tuple[str, str], Validation]) -> None:
    report = Report(list(broken.values()))
    with pytest.raises(RequestError) as caught:
        report.refuse()
    assert {f"pool {file.stem}" for file in BROKEN} <= {p.where.split(",")[0] for p in caught.value.problems}
