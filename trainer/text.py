"""Tables as plain text."""

from __future__ import annotations

from io import StringIO

from rich.console import Console
from rich.table import Table


def plain(table: Table) -> list[str]:
    """The table's lines, as wide as it needs to be whatever the terminal, without colours and blanks at their ends."""
    sink = StringIO()
    Console(file=sink, width=1000, color_system=None).print(table)
    return [line.rstrip() for line in sink.getvalue().splitlines()]
