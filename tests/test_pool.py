"""From what a person writes to a pool: which class of a file it is and what that takes, or left to the gate."""

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
    """A file of one's own, with another beside it."""
    (tmp_path / "layers.py").write_text(BASE)
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


# The class of a file, and what it takes: as it is when the file has run

FORWARD = "    def forward(self, x):\n        return x.mean((2, 3)) * self.p\n"
INIT = (
    "    def __init__(self, channels, p=2.0):\n        super().__init__()\n"
    "        self.p, self.channels = p, channels\n"
)
BASE = "from torch import nn\nclass Base(nn.Module):\n" + INIT + FORWARD


WAYS = {
    "inherited from beside": "from layers import Base\nclass CustomPool(Base): ...\n",
    "inherited by a module's name": "import layers\nclass CustomPool(layers.Base): ...\n",
    "inherited in the file": BASE + "class CustomPool(Base): ...\n",
    "an alias": BASE + "CustomPool = Base\n",
    "a re-export": "from layers import Base as CustomPool\n",
    "by a condition": BASE + "if True:\n    class CustomPool(Base): ...\nelse:\n    class CustomPool: ...\n",
    "in a try": "try:\n    import nowhere\nexcept ImportError:\n    from layers import Base as CustomPool\n",
    "with a star": "from layers import *\nfrom layers import Base\nglobals()['CustomPool'] = Base\n",
    "a factory": BASE + "def CustomPool(channels, p=2.0):\n    return Base(channels, p)\n",
    "decorated": BASE + "def same(cls): return cls\n@same\nclass CustomPool(Base): ...\n",
    "wrapped": BASE + "class CustomPool(Base):\n    init = Base.__init__\n    def __init__(self, *a, **kw):\n"
    "        self.init(*a, **kw)\n    __init__.__wrapped__ = Base.__init__\n",
    "a dataclass": "import dataclasses\nfrom torch import nn\n@dataclasses.dataclass(eq=False)\n"
    "class CustomPool(nn.Module):\n    channels: int\n    p: float = 2.0\n"
    "    def __post_init__(self):\n        super().__init__()\n" + FORWARD,
    "passed on": BASE
    + "class CustomPool(Base):\n    def __init__(self, *a, **kw):\n        super().__init__(*a, **kw)\n",
    "the only one": "import collections, enum, typing\nclass A(dict): ...\nclass B(collections.OrderedDict): ...\n"
    "class C(typing.NamedTuple): ...\nclass D(str, enum.Enum): ...\nfrom torch import nn\nclass Other(nn.Module):\n"
    + INIT
    + FORWARD
    + "class Helper: ...\n",
}


@pytest.mark.parametrize("way", WAYS)
def test_however_it_is_made(mine: Path, way: str) -> None:
    mine.write_text(WAYS[way])
    ones = torch.ones(1, 4, 2, 2)
    (plain,) = pool.expand(str(mine))
    module = pools.build(plain, 4)
    assert module(ones)[0].tolist() == [2.0] * 4
    assert module.channels == 4
    three, four = pool.expand(str(mine), {"p": [3.0, 4.0]})
    assert [pools.build(each, 4)(ones)[0, 0].item() for each in (three, four)] == [3.0, 4.0]


def test_what_is_certain_is_said_at_once(mine: Path) -> None:
    for way in ("inherited from beside", "a dataclass", "an alias", "the only one", "a re-export"):
        mine.write_text(WAYS[way])
        with pytest.raises(RequestError, match="has no parameter 'q'; known: p"):
            pool.expand(str(mine), {"q": 1})
        assert pool.expand(str(mine), {"p": 2})[0].params == (("p", 2.0),)


def test_which_class_is_meant(mine: Path) -> None:
    mine.write_text(BASE + "class Other(Base): ...\n")
    with pytest.raises(RequestError, match=r"no class 'CustomPool'; it has Base, Other; name one with `class`"):
        pool.expand(str(mine))
    assert pool.expand(str(mine), class_name="Other")[0].name == "mine.Other"
    mine.write_text("from layers import *\n")
    assert type(pools.build(pool.expand(str(mine))[0], 3)).__name__ == "Base"
    mine.write_text("from layers import *\nclass Mine(Base): ...\nclass Yours(Base): ...\n")
    with pytest.raises(AttributeError, match=r"of nn\.Module it has Mine, Yours; name one"):
        pools.build(pool.expand(str(mine))[0], 3)
