"""Text that is shown and does nothing else: in a terminal, a table, a page.

A label may be anything that a person can read. It may not have characters that move a cursor, end a line, reverse the
direction of the text or cannot be encoded. A space file or a run folder with such a name is refused. In other text,
such as the exception of a candidate, these characters are spelled out.
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
    r"""Return the text with every such character as `\u001b`, but for those in `keep`, such as line ends."""
    return _UNPRINTABLE.sub(lambda found: found[0] if found[0] in keep else f"\\u{ord(found[0]):04x}", text)


def unprintable(text: str) -> str | None:
    """Return the first such character of a text, as `U+202E RIGHT-TO-LEFT OVERRIDE`; None if it has none."""
    found = _UNPRINTABLE.search(text)
    return found and f"U+{ord(found[0]):04X} {unicodedata.name(found[0], '')}".strip()


def plain(table: Table) -> list[str]:
    """Return the table's lines, as wide as it needs to be, without colours and trailing blanks.

    Cells are shown as they are: `[red]` and `:smile:` are labels like any other.
    """
    from rich.console import Console  # here, because a worker does not need it

    sink = StringIO()
    Console(file=sink, width=1000, color_system=None, markup=False, emoji=False).print(table)
    return [line.rstrip() for line in sink.getvalue().splitlines()]


def first_line(text: str) -> str:
    """Return the first line that is not blank, without the blanks around it; nothing if there is none."""
    return next((line.strip() for line in text.splitlines() if line.strip()), "")


def last_line(text: str) -> str:
    """Return the last line that is not blank, without the blanks around it; nothing if there is none."""
    return first_line("\n".join(reversed(text.splitlines())))


def duration(seconds: float) -> str:
    """Spell a duration for people: `45 s`, `12 min`, `3 h 05 min`."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02} min"
