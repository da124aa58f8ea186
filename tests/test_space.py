"""Search spaces: what a YAML file may say, and what is said of one that is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from search_spaces import space as spaces
from search_spaces.errors import RequestError
from search_spaces.recipe import Recipe
from search_spaces.space import SHIPPED, Space

MINIMAL = """
name: mine
pairs: [{arch: resnet20, dataset: digits}]
pools: [gap]
seeds: [1]
"""


@pytest.fixture
def write(tmp_path: Path):
    def write_space(text: str) -> Path:
        path = tmp_path / "space.yaml"
        path.write_text(text)
        return path

    return write_space


def refused(path: Path, *overrides: str) -> list[str]:
    with pytest.raises(RequestError) as caught:
        spaces.load(path, overrides)
    return [str(problem) for problem in caught.value.problems]


def test_the_benchmarks_leaderboard() -> None:
    space = spaces.load("pools.yaml")
    assert [str(pair) for pair in space.grid.pairs] == ["resnet56-cifar100", "vgg16bn-cifar100", "mobilenetv2-fmnist"]
    assert [pair.hidden for pair in space.grid.pairs] == [False, False, True]
    assert {entry.pool.label: entry.role for entry in space.grid.entries} == dict.fromkeys(
        ("gap", "avg_max", "gem", "global_max"), "baseline"
    )
    assert space.grid.seeds == (42, 123, 456)
    assert space.grid.recipe == Recipe(200, 128, 0.1, 0.9, 5e-4, "fp32")


@pytest.mark.parametrize("path", sorted(SHIPPED.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_space_loads_and_says_what_it_is(path: Path) -> None:
    assert len(spaces.load(path.name).grid)
    assert f"--space {path.name}" in path.read_text()


def test_what_is_given_as_a_path_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("pools.yaml").write_text(MINIMAL)
    assert spaces.load("pools.yaml").grid.name == "mine"


def test_defaults(write) -> None:
    space = spaces.load(write(MINIMAL))
    assert (space.grid.recipe, space.checkpoint_every, space.max_failures) == (Recipe(), 10, 2)
    assert space.grid.entries[0].role == "candidate"


def test_every_part_in_use(write, tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "own.py").write_text("class CustomPool: ...\nclass Other: ...")
    space = spaces.load(
        write("""
name: all
recipe: {epochs: 7, lr: 1e-1, weight_decay: 5e-4, precision: bf16, train_samples: null}
architectures: [resnet20, vgg11bn]
datasets: [digits, fmnist]
pools:
  - {name: gap, role: baseline}
  - gem(p=2)
  - {name: gem, params: {p: [1, 3, 5]}, label: G}
  - {file: sub/own.py}
  - {file: sub/own.py, class: Other, label: other one}
seeds: [0, 42]
resources: {gpus_per_trial: 1, cpus_per_trial: 2, trials_per_gpu: 1}
checkpoint_every: 3
max_failures: 0
""")
    )
    assert [entry.pool.label for entry in space.grid.entries] == [
        *("gap", "gem(p=2)", "G(p=1)", "G(p=3)", "G(p=5)", "own", "other one")
    ]
    assert [str(pair) for pair in space.grid.pairs] == [
        *("resnet20-digits", "resnet20-fmnist", "vgg11bn-digits", "vgg11bn-fmnist")
    ]
    assert (space.grid.recipe.lr, space.grid.recipe.weight_decay) == (0.1, 5e-4)
    assert len({planned.trial.id for planned in space.grid}) == len(space.grid) == 56
    assert (space.resources.cpus_per_trial, space.checkpoint_every, space.max_failures) == (2, 3, 0)


@pytest.mark.parametrize("spelled", ["5e-4", "5E-4", "+5e-4", "0.0005", ".0005", "5.0e-4"])
def test_numbers_as_people_write_them(write, spelled: str) -> None:
    assert spaces.load(write(f"{MINIMAL}recipe: {{weight_decay: {spelled}}}")).grid.recipe.weight_decay == 5e-4


@pytest.mark.parametrize(
    ("override", "reads"),
    [
        ("epochs=2", lambda space: space.grid.recipe.epochs == 2),
        ("weight_decay=1e-3", lambda space: space.grid.recipe.weight_decay == 1e-3),
        ("recipe.epochs=3", lambda space: space.grid.recipe.epochs == 3),
        ("seeds=[5, 6]", lambda space: space.grid.seeds == (5, 6)),
        ("resources.cpus_per_trial=2", lambda space: space.resources.cpus_per_trial == 2),
        ("train_samples=null", lambda space: space.grid.recipe.train_samples is None),
    ],
)
def test_overrides(write, override: str, reads) -> None:
    space: Space = spaces.load(write(MINIMAL), [override])
    assert reads(space)


PAIRS, POOLS, SEEDS = "pairs: [{arch: resnet20, dataset: digits}]", "pools: [gap]", "seeds: [1]"


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("name: mine", "nam: mine", ["nam: unknown key; did you mean 'name'?", "name: missing"]),
        (PAIRS, "", ["pairs: missing; give pairs, or both architectures and datasets"]),
        (PAIRS, "architectures: [resnet20]", ["got only architectures"]),
        (PAIRS, PAIRS + "\ndatasets: [digits]", ["give either pairs or datasets, not both"]),
        (PAIRS, "pairs: []", ["pairs: expected a list of 1 or more, got []"]),
        (
            PAIRS,
            "pairs: [{arch: resnet21, dataset: digits}]",
            ["pairs[0].arch: unknown architecture 'resnet21'; did you"],
        ),
        (
            PAIRS,
            "pairs: [{arch: resnet20, dataset: digit}]",
            ["pairs[0].dataset: unknown dataset 'digit'; did you mean"],
        ),
        (PAIRS, "pairs: [{arch: resnet20}]", ["pairs[0].dataset: missing"]),
        (PAIRS, "pairs: [resnet20]", ["pairs[0]: expected a mapping {key: value, ...}, got 'resnet20'"]),
        (PAIRS, "architectures: [resnet20, x]\ndatasets: [digits]", ["architectures[1]: unknown architecture 'x'"]),
        (PAIRS, PAIRS.replace("]", ", {arch: resnet20, dataset: digits}]"), ["pairs[1]: resnet20-digits stands twice"]),
        (POOLS, "pools: []", ["pools: expected a list of 1 or more, got []"]),
        (
            POOLS,
            "pools: [gapp]",
            ["pools[0]: unknown pool 'gapp'; did you mean 'gap'? known: "],
        ),
        (POOLS, "pools: [gem, 'gem(p=3)']", ["pools[1]: gem stands twice (first in pools[0])"]),
        (
            POOLS,
            "pools: [gap, {name: gem, label: gap}]",
            ["pools[1]: is shown as 'gap', and so is another pool, pools[0]"],
        ),
        (POOLS, "pools: [{name: gem, params: {q: 1}}]", ["pools[0]: gem has no parameter 'q'"]),
        (POOLS, "pools: [{file: none.py}]", ["none.py cannot be read"]),
        (POOLS, "pools: [{file: none.txt}]", ["pools[0].file: expected a path to a .py file, got 'none.txt'"]),
        (POOLS, "pools: [{}]", ["pools[0]: give either `name`"]),
        (POOLS, "pools: [{name: gap, role: base}]", ["pools[0].role: expected 'baseline' or 'candidate', got 'base'"]),
        (SEEDS, "seeds: []", ["seeds: expected a list of 1 or more, got []"]),
        (SEEDS, "seeds: [1, 2, 1]", ["seeds[2]: 1 stands twice (first as seeds[0]), so each of its trials would"]),
        (SEEDS, "seeds: [-1]", ["seeds[0]: expected a number >= 0, got -1"]),
        (SEEDS, "seeds: ['1']", ["seeds[0]: expected an integer, got '1'; a number has no quotes: 1"]),
        (SEEDS, "seeds: [true]", ["seeds[0]: expected an integer, got True"]),
        (SEEDS, "seeds: 1", ["seeds: expected a list [first, second, ...], got 1"]),
        (
            SEEDS,
            SEEDS + "\nrecipe: {epochs: 0, lr: x, epoch: 1}",
            ["recipe.epochs", "recipe.lr", "recipe.epoch: unknown key"],
        ),
        (
            SEEDS,
            SEEDS + "\nresources: {gpus_per_trial: -1, cpus: 2}",
            ["resources.gpus_per_trial", "resources.cpus: unknown"],
        ),
        *(
            (
                SEEDS,
                SEEDS + f"\nresources: {{trials_per_gpu: {found}}}",
                [f"resources.trials_per_gpu: expected auto, or an integer from 1 to 32, got {said}"],
            )
            for found, said in (("0", "0"), ("33", "33"), ("2.0", "2.0"), ("true", "True"), ("many", "'many'"))
        ),
        (SEEDS, SEEDS + "\ncheckpoint_every: 0", ["checkpoint_every: expected a number >= 1, got 0"]),
        (SEEDS, SEEDS + "\nmax_failures: -1", ["max_failures: expected a number >= 0, got -1"]),
        (SEEDS, SEEDS + "\nseeds: [2]", ["seeds: stands twice, on lines"]),
    ],
    ids=lambda value: str(value)[:40] if isinstance(value, str) else None,
)
def test_what_is_wrong_is_named(write, old: str, new: str, says: list[str]) -> None:
    assert old in MINIMAL
    problems = refused(write(MINIMAL.replace(old, new)))
    assert len(problems) == len(says)
    for said in says:
        assert any(said in problem for problem in problems), problems
        assert all("space.yaml" in problem for problem in problems)


def test_all_problems_come_at_once_in_the_order_of_the_file(write) -> None:
    problems = refused(
        write("""
name: x
recipe: {epochs: -1}
pairs: [{arch: a, dataset: d}]
pools: [p, {name: gap, rol: 1}]
seeds: [1, 1, x]
""")
    )
    lines = [int(problem.split(":")[1]) for problem in problems]
    assert lines == sorted(lines) == [3, 4, 4, 5, 5, 6, 6]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a: [", "is not YAML"),
        ("- a\n- b", "expected a mapping of keys"),
        ("", "name: missing"),
        ("a: !!python/object/apply:os.system ['true']", "is not YAML"),
        ("a: &a [*a]", "is not YAML"),
        ("\x00", "is not YAML"),
        ("42: x", "[42]: unknown key"),
    ],
)
def test_what_is_no_space_at_all(write, text: str, says: str) -> None:
    assert any(says in problem for problem in refused(write(text)))


def test_a_file_that_is_not_there_answers_with_the_nearest() -> None:
    (problem,) = refused(Path("pool.yaml"))
    assert "did you mean 'pools.yaml'" in problem


@pytest.mark.parametrize("override", ["epochs", "=2", "name.x=1", "recipe.epochs=[", "nonsense=1", "epochs=0"])
def test_an_override_that_is_wrong(write, override: str) -> None:
    assert refused(write(MINIMAL), override)


def test_a_space_is_plain_yaml() -> None:
    """Nothing in the shipped files needs our reader: any YAML 1.2 parser sees the same."""
    for path in SHIPPED.glob("*.yaml"):
        assert yaml.safe_load(path.read_text())["name"] == path.stem
