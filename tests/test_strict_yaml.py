"""YAML by the core schema of 1.2, against its table; and files that readers of 1.1 and 1.2 take for the same."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from results.store.folder import RunFolder
from search_spaces import space as spaces
from search_spaces import strict_yaml
from search_spaces.errors import RequestError

# YAML 1.2.2, section 10.3.2, Core Schema: its table of tag resolution, from top to bottom.
TABLE = [
    (r"null|Null|NULL|~", lambda _: None),
    (r"", lambda _: None),
    (r"true|True|TRUE|false|False|FALSE", lambda text: text.lower() == "true"),
    (r"[-+]?[0-9]+", int),
    (r"0o[0-7]+", lambda text: int(text[2:], 8)),
    (r"0x[0-9a-fA-F]+", lambda text: int(text[2:], 16)),
    (r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", float),
    (r"[-+]?(\.inf|\.Inf|\.INF)", lambda text: -math.inf if text[0] == "-" else math.inf),
    (r"\.nan|\.NaN|\.NAN", lambda _: math.nan),
    (r"(?s:.*)", str),
]


def by_the_table(text: str) -> Any:
    return next(make(text) for form, make in TABLE if re.fullmatch(form, text))


ODD = """010 0755 00 -0 +1 08 0o17 0o8 0O17 -0o17 0x1F 0X1F -0x1F 0b1 1_000 1,000 1:30 16:9 190:20:30 1. .5 . -. +.5 1e3
1E-3 1.e5 1e .e5 5e-4 .inf -.INF +.Inf .iNf .nan -.nan .NaN inf nan on off On OFF yes no Yes NO y n Y N true True tRUE
FALSE null Null nULL ~ ~~ 2024-01-31 2001-12-14t21:59:43.10-05:00 12.5.1 = 0x 0o 1e400 ٣""".split()


@pytest.mark.parametrize("text", ODD)
def test_a_plain_text_is_what_the_core_schema_says(text: str) -> None:
    assert repr(strict_yaml.load(f"[{text}]" if "," not in text else text)) == repr(
        [by_the_table(text)] if "," not in text else text
    )


@settings(max_examples=400, deadline=None)
@given(st.text("0123456789aAbBeEfFinoxXtTrRuUlLsSyY_.:+-~", min_size=1, max_size=9))
def test_any_plain_text_is_what_the_core_schema_says(text: str) -> None:
    try:
        seen = yaml.compose(f"- {text}\n")
    except yaml.YAMLError:
        return
    if seen and isinstance(seen.value[0], yaml.ScalarNode) and seen.value[0].value == text:  # and no list or mapping
        assert repr(strict_yaml.load(f"x: {text}\n")["x"]) == repr(by_the_table(text))


TEXTS = st.one_of(
    st.sampled_from(ODD), st.text(), st.text("\n\x85\u2028\ufeff\r\t \0:#-'\"\\{}[],&*!|>%@01eEox_.y", max_size=8)
)
DATA = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-(2**64), 2**64), st.floats(allow_nan=False), TEXTS),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(TEXTS, inner, max_size=4)),
    max_leaves=10,
)


@settings(max_examples=200, deadline=None)
@given(DATA)
def test_what_is_dumped_is_the_same_to_readers_of_both_versions(data: Any) -> None:
    text = strict_yaml.dump(data)
    assert repr(strict_yaml.load(text)) == repr(data)  # repr: True == 1 == 1.0
    assert repr(yaml.safe_load(text)) == repr(data)


def test_a_merge_key_merges() -> None:
    assert strict_yaml.load("a: &a {b: 1, c: 2}\nd: {<<: *a, c: 3}\n")["d"] == {"b": 1, "c": 3}


# In a space

SPACE = "name: mine\npairs: [{arch: resnet20, dataset: digits}]\npools: [gap]\nseeds: [1]\n"
POOL = "class CustomPool:\n    def __init__(self, mode='avg', learn=True, p=3.0): ...\n"


def load(folder: Path, old: str = "", new: str = "", *overrides: str) -> spaces.Space:
    (folder / "own.py").write_text(POOL, encoding="utf-8")
    path = folder / "space.yaml"
    path.write_text(SPACE.replace(old, new), encoding="utf-8")
    return spaces.load(path, overrides)


def params(space: spaces.Space) -> list[Any]:
    return [dict(entry.pool.params) for entry in space.grid.entries]


def test_words_that_yaml_1_1_took_for_others_are_texts_and_come_back_as_such(tmp_path: Path) -> None:
    words = ["on", "off", "no", "16:9", "1:30", "1_000", "2024-01-31"]
    space = load(
        tmp_path, "[gap]", f"[{{file: own.py, label: L, params: {{mode: [{', '.join(words)}, '1e3', '010']}}}}]"
    )
    assert [one["mode"] for one in params(space)] == [*words, "1e3", "010"]
    run = RunFolder(tmp_path / "run")
    run.create()
    run.write_grid(space.grid)
    again = run.grid()
    assert again is not None
    assert [planned.trial.id for planned in again] == [planned.trial.id for planned in space.grid]
    assert yaml.safe_load((tmp_path / "run" / "space.yaml").read_text(encoding="utf-8")) == space.grid.to_dict()


@pytest.mark.parametrize("empty", ["recipe:", "resources:", "loggers:"])
def test_what_may_be_left_out_may_be_left_empty(tmp_path: Path, empty: str) -> None:
    assert load(tmp_path, "seeds", f"{empty}\nseeds").grid == load(tmp_path).grid


def test_no_params_and_an_override_below_what_is_empty(tmp_path: Path) -> None:
    assert params(load(tmp_path, "[gap]", "[{name: gem, params: }]")) == params(load(tmp_path, "[gap]", "[gem]"))
    space = load(tmp_path, "seeds", "resources:\nseeds", "resources.cpus_per_trial=2")
    assert space.resources.cpus_per_trial == 2


def test_a_name_may_be_no(tmp_path: Path) -> None:
    assert load(tmp_path, "mine", "no").grid.name == "no"


def test_the_path_of_a_pool_is_expanded_as_in_a_shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("WHERE", str(tmp_path))
    spelled = ["~/own.py", "$WHERE/own.py", "${WHERE}/own.py"]
    ids = {next(iter(load(tmp_path, "[gap]", f"[{{file: '{path}'}}]").grid)).trial.id for path in [*spelled, "own.py"]}
    assert len(ids) == 1
    (tmp_path / "$WHERE.py").write_text("class CustomPool: ...\n", encoding="utf-8")
    assert load(tmp_path, "[gap]", "[{file: $WHERE.py}]").grid.entries[0].pool.name == "$WHERE"


SAYS: list[tuple[str, str, str]] = [
    (
        "seeds",
        "recipe: {lr: 0,02}\nseeds",
        ":4: recipe.lr: got 0,02, and a comma begins the next key; a decimal has a",
    ),
    ("seeds", "recipe: {train_samples: 1,000}\nseeds", "has a point: 1.000, and thousands have nothing: 1000"),
    ("seeds", "recipe: {lr: 1,5e-3}\nseeds", "a decimal has a point: 1.5e-3"),
    ("[gap]", "[{name: gem, params: {p: 2,5}}]", ":3: pools[0].params.p: got 2,5"),
    (
        "seeds",
        "recipe:\n  lr: 0,02\nseeds",
        "recipe.lr: expected a number, got '0,02'; a decimal has a point: 0.02",
    ),
    ("seeds", "recipe: {epochs: 1_000}\nseeds", "digits have nothing between them: 1000"),
    ("seeds", "recipe: {epochs: '7'}\nseeds", "a number has no quotes: 7"),
    (
        "[1]",
        "[1_000]",
        ":4: seeds[0]: expected an integer, got '1_000'; digits have nothing between them: 1000",
    ),
    ("[1]", "[1:30]", ":4: seeds[0]: expected an integer, got '1:30'"),
    ("[1]", "", "seeds: expected a list [first, second, ...], got nothing (null)"),
    *(
        ("seeds", f"compile: {word}\nseeds", f"compile: expected true or false, got {found!r}; write {meant}")
        for meant, words in (("true", "on Yes y 'true'"), ("false", "off NO n"))
        for word in words.split()
        for found in [word.strip("'")]
    ),
    ("digits", "digits, hidden: yes", "pairs[0].hidden: expected true or false, got 'yes'; write true"),
    (
        "[gap]",
        "[{file: own.py, params: {learn: off}}]",
        ":3: pools[0].params.learn: expected true or false, as True is, got 'off'; write false",
    ),
    (
        "[gap]",
        "[{file: own.py, params: {p: [1_0, 2]}}]",
        "params.p: expected a number, as 3.0 is, got '1_0'; ",
    ),
    ("mine", "2024", ":1: name: expected text, got 2024; quotes make it text: '2024'"),
    ("[gap]", "[{file: $NOT_SET_ANYWHERE/own.py}]", "pools[0].file: got '$NOT_SET_ANYWHERE/own.py', and $NOT_SET_"),
    ("[gap]", "[{file: ~nobody_is_called_so/own.py}]", "~nobody_is_called_so is nothing here"),
    ("seeds", "max_failures:\u00a02\nseeds", ":4: is not YAML: got U+00A0 NO-BREAK SPACE in 'max_failures:"),
    ("seeds", "max_failures: \u00a02\nseeds", ":4: max_failures: got U+00A0 NO-BREAK SPACE in"),
    ("seeds", "recipe: {lr:\u20070.1}\nseeds", ":4: recipe.lr:\u20070.1: as a key: got U+2007 FIGURE SPACE"),
    ("[gap]", "\n \u00a0- gap", ":4: pools: got U+00A0 NO-BREAK SPACE"),
    (
        "seeds: [1]",
        "seeds:\n\t- 1",
        ":5: is not YAML: found character '\\t' that cannot start any token; indent with spaces",
    ),
    ("seeds: [1]", "seeds: [1", "a bracket that opens in line 4 is not closed, or a comma is missing"),
    ("mine", "'mine", "a quote that opens in line 1 is not closed"),
    ("mine", "a: b", ":1: is not YAML: mapping values are not allowed here; quote a text that has a colon and a space"),
    ("mine", "@mine", "put a text that begins with it in quotes"),
    ("mine", "*mine", "put a text that begins with * in quotes"),
    ("seeds: [1]", "seeds [1]", ":4: is not YAML: could not find expected ':'; a line is `key: value`"),
    ("seeds: [1]", "seeds: [1]\n---\nname: b", "a file holds one space: take out the line ---"),
]


@pytest.mark.parametrize(("old", "new", "says"), SAYS, ids=[new[:30] for _, new, _ in SAYS])
def test_what_is_wrong_is_said_in_a_line(tmp_path: Path, old: str, new: str, says: str) -> None:
    with pytest.raises(RequestError) as caught:
        load(tmp_path, old, new)
    said = [str(problem) for problem in caught.value.problems]
    assert any(says in line for line in said), said
    assert len(said) <= 2
    assert not any("\n" in line for line in said)
