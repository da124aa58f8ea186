"""The table laid out once, as `Wide`, and its views: text, Markdown, LaTeX, HTML; and CSV, which is the frame itself.

Rows are pools, baselines first; columns are pairs. A cell is a few lines: mean ± standard deviation (seeds), the
difference to each baseline, and what is not in the mean. `results.page.report` shows the same `Wide`, and
`results.table.reproduce` has a `Layout` of its own for the same views.
"""

from __future__ import annotations

import html
import math
import re
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import pandas as pd
from rich import box
from rich.table import Table
from rich.text import Text

from results.store import schema
from results.table import stats
from results.table.leaderboard import GAPS, across, best_baselines, names
from results.table.trials import CELL, METRICS
from search_spaces.grid import BASELINE, ROLES
from search_spaces.text import plain

SORTS = ("gain", "mean", "name")
BETTER, WORSE, ALIKE, FAR = "▲", "▼", "≡", "⚑"
WITHHELD = "withheld"

Record = Mapping[Any, Any]  # a row of the tidy frame


# The layout


@dataclass
class Layout:
    """A table before it is drawn. Its rows are in sections, a row is its cells, and a cell is its lines."""

    frame: pd.DataFrame  # the same, tidy: CSV
    head: Sequence[str]
    align: str  # `l` or `r` for each column, as LaTeX has them
    sections: Mapping[str, Sequence[Sequence[Sequence[str]]]]  # by what the rows of each have in common
    footer: Sequence[str]  # what a reader has to know before believing the table


@dataclass(frozen=True, slots=True)
class Difference:
    """A line of a cell: `-0.74 [-1.14, -0.34] ▼`, or `best baseline`."""

    text: str
    verdict: str = ""  # `better` or `worse`, where the two can be told apart


@dataclass(frozen=True, slots=True)
class Cell:
    """What stands in the table for a pool on a pair; empty where there is nothing to say."""

    mean: str = ""  # `99.35`, of the completed trials
    spread: str = ""  # `± 0.16 (3) ⚑`: their standard deviation, how many they are, and whether a value is far off
    differences: tuple[Difference, ...] = ()  # to the best baseline, or to every one
    gaps: str = ""  # `3 diverged, 1 missing`: what is not in the mean; `withheld` before the final run

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


class Wide(Layout):
    """The frame of `results.table.leaderboard.cells`, laid out: `rows`, baselines first, by `pairs`, (arch, dataset).

    Args:
        notes: lines to put below the footer.
        sort: how baselines and candidates are each ordered: `gain`, the mean difference to the best baseline of each
            column; `mean`, over the pairs that the pool has finished; or `name`.
        every: show the differences to all baselines of the frame, and not to the best one alone.
    """

    def __init__(
        self,
        frame: pd.DataFrame,
        metric: str = METRICS[0],
        notes: Sequence[str] = (),
        sort: str = SORTS[0],
        every: bool = False,
    ):
        known = _with_what_views_ask(frame)
        self.pairs = list(dict.fromkeys(zip(known["arch"], known["dataset"], strict=True)))
        pools: dict[tuple[str, str, str], dict[tuple[str, str], list[Record]]] = {}
        for one in known.to_dict("records"):
            cells = pools.setdefault((one["pool"], one["revision"], one["role"]), {})
            cells.setdefault((one["arch"], one["dataset"]), []).append(one)
        name_of, ordered = names(frame), []
        for (pool, revision, role), cells in pools.items():
            row = Row(name_of(pool, revision), role, tuple(_cell(cells.get(pair, ()), every) for pair in self.pairs))
            ordered.append(((role != BASELINE, _order(sort, row.name, list(cells.values()))), row))
        self.rows: Sequence[Row] = [row for _, row in sorted(ordered, key=lambda item: item[0])]
        super().__init__(
            frame,
            ["pool", *map("-".join, self.pairs)],
            "l" + "r" * len(self.pairs),
            {
                role: [[[row.name], *(cell.lines for cell in row.cells)] for row in self.rows if row.role == role]
                for role in ROLES
            },
            [*_footer(known, metric, every), *notes],
        )


def _with_what_views_ask(frame: pd.DataFrame) -> pd.DataFrame:
    """Add the column, the cell in words, its column's best baseline, and whether it is hidden and not yet started."""
    pair, best = frame["arch"] + "-" + frame["dataset"], best_baselines(frame)
    filled = frame.fillna({"revision": "", "baseline": "", "flags": ""})
    of_pairs = [best.get(key) for key in zip(frame["arch"], frame["dataset"], strict=True)]
    of_column = pd.Series(of_pairs, index=frame.index, dtype=object)
    return filled.assign(
        pair=pair,
        cell=frame["pool"] + " on " + pair,
        best=of_column,
        against_best=filled["baseline"].astype(object) == of_column,
        withheld=frame["hidden"] & (frame["missing"] > 0) & (frame[list(schema.STATUSES)].sum(axis=1) == 0),
    )


def _order(sort: str, name: str, cells: Iterable[Sequence[Record]]) -> Any:
    """Return what a row is sorted by. More finished pairs come before fewer: half of them may be the easy half."""
    if sort == "name":
        return name
    finished = [rows for rows in cells if rows[0]["n"]]
    if not finished:
        return (math.inf, 0.0)
    values = [rows[0]["mean"] if sort == "mean" else _gain(rows) for rows in finished]
    return (-len(values), -sum(values) / len(values))


def _gain(rows: Sequence[Record]) -> float:
    """Return a cell's difference to the best baseline of its column; 0 for that baseline itself."""
    return next((row["diff"] for row in rows if row["against_best"] and row["pool"] != row["best"]), 0.0)


def _cell(rows: Sequence[Record], every: bool) -> Cell:
    if not rows:
        return Cell()
    one = rows[0]
    gaps = WITHHELD if one["withheld"] else ", ".join(f"{one[status]} {status}" for status in GAPS if one[status])
    if not one["n"]:
        return Cell(gaps=gaps)
    deviation = f"± {one['std']:.2f} " if one["n"] > 1 else ""
    far = f" {FAR}" if one["flags"] else ""
    compared = [row for row in rows if (every or row["against_best"]) and not math.isnan(row["diff"])]
    differences = [_difference(row, f" {row['baseline']}" if every else "") for row in compared]
    if not every and one["pool"] == one["best"]:
        differences = [Difference("best baseline")]
    return Cell(f"{one['mean']:.2f}", f"{deviation}({one['n']}){far}", tuple(differences), gaps)


def _difference(row: Record, name: str) -> Difference:
    marks = [ALIKE] * row["alike"] + [BETTER] * row["better"] + [WORSE] * row["worse"]
    interval = [] if math.isnan(row["diff_lo"]) else [f"[{row['diff_lo']:+.2f}, {row['diff_hi']:+.2f}]"]
    fewer = [f"over {row['n_pairs']}"] if row["paired"] and row["n_pairs"] != row["n"] else []
    verdict = "better" if row["better"] else "worse" if row["worse"] else ""
    return Difference(" ".join([f"{row['diff']:+.2f}", *interval, *fewer, *marks]) + name, verdict)


# The views


def to_text(layout: Layout) -> str:
    """Draw plain text, as wide as it needs to be, with the footer wrapped under it."""
    table = Table(box=box.SIMPLE_HEAD)
    for at, (name, side) in enumerate(zip(layout.head, layout.align, strict=True)):
        table.add_column(Text(name), justify="right" if side == "r" else "left", no_wrap=at > 0)
    for rows in layout.sections.values():
        for row in rows:
            table.add_row(*(Text("\n".join(cell)) for cell in row))
        table.add_section()
    lines = plain(table)
    width = max(80, *map(len, lines))
    return "\n".join([*lines, *(textwrap.fill(line, width) for line in layout.footer), ""])


def to_markdown(layout: Layout) -> str:
    """Draw GitHub's Markdown, which has no sections: their names are a column."""
    lines = [list(map(markdown, layout.head)), ["---:" if side == "r" else "---" for side in layout.align]]
    sections = ["role", "---"]
    for section, rows in layout.sections.items():
        lines += [["<br>".join(map(markdown, cell)) for cell in row] for row in rows]
        sections += [section] * len(rows)
    if any(layout.sections):
        lines = [[line[0], section, *line[1:]] for line, section in zip(lines, sections, strict=True)]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    below = "\n\n".join(map(markdown, layout.footer))
    return f"{table}\n\n{below}\n"


def to_latex(layout: Layout) -> str:
    r"""Draw a `tabular` for booktabs (`\usepackage{booktabs}`), the footer as comments: a caption is the author's."""
    lines = [f"% {line}" for line in layout.footer]
    lines += [rf"\begin{{tabular}}{{{layout.align}}}", r"\toprule", " & ".join(map(_latex, layout.head)) + r" \\"]
    for rows in layout.sections.values():
        lines += [r"\midrule"] * bool(rows)
        for row in rows:
            first, *others = zip_longest(*(map(_latex, cell) for cell in row), fillvalue="")
            small = [[text and rf"{{\footnotesize {text}}}" for text in texts] for texts in others]
            lines += [" & ".join(texts) + r" \\" for texts in (first, *small)]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])


def to_html(layout: Layout) -> str:
    """Draw a table for a notebook's cell, with its footer."""

    def line(tag: str, cells: Sequence[Sequence[str]], style: str = "") -> str:
        sides = ("right" if side == "r" else "left" for side in layout.align)
        texts = ("<br>".join(map(html.escape, cell)) for cell in cells)
        drawn = (f'<{tag} style="text-align: {side}">{t}</{tag}>' for side, t in zip(sides, texts, strict=True))
        return f"<tr{style}>{''.join(drawn)}</tr>"

    lines = [line("th", [[name] for name in layout.head])]
    for rows in layout.sections.values():
        above = ' style="border-top: 1px solid"' if len(lines) > 1 else ""
        lines += [line("td", row, above if at == 0 else "") for at, row in enumerate(rows)]
    below = "<br>".join(map(html.escape, layout.footer))
    return f"<table>{''.join(lines)}</table><p>{below}</p>"


def to_csv(layout: Layout) -> str:
    """Write the tidy frame, every digit of it, and no text in it that a spreadsheet takes for a formula."""
    texts = layout.frame.select_dtypes(["object", "string"])
    safe = {str(name): column.map(csv_cell, na_action="ignore") for name, column in texts.items()}
    return layout.frame.assign(**safe).to_csv(index=False, lineterminator="\n")


FORMATS: Mapping[str, Callable[[Layout], str]] = {
    "text": to_text,
    "markdown": to_markdown,
    "csv": to_csv,
    "latex": to_latex,
    "html": to_html,
}


# The footer


def _footer(frame: pd.DataFrame, metric: str, every: bool) -> list[str]:
    """Return what a reader has to know before believing the table, and every gap in it by name."""
    one = frame.drop_duplicates(CELL)
    picked = "best epoch on the test set, as the benchmark publishes it" if metric == METRICS[0] else "last epoch"
    lines = [f"{metric} in percent ({picked}): mean ± standard deviation (seeds)."]
    lines += [*_about_differences(frame, every), *_about_detectable(frame), *_about_all_columns(frame)]
    named = [f"{row.cell} ({row.flags})" for row in one.itertuples() if row.flags]
    lines += [f"{FAR} far from its siblings, and in the mean all the same: {'; '.join(named)}."] if named else []
    started = one[~one["withheld"]]
    for status in GAPS:
        named = [f"{cell} ({n})" for cell, n in zip(started["cell"], started[status], strict=True) if n]
        lines += [f"{status.capitalize()}, not in any mean: {'; '.join(named)}."] if named else []
    withheld = one.loc[one["withheld"], "pair"].unique()
    return [*lines, f"Withheld until the final run (--final): {', '.join(withheld)}."] if len(withheld) else lines


def _about_differences(frame: pd.DataFrame, every: bool) -> list[str]:
    shown = frame[(frame["against_best"] | every) & frame["diff"].notna()]
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
            f"{BETTER} better, {WORSE} worse: p < {stats.ALPHA:.2f} after Holm over the {family} "
            f"comparison{'s' * (family > 1)} of candidates with baselines{found}."
        )
    if shown["alike"].any():
        lines.append(f"{ALIKE}: it starts as the same function as that baseline.")
    if len(unpaired := shown.loc[~shown["paired"], "cell"].unique()):
        lines.append(f"Without a seed in common, so by Welch's test: {', '.join(unpaired)}.")
    return lines


def _about_detectable(frame: pd.DataFrame) -> list[str]:
    can = frame[frame["detectable"].notna()].groupby("pair", sort=False)["detectable"].agg(["min", "max"])
    named = [
        f"{pair} {low:.2f}" + (f" to {high:.2f}" if high - low > 0.005 else "")
        for pair, low, high in can.itertuples(name=None)
    ]
    what = "Minimum detectable difference (points, 80 % power, at the strictest step of Holm)"
    return [f"{what}: {', '.join(named)}."] if named else []


def _about_all_columns(frame: pd.DataFrame) -> list[str]:
    over = across(frame)
    if over.empty:
        return []
    ps = ("< 0.01" if p < 0.01 else f"{p:.2f}" for p in over["p_holm"])
    rows = zip(over["pool"], over["diff"], over["pairs"], ps, strict=True)
    named = [f"{pool} {diff:+.2f} over {pairs} (p {p})" for pool, diff, pairs, p in rows]
    pairs, baseline = over["pairs"].max(), over["baseline"].iloc[0]
    least = f"; {pairs} columns alone cannot go below {2 / 2**pairs:.2f}" if 2 / 2**pairs > stats.ALPHA else ""
    return [
        f"Mean over columns against {baseline}, by an exact sign-flip test, Holm over the candidates{least}: "
        f"{', '.join(named)}."
    ]


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
    """Keep what LaTeX has without a package; spell a character that it lacks by its number, in typewriter."""
    known = {c: c if c.isascii() or c in _ACCENTED else rf"\texttt{{U+{ord(c):04X}}}" for c in text} | _LATEX
    return "".join(known[c] for c in text)


_ACCENTED = {*map(chr, range(0xC0, 0x180))} - {*"ÐÞðþĄąĐđĘęĦħĮįĸĿŀŉŊŋŦŧŲųſ"}
