"""Plain data that somebody got wrong: valid data with odd things in odd places, as hypothesis draws them."""

from __future__ import annotations

import copy
from typing import Any

from hypothesis import strategies as st

ODD_TEXTS = st.sampled_from(
    [
        *("", " ", "..", "../../etc/passwd", "a/b", "a" * 300, "a" * 5000, "=cmd()", "\n", "\t", "\x1b[2J", "\ud800"),
        *("\u202egap", "{}", "[]", "gem(", "gem(p=", "gem(p={[]: 1})", "gem(p=" + "-" * 600 + "1)", "gem(p=1e999)"),
        *(
            "gem(**{})",
            "gem(p=0x" + "f" * 700 + ")",
            "gem(p='\\n')",
            "gem(p=b'')",
            "x.py:Other",
            ".py",
            "gap.py",
            "NaN",
        ),
        *("/dev/zero", "/dev/zero.py", "[/red]", "%n%s", "None", "0x_", "1e400", "\N{PILE OF POO}", "gem\0.py"),
    ]
)
ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 3),
    st.sampled_from([2**31, 2**63 - 1, 2**63, 2**64, 10**70, -(10**30)]),
    st.floats(),
    ODD_TEXTS,
    st.text(max_size=5),
    st.just([]),
    st.just({}),
    st.lists(ODD_TEXTS, max_size=3),
    st.dictionaries(st.one_of(ODD_TEXTS, st.integers(), st.none(), st.floats(allow_nan=False)), st.none(), max_size=2),
    st.just([[[[[1]]]]]),
    st.dates(),
    st.binary(max_size=4),
)


def places(data: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path of everything in plain data but the whole."""
    items = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    return [path for key, value in items for path in [(*at, key), *places(value, (*at, key))]]


@st.composite
def broken(draw: st.DrawFn, valid: Any) -> Any:
    """Valid data with one to three faults: something odd in a place, a key or item that is gone, misspelled, added."""
    data = copy.deepcopy(valid)
    for _ in range(draw(st.integers(1, 3))):
        everywhere = places(data)
        if not everywhere:
            break
        *path, last = draw(st.sampled_from(everywhere))
        parent = data
        for key in path:
            parent = parent[key]
        match draw(st.sampled_from(["odd", "odd", "gone", "misspelled", "added"])):
            case "odd":
                parent[last] = copy.deepcopy(draw(ODD))
            case "gone":
                del parent[last]
            case "misspelled" if isinstance(parent, dict):
                parent[f"{last}s"] = parent.pop(last)
            case "added" if isinstance(parent, dict):
                parent[draw(st.one_of(ODD_TEXTS, st.integers()))] = copy.deepcopy(draw(ODD))
            case _:
                parent.append(copy.deepcopy(draw(ODD))) if isinstance(parent, list) else None
    return data
