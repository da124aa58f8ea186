"""A user's file and what it needs from beside it: found as Python would find it, hashed whole, and run as it lay."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import traceback
from pathlib import Path

import numpy as np
import pytest
import torch

from search_spaces import pool
from search_spaces.errors import RequestError
from search_spaces.pool import Pool
from search_spaces.user_code import Source
from trainer import pools

HEAD = "import torch\nfrom torch import nn\n"
BODY = "class CustomPool(nn.Module):\n    def forward(self, x):\n        return x.mean((2, 3)) * SCALE\n"


def write(folder: Path, files: dict[str, str]) -> None:
    """A file each, by its path without the ending."""
    for name, text in files.items():
        path = folder / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


def read(path: Path) -> Pool:
    (found,) = pool.expand(str(path))
    return found


def made(folder: Path, text: str, name: str = "mine", **beside: str) -> Pool:
    """Of a file that says this before its class, and of others beside it."""
    write(folder, {name: HEAD + text + BODY, **beside})
    return read(folder / f"{name}.py")


def beside(one: Pool) -> list[str]:
    assert one.source
    return [name for name, _ in one.source.beside]


def output(one: Pool, channels: int = 2) -> float:
    """Of ones, after a journey as plain data."""
    return pools.build(Pool.from_dict(one.to_dict()), channels)(torch.ones(1, channels, 2, 2))[0, 0].item()


IMPORTS = {
    "import lab.const\nSCALE = lab.const.SCALE\n": ["lab/__init__.py", "lab/const.py"],
    "from lab.const import SCALE\n": ["lab/__init__.py", "lab/const.py"],
    "from lab import const\nSCALE = const.SCALE\n": ["lab/__init__.py", "lab/const.py"],
    "from lab import *\nSCALE = 3.0\n": ["lab/__init__.py"],
    "from bare.const import SCALE\n": ["bare/const.py"],
    "from lab.deep.inner import SCALE\n": [
        *("lab/__init__.py", "lab/const.py", "lab/deep/__init__.py", "lab/deep/inner.py"),
    ],
    "def late():\n    from flat import SCALE\n    return SCALE\nSCALE = late()\n": ["flat.py"],
    "try:\n    from missing import SCALE\nexcept ImportError:\n    from flat import SCALE\n": ["flat.py"],
    "from .flat import SCALE\n": ["flat.py"],
    "from . import flat\nSCALE = flat.SCALE\n": ["flat.py"],
    "from .ring import scale as ours\nSCALE = ours()\n": ["ring.py", "turn.py"],
}


@pytest.mark.parametrize("text", IMPORTS)
def test_what_is_imported_travels_and_an_edit_of_it_is_a_new_revision(tmp_path: Path, text: str) -> None:
    modules = dict.fromkeys(("lab/const", "bare/const", "flat"), "SCALE = 3.0\n")
    modules |= {"lab/__init__": "", "lab/deep/__init__": "", "lab/deep/inner": "from ..const import SCALE\n"}
    modules |= {"ring": "import turn\ndef scale(): return turn.SCALE\n", "turn": "import ring\nSCALE = 3.0\n"}
    modules |= dict.fromkeys(("unrelated", "lab/unrelated"), "raise RuntimeError\n")
    before = made(tmp_path, text, **modules)
    assert beside(before) == IMPORTS[text]
    assert output(before) == 3.0
    for name in IMPORTS[text]:
        with (tmp_path / name).open("a", encoding="utf-8") as file:
            file.write("\n")
        after = read(tmp_path / "mine.py")
        assert after != before
        assert after.revision != before.revision
        before = after


def test_a_file_in_a_package_is_run_as_part_of_it(tmp_path: Path) -> None:
    write(tmp_path, {"lab/__init__": "", "lab/const": "SCALE = 5.0\n", "lab/pools/__init__": ""})
    mine = made(tmp_path, "from ..const import SCALE\nimport lab.const\n", "lab/pools/mine")
    assert mine.source
    assert mine.source.place == "lab/pools/mine.py"
    assert output(mine) == 5.0


def test_the_standard_library_is_never_a_sibling(tmp_path: Path) -> None:
    imports = "import random\nfrom typing import Optional\nSCALE = random.Random(0).random()\n"
    mine = made(tmp_path, imports, **dict.fromkeys(("typing", "random", "torch"), "1 / 0\n"))
    assert beside(mine) == []
    assert 0 < output(mine) < 1


@pytest.mark.parametrize(
    "said",
    [
        "HERE / 'table.npy'",
        "str(HERE) + '/data/table.npy'",
        "HERE / 'data' / 'table.npy'",
        "Path(__file__).with_suffix('.npy')",
    ],
)
def test_data_whose_name_stands_in_the_text_travels(tmp_path: Path, said: str) -> None:
    (tmp_path / "data").mkdir()
    for name in ("table.npy", "data/table.npy", "mine.npy", "other.npy"):
        np.save(tmp_path / name, np.full(1, 7.0))
    head = "import numpy as np\nfrom pathlib import Path\nHERE = Path(__file__).parent\n"
    mine = made(tmp_path, f"{head}SCALE = float(np.load({said})[0])\n")
    names = beside(mine)
    assert names
    assert "other.npy" not in names
    for name in names:
        (tmp_path / name).unlink()  # as on another machine
    assert output(mine) == 7.0
    for name in names:
        np.save(tmp_path / name, np.full(1, 8.0))
    assert read(tmp_path / "mine.py").revision != mine.revision


def test_what_is_never_run_needs_nothing(tmp_path: Path) -> None:
    (tmp_path / "big.pt").write_bytes(bytes(5 * 2**20))
    text = "SCALE = 1\nLINE = '*' * 3 + '**/*'\nif __name__ == '__main__':\n    import helper\n    print('big.pt')\n"
    write(tmp_path, {"mine": f'"""As in big.pt and helper.py."""\n{HEAD}{text}{BODY}', "helper": "1 / 0\n"})
    assert beside(read(tmp_path / "mine.py")) == []


def test_what_is_beside_must_be_small_enough_for_every_run_folder(tmp_path: Path) -> None:
    (tmp_path / "weights.pt").write_bytes(bytes(5 * 2**20))
    with pytest.raises(RequestError, match=r"at most 4,194,304 bytes .* got 5,242,880, most of them in weights\.pt"):
        made(tmp_path, "SCALE = 1\nWHERE = 'weights.pt'\n")


def test_a_helper_that_is_not_python_is_said(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"helper\.py, line 1 is not Python"):
        made(tmp_path, "from helper import SCALE\n", helper="def offset(:\n")


def test_a_file_beside_the_folder_is_not_beside_the_file(tmp_path: Path) -> None:
    (tmp_path / "lab.py").touch()
    assert beside(made(tmp_path / "lab", "from . import helper\nSCALE = 1\n", helper="")) == ["helper.py"]


def test_what_somebody_has_imported_is_not_what_lies_beside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As Ray has its own psutil."""
    monkeypatch.setitem(sys.modules, "taken", type(sys)("taken"))
    assert output(made(tmp_path, "from taken import SCALE\n", taken="SCALE = 4.0\n")) == 4.0


def test_a_link_is_where_it_leads(tmp_path: Path) -> None:
    made(tmp_path / "real", "from helper import SCALE\n", helper="SCALE = 6.0\n")
    (tmp_path / "link.py").symlink_to(tmp_path / "real" / "mine.py")
    assert output(read(tmp_path / "link.py")) == 6.0


def test_a_traceback_shows_the_line_of_the_file(tmp_path: Path) -> None:
    write(tmp_path, {"mine": HEAD + BODY.replace("SCALE", "x.nope")})
    with pytest.raises(AttributeError) as caught:
        output(read(tmp_path / "mine.py"))
    assert "* x.nope" in "".join(traceback.format_exception(caught.value))


def test_files_as_python_runs_them(tmp_path: Path) -> None:
    text = "class CustomPool(nn.Module):\n\tname = 'é'\n\tdef forward(self, x):\n"
    text += "\t\treturn x.mean((2, 3)) * len(self.name)\n"
    forms = {
        "bom.py": b"\xef\xbb\xbf" + (HEAD + text).encode(),
        "latin.py": ("# -*- coding: latin-1 -*-\n" + HEAD + text).encode("latin-1"),
        "my pool (1).py": (HEAD + text).replace("\n", "\r\n").encode(),
        "über.py": (HEAD + text).encode(),
        "2nd-try.v2.py": (HEAD + text).encode(),
    }
    for name, content in forms.items():
        (tmp_path / name).write_bytes(content)
        subprocess.run([sys.executable, tmp_path / name], check=True)
        assert output(read(tmp_path / name)) == 1.0, name
        (mine,) = pool.expand(name, root=tmp_path)
        assert mine.name == name.removesuffix(".py")


def test_our_own_flags_do_not_leak_into_a_file(tmp_path: Path) -> None:
    mine = made(tmp_path, "def f(p: float = 2.0): ...\nSCALE = f.__annotations__['p'](3)\n")
    assert output(mine) == 3.0, "an annotation is the type, and no text"


def test_a_body_runs_once_a_process(tmp_path: Path) -> None:
    mine = made(
        tmp_path,
        f"import os\nSCALE = 1\nwith open({str(tmp_path / 'ran')!r}, 'a') as file: file.write('x')\n"
        f"LIB = torch.library.Library('once_{os.getpid()}', 'DEF')\nLIB.define('f(Tensor x) -> Tensor')\n",
    )
    assert [output(mine) for _ in range(3)] == [1.0, 1.0, 1.0]
    assert (tmp_path / "ran").read_text() == "x"


def test_what_is_drawn_on_import_is_the_same_in_every_trial(tmp_path: Path) -> None:
    made(tmp_path, "SCALE = torch.rand(()).item()\n")
    code = (
        f"import sys, torch; sys.path.insert(0, {str(Path(__file__).parents[1])!r})\n"
        "from search_spaces import pool\nfrom trainer import pools\n"
        f"torch.manual_seed(int(sys.argv[1]))\nstate = torch.get_rng_state()\n"
        f"print(pools.build(pool.expand({str(tmp_path / 'mine.py')!r})[0], 1)(torch.ones(1, 1, 1, 1)).item())\n"
        "assert torch.equal(state, torch.get_rng_state())"
    )
    first, second = (subprocess.check_output([sys.executable, "-c", code, seed]) for seed in ("1", "2"))
    assert first == second


def test_the_hash_of_a_single_file_is_what_it_always_was() -> None:
    text = "from torch import nn\n"
    assert Source(text).sha == hashlib.sha256(text.encode()).hexdigest()
    helped = Source(text, beside=(("more.py", b"x = 1\n"),), place="mine.py")
    assert helped.sha == hashlib.sha256(f"{text}\0more\0x = 1\n".encode()).hexdigest()


@pytest.mark.parametrize("name", ["../evil.py", "/etc/evil.py", "a//b.py", "a/./b.py", "a\\b.py", "c:b.py"])
def test_what_a_stranger_wrote_is_no_path(name: str) -> None:
    data = Pool("own", (), Source("x = 1", beside=(("more.py", b""),))).to_dict()
    for wrong in ({"helpers": {name: ""}}, {"place": name}):
        with pytest.raises(RequestError, match="below the pool file's folder"):
            Pool.from_dict(data | {"source": data["source"] | wrong})


def test_a_run_folder_of_before_is_read() -> None:
    data = Pool("own", (), Source("x = 1", path="/there/own.py")).to_dict()
    del data["source"]["place"]
    data["source"]["helpers"] = {"more": "y = 2\n"}
    source = Pool.from_dict(data).source
    assert source
    assert source.beside == (("more.py", b"y = 2\n"),)
    assert source.place == "own.py"
