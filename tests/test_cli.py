"""What is refused, before Ray starts; and what the command line promises."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest

from orchestrator import cli
from orchestrator.record import row
from orchestrator.resources import Node, Share, share, slow_precision
from results.store.folder import RunFolder
from search_spaces import kernels
from search_spaces import space as spaces
from search_spaces.equivalence import Equivalence
from search_spaces.errors import RequestError
from search_spaces.space import Resources
from trainer.data import torchvision_files
from trainer.gate import Gate

ROOT = Path(__file__).parents[1]
SPACE = """
name: refused
recipe: {epochs: 1, train_samples: 64, test_samples: 32}
pairs: [{arch: resnet20, dataset: digits}, {arch: vgg11bn, dataset: digits, hidden: true}]
pools: [{name: gap, role: baseline}, gem]
seeds: [1]
"""


@pytest.fixture
def command(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Runs the command on a space; its exit code and all that it said."""

    def run(*arguments: str, space: str = SPACE) -> tuple[int, str]:
        path = tmp_path / "space.yaml"
        path.write_text(space)
        code = cli.main(["--space", str(path), "--out", str(tmp_path / "run"), *arguments])
        return code, "".join(capsys.readouterr())

    return run


@pytest.fixture
def refuse(command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Runs the command, which must refuse without Ray having been as much as imported; what it said."""

    def run(*arguments: str, space: str = SPACE) -> str:
        monkeypatch.setitem(sys.modules, "orchestrator.ray_tune", None)  # an import of it raises,
        monkeypatch.delattr("orchestrator.ray_tune", raising=False)  # whoever has imported it before
        code, said = command(*arguments, space=space)
        assert code == cli.REFUSED
        assert "nothing was started" in said
        assert not (tmp_path / "run" / "space.yaml").exists()
        return said

    return run


def write_pool(path: Path, body: str) -> None:
    path.write_text(f"from torch import nn\nclass CustomPool(nn.Module):\n{body}")


def test_every_problem_of_a_file(refuse) -> None:
    assert "did you mean 'pools.yaml'" in refuse("--space", "pool.yaml")
    said = refuse(space=SPACE.replace("gem", "gemm").replace("resnet20", "mobilenet").replace("[1]", "[-1]"))
    for problem in ("'gem'", "'mobilenetv2'", "seeds[0]"):
        assert problem in said


def test_data_that_is_not_found(refuse, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torchvision_files, "download", lambda *_, **__: (_ for _ in ()).throw(OSError("no network")))
    (tmp_path / "data").mkdir()
    space = SPACE.replace("dataset: digits}, {", "dataset: cifar100}, {")
    said = refuse("--data-dir", str(tmp_path / "data"), space=space)
    assert "error: dataset cifar100: its images are neither in" in said
    assert "--data-dir" in said


def test_a_folder_of_images_that_is_mistyped_is_not_made(refuse, tmp_path: Path) -> None:
    said = refuse("--data-dir", str(tmp_path / "dtaa"), space=SPACE.replace("gem", "gemm"))
    assert f"--data-dir: there is no folder {tmp_path / 'dtaa'}; make it first" in said
    assert "'gem'" in said, "with all else that is wrong"
    assert not (tmp_path / "dtaa").exists()


def test_seconds_that_are_none(capsys: pytest.CaptureFixture[str]) -> None:
    for found in ("abc", "0", "-1", "inf", "nan"):
        with pytest.raises(SystemExit) as caught:
            cli.main(["--space", "smoke.yaml", f"--time-budget={found}"])
        assert caught.value.code == cli.REFUSED
        assert f"expected a number of seconds > 0, got '{found}'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("    def forward(self, x): return x.mean((2, 3), keepdim=True)",
         "check shape: on resnet20's feature map [4, 64, 8, 8], random values, evaluation: it returns [4, 64, 1, 1]"),
        ("    def forward(self, x): import sys; sys.exit(3)", "(the same on vgg11bn)"),
        ("    def forward(self, x): import os; os._exit(3)", "ended (exit code 3)"),
        ("    import nowhere_to_be_found", "check import: on construction: it raises ModuleNotFoundError"),
    ],
)  # fmt: skip
def test_a_pool_that_cannot_be_trained(refuse, tmp_path: Path, text: str, says: str) -> None:
    write_pool(tmp_path / "own.py", text)
    assert says in refuse(space=SPACE.replace("gem", "{file: own.py}"))


def test_more_than_the_machine_has(refuse) -> None:
    said = refuse(space=SPACE + "resources: {gpus_per_trial: 9, cpus_per_trial: 1000}")
    assert re.search("resources.gpus_per_trial: expected [0-9]+ at most, the most that a node has, got 9", said)
    assert re.search("resources.cpus_per_trial: expected [0-9]+ at most, the most that a node has, got 1000", said)


def test_problems_of_every_kind_come_together(refuse, tmp_path: Path) -> None:
    write_pool(tmp_path / "own.py", "    def forward(self, x):\n        return x\n")
    (tmp_path / "file").touch()
    space = SPACE.replace("gem", "{file: own.py}") + "resources: {gpus_per_trial: 9}"
    said = refuse("--out", str(tmp_path / "file" / "run"), space=space)
    for problem in ("cannot be written", "check shape", "gpus_per_trial"):
        assert problem in said


def test_a_family_of_kernels_that_is_unknown(refuse, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(kernels.SWITCH, "sgd,normm")
    assert "POOLSWEEP_KERNELS_OFF: unknown family of kernels 'normm'; did you mean 'norm'? known: " in refuse()


@pytest.mark.parametrize(
    ("option", "says"),
    [
        ("--only=arch=resnet21", "did you mean 'resnet20'"),
        ("--only=colour=red", "expected KEY=VALUE"),
        ("--only=arch=resnet20,dataset=fmnist", "no trial has it"),
        ("--set=epochs", "expected KEY=VALUE"),
        ("--set=epochs=0", "recipe.epochs: expected a number >= 1, got 0"),
    ],
)
def test_an_option_that_is_wrong(refuse, option: str, says: str) -> None:
    assert says in refuse(option)


def test_a_run_folder_of_another_recipe(refuse, run: RunFolder, tmp_path: Path) -> None:
    (tmp_path / "space.yaml").write_text(SPACE)
    run.write_trial(row(next(iter(spaces.load(tmp_path / "space.yaml").grid)), "completed", (), None))
    assert "one table must not mix them" in refuse("--set", "epochs=2")


def test_a_plan_starts_nothing_and_runs_no_pool(command, tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    (tmp_path / "own.py").write_text(f"open({str(ran)!r}, 'w')\nclass CustomPool: ...\n")
    space = SPACE.replace("gem", "gem, {file: own.py}")
    code, said = command("--plan", space=space)
    assert code == cli.OK
    assert said.count("to do") == 3
    assert "3 trials of 1 epochs; how long that takes is known once the first has ended" in said
    assert "resnet20-digits: one seed finds nothing\n" in said
    assert "3 more on hidden pairs wait for --final" in said
    assert "whether its pools may be trained, and what they cost: --check" in said
    code, said = command("--plan", "--final", space=space)
    assert code == cli.OK
    assert said.count("to do") == 4, "on the hidden pair the baseline alone"
    assert "2 more on hidden pairs are of candidates that are not submitted" in said
    assert command("--status", space=space)[0] == cli.INCOMPLETE
    assert not (tmp_path / "run").exists()
    assert not ran.exists()


def test_a_plan_says_what_the_last_sweep_found_of_the_pools(command, run: RunFolder) -> None:
    run.equivalences.write([Equivalence("vgg11bn", ("gap", "gem"), {})])
    code, said = command("--plan")
    assert code == cli.OK
    assert "as the last sweep found: vgg11bn: gap and gem start as the same function" in said


def test_a_check_runs_the_pools_and_nothing_else(command) -> None:
    code, said = command("--check")
    assert code == cli.OK
    assert "every pool may be trained" in said


@pytest.mark.parametrize(
    ("asked", "nodes", "says"),
    [
        ({"cpus_per_trial": 6}, [Node(4, 0), Node(4, 0)], "expected 4 at most"),
        ({"cpus_per_trial": 16}, [Node(64, 0), Node(4, 8)], "no node has 1 GPUs and 16 CPUs at once"),
        ({"gpus_per_trial": 3, "trials_per_gpu": 2}, [Node(8, 8)], "beside gpus_per_trial 3"),
    ],
)
def test_what_no_single_node_has_is_refused(asked: dict[str, Any], nodes: list[Node], says: str) -> None:
    with pytest.raises(RequestError, match=says):
        share(Resources(**asked), nodes)


def test_trials_side_by_side_share_one_gpu() -> None:
    assert share(Resources(trials_per_gpu=4, cpus_per_trial=2), [Node(8, 2)]) == Share(2, 1)


def test_a_cluster_that_is_not_there(command) -> None:
    code, said = command("--address", "nowhere")
    assert code == cli.REFUSED
    assert "--address nowhere: expected local, inline, auto or HOST:PORT" in said


def test_a_rerun_with_nothing_to_train_takes_new_roles(command, run: RunFolder, tmp_path: Path) -> None:
    (tmp_path / "space.yaml").write_text(SPACE)
    for planned in spaces.load(tmp_path / "space.yaml").grid:
        if not planned.hidden:
            run.write_trial(row(planned, "completed", (), None) | {"best_test_acc": 50.0, "final_test_acc": 50.0})
    code, said = command(space=SPACE.replace("gem]", "{name: gem, label: ours, role: baseline}]"))
    assert code == cli.OK
    assert "nothing to do" in said
    assert "ours" in said


def test_the_filter_takes_a_pool_with_commas() -> None:
    assert cli._only("arch=a,pool=gem(p=1, eps=0.1),pool=b") == {"arch": ["a"], "pool": ["gem(p=1, eps=0.1)", "b"]}


def test_every_option_and_command_is_in_the_readme() -> None:
    readme = (ROOT / "README.md").read_text()
    options = {
        option for action in cli._parser()._actions for option in action.option_strings if option.startswith("--")
    }
    missing = {option for option in options - {"--help"} if not re.search(rf"{option}\b", readme)}
    assert not missing


def test_the_example_of_the_readme_works(tmp_path: Path) -> None:
    fenced = r"```(?:yaml|python)\n# (mine\.yaml|my_pool\.py)\n(.*?)```"
    blocks = re.findall(fenced, (ROOT / "README.md").read_text(), re.DOTALL)
    assert [name for name, _ in blocks] == ["mine.yaml", "my_pool.py"]
    for name, text in blocks:
        (tmp_path / name).write_text(text)
    assert cli.main(["--space", str(tmp_path / "mine.yaml"), "--out", str(tmp_path / "run"), "--check"]) == cli.OK


@pytest.mark.parametrize(
    ("precision", "archs", "cpu_bf16", "says"),
    [
        ("fp32", {"mobilenetv2_s32"}, False, None),
        ("bf16", {"resnet56", "vgg16bn"}, True, None),
        ("bf16", {"resnet56"}, False, "no instructions"),
        ("bf16", {"resnet56", "mobilenetv2"}, True, None),
        ("bf16", {"resnet56", "mobilenetv2_s32"}, True, "depthwise"),
        ("tf32", {"resnet56"}, True, "no difference"),
    ],
)
def test_a_precision_that_is_slow_here_is_warned_of(
    precision: str, archs: set[str], cpu_bf16: bool, says: str | None
) -> None:
    warning = slow_precision(precision, archs, cpu_bf16)
    assert (says in warning) if says and warning else warning is says


def test_what_a_candidate_prints_does_not_disturb_its_check(tmp_path: Path) -> None:
    (tmp_path / "talks.py").write_text(
        "import os, sys\nfrom torch import nn\nprint('[1]')\nclass CustomPool(nn.Module):\n    def forward(self, x):\n"
        "        os.write(1, b'junk'); sys.__stdout__.write('more')\n        return x.mean((2, 3))\n"
    )
    (tmp_path / "space.yaml").write_text(SPACE.replace("gem", "{file: talks.py}, gem"))
    with Gate.over(spaces.load(tmp_path / "space.yaml").grid) as gate:
        gate.report.refuse()
