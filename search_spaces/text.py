"""Text that does no more than stand where it is shown: in a terminal, a table, a page.

A label may be whatever a person can read. What it may not have are characters that move a cursor, end a line, turn the
direction of what follows or cannot be encoded. A space file or a run folder with one in a name is refused; in other
text from elsewhere, such as a candidate's exception, they are spelled out.
"""

from __future__ import annotations

import re
import unicodedata
from io import StringIO
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table

# Control characters with ESC and the line ends, Unicode's own line ends, marks of direction, lone surrogates.
_UNPRINTABLE = re.compile("[\0-\x1f\x7f-\x9f\u2028\u2029\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def visible(text: str, keep: str = "") -> str:
    r"""The text with every such character as `\u001b`; `keep` are those that stay, such as line ends."""
    return _UNPRINTABLE.sub(lambda found: found[0] if found[0] in keep else f"\\u{ord(found[0]):04x}", text)


def unprintable(text: str) -> str | None:
    """What the first such character of a text is called, `U+001B`, or `U+202E RIGHT-TO-LEFT OVERRIDE`; None: none."""
    found = _UNPRINTABLE.search(text)
    return found and f"U+{ord(found[0]):04X} {unicodedata.name(found[0], '')}".strip()


def plain(table: Table) -> list[str]:
    """The table's lines, as wide as it needs to be whatever the terminal, without colours and blanks at their ends.

    Its cells are texts as they stand: `[red]` is a label like any other, and `:smile:` another.
    """
    from rich.console import Console  # only who shows something: a worker does without

    sink = StringIO()
    Console(file=sink, width=1000, color_system=None, markup=False, emoji=False).print(table)
    return [line.rstrip() for line in sink.getvalue().splitlines()]


def duration(seconds: float) -> str:
    """Spell a duration for people: `45 s`, `12 min`, `3 h 05 min`."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02} min"
