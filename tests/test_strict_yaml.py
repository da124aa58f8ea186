"""YAML by the core schema of 1.2, against its table; and files that readers of 1.1 and 1.2 take for the same."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from search_spaces import strict_yaml

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
