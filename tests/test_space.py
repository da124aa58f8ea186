"""Search spaces: what a YAML file may say, and what is said of one that is wrong."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from results.store.folder import RunFolder
from search_spaces import space as spaces
from search_spaces.errors import RequestError
from search_spaces.recipe import Recipe
from search_spaces.space import SHIPPED, Space

PAIRS, POOLS, SEEDS = "pairs: [{arch: resnet20, dataset: digits}]", "pools: [gap]", "seeds: [1]"
MINIMAL = f"name: mine\n{PAIRS}\n{POOLS}\n{SEEDS}\n"
OWN = "class CustomPool:\n    def __init__(self, mode='avg', learn=True, p=3.0): ...\nclass Other: ...\n"

Load = Callable[..., Space]


@pytest.fixture
def load(tmp_path: Path) -> Load:
    """Loads the minimal space with `old` replaced by `new`, or the text that is given whole."""
    (tmp_path / "own.py").write_text(OWN, encoding="utf-8")
    path = tmp_path / "space.yaml"

    def load_space(old: str = "", new: str = "", *overrides: str, text: str = MINIMAL) -> Space:
        assert old in text
        path.write_text(text.replace(old, new) if old else text, encoding="utf-8")
        return spaces.load(path, overrides)

    return load_space


def refused(load: Callable[[], object]) -> list[str]:
    with pytest.raises(RequestError) as caught:
        load()
    return [str(problem) for problem in caught.value.problems]


def params(space: Space) -> list[Any]:
    return [dict(entry.pool.params) for entry in space.grid.entries]


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
    assert yaml.safe_load(path.read_text())["name"] == path.stem, "it needs no reader of ours"


def test_what_is_given_as_a_path_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("pools.yaml").write_text(MINIMAL)
    assert spaces.load("pools.yaml").grid.name == "mine"


def test_defaults(load: Load) -> None:
    space = load()
    assert (space.grid.recipe, space.checkpoint_every, space.max_failures) == (Recipe(), 10, 2)
    assert space.grid.entries[0].role == "candidate"


def test_every_part_in_use(load: Load, tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "own.py").rename(tmp_path / "sub" / "own.py")
    space = load(
        text="""
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
"""
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
def test_numbers_as_people_write_them(load: Load, spelled: str) -> None:
    assert load(text=f"{MINIMAL}recipe: {{weight_decay: {spelled}}}").grid.recipe.weight_decay == 5e-4


def test_words_that_yaml_1_1_took_for_others_are_texts_and_come_back_as_such(load: Load, tmp_path: Path) -> None:
    words = ["on", "off", "no", "16:9", "1:30", "1_000", "2024-01-31"]
    space = load("[gap]", f"[{{file: own.py, label: no, params: {{mode: [{', '.join(words)}, '1e3', '010']}}}}]")
    assert [one["mode"] for one in params(space)] == [*words, "1e3", "010"]
    run = RunFolder(tmp_path / "run")
    run.create()
    run.write_grid(space.grid)
    again = run.space.read()
    assert again is not None
    assert [planned.trial.id for planned in again] == [planned.trial.id for planned in space.grid]
    assert yaml.safe_load((tmp_path / "run" / "space.yaml").read_text(encoding="utf-8")) == space.grid.to_dict()


def test_what_may_be_left_out_may_be_left_empty(load: Load) -> None:
    for empty in ("recipe:", "resources:", "loggers:"):
        assert load("seeds", f"{empty}\nseeds") == load()
    assert params(load("[gap]", "[{name: gem, params: }]")) == params(load("[gap]", "[gem]"))


def test_the_path_of_a_pool_is_expanded_as_in_a_shell(
    load: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("WHERE", str(tmp_path))
    spelled = ["~/own.py", "$WHERE/own.py", "${WHERE}/own.py", "own.py"]
    assert len({next(iter(load("[gap]", f"[{{file: '{path}'}}]").grid)).trial.id for path in spelled}) == 1
    (tmp_path / "$WHERE.py").write_text("class CustomPool: ...\n", encoding="utf-8")
    assert load("[gap]", "[{file: $WHERE.py}]").grid.entries[0].pool.name == "$WHERE"


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
def test_overrides(load: Load, override: str, reads: Callable[[Space], bool]) -> None:
    assert reads(load("seeds", "resources:\nseeds", override)), "below what is left empty too"


# What is wrong


def test_a_file_that_is_not_there_answers_with_the_nearest() -> None:
    (problem,) = refused(lambda: spaces.load("pool.yaml"))
    assert "did you mean 'pools.yaml'" in problem


@pytest.mark.parametrize("override", ["epochs", "=2", "name.x=1", "recipe.epochs=[", "nonsense=1", "epochs=0"])
def test_an_override_that_is_wrong(load: Load, override: str) -> None:
    assert refused(lambda: load("", "", override))


def test_all_problems_come_at_once_in_the_order_of_the_file(load: Load) -> None:
    problems = refused(
        lambda: load(
            text="""
name: x
recipe: {epochs: -1}
pairs: [{arch: a, dataset: d}]
pools: [p, {name: gap, rol: 1}]
seeds: [1, 1, x]
"""
        )
    )
    lines = [int(problem.split(":")[1]) for problem in problems]
    assert lines == sorted(lines) == [3, 4, 4, 5, 5, 6, 6]


WRONG: list[tuple[str, str, *tuple[str, ...]]] = [
    ("name: mine", "nam: mine", "nam: unknown key; did you mean 'name'?", "name: missing"),
    (PAIRS, "", "pairs: missing; give pairs, or both architectures and datasets"),
    (PAIRS, "architectures: [resnet20]", "got only architectures"),
    (PAIRS, PAIRS + "\ndatasets: [digits]", "give either pairs or datasets, not both"),
    (PAIRS, "pairs: []", ":2: pairs: expected a list of 1 or more, got []"),
    ("digits", "digit", "pairs[0].dataset: unknown dataset 'digit'; did you mean"),
    (PAIRS, "pairs: [{arch: resnet20}]", "pairs[0].dataset: missing"),
    (PAIRS, "pairs: [resnet20]", "pairs[0]: expected a mapping {key: value, ...}, got 'resnet20'"),
    (PAIRS, PAIRS.replace("]", ", {arch: resnet20, dataset: digits}]"), "pairs[1]: resnet20-digits stands twice"),
    (POOLS, "pools: [gem, 'gem(p=3)']", "pools[1]: gem stands twice (first in pools[0])"),
    (POOLS, "pools: [gap, {name: gem, label: gap}]", "pools[1]: is shown as 'gap', and so is another pool, pools[0]"),
    (POOLS, "pools: [{}]", "pools[0]: give either `name`"),
    (SEEDS, "seeds:", "seeds: expected a list [first, second, ...], got nothing (null)"),
    (SEEDS, "seeds: [1, 2, 1]", "seeds[2]: 1 stands twice (first as seeds[0]), so each of its trials would"),
    (SEEDS, "seeds: [-1]", "seeds[0]: expected a number >= 0, got -1"),
    (SEEDS, "seeds: ['1']", "seeds[0]: expected an integer, got '1'; a number has no quotes: 1"),
    (SEEDS, "seeds: [true]", "seeds[0]: expected an integer, got True"),
    (SEEDS, "seeds: [1_000]", ":4: seeds[0]: expected an integer, got '1_000'; digits have nothing between them: 1000"),
    (SEEDS, "seeds: [1:30]", ":4: seeds[0]: expected an integer, got '1:30'"),
    (SEEDS, SEEDS + "\nseeds: [2]", "seeds: stands twice, on lines 4 and 5"),
    (SEEDS, "seeds: [1", "a bracket that opens in line 4 is not closed, or a comma is missing"),
    (SEEDS, "seeds:\n\t- 1", ":5: is not YAML: found character '\\t' that cannot start any token; indent with spaces"),
    (SEEDS, "seeds [1]", ":4: is not YAML: could not find expected ':'; a line is `key: value`"),
    (SEEDS, SEEDS + "\n---\nname: b", "a file holds one space: take out the line ---"),
    ("digits", "digits, hidden: yes", "pairs[0].hidden: expected true or false, got 'yes'; write true"),
    ("[gap]", "[{name: gem, params: {p: 2,5}}]", ":3: pools[0].params.p: got 2,5"),
    ("[gap]", "[{file: own.py, params: {p: [1_0, 2]}}]", "params.p: expected a number, as 3.0 is, got '1_0'; "),
    (
        *("[gap]", "[{file: own.py, params: {learn: off}}]"),
        ":3: pools[0].params.learn: expected true or false, as True is, got 'off'; write false",
    ),
    ("[gap]", "[{file: $NOT_SET_ANYWHERE/own.py}]", "pools[0].file: got '$NOT_SET_ANYWHERE/own.py', and $NOT_SET_"),
    ("[gap]", "[{file: ~nobody_is_called_so/own.py}]", "~nobody_is_called_so is nothing here"),
    ("[gap]", "\n \u00a0- gap", ":4: pools: got U+00A0 NO-BREAK SPACE"),
    ("mine", "2024", ":1: name: expected text, got 2024; quotes make it text: '2024'"),
    ("mine", "'mine", "a quote that opens in line 1 is not closed"),
    ("mine", "a: b", ":1: is not YAML: mapping values are not allowed here; quote a text that has a colon and a space"),
    ("mine", "@mine", "put a text that begins with it in quotes"),
    ("mine", "*mine", "put a text that begins with * in quotes"),
    *(
        ("seeds", f"{line}\nseeds", *says)
        for line, *says in [
            ("recipe: {epochs: 0, lr: x, epoch: 1}", "recipe.epochs", "recipe.lr", "recipe.epoch: unknown key"),
            ("resources: {gpus_per_trial: -1, cpus: 2}", "resources.gpus_per_trial", "resources.cpus: unknown"),
            ("checkpoint_every: 0", "checkpoint_every: expected a number >= 1, got 0"),
            ("max_failures: -1", "max_failures: expected a number >= 0, got -1"),
            ("recipe: {lr: 0,02}", ":4: recipe.lr: got 0,02, and a comma begins the next key; a decimal has a point"),
            ("recipe: {train_samples: 1,000}", "has a point: 1.000, and thousands have nothing: 1000"),
            ("recipe: {lr: 1,5e-3}", "a decimal has a point: 1.5e-3"),
            ("recipe:\n  lr: 0,02", "recipe.lr: expected a number, got '0,02'; a decimal has a point: 0.02"),
            ("recipe: {epochs: 1_000}", "digits have nothing between them: 1000"),
            ("recipe: {epochs: '7'}", "a number has no quotes: 7"),
            ("max_failures:\u00a02", ":4: is not YAML: got U+00A0 NO-BREAK SPACE in 'max_failures:"),
            ("max_failures: \u00a02", ":4: max_failures: got U+00A0 NO-BREAK SPACE in"),
            ("recipe: {lr:\u20070.1}", ":4: recipe.lr:\u20070.1: as a key: got U+2007 FIGURE SPACE"),
            *(
                (f"compile: {word}", f"compile: expected true or false, got {word!r}; write {meant}")
                for meant, words in (("true", "on Yes y"), ("false", "off NO n"))
                for word in words.split()
            ),
            *(
                (f"resources: {{trials_per_gpu: {found}}}", f"auto, or an integer from 1 to 32, got {said}")
                for found, said in (("0", "0"), ("33", "33"), ("2.0", "2.0"), ("true", "True"), ("many", "'many'"))
            ),
        ]
    ),
]


@pytest.mark.parametrize(("old", "new", "says"), [(*case[:2], case[2:]) for case in WRONG])
def test_what_is_wrong_is_said_in_a_line(load: Load, old: str, new: str, says: tuple[str, ...]) -> None:
    problems = refused(lambda: load(old, new))
    assert len(problems) == len(says)
    for said in says:
        assert any(said in problem for problem in problems), problems
    assert all("space.yaml" in problem and "\n" not in problem for problem in problems)
