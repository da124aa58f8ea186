"""Names and run folders that somebody made to do harm: they are shown, or refused, and do nothing."""

from __future__ import annotations

import csv
import html.parser
import io
import itertools
import json
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from odd_data import ODD, broken

from orchestrator import cli
from orchestrator.record import epoch_rows, row
from results import load
from results.__main__ import main
from results.store import schema
from results.store.folder import RunFolder
from results.table import published, render, reproduce
from search_spaces import pool
from search_spaces import space as spaces
from search_spaces.equivalence import Equivalence
from search_spaces.errors import RequestError
from search_spaces.grid import Entry, Grid, Pair
from search_spaces.pool import Pool, own_slug
from search_spaces.recipe import Recipe
from trainer import pools
from trainer.outcome import Epoch
from trainer.user_module import Source

LABELS = [
    *("../../etc/passwd", "a b", "a/b", "a_b", "A B", "x" * 300, "x" * 299 + "y"),
    *("\N{PILE OF POO}", "\N{GRINNING FACE}", "\u05d0\u05d1", "\u00e9", "e\u0301", "\u0141\u0111", "a\u200d\u00a0b"),
    *('=cmd()|" /C calc"!A1', '\'=cmd()|" /C calc"!A1', "+1", "-1", "@SUM(A1)", "'", "''", '"'),
    *("<script>alert(1)</script>", "<img src=x onerror=alert(1)>", "&lt;b&gt;", '" onmouseover="alert(1)'),
    *("]]>", "-->", "{{ 7 * 7 }}", "{% raw %}", "javascript:alert(1)"),
    *("a|b", "`code`", "[link](http://evil.example)", "<http://evil.example>", "http://evil.example"),
    *("www.evil.example", "*bold*", "_low_", "__init__", "~~gone~~", "![x](y)", "# title", "$x$", "\\", "\\|"),
    *("[red]red[/red]", "[/]", ":boom:", "[link=http://evil.example]x[/link]", "\\u001b[31m"),
    *("%", "50 % & more_", "\\input{/etc/passwd}", "\\write18{id}", "^^M", "--", "[5pt]", "*[5pt]", "~", "#1"),
    *("``", "?`", "gap", "None", "nan"),
]
MARKED = [label for label in LABELS if {*label} & {*"<>&{}$"}]
BASELINE = "=best()"
RECIPE = Recipe(epochs=2)


def make_run(path: Path, labels: Sequence[str] = LABELS) -> RunFolder:
    """Two pairs and two seeds of every label, as a sweep leaves them; one trial failed, with escapes in its error."""
    entries = [Entry(Pool("own", (), Source("class CustomPool: ..."), BASELINE), "baseline")]
    entries += [Entry(Pool("gem", (("p", float(i)),), label=label)) for i, label in enumerate(labels)]
    pairs = (Pair("resnet20", "digits"), Pair("vgg11bn", "digits"))
    grid = Grid("<b>[red]\\x</b>", tuple(entries), pairs, (1, 2), RECIPE)
    run = RunFolder(path)
    run.create()
    run.write_grid(grid)
    run.equivalences.write([Equivalence("vgg11bn", tuple(labels[:10]), {labels[0]: ("<p>",)})])
    rows, epochs = [], []
    for number, planned in enumerate(grid):
        accuracy = 50 + number % 37 / 7 + (3 if planned.trial.pool.label == BASELINE else 0)
        history = [Epoch(e, 1.0, accuracy, 1.0, accuracy - 1 + e / 2, 0.1, 1.0, 100.0) for e in (1, 2)]
        failed = number == 5
        error = "ValueError: \x1b[2J\u202e<script>alert(2)</script>\nat line 3" if failed else None
        rows.append(
            row(planned, schema.FAILED if failed else schema.COMPLETED, history, error) | {"host": "<i>\x1b</i>"}
        )
        epochs += epoch_rows(planned.trial, history)
    run.trials.write_merged(pa.Table.from_pylist(rows, schema=schema.TRIALS))
    run.epochs.write_merged(pa.Table.from_pylist(epochs, schema=schema.EPOCHS))
    return run


@pytest.fixture(scope="module")
def marked(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """The labels that mean something to HTML or to a picture: a report of all of them takes seconds."""
    return make_run(tmp_path_factory.mktemp("marked") / "run", MARKED)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return make_run(tmp_path_factory.mktemp("hostile") / "run")


def ask(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(arguments) == 0
    return capsys.readouterr().out


# Labels


def test_a_space_takes_them_and_makes_harmless_names_of_files(tmp_path: Path) -> None:
    entries = [{"name": "gem", "params": {"p": 1 + i}, "label": label} for i, label in enumerate(LABELS)]
    found = {"name": "x", "pairs": [{"arch": "resnet20", "dataset": "digits"}], "pools": entries, "seeds": [1]}
    (tmp_path / "space.yaml").write_text(json.dumps(found, ensure_ascii=False))
    grid = spaces.load(tmp_path / "space.yaml").grid
    assert [entry.pool.label for entry in grid.entries] == LABELS
    ids = [planned.trial.id for planned in grid]
    assert len({*ids}) == len(LABELS)
    files = [tmp_path / f"own {i}.py" for i in range(3)]
    for file in files:
        file.write_text("class CustomPool: ...")
    ids += [planned.trial.id for file in files for planned in _with(grid, Entry(pool.expand(str(file))[0]))]
    folders = [own_slug(label) for label in LABELS]
    assert len({*folders}) == len(LABELS)
    assert all(re.fullmatch("[a-z0-9_-]{1,120}", name) for name in ids + folders)
    assert own_slug("pools") == "pools", "a name that is harmless is itself"


def _with(grid: Grid, entry: Entry) -> Grid:
    return Grid(grid.name, (entry,), grid.pairs, grid.seeds, grid.recipe)


def test_in_the_terminal(run: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    said = ask(capsys, "leaderboard", str(run.path))
    names = [line.split("  ")[1].strip() for line in said.splitlines() if line.startswith("  ") and "±" in line]
    assert {*names} == {*LABELS, BASELINE}
    said += ask(capsys, "status", str(run.path))
    assert "\\u001b[2J\\u202e<script>" in said
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", said)


def test_the_sweep_reads_no_markup(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = "[red]x[/] :boom: [/nothing]"
    found = {"name": name, "pairs": [{"arch": "resnet20", "dataset": "digits"}], "pools": ["gap"], "seeds": [1]}
    (tmp_path / "space.yaml").write_text(json.dumps(found))
    cli.main(["--space", str(tmp_path / "space.yaml"), "--out", str(tmp_path / "run"), "--status"])
    assert capsys.readouterr().out.startswith(f"{name}: 1 trials")


def test_in_markdown(run: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    said = ask(capsys, "leaderboard", str(run.path), "--format", "markdown")
    tokens = MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(said)
    cells = [after for before, after in itertools.pairwise(tokens) if before.type == "td_open"]
    assert {token.type for cell in cells for token in cell.children or ()} <= {"text", "text_special", "html_inline"}
    inline = [token.content for cell in cells for token in cell.children or () if token.type == "html_inline"]
    assert {*inline} == {"<br>"}, "the table's own line breaks"
    shown = [
        "".join(token.content for token in cell.children or ()) for cell in cells[:: len(cells) // (len(LABELS) + 1)]
    ]
    assert {*shown} == {*LABELS, BASELINE}
    assert not re.search(r"(?<!\\)(://|www\.)", said.replace("http\\://", "").replace("www\\.", "")), "no bare address"
    footer = [token for token in tokens if token.type == "inline"][-8:]
    assert {child.type for token in footer for child in token.children or ()} <= {"text", "text_special", "softbreak"}


def test_in_csv(run: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    rows = list(csv.DictReader(io.StringIO(ask(capsys, "leaderboard", str(run.path), "--format", "csv"))))
    assert len({row["pool"] for row in rows}) == len(LABELS) + 1
    for entry in rows:
        for column in ("pool", "baseline", "same_as"):
            assert entry[column][:1] not in {*"=+-@\t\r"}, entry[column]
    assert {entry["baseline"] for entry in rows} == {"", f"'{BASELINE}"}
    quoted = re.compile("'(?=$|[=+@'-])")  # what was put in front can be taken away
    frame = load(run.path).leaderboard()
    assert [quoted.sub("", entry["pool"], count=1) for entry in rows] == [*frame["pool"]]
    assert min(float(entry["diff"]) for entry in rows if entry["diff"]) < 0, "a negative number is a number"


class Page(html.parser.HTMLParser):
    """The elements, their attributes, and all text of a page."""

    def __init__(self, page: str):
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.addresses: set[str] = set()
        self.texts: set[str] = set()
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}
        self.addresses |= {value or "" for name, value in attrs if name in ("href", "src", "xlink:href")}

    def handle_data(self, data: str) -> None:
        self.texts.add(data)

    def handle_comment(self, data: str) -> None:
        raise AssertionError(data)


def test_in_html(marked: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = Page(ask(capsys, "leaderboard", str(marked.path), "--format", "html"))
    assert table.tags == {"table", "tr", "th", "td", "br", "p"}
    assert table.attributes == {"style"}
    other = make_run(tmp_path / "harmless", [f"pool {i}" for i in range(len(MARKED))])
    pages = []
    for one in (marked, other):
        ask(capsys, "report", str(one.path), "--pairs", "resnet20-digits")
        pages.append((one.path / "report.html").read_text())
    hostile, plain = map(Page, pages)
    assert hostile.tags == plain.tags, "no element comes from a label"
    assert hostile.attributes == plain.attributes
    assert "script" not in hostile.tags
    strange = [
        one for one in hostile.addresses if not re.fullmatch(r"data:,|#[a-z][0-9a-f]{10}|logs/[a-z0-9_.-]+", one)
    ]
    assert not strange
    assert {*MARKED} <= hostile.texts
    assert {*MARKED} <= table.texts
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]", pages[0])


def test_in_latex(run: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = ask(capsys, "leaderboard", str(run.path), "--format", "latex")
    names = [line.split(" & ")[0] for line in table.splitlines() if r"$\pm$" in line]
    assert len({*names}) == len(LABELS) + 1
    if (engine := shutil.which("pdflatex")) is None:
        pytest.skip("no LaTeX here")
    head = "\\documentclass{article}\\usepackage{booktabs,amssymb}\\begin{document}\\tiny\n"
    (tmp_path / "t.tex").write_text(head + table + "\\end{document}\n")
    command = [engine, "-interaction=nonstopmode", "-halt-on-error", "-no-shell-escape", "t.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, errors="replace", check=False)
    assert done.returncode == 0, done.stdout[-2000:]


def test_in_pictures(marked: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ask(capsys, "curves", str(marked.path), "--output", str(tmp_path), "--format", "svg", "--pairs", "resnet20-digits")
    files = list(tmp_path.iterdir())
    assert files
    for file in files:
        assert re.fullmatch(r"[A-Za-z0-9_.-]{1,100}\.svg", file.name)
        assert Page(re.sub("<!--.*?-->", "", file.read_text(), flags=re.DOTALL)).tags.isdisjoint({"script", "img", "a"})


def test_a_published_table_is_shown_and_does_nothing(run: RunFolder, tmp_path: Path) -> None:
    trials = load(run.path).trials()
    names = [label for label in LABELS if label not in ("None", "nan")]  # which are no entry to pandas
    lines = [["entry", "arch", "dataset", "best_test_acc"], *([name, "resnet20", "digits", "51"] for name in names)]
    with (tmp_path / "theirs.csv").open("w", newline="") as file:
        csv.writer(file).writerows(lines)
    theirs = published.load(tmp_path / "theirs.csv")
    frame = reproduce.compare(trials, theirs)
    assert {*frame["entry"]} == {*names}
    layout = reproduce.layout(frame, published.spreads(theirs))
    rows = list(csv.DictReader(io.StringIO(render.to_csv(layout))))
    assert all(entry["entry"][:1] not in {*"=+-@"} for entry in rows)
    said = render.to_markdown(layout)
    assert {line.replace("\\|", "").count("|") for line in said.splitlines() if line.startswith("|")} == {8}
    (tmp_path / "theirs.csv").write_text("entry,arch,dataset,best_test_acc\n\x1b[2J,a,b,50\n")
    with pytest.raises(RequestError, match=r"expected text without U\+001B"):
        published.load(tmp_path / "theirs.csv")


# Run folders


def write_one(path: Path, label: str = "gem", **changed: Any) -> RunFolder:
    """A run folder with one trial's row, in which some columns are changed."""
    grid = Grid("g", (Entry(Pool("gem", label=label)),), (Pair("resnet20", "digits"),), (1,), RECIPE)
    (planned,) = grid
    run = RunFolder(path)
    run.create()
    run.write_grid(grid)
    run.write_trial(row(planned, schema.COMPLETED, [], None) | changed)
    return run


def test_a_label_that_no_space_could_have_is_refused(tmp_path: Path) -> None:
    run = write_one(tmp_path, "\x1b[2J")
    (tmp_path / "space.yaml").unlink()
    with pytest.raises(RequestError, match=r"column pool: got '\\x1b\[2J', which no sweep writes"):
        load(run.path).leaderboard()


STRANGE = {
    "status": "won",
    "arch": "../../x",
    "dataset": "a/b",
    "recipe": "[",
    **dict.fromkeys(("role", "seed", "pool", "hidden", "protocol")),
}


@pytest.mark.parametrize("column", STRANGE)
def test_rows_that_no_sweep_writes_are_a_message(tmp_path: Path, column: str) -> None:
    run = write_one(tmp_path, **{column: STRANGE[column]})
    (tmp_path / "space.yaml").unlink()
    with pytest.raises(RequestError, match=f"column {column}"):
        load(run.path).leaderboard()
    with pytest.raises(RequestError, match=f"column {column}"):
        reproduce.compare(load(run.path).trials(), published.load())


def test_a_seed_that_stands_twice_is_a_message(tmp_path: Path) -> None:
    write_one(tmp_path)
    write_one(tmp_path, trial_id="gem-resnet20-digits-s1-00000000")
    with pytest.raises(RequestError, match="gem on resnet20-digits has two trials of one seed"):
        load(tmp_path).leaderboard()


GRID = Grid(
    "mine",
    (
        Entry(Pool("gap"), "baseline"),
        Entry(Pool("own", (("p", (1, 2)),), Source("x", beside=(("h.py", b"y"),)), "ours")),
    ),
    (Pair("resnet20", "digits"), Pair("vgg11bn", "digits", hidden=True)),
    (1, 2),
    RECIPE,
)
POOLS = [entry.pool.to_dict() for entry in GRID.entries]
RATES = {"size": 2, "start_s": 1.0, "epoch_s": 2.0, "images_per_s": 3.5, "memory_mb": None}
FILES: dict[str, Any] = {
    "space.yaml": json.loads(json.dumps(GRID.to_dict())),
    "pools.json": POOLS,
    "submitted.json": {"own": {"pool": POOLS[1], "when": "2026-11-20T00:00:00"}},
    "topups.json": {"resnet20-digits": {"target": 0.5, "seeds": [3, 4]}},
    "packs.json": {"resnet20-digits, a GPU": [RATES]},
    "checks.json": {"same_function": [{"arch": "resnet20", "pools": ["gap", "ours"], "parting": {"ours": ["p"]}}]},
}


@pytest.mark.parametrize("name", FILES)
@settings(max_examples=60, deadline=5000, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(draw=st.data())
def test_what_a_stranger_wrote_is_a_message(tmp_path: Path, name: str, draw: st.DataObject) -> None:
    data = draw.draw(st.one_of(broken(FILES[name]), ODD))
    text = json.dumps(data, default=str) if name.endswith("json") and _has_text_keys(data) else yaml.dump(data)
    (tmp_path / name).write_bytes(text.encode("utf-8", "surrogatepass"))
    said = ""
    try:
        RunFolder(tmp_path).documents[name].read()
    except RequestError as error:
        said = str(error)
    assert not said or name in said
    assert "\x1b" not in said


def _has_text_keys(data: Any) -> bool:
    if isinstance(data, dict):
        return all(isinstance(key, str) and _has_text_keys(value) for key, value in data.items())
    return all(map(_has_text_keys, data)) if isinstance(data, list) else True


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("text", ["", "[" * 100_000, "null", "\0", "{", '{"a": 1e999}', "9" * 5000, "\udc80"])
def test_what_is_no_data_at_all_is_a_message(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(RequestError, match=f"{re.escape(name)} is not what a sweep wrote"):
        RunFolder(tmp_path).documents[name].read()


@pytest.mark.parametrize("name", FILES)
def test_what_a_sweep_wrote_is_read(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text(json.dumps(FILES[name]))
    assert RunFolder(tmp_path).documents[name].read()


LETTERS = "expected lower-case letters, digits and underscores, got"
PATHS: list[tuple[dict[str, Any], str]] = [
    ({"pairs": [{"arch": "../../x", "dataset": "digits", "hidden": False}]}, f"pairs[0].arch: {LETTERS} '../../x'"),
    ({"pairs": [{"arch": "resnet20", "dataset": "a/b", "hidden": False}]}, f"pairs[0].dataset: {LETTERS} 'a/b'"),
    (
        {"pools": [POOLS[0] | {"name": "../../x", "role": "baseline"}]},
        "pools[0].name: expected the name of a built-in pool, got '../../x'",
    ),
    (
        {"pools": [POOLS[0] | {"label": "\x1b[2J", "role": "baseline"}]},
        "pools[0].label: expected text without control characters",
    ),
    ({"seeds": [-1, 2**64]}, "seeds[1]"),
    (
        {"seeds": list(range(2000)), "pairs": [{"arch": "a", "dataset": "b", "hidden": False}] * 600},
        "expected at most 1,000,000",
    ),
]


@pytest.mark.parametrize(("change", "says"), PATHS)
def test_names_that_would_be_paths(tmp_path: Path, change: dict[str, Any], says: str) -> None:
    (tmp_path / "space.yaml").write_text(json.dumps(FILES["space.yaml"] | change))
    with pytest.raises(RequestError, match=re.escape(says)):
        RunFolder(tmp_path).space.read()


def test_a_built_in_pool_is_one(tmp_path: Path) -> None:
    (tmp_path / "x.py").write_text("class CustomPool: ...")
    with pytest.raises(RequestError, match="unknown pool"):
        pools.load_class(Pool("_checks"))
