"""From what a person writes to a pool."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from search_spaces import pool
from search_spaces.errors import RequestError
from trainer import network, pools

MINE = """
import torch
from torch import nn

class CustomPool(nn.Module):
    def __init__(self, channels, k: int = 2, scale=0.5):
        super().__init__()
        self.weight = nn.Parameter(torch.full((channels,), scale))
        self.k = k

    def forward(self, x):
        return x.mean((2, 3)) * self.weight

class Child(CustomPool):
    pass
"""


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(MINE)
    return path


def labels(spec: str, params: dict[str, object] | None = None, **more: object) -> list[str]:
    return [p.label for p in pool.expand(spec, params, **more)]  # type: ignore[arg-type]


def test_spellings() -> None:
    assert labels("gem") == ["gem"]
    assert labels(" gem(p=3) ") == ["gem"], "a parameter at its default is not shown"
    assert labels("gem(p=1, eps=1e-3)") == ["gem(p=1, eps=0.001)"]
    assert labels("gem", {"p": [1, 3, 5]}) == ["gem(p=1)", "gem", "gem(p=5)"]
    assert labels("gem(p=[1, 2])", {"eps": [1e-6, 1e-5]}, label="G") == [
        f"G(p={p}, eps={e})" for p in (1, 2) for e in ("1e-06", "1e-05")
    ]


def test_parameters_are_bound_with_their_defaults() -> None:
    assert pool.expand("gem(p=2)")[0].params == (("eps", 1e-6), ("p", 2.0))
    assert pool.expand("gap")[0].params == ()


@pytest.mark.parametrize(
    ("spec", "params", "says"),
    [
        ("gemm", {}, "did you mean 'gem'"),
        ("gem", {"q": 1}, "no parameter 'q'"),
        ("gap", {"p": 1}, "it takes none"),
        ("gem(3)", {}, "name(key=value"),
        ("gem(p=", {}, "name(key=value"),
        ("gem(p=open('x'))", {}, "name(key=value"),
        ("gem", {"p": []}, "empty"),
        ("gem", {"p": float("nan")}, "finite"),
        ("gem", {"p": {"a": 1}}, "finite number"),
        ("nowhere.py", {}, "cannot be read"),
    ],
)
def test_what_cannot_be_read_is_said(spec: str, params: dict[str, object], says: str) -> None:
    with pytest.raises(RequestError, match="(?s).*" + says.replace("(", r"\(")):
        pool.expand(spec, params)


def test_a_file_of_ones_own(mine: Path) -> None:
    (found,) = pool.expand(str(mine), {"k": 5})
    assert (found.name, found.label) == ("mine", "mine(k=5)")
    assert found.params == (("k", 5), ("scale", 0.5)), "channels is the architecture's, not a parameter"
    module = pools.build(found, channels=7)
    assert module(torch.ones(2, 7, 3, 3)).tolist() == [[0.5] * 7] * 2
    assert pool.expand(f"{mine}:Child")[0].name == "mine.Child"
    assert pools.build(pool.expand("mine.py", class_name="Child", root=mine.parent)[0], 3)(
        torch.ones(1, 3, 1, 1)
    ).shape == (1, 3)


def test_two_revisions_live_side_by_side(mine: Path) -> None:
    before = pool.expand(str(mine))[0]
    mine.write_text(MINE.replace("* self.weight", "* 0"))
    after = pool.expand(str(mine))[0]
    assert before != after
    ones = torch.ones(1, 2, 1, 1)
    assert pools.build(before, 2)(ones).sum() == 1
    assert pools.build(after, 2)(ones).sum() == 0


def test_reading_a_file_runs_none_of_it(tmp_path: Path) -> None:
    path = tmp_path / "evil.py"
    path.write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass CustomPool: ...\n")
    pool.expand(str(path))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("class Other: ...", "has no class 'CustomPool'; it has Other"),
        ("x = 1", "no class at all"),
        ("class CustomPool(", "line 1"),
        ("class CustomPool:\n    def __init__(self, n): ...", "needs a value for n"),
    ],
)
def test_a_file_that_cannot_be_used(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "bad.py"
    path.write_text(text)
    with pytest.raises(RequestError, match=says):
        pool.expand(str(path))


def test_two_pools_with_one_seed_start_from_one_backbone() -> None:
    first, second = (network.build(pool.expand(name)[0], "resnet20", 10, seed=5) for name in ("gap", "gem"))
    mine, theirs = first.state_dict(), second.state_dict()
    assert all(torch.equal(value, theirs[key]) for key, value in mine.items())
    other = network.build(pool.expand("gap")[0], "resnet20", 10, seed=6).state_dict()
    assert not torch.equal(mine["features.0.weight"], other["features.0.weight"])


def test_building_a_network_leaves_torchs_generator_alone() -> None:
    torch.manual_seed(0)
    state = torch.get_rng_state()
    network.build(pool.expand("gem")[0], "resnet20", 10, seed=1)
    assert torch.equal(state, torch.get_rng_state())
