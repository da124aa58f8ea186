"""Wide views of the tidy leaderboard: text, Markdown, LaTeX and HTML; and CSV, which is the frame itself.

Rows are pools, baselines first; columns are pairs. A cell is a few lines: mean ± standard deviation (seeds), the
difference to each baseline, and what is not in the mean.
"""

from __future__ import annotations

import html
import math
import re
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
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

View = Callable[..., str]


def to_text(
    frame: pd.DataFrame, metric: str, notes: Sequence[str] = (), sort: str = SORTS[0], every: bool = False
) -> str:
    """Plain text, as wide as it needs to be, with the footer and notes under it."""
    wide = Wide(frame, sort, every)
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("pool")
    for pair in wide.pairs:
        table.add_column("-".join(pair), justify="right", no_wrap=True)
    for row, below in zip(wide.rows, [*wide.rows[1:], None], strict=False):
        last_of_role = below is not None and row.role != below.role
        table.add_row(Text(row.name), *(Text("\n".join(cell)) for cell in row.cells), end_section=last_of_role)
    lines = plain(table)
    width = max(80, *map(len, lines))
    return "\n".join([*lines, *(textwrap.fill(line, width) for line in footer(frame, metric, notes, every)), ""])


def to_markdown(
    frame: pd.DataFrame, metric: str, notes: Sequence[str] = (), sort: str = SORTS[0], every: bool = False
) -> str:
    """GitHub's Markdown."""
    wide = Wide(frame, sort, every)
    lines = [
        ["pool", "role", *(markdown("-".join(pair)) for pair in wide.pairs)],
        ["---", "---", *["---:"] * len(wide.pairs)],
    ]
    lines += [
        [markdown(row.name), row.role, *("<br>".join(map(markdown, cell)) for cell in row.cells)] for row in wide.rows
    ]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    below = "\n\n".join(map(markdown, footer(frame, metric, notes, every)))
    return f"{table}\n\n{below}\n"


def to_latex(
    frame: pd.DataFrame, metric: str, notes: Sequence[str] = (), sort: str = SORTS[0], every: bool = False
) -> str:
    r"""A `tabular` for booktabs (`\usepackage{booktabs}`), the footer as comments: what of it belongs in a caption
    is for the author to say."""
    wide = Wide(frame, sort, every)
    lines = [f"% {line}" for line in footer(frame, metric, notes, every)]
    lines += [rf"\begin{{tabular}}{{l{'r' * len(wide.pairs)}}}", r"\toprule"]
    lines.append(" & ".join(["pool", *(_latex("-".join(pair)) for pair in wide.pairs)]) + r" \\")
    for above, row in zip([None, *wide.rows], wide.rows, strict=False):
        if above is None or above.role != row.role:
            lines.append(r"\midrule")
        for depth in range(max(map(len, row.cells), default=1) or 1):
            texts = [_latex(cell[depth]) if depth < len(cell) else "" for cell in row.cells]
            small = texts if depth == 0 else [text and rf"{{\footnotesize {text}}}" for text in texts]
            lines.append(" & ".join([_latex(row.name) if depth == 0 else "", *small]) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])


def to_html(
    frame: pd.DataFrame, metric: str, notes: Sequence[str] = (), sort: str = SORTS[0], every: bool = False
) -> str:
    """A table for a notebook's cell, with its footer and notes."""
    wide = Wide(frame, sort, every)

    def line(tag: str, texts: Sequence[str], style: str = "") -> str:
        sides = ["left"] + ["right"] * len(wide.pairs)
        cells = (f'<{tag} style="text-align: {side}">{t}</{tag}>' for side, t in zip(sides, texts, strict=True))
        return f"<tr{style}>{''.join(cells)}</tr>"

    rows = [line("th", ["pool", *(html.escape("-".join(pair)) for pair in wide.pairs)])]
    for above, row in zip([None, *wide.rows], wide.rows, strict=False):
        first_of_role = above is not None and above.role != row.role
        texts = [html.escape(row.name), *("<br>".join(map(html.escape, cell)) for cell in row.cells)]
        rows.append(line("td", texts, ' style="border-top: 1px solid"' if first_of_role else ""))
    below = "<br>".join(map(html.escape, footer(frame, metric, notes, every)))
    return f"<table>{''.join(rows)}</table><p>{below}</p>"


def to_csv(frame: pd.DataFrame, *_: Any) -> str:
    """The tidy frame, every digit of it, and no text in it that a spreadsheet takes for a formula."""
    texts = frame.select_dtypes(["object", "string"])
    safe = {str(name): column.map(csv_cell, na_action="ignore") for name, column in texts.items()}
    return frame.assign(**safe).to_csv(index=False, lineterminator="\n")


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


FORMATS: Mapping[str, View] = {
    "text": to_text,
    "markdown": to_markdown,
    "csv": to_csv,
    "latex": to_latex,
    "html": to_html,
}


@dataclass(frozen=True, slots=True)
class Row:
    """A pool: its name, its role, and for each pair the lines of its cell."""

    name: str
    role: str
    cells: tuple[tuple[str, ...], ...]


class Wide:
    """The table before it is drawn.

    Attributes:
        pairs: (arch, dataset) of the columns.
        rows: baselines first, then candidates, each by `sort`: `gain`, the mean difference to the best baseline of each
            column; `mean`, over the pairs that it has finished; or `name`. With `every`, a cell has its differences to
            all baselines of the frame, and not to the best one alone.
    """

    def __init__(self, frame: pd.DataFrame, sort: str = SORTS[0], every: bool = False):
        self.pairs = list(frame[["arch", "dataset"]].drop_duplicates().itertuples(index=False, name=None))
        best = best_baselines(frame)
        name_of = names(frame)
        rows = []
        for (pool, revision, role), mine in groups(frame, ["pool", "revision", "role"]):
            shown = tuple(_cell(mine, pair, best.get(pair), every) for pair in self.pairs)
            name = name_of(pool, revision)
            rows.append(((role != BASELINE, _order(sort, name, mine, best)), Row(name, role, shown)))
        self.rows: Sequence[Row] = [row for _, row in sorted(rows, key=lambda item: item[0])]


def _order(sort: str, name: str, mine: pd.DataFrame, best: Mapping[tuple[str, str], str]) -> Any:
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
    # Over the pairs that it has finished, and more pairs before fewer: who has the easy half only is not ahead.
    return (-len(means), -sum(gains if sort == "gain" else means) / len(means))


def _cell(mine: pd.DataFrame, pair: tuple[str, str], best: str | None, every: bool) -> tuple[str, ...]:
    """`72.31 ± 0.22 (3)`, the difference to the best baseline or to every one, and what is not in the mean."""
    here = mine[(mine["arch"] == pair[0]) & (mine["dataset"] == pair[1])]
    if here.empty:
        return ("",)
    row: Any = here.iloc[0]
    lines = []
    if row.n:
        spread = f" ± {row['std']:.2f}" if row.n > 1 else ""
        lines.append(f"{row['mean']:.2f}{spread} ({row.n}){f' {FAR}' if pd.notna(row['flags']) else ''}")
        compared = here[here["diff"].notna()]
        if every:
            lines += [f"{_spell_difference(one)} {one['baseline']}" for _, one in compared.iterrows()]
        elif row.pool == best:
            lines.append("best baseline")
        else:
            lines += [_spell_difference(one) for _, one in compared[compared["baseline"] == best].iterrows()]
    if is_withheld(row):
        lines.append("withheld")
    else:
        gaps = [f"{row[status]} {status}" for status in GAPS if row[status]]
        lines += [", ".join(gaps)] if gaps else []
    return tuple(lines)


def is_withheld(row: Any) -> bool:
    """Whether a hidden cell has not been started: nothing in it has ended."""
    return bool(row.hidden and row.missing and not any(getattr(row, status) for status in schema.STATUSES))


def _spell_difference(row: Any) -> str:
    marks = [ALIKE] * row["alike"] + [BETTER] * row["better"] + [WORSE] * row["worse"]
    interval = [] if math.isnan(row["diff_lo"]) else [f"[{row['diff_lo']:+.2f}, {row['diff_hi']:+.2f}]"]
    fewer = [f"over {row['n_pairs']}"] if row["paired"] and row["n_pairs"] != row["n"] else []
    return " ".join([f"{row['diff']:+.2f}", *interval, *fewer, *marks])


def footer(frame: pd.DataFrame, metric: str, notes: Sequence[str] = (), every: bool = False) -> list[str]:
    """What a reader has to know before believing the table, and every gap in it by name."""
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
    return [*lines, *notes]


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
    """What so many seeds can find, and what all columns say together."""
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
    """As it is, where LaTeX has it without a package; else its number, in typewriter, as nothing else of a label is."""
    return character if character.isascii() or character in _ACCENTED else rf"\texttt{{U+{ord(character):04X}}}"


_ACCENTED = {*map(chr, range(0xC0, 0x180))} - {*"ÐÞðþĄąĐđĘęĦħĮįĸĿŀŉŊŋŦŧŲųſ"}
