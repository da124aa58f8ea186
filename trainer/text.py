"""Tables as text, and what a name has to become in each kind of it to be a name and nothing else."""

from __future__ import annotations

import re
from io import StringIO

from rich.console import Console
from rich.table import Table


def plain(table: Table) -> list[str]:
    """The table's lines, as wide as it needs to be whatever the terminal, without colours and blanks at their ends.

    Its cells are texts as they stand: `[red]` is a label like any other, and `:smile:` another.
    """
    sink = StringIO()
    Console(file=sink, width=1000, color_system=None, markup=False, emoji=False).print(table)
    return [line.rstrip() for line in sink.getvalue().splitlines()]


def markdown(text: str) -> str:
    """For a cell or a line of GitHub's Markdown: no emphasis, code, link, mathematics or HTML comes of it."""
    return _MARKDOWN.sub(r"\\\g<0>", text)


# An underscore within a word is one; `://` and `www.` make links without any brackets.
_MARKDOWN = re.compile(r"[\\`*\[\]<>|~&$#]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])|:(?=//)|(?<=www)\.")


def csv_cell(text: str) -> str:
    """For a cell of CSV: what a spreadsheet would take for a formula has an apostrophe in front, which makes it text.

    So has what has one already, and two texts that differ stay different. Numbers are no texts, and stay as they are.
    """
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "'", "\t", "\r")) else text
