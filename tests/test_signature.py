"""Which class of a file is the pool and what it takes: as it is when the file has run, or left to the gate."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from search_spaces import pool
from search_spaces.errors import RequestError
from trainer import pools

FORWARD = "    def forward(self, x):\n        return x.mean((2, 3)) * self.p\n"
INIT = (
    "    def __init__(self, channels, p=2.0):\n        super().__init__()\n"
    "        self.p, self.channels = p, channels\n"
)
BASE = "from torch import nn\nclass Base(nn.Module):\n" + INIT + FORWARD


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    (tmp_path / "layers.py").write_text(BASE)
    return tmp_path / "mine.py"


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
