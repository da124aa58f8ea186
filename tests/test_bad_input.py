"""Whatever a space file, an option or a file of a run folder says: a plan, or a message. Never a traceback."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from odd_data import ODD_TEXTS, broken

from orchestrator import cli
from orchestrator.plan import make_plan
from results.store.folder import RunFolder
from search_spaces import space as spaces
from search_spaces import user_code
from search_spaces.errors import RequestError
from search_spaces.grid import FILTERS, MOST_TRIALS
from search_spaces.space import MAX_TRIALS

Plan = Callable[..., list[str]]

ROOT = Path(__file__).parents[1]
FEW = settings(
    max_examples=100, deadline=5000, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)

# Every key of the schema, in both forms of the pairs.
VALID: dict[str, Any] = {
    "name": "mine",
    "recipe": {"epochs": 2, "batch_size": 32, "lr": 0.1, "momentum": 0.9, "weight_decay": 5e-4, "precision": "fp32"},
    "pairs": [{"arch": "resnet20", "dataset": "digits"}, {"arch": "vgg11bn", "dataset": "digits", "hidden": True}],
    "pools": [
        {"name": "gap", "role": "baseline"},
        {"name": "gem", "params": {"p": [1, 2.5]}, "label": "G"},
        "avg_max(weight=0.3)",
        {"file": "own.py", "class": "CustomPool", "label": "own"},
    ],
    "seeds": [1, 2],
    "resources": {"gpus_per_trial": 1, "cpus_per_trial": 1, "trials_per_gpu": "auto"},
    "compile": False,
    "checkpoint_every": 10,
    "max_failures": 2,
    "max_trials": 1000,
    "stall_timeout": 60.0,
    "skip_invalid": False,
    "keep_weights": False,
    "test_budget": 3,
    "loggers": ["tensorboard"],
}
PRODUCT = {key: value for key, value in VALID.items() if key != "pairs"} | {
    "architectures": ["resnet20", "vgg11bn"],
    "datasets": ["digits"],
}


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    """Plans a text or bytes as a space file, and returns what is said of it: nothing, if it can be."""
    (tmp_path / "own.py").write_text("class CustomPool: ...\n")
    path = tmp_path / "space.yaml"

    def run(text: str | bytes, *overrides: str) -> list[str]:
        path.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass"))
        try:
            make_plan(spaces.load(path, overrides), RunFolder(tmp_path / "run"))
        except RequestError as error:
            said = [str(problem) for problem in error.problems]
            assert said
            assert all(line and "\x1b" not in line for line in said)
            "".join(said).encode()  # can be printed anywhere
            return said
        finally:
            assert not (tmp_path / "run").exists()
        return []

    return run


def dumped(data: Any) -> str:
    return yaml.dump(data, sort_keys=False, allow_unicode=False)  # tags, anchors and all, wherever PyYAML needs them


def test_the_grammar_starts_from_what_is_right(plan: Plan) -> None:
    assert plan(dumped(VALID)) == plan(dumped(PRODUCT)) == []
    aliases = {field.alias or name for name, field in spaces._File.model_fields.items()}
    assert {*VALID, *PRODUCT} == aliases


@FEW
@given(data=st.one_of(broken(VALID), broken(PRODUCT)))
def test_a_broken_space_is_a_message_or_a_plan(plan: Plan, data: Any) -> None:
    plan(dumped(data))


@FEW
@given(
    junk=st.lists(
        st.sampled_from(
            [*"{}[]:,-?&*!|>'\"%@`#\n\t \0\ufeff", "&a ", "*a", "<<: ", "!!binary ", "---\n", "...\n", "0x"]
        ),
        max_size=6,
    ),
    at=st.floats(0, 1),
    cut=st.integers(0, 30),
)
def test_a_garbled_text_is_a_message_or_a_plan(plan: Plan, junk: list[str], at: float, cut: int) -> None:
    text = dumped(VALID)
    middle = int(at * len(text))
    plan(text[:middle] + "".join(junk) + text[middle + cut :])


@FEW
@given(key=st.one_of(st.sampled_from(list(VALID)), ODD_TEXTS), below=ODD_TEXTS, value=st.one_of(ODD_TEXTS, st.text()))
def test_an_odd_override_is_a_message_or_a_plan(plan: Plan, key: str, below: str, value: str) -> None:
    plan(dumped(VALID), f"{key}={value}", f"{key}.{below}={value}")


BOMB = "a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1]\n" + "".join(
    f"a{i + 1}: &a{i + 1} [{', '.join([f'*a{i}'] * 9)}]\n" for i in range(12)
)
MERGE_BOMB = "a0: &a0 {k: 1}\n" + "".join(
    f"a{i + 1}: &a{i + 1} {{<<: [{', '.join([f'*a{i}'] * 9)}]}}\n" for i in range(12)
)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "name: missing"),
        ("- a\n- b", "expected a mapping of keys"),
        ("42: x", "[42]: unknown key"),
        ("name: a\n---\nname: b\n", "a single document"),
        (BOMB, "expected at most 1,048,576 values, aliases expanded"),
        (MERGE_BOMB, "expected at most 1,048,576 values, aliases expanded"),
        ("? " + BOMB.replace("\n", "\n  "), "expected at most 1,048,576 values, aliases expanded"),
        ("pools: &a [*a]", "expected at most 40 lists and mappings in each other"),
        ("[" * 100_000, "nested too deeply"),
        ("name: !!python/object/apply:os.system ['true']", "got the tag"),
        ("name: !!int ''", "got the tag"),
        ("seeds: [0x_]", "expected an integer, got '0x_'"),
        (f"seeds: [0x{'f' * 5000}]", "expected an integer of at most 80 characters"),
        ("? [a]\n: b", "unhashable key"),
        ("<<: 3", "for merging"),
        ("name:\tx\n\t- y", "is not YAML"),
        (b"name: \xff", "is not YAML"),
        ("name: caf\u00e9".encode("utf-16"), "is not YAML"),
        (b"name: a\0b", "is not YAML"),
        ('name: "a\\0b"', "it has U+0000"),
        ("name: |\n  two\n  lines\n", "it has U+000A"),
        ('name: "\\u202egap"', "U+202E RIGHT-TO-LEFT OVERRIDE"),
        ('name: "\\ud800"', "it has U+D800"),
        ('"na\\eme": x', "as a key"),
        (b" " * (50 * 2**20), "is too long: expected at most 1,048,576 bytes"),
    ],
    ids=lambda value: repr(value[:20]),
)
def test_what_no_space_is(plan: Plan, text: str | bytes, says: str) -> None:
    start = time.process_time()
    said = plan(text)
    assert any(says in line for line in said), said
    assert time.process_time() - start < 5, "a second or two, on a machine that has nothing else to do"
    assert all("space.yaml" in line for line in said)


def test_a_text_that_looks_like_a_date_is_a_text_and_a_mark_of_order_is_passed_over(plan: Plan) -> None:
    assert plan("\ufeff" + dumped(VALID | {"name": "x"}).replace("name: x", "name: 2001-13-45")) == []


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo], ids=["a folder", "a pipe"])
def test_a_space_or_a_pool_that_is_no_file(plan: Plan, tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path / "odd.py")
    with pytest.raises(RequestError, match="is no file"):
        spaces.load(tmp_path / "odd.py")
    (said,) = plan(dumped(VALID | {"pools": [{"file": "odd.py"}]}))
    assert "is no file" in said


def test_a_name_that_no_file_can_have(plan: Plan, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="there is no space file"):
        spaces.load("x" * 5000)
    (tmp_path / "far.py").write_text(f"import {'x' * 500}\nclass CustomPool: ...\n")
    assert plan(dumped(VALID | {"pools": [{"file": "far.py"}]})) == []


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("-" * 200_000 + "1", "nested too deeply"),
        ("(" * 1000, "is not Python"),
        ("x = '\0'", "is not Python"),
        ("#" * (user_code.MOST_BYTES + 1), "is too long"),
        ("class CustomPool:\n    def __init__(self, p=" + "+".join("1" * 3000) + "): ...", ""),
        ("".join(f"class C{i}(C{i + 1}, D{i + 1}): ...\nclass D{i}(C{i + 1}, D{i + 1}): ...\n" for i in range(60))
         + "class CustomPool(C0): ...", ""),
    ],
    ids=["operators", "brackets", "nul", "long", "a deep default", "bases of bases"],
)  # fmt: skip
def test_a_pool_file_is_read_in_bounded_time_whatever_it_says(plan: Plan, tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "odd.py").write_text(text)
    start = time.process_time()
    said = plan(dumped(VALID | {"pools": [{"file": "odd.py"}]}))
    assert time.process_time() - start < 5
    assert any(says in line for line in said) if says else len(said) <= 1


def test_every_fault_of_an_entry_is_said_at_once(plan: Plan) -> None:
    entries = [
        {"name": "gapp", "role": "base"},
        {"file": "own.txt"},
        {"file": "own.py", "params": {"q": 1}, "lable": "x"},
    ]
    said = plan(dumped(VALID | {"pools": entries, "architectures": ["resnet", 3]}))
    for part in [
        "pools[0].role: expected 'baseline' or 'candidate', got 'base'",
        "pools[0]: unknown pool 'gapp'; did you mean 'gap'?",
        "pools[1].file: expected a path to a .py file, got 'own.txt'",
        "pools[2].lable: unknown key",
        "pools[2]: own has no parameter 'q'",
        "architectures[0]: unknown architecture",
        "architectures[1]: expected text, got 3",
        "give either pairs or architectures",
    ]:
        assert any(part in line for line in said), (part, said)


def test_a_thousand_faults_are_a_hundred_and_a_number(plan: Plan) -> None:
    said = plan(dumped(VALID | {"seeds": [-1 - i for i in range(1000)], "max_trials": 10_000}))
    assert len(said) == 101
    assert said[-1] == "and 900 problems more"


@FEW
@given(only=st.one_of(ODD_TEXTS, st.text(max_size=20), ODD_TEXTS.map("pool={}".format)))
def test_an_odd_filter_is_a_message_or_a_plan(only: str) -> None:
    with contextlib.suppress(RequestError):
        assert cli._only(only).keys() <= FILTERS.keys()


# Sizes


def test_a_grid_of_a_billion_is_refused_before_it_is_made(plan: Plan) -> None:
    thousand = list(range(1, 1001))
    entry = {"name": "gem", "params": {"p": thousand, "eps": thousand}}
    start = time.process_time()
    said = plan(dumped(VALID | {"pools": [entry] * 3, "seeds": thousand, "recipe": {"epochs": 0}}))
    assert time.process_time() - start < 5
    assert any("expected at most 1,000 trials, got " in line for line in said), said
    assert any("take some out, or raise max_trials, up to " in line for line in said), said
    assert any("recipe.epochs" in line for line in said), "and all else that is wrong"


def test_as_many_as_allowed_are_planned_and_one_more_is_not(plan: Plan) -> None:
    space = VALID | {"pools": ["gap", "gem"], "max_trials": 8}
    assert plan(dumped(space)) == []
    (said,) = plan(dumped(space | {"max_trials": 7}))
    assert "expected at most 7 trials, got 8: pools x 2 pairs x 2 seeds" in said
    (said,) = plan(dumped(VALID | {"max_trials": MOST_TRIALS + 1}))
    assert "max_trials" in said


def test_the_largest_plan_takes_seconds_and_no_gigabyte(tmp_path: Path) -> None:
    """Alone 1 s and 230 MiB; a grid of parameters 2 s and 240 MiB, a million trials with `max_trials` raised 9 s and
    820 MiB."""
    pairs = [
        {"arch": arch, "dataset": "digits"} for arch in ("resnet20", "resnet32", "resnet44", "resnet56", "vgg11bn")
    ]
    seeds = list(range(MAX_TRIALS // len(pairs) // 2))
    space = {"name": "large", "pairs": pairs, "pools": ["gap", "gem"], "seeds": seeds}
    (tmp_path / "large.yaml").write_text(json.dumps(space))
    code = (
        "import re, resource, sys; from orchestrator import cli; code = cli.main(sys.argv[1:]);"
        "used = resource.getrusage(resource.RUSAGE_SELF).ru_utime;"  # its ru_maxrss is that of whoever forked it
        "peak = re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read());"
        "print(code, used, peak[1] if peak else 0, file=sys.stderr)"
    )
    command = [sys.executable, "-c", code, "--space", str(tmp_path / "large.yaml"), "--plan"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    exit_code, seconds, kib = done.stderr.split()[-3:]
    assert int(exit_code) == cli.OK
    assert done.stdout.count("to do") == MAX_TRIALS
    assert float(seconds) < 10  # of the processor: others share it
    assert int(kib) < 2**20
