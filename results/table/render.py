"""The table laid out once, as `Wide`, and its views: text, Markdown, LaTeX, HTML; and CSV, which is the frame itself.

Rows are pools, baselines first; columns are pairs. A cell is a few lines: mean ± standard deviation (seeds), the
difference to each baseline, and what is not in the mean. `results.page.report` shows the same `Wide`.
"""

from __future__ import annotations

import html
import math
import re
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import pandas as pd
from rich import box
from rich.table import Table
from rich.text import Text

from results.store import schema
from results.table.leaderboard import ALPHA, GAPS, across, best_baselines, groups, names
from results.table.trials import CELL, METRICS
from search_spaces.grid import BASELINE
from search_spaces.text import plain

SORTS = ("gain", "mean", "name")
BETTER, WORSE, ALIKE, FAR = "▲", "▼", "≡", "⚑"
WITHHELD = "withheld"


# The layout


@dataclass(frozen=True, slots=True)
class Difference:
    """A line of a cell: `-0.74 [-1.14, -0.34] ▼`, or `best baseline`.

    Attributes:
        verdict: `better`, `worse`, or empty where the two cannot be told apart.
    """

    text: str
    verdict: str = ""


@dataclass(frozen=True, slots=True)
class Cell:
    """What stands in the table for a pool on a pair; empty where there is nothing to say.

    Attributes:
        mean: `99.35`, of the completed trials.
        spread: `± 0.16 (3) ⚑`: their standard deviation, how many they are, and whether a value is far off.
        differences: to the best baseline, or to every one.
        gaps: `3 diverged, 1 missing`: what is not in the mean; `withheld` for a hidden pair before the final run.
    """

    mean: str = ""
    spread: str = ""
    differences: tuple[Difference, ...] = ()
    gaps: str = ""

    @property
    def lines(self) -> list[str]:
        lines = [f"{self.mean} {self.spread}".strip(), *(one.text for one in self.differences), self.gaps]
        return [line for line in lines if line] or [""]


@dataclass(frozen=True, slots=True)
class Row:
    """A pool: its name, its role, and its cell for each pair."""

    name: str
    role: str
    cells: tuple[Cell, ...]


class Wide:
    """The table before it is drawn.

    Args:
        frame: of `results.table.leaderboard.cells`.
        metric: what its figures are.
        notes: lines to put below the footer.
        sort: how baselines and candidates are each ordered: `gain`, the mean difference to the best baseline of each
            column; `mean`, over the pairs that the pool has finished; or `name`.
        every: show the differences to all baselines of the frame, and not to the best one alone.

    Attributes:
        pairs: (arch, dataset) of the columns.
        rows: baselines first, then candidates.
        footer: what a reader has to know before believing the table, one line each.
    """

    def __init__(
        self,
        frame: pd.DataFrame,
        metric: str = METRICS[0],
        notes: Sequence[str] = (),
        sort: str = SORTS[0],
        every: bool = False,
    ):
        self.frame = frame
        self.pairs = list(frame[["arch", "dataset"]].drop_duplicates().itertuples(index=False, name=None))
        self.footer = [*footer(frame, metric, every), *notes]
        best, name_of = best_baselines(frame), names(frame)
        ordered = []
        for (pool, revision, role), mine in groups(frame, ["pool", "revision", "role"]):
            row = Row(
                name_of(pool, revision), role, tuple(_cell(mine, pair, best.get(pair), every) for pair in self.pairs)
            )
            ordered.append(((role != BASELINE, _order(sort, row.name, mine, best)), row))
        self.rows: Sequence[Row] = [row for _, row in sorted(ordered, key=lambda item: item[0])]

    @property
    def columns(self) -> list[str]:
        """The pairs as a head of the table spells them, `arch-dataset`."""
        return ["-".join(pair) for pair in self.pairs]


def _order(sort: str, name: str, mine: pd.DataFrame, best: Mapping[tuple[str, str], str]) -> Any:
    """Return what a row is sorted by. More finished pairs come before fewer: half of them may be the easy half."""
    if sort == "name":
        return name
    gains, means = [], []
    for pair, here in mine.groupby(["arch", "dataset"], sort=False):
        row = here.iloc[0]
        if row["n"]:
            means.append(row["mean"])
            against = here.loc[here["baseline"] == best.get(pair), "diff"]  # type: ignore[arg-type]
            gains.append(0.0 if row["pool"] == best.get(pair) or against.empty else against.iloc[0])  # type: ignore[arg-type]
    if not means:
        return (math.inf, 0.0)
    return (-len(means), -sum(gains if sort == "gain" else means) / len(means))


def _cell(mine: pd.DataFrame, pair: tuple[str, str], best: str | None, every: bool) -> Cell:
    here = mine[(mine["arch"] == pair[0]) & (mine["dataset"] == pair[1])]
    if here.empty:
        return Cell()
    row: Any = here.iloc[0]
    gaps = WITHHELD if is_withheld(row) else ", ".join(f"{row[status]} {status}" for status in GAPS if row[status])
    if not row["n"]:
        return Cell(gaps=gaps)
    deviation = f"± {row['std']:.2f} " if row["n"] > 1 else ""
    far = f" {FAR}" if pd.notna(row["flags"]) else ""
    return Cell(f"{row['mean']:.2f}", f"{deviation}({row['n']}){far}", _differences(here, best, every), gaps)


def _differences(here: pd.DataFrame, best: str | None, every: bool) -> tuple[Difference, ...]:
    if not every and here["pool"].iloc[0] == best:
        return (Difference("best baseline"),)
    compared = here[here["diff"].notna() & (every | (here["baseline"] == best))]
    rows = compared.to_dict("records")
    return tuple(_difference(row, f" {row['baseline']}" if every else "") for row in rows)


def _difference(row: Mapping[Any, Any], name: str) -> Difference:
    marks = [ALIKE] * row["alike"] + [BETTER] * row["better"] + [WORSE] * row["worse"]
    interval = [] if math.isnan(row["diff_lo"]) else [f"[{row['diff_lo']:+.2f}, {row['diff_hi']:+.2f}]"]
    fewer = [f"over {row['n_pairs']}"] if row["paired"] and row["n_pairs"] != row["n"] else []
    verdict = "better" if row["better"] else "worse" if row["worse"] else ""
    return Difference(" ".join([f"{row['diff']:+.2f}", *interval, *fewer, *marks]) + name, verdict)


def is_withheld(row: Any) -> bool:
    """Return whether a hidden cell has not been started: nothing in it has ended."""
    return bool(row.hidden and row.missing and not any(getattr(row, status) for status in schema.STATUSES))


# The views


def to_text(wide: Wide) -> str:
    """Draw plain text, as wide as it needs to be, with the footer under it."""
    cells = [[row.name, *("\n".join(cell.lines) for cell in row.cells)] for row in wide.rows]
    ends = [above.role != below.role for above, below in pairwise(wide.rows)]
    return text_table(["pool", *wide.columns], cells, range(1, 1 + len(wide.pairs)), wide.footer, ends)


def text_table(
    head: Sequence[str],
    rows: Iterable[Sequence[str]],
    right: Iterable[int],
    footer: Sequence[str],
    ends: Sequence[bool] = (),
) -> str:
    """Draw rows of cells as plain text.

    Args:
        right: the columns, by position, whose cells stand to the right.
        footer: what stands below, each line wrapped to the width of the table.
        ends: whether a gap follows, row by row.
    """
    table, aligned = Table(box=box.SIMPLE_HEAD), set(right)
    for at, name in enumerate(head):
        table.add_column(Text(name), justify="right" if at in aligned else "left", no_wrap=at > 0)
    for at, row in enumerate(rows):
        table.add_row(*map(Text, row), end_section=at < len(ends) and ends[at])
    lines = plain(table)
    width = max(80, *map(len, lines))
    return "\n".join([*lines, *(textwrap.fill(line, width) for line in footer), ""])


def to_markdown(wide: Wide) -> str:
    """Draw GitHub's Markdown."""
    rows = [[[row.name], [row.role], *(cell.lines for cell in row.cells)] for row in wide.rows]
    return markdown_table(["pool", "role", *wide.columns], rows, range(2, 2 + len(wide.pairs)), wide.footer)


def markdown_table(
    head: Sequence[str], rows: Iterable[Sequence[Sequence[str]]], right: Iterable[int], footer: Sequence[str]
) -> str:
    """Draw rows of cells, a few lines each, as GitHub's Markdown; see `text_table`."""
    aligned = set(right)
    lines = [list(map(markdown, head)), ["---:" if at in aligned else "---" for at in range(len(head))]]
    lines += [["<br>".join(map(markdown, cell)) for cell in row] for row in rows]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    below = "\n\n".join(map(markdown, footer))
    return f"{table}\n\n{below}\n"


def to_latex(wide: Wide) -> str:
    r"""Draw a `tabular` for booktabs (`\usepackage{booktabs}`), the footer as comments: a caption is the author's."""
    lines = [f"% {line}" for line in wide.footer]
    lines += [rf"\begin{{tabular}}{{l{'r' * len(wide.pairs)}}}", r"\toprule"]
    lines.append(" & ".join(["pool", *map(_latex, wide.columns)]) + r" \\")
    for above, row in zip([None, *wide.rows], wide.rows, strict=False):
        if above is None or above.role != row.role:
            lines.append(r"\midrule")
        for depth in range(max((len(cell.lines) for cell in row.cells), default=1)):
            texts = [_latex(cell.lines[depth]) if depth < len(cell.lines) else "" for cell in row.cells]
            small = texts if depth == 0 else [text and rf"{{\footnotesize {text}}}" for text in texts]
            lines.append(" & ".join([_latex(row.name) if depth == 0 else "", *small]) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])


def to_html(wide: Wide) -> str:
    """Draw a table for a notebook's cell, with its footer."""

    def line(tag: str, texts: Sequence[str], style: str = "") -> str:
        sides = ["left"] + ["right"] * len(wide.pairs)
        cells = (f'<{tag} style="text-align: {side}">{t}</{tag}>' for side, t in zip(sides, texts, strict=True))
        return f"<tr{style}>{''.join(cells)}</tr>"

    rows = [line("th", ["pool", *map(html.escape, wide.columns)])]
    for above, row in zip([None, *wide.rows], wide.rows, strict=False):
        first_of_role = above is not None and above.role != row.role
        texts = [html.escape(row.name), *("<br>".join(map(html.escape, cell.lines)) for cell in row.cells)]
        rows.append(line("td", texts, ' style="border-top: 1px solid"' if first_of_role else ""))
    below = "<br>".join(map(html.escape, wide.footer))
    return f"<table>{''.join(rows)}</table><p>{below}</p>"


def to_csv(wide: Wide) -> str:
    """Write the tidy frame, every digit of it."""
    return csv(wide.frame)


def csv(frame: pd.DataFrame) -> str:
    """Write a frame, every digit of it, and no text in it that a spreadsheet takes for a formula."""
    texts = frame.select_dtypes(["object", "string"])
    safe = {str(name): column.map(csv_cell, na_action="ignore") for name, column in texts.items()}
    return frame.assign(**safe).to_csv(index=False, lineterminator="\n")


FORMATS: Mapping[str, Callable[[Wide], str]] = {
    "text": to_text,
    "markdown": to_markdown,
    "csv": to_csv,
    "latex": to_latex,
    "html": to_html,
}


# The footer


def footer(frame: pd.DataFrame, metric: str, every: bool) -> list[str]:
    """Return what a reader has to know before believing the table, and every gap in it by name."""
    one = frame.drop_duplicates(CELL)
    picked = "best epoch on the test set, as the benchmark publishes it" if metric == METRICS[0] else "last epoch"
    lines = [f"{metric} in percent ({picked}): mean ± standard deviation (seeds)."]
    lines += [*_about_differences(frame, every), *_about_pairs(frame)]
    if (found := one[one["flags"].notna()]).size:
        named = [f"{row.pool} on {row.arch}-{row.dataset} ({row.flags})" for row in found.itertuples()]
        lines.append(f"{FAR} far from its siblings, and in the mean all the same: {'; '.join(named)}.")
    for status in GAPS:
        named = [
            f"{row.pool} on {row.arch}-{row.dataset} ({getattr(row, status)})"
            for row in one.itertuples()
            if getattr(row, status) and not is_withheld(row)
        ]
        if named:
            lines.append(f"{status.capitalize()}, not in any mean: {'; '.join(named)}.")
    withheld = dict.fromkeys(f"{row.arch}-{row.dataset}" for row in one.itertuples() if is_withheld(row))
    if withheld:
        lines.append(f"Withheld until the final run (--final): {', '.join(withheld)}.")
    return lines


def _about_differences(frame: pd.DataFrame, every: bool) -> list[str]:
    best = best_baselines(frame)
    sides = zip(frame["arch"], frame["dataset"], frame["baseline"].fillna(""), strict=True)
    is_shown = [every or best.get((arch, dataset)) == baseline for arch, dataset, baseline in sides]
    shown = frame[frame["diff"].notna() & pd.Series(is_shown, index=frame.index, dtype=bool)]
    if shown.empty:
        return []
    lines = [
        f"Below it, the difference to {'each baseline' if every else 'the best baseline of the column'}, paired by "
        "seed, with its 95 % t interval; a single seed has no interval, and says nothing about the next one."
    ]
    if (shown["paired"] & (shown["n_pairs"] != shown["n"])).any():
        lines.append("`over n`: only so many of the cell's seeds are the baseline's too, and make the difference.")
    if (shown["diff_lo"].isna() & (shown["n_pairs"] > 1)).any():
        lines.append("No interval either where all pairs differ by exactly the same: that is no sign of certainty.")
    if family := int(frame["p_holm"].notna().sum()):
        found = "" if (shown["better"] | shown["worse"]).any() else ": none here"
        lines.append(
            f"{BETTER} better, {WORSE} worse: p < {ALPHA:.2f} after Holm over the {family} "
            f"comparison{'s' * (family > 1)} of candidates with baselines{found}."
        )
    if shown["alike"].any():
        lines.append(f"{ALIKE}: it starts as the same function as that baseline.")
    if unpaired := [f"{row.pool} on {row.arch}-{row.dataset}" for row in shown[~shown["paired"]].itertuples()]:
        lines.append(f"Without a seed in common, so by Welch's test: {', '.join(dict.fromkeys(unpaired))}.")
    return lines


def _about_pairs(frame: pd.DataFrame) -> list[str]:
    """Return what so many seeds can find, and what all columns say together."""
    lines = []
    can = frame[frame["detectable"].notna()]
    if not can.empty:
        worst = can.groupby(["arch", "dataset"], sort=False)["detectable"].agg(["min", "max"])
        named = [
            f"{arch}-{dataset} {low:.2f}" + (f" to {high:.2f}" if high - low > 0.005 else "")
            for (arch, dataset), low, high in worst.itertuples(name=None)  # type: ignore[misc]
        ]
        lines.append(
            f"Minimum detectable difference (points, 80 % power, at the strictest step of Holm): {', '.join(named)}."
        )
    over = across(frame)
    if not over.empty:
        named = [
            f"{row['pool']} {row['diff']:+.2f} over {row['pairs']} "
            f"(p {'< 0.01' if row['p_holm'] < 0.01 else format(row['p_holm'], '.2f')})"
            for row in over.to_dict("records")
        ]
        pairs, baseline = over["pairs"].max(), over["baseline"].iloc[0]
        least = f"; {pairs} columns alone cannot go below {2 / 2**pairs:.2f}" if 2 / 2**pairs > ALPHA else ""
        lines.append(
            f"Mean over columns against {baseline}, by an exact sign-flip test, Holm over the candidates{least}: "
            f"{', '.join(named)}."
        )
    return lines


# Escapes


def markdown(text: str) -> str:
    """Escape for a cell or a line of GitHub's Markdown: no emphasis, code, link, mathematics or HTML comes of it."""
    return _MARKDOWN.sub(r"\\\g<0>", text)


# An underscore within a word is one; `://` and `www.` make links without any brackets.
_MARKDOWN = re.compile(r"[\\`*\[\]<>|~&$#]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])|:(?=//)|(?<=www)\.")


def csv_cell(text: str) -> str:
    """Put an apostrophe in front of a text that a spreadsheet would take for a formula.

    A text that has one already gets another, so that two texts that differ stay different. Numbers are not texts.
    """
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "'", "\t", "\r")) else text


_LATEX = {
    **{c: rf"\{c}" for c in "&%$#_{}"},
    **{"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"},
    **{
        "±": r"$\pm$",
        BETTER: r"$\blacktriangle$",
        WORSE: r"$\blacktriangledown$",
        ALIKE: r"$\equiv$",
        FAR: r"$\dagger$",
    },
    **{"<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}"},
    **{"'": r"\textquotesingle{}", '"': "''", "`": r"\textasciigrave{}"},
    **{c: f"{{{c}}}" for c in "-[*"},  # no dash of two of them; and after \\ these two would be its arguments
}


def _latex(text: str) -> str:
    return "".join(_LATEX.get(character) or _letter(character) for character in text)


def _letter(character: str) -> str:
    """Keep what LaTeX has without a package; spell anything else by its number, in typewriter."""
    return character if character.isascii() or character in _ACCENTED else rf"\texttt{{U+{ord(character):04X}}}"


_ACCENTED = {*map(chr, range(0xC0, 0x180))} - {*"ÐÞðþĄąĐđĘęĦħĮįĸĿŀŉŊŋŦŧŲųſ"}
