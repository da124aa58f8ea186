"""The gate: every way to be wrong is caught under its name; which pools are one function; what each costs."""

from __future__ import annotations

from pathlib import Path

import pytest

from search_spaces import pool
from search_spaces.equivalence import Equivalence
from search_spaces.errors import RequestError
from search_spaces.validation import validate
from trainer.gate.case import Case
from trainer.gate.checks import check
from trainer.gate.cost import measure
from trainer.gate.report import Report, Validation
from trainer.gate.validate import Gate

ARCHS = ["resnet56", "vgg16bn"]
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
    assert all(finding.what and finding.mend.endswith(".") for finding in refused)
    assert found.cost is None


AT_1X1_THE_IDENTITY = {"gap", "global_max", "avg_max", "gem", "softpool", "median", "stochastic"}
OTHERS = ("mixed", "gated", "spatial_pyramid", "avg_max_concat", "se", "mean_std", "gap_mlp", "netvlad")


@pytest.fixture(scope="module")
def built_in() -> Report:
    pools = [pool.expand(name)[0] for name in (*sorted(AT_1X1_THE_IDENTITY), *OTHERS)]
    with Gate(pools, [*ARCHS, "mobilenetv2_s32"]) as gate:
        return gate.report


def test_of_the_built_in_none_is_refused(built_in: Report) -> None:
    """All of them in every form of a map: `test_pools.py`."""
    assert (built_in.refused, built_in.notes) == ([], [])


def test_same_function(built_in: Report) -> None:
    classes = built_in.equivalences()
    at_8x8 = [set(one.pools) for one in classes if one.arch == "resnet56"]
    assert {"avg_max", "mixed", "gated"} in at_8x8, "a learned share of one half, before it has learned"
    assert not any({"gap", "gem"} <= names or {"gap", "global_max"} <= names for names in at_8x8)
    (identity,) = [one for one in classes if one.arch == "vgg16bn" and "gap" in one.pools]
    assert set(identity.pools) >= AT_1X1_THE_IDENTITY
    (also,) = [one for one in classes if one.arch == "mobilenetv2_s32" and "gap" in one.pools]
    assert also.pools == identity.pools
    assert not set(identity.pools) & {"se", "mean_std", "gap_mlp", "netvlad"}
    assert "gem" not in identity.parting, "no exponent changes the power mean of one value"
    assert identity.parting["spatial_pyramid"] == ("weight",)


def own(folder: Path, forward: str, init: str = "pass") -> pool.Pool:
    """A user's pool, of these lines."""
    (folder / "own.py").write_text(
        "import random, time, torch\nfrom torch import nn\nclass CustomPool(nn.Module):\n    def __init__(self):\n"
        f"        super().__init__()\n        {init}\n    def forward(self, x):\n        {forward}\n"
    )
    return pool.expand(str(folder / "own.py"))[0]


def test_a_clamp_far_from_zero_is_another_function(tmp_path: Path) -> None:
    """As fast-reid's ClipGlobalAvgPool, an average of at most 1."""
    pools = [*pool.expand("gap"), own(tmp_path, "return x.mean((2, 3)).clamp(0, 1)")]
    with Gate(pools, ["resnet56", "vgg16bn"]) as gate:
        assert gate.report.equivalences() == []


def test_a_class_says_what_may_part_it() -> None:
    one = Equivalence("vgg16bn", ("gap", "gem", "mine"), {"mine": ("weight", "bias")})
    assert str(one) == "vgg16bn: gap, gem and mine start as the same function; learning may part mine by weight, bias"
    assert str(Equivalence("vgg16bn", ("gap", "gem"), {})).endswith(
        ", and nothing that they learn parts them: chance does"
    )
    assert validate(Equivalence, one.to_dict()) == one


def test_costs(built_in: Report) -> None:
    cost = {(one.pool.name, one.arch): one.cost for one in built_in.validations}["avg_max_concat", "vgg16bn"]
    assert cost is not None
    assert cost.parameters == 2 * 512 * 512 + 512
    assert cost.flops == 3 * 2 * 1024 * 512, "a product forward and two backward, two operations a weight"
    assert cost.time_ms > 0
    assert all(one.cost and one.cost.times_gap > 0 for one in built_in.validations)
    assert measure(Case(pool.expand("gap")[0], "resnet56")).flops == 0


def test_the_precision_decides_whether_bf16_matters(tmp_path: Path) -> None:
    mine = own(tmp_path, "return x.mean((2, 3)) if x.element_size() == 4 else x.mean((2, 3)) / 0")
    for half, name in ((False, "bf16"), (True, "finite-output")):
        (found,) = check(Case(mine, "resnet20", half))
        assert (found.check, found.refused) == (name, half)


NOTES = {
    "host-sync": ("pass", "return x.mean((2, 3)) * (1 if x.sum().item() >= 0 else 2)"),
    "rebinding": ("pass", "self.attention = x.softmax(1); return x.mean((2, 3))"),
    "host-noise": ("pass", "return x.mean((2, 3)) * (1 + random.random() * self.training)"),
    "idle-parameter": ("self.weight = nn.Parameter(torch.ones(3))", "return x.mean((2, 3))"),
    "other-size": ("self.mask = nn.Parameter(torch.full((8, 8), 1 / 64))", "return (x * self.mask).sum((2, 3))"),
}


@pytest.mark.parametrize("name", NOTES)
def test_what_only_slows_it_down_or_fails_at_other_sizes_is_a_note(tmp_path: Path, name: str) -> None:
    init, forward = NOTES[name]
    (found,) = check(Case(own(tmp_path, forward, init), "resnet20"))
    assert (found.check, found.refused) == (name, False)
    assert name != "other-size" or "[4, 64, 7, 5]" in found.shown_by


def test_a_lazy_parameter_is_made_in_time(tmp_path: Path) -> None:
    lazy = own(tmp_path, "return self.scale(x.mean((2, 3)))", "self.scale = nn.LazyLinear(64)")
    assert check(Case(lazy, "resnet20")) == []


@pytest.mark.soak
def test_what_waits_is_not_taken_for_what_computes(tmp_path: Path) -> None:
    waits = own(tmp_path, "time.sleep(0.05); return x.mean((2, 3))")
    with Gate([waits], ["resnet20"], time_limit_s=2) as gate:
        assert gate.report.validations[0].verdict == "waits"


@pytest.mark.soak
@pytest.mark.parametrize("first", ["", "import signal; signal.alarm(10**6); signal.signal(signal.SIGALRM, print); "])
def test_what_it_waits_for_is_limited_too(tmp_path: Path, first: str) -> None:
    """From outside: whatever it does to its own alarms."""
    with Gate([own(tmp_path, f"{first}time.sleep(1000)")], ["resnet20"], time_limit_s=1) as gate:
        assert gate.report.validations[0].verdict == "time-limit"


def test_a_report_refuses_all_at_once(broken: dict[tuple[str, str], Validation]) -> None:
    report = Report(list(broken.values()))
    with pytest.raises(RequestError) as caught:
        report.refuse()
    assert {f"pool {file.stem}" for file in BROKEN} <= {p.where.split(",")[0] for p in caught.value.problems}
