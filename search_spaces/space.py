"""Read the YAML file of a search space, and check all of it before anything starts.

One pass finds every problem, and names its line, its key, what was expected and what it got.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, PlainValidator, ValidationError, model_validator
from pydantic_core import PydanticUseDefault

from search_spaces import pool
from search_spaces.architectures import ARCHS
from search_spaces.datasets import DATASETS
from search_spaces.document import Document
from search_spaces.errors import (
    Problem,
    RequestError,
    did_you_mean,
    expected,
    gather,
    meant_boolean,
    meant_number,
    require,
    short,
)
from search_spaces.grid import CANDIDATE, MOST_TRIALS, Entry, Grid, Pair, Role
from search_spaces.pool import ParameterGrid, Pool
from search_spaces.recipe import Recipe
from search_spaces.validation import Form, Seed, check, problems_in

SHIPPED = Path(__file__).parent
LOGGERS = ("tensorboard", "mlflow", "wandb")
MAX_TRIALS = 100_000  # of a space that does not say: planned in 3 s
MOST_PROBLEMS = 100
MOST_SIDE_BY_SIDE = 32  # torch has no more streams for a device


class _Part(Form, extra="forbid"):
    """A mapping of the file. An unknown key is an error."""


def _default_if_empty(value: Any) -> Any:
    if value is None:
        raise PydanticUseDefault
    return value


_MayBeEmpty = BeforeValidator(_default_if_empty)  # `params:` and nothing behind it has none


def _is_pack_size(value: Any) -> bool:
    return value == "auto" or (type(value) is int and 1 <= value <= MOST_SIDE_BY_SIDE)


_PackSize = Annotated[
    int | Literal["auto"],
    PlainValidator(lambda value: value),  # instead of the union's: it says all that is wrong with each of its parts
    check(_is_pack_size, f"auto, or an integer from 1 to {MOST_SIDE_BY_SIDE}"),
]


def _one_of(kind: str, choices: Iterable[str]) -> AfterValidator:
    return AfterValidator(lambda name: require(kind, name, choices))


_Arch = Annotated[str, _one_of("architecture", ARCHS)]
_Dataset = Annotated[str, _one_of("dataset", DATASETS)]
_Logger = Annotated[str, _one_of("logger", LOGGERS)]


class Resources(_Part):
    """What one trial is given.

    Attributes:
        gpus_per_trial: 1, the default, is one GPU each, and CPU trials on a cluster that has no GPU at all; 0 is CPU
            trials always. A trial never computes on more than one.
        cpus_per_trial: CPU cores to reserve, and the threads that a CPU trial computes with. One, because two trials
            with a thread each are faster than one after another with two: measured, see benchmarks/NOTES.md.
        trials_per_gpu: how many trials of one architecture and dataset train side by side on a GPU; `auto` takes
            what was measured for this type of GPU, or measures it. Trials on the CPU have a process each.
        accelerator_type: what the GPUs have to be, in Ray's words: `H100`, `A100-80G`, `L4`.
        on_head: whether CPU trials may run on a cluster's head node too. They do where it is the only one; GPU trials
            run wherever there are GPUs.
    """

    gpus_per_trial: Annotated[int, Field(ge=0)] = 1
    cpus_per_trial: Annotated[int, Field(ge=1)] = 1
    trials_per_gpu: _PackSize = 1
    accelerator_type: Annotated[str, Field(min_length=1)] | None = None
    on_head: bool = False


class Options(_Part):
    """How to run a grid.

    Attributes:
        checkpoint_every: epochs between two checkpoints of a trial.
        max_failures: how often a trial is started again after its worker died.
        stall_timeout: seconds without an epoch after which a trial counts as hanging, and its worker as dead. An hour:
            VGG-19's epoch on one slow thread takes 800 s.
        compiled: whether torch.compile makes the kernels: the same function, to rounding.
        skip_invalid: whether the other pools run when the gate refuses one.
        test_budget: how many revisions of a candidate may be trained on the visible pairs.
        keep_weights: whether a trial that completes leaves its final weights in the run folder.
        loggers: those of LOGGERS that get every trial.
    """

    resources: Annotated[Resources, _MayBeEmpty] = Resources()
    checkpoint_every: Annotated[int, Field(ge=1)] = 10
    max_failures: Annotated[int, Field(ge=0)] = 2
    stall_timeout: Annotated[float | None, Field(gt=0, allow_inf_nan=False)] = 3600.0
    compiled: Annotated[bool, Field(alias="compile")] = False
    skip_invalid: bool = False
    test_budget: Annotated[int | None, Field(ge=1)] = None
    keep_weights: bool = False
    loggers: Annotated[tuple[_Logger, ...], Field(strict=False), _MayBeEmpty] = ()


class Space(Options, defer_build=True):  # made by `model_construct`: nothing of a grid is validated twice
    """A grid of trials, and how to run it."""

    grid: Grid


def load(file: Path | str, overrides: Sequence[str] = ()) -> Space:
    """Return the space that a YAML file describes. Run no pool's code.

    A space has at most `max_trials`, 100,000 unless the file says otherwise. Pools x pairs x seeds are counted before
    any trial is made, so that a grid of a billion parameters is a message and not a full memory.

    Args:
        file: the path, looked for as given and then in `search_spaces/`.
        overrides: `KEY=VALUE` each, the value in YAML: a recipe field (`epochs=2`) or a path of keys
            (`resources.cpus_per_trial=2`, `seeds=[1, 2]`).

    Raises:
        RequestError: with every problem of the file, up to a hundred.
    """
    document = Document(_find(Path(file)))
    fields = Recipe.__dataclass_fields__
    named = (f"recipe.{each}" if each.partition("=")[0] in fields else each for each in overrides)
    gather(*(("--set", functools.partial(document.set, override)) for override in named))
    grids, problems = _parameter_grids(document.data.get("pools"), document.path.parent)
    problems += [*_problems_across(document.data), *_problems_of_pools(document.data, grids)]
    try:
        form = _File.model_validate(document.data)
    except ValidationError as error:
        problems += problems_in(error, _FORMS)
    else:
        if not problems:
            return _space(form, grids)
    problems.sort(key=lambda problem: document.line(problem.where))
    shown = [document.locate(problem) for problem in problems[:MOST_PROBLEMS]]
    rest = len(problems) - len(shown)
    raise RequestError([*shown, *([Problem("", f"and {rest:,} problems more")] if rest else [])])


# The file's form


class _PairPart(_Part):
    arch: _Arch
    dataset: _Dataset
    hidden: bool = False


class _PoolSpec(_Part, extra="ignore"):
    """What names the pool: it is looked up even if the rest of the entry is wrong."""

    name: str | None = None
    file: Annotated[str, check(lambda path: path.endswith(".py"), "a path to a .py file")] | None = None
    class_name: Annotated[str | None, Field(alias="class")] = None
    label: Annotated[str | None, Field(min_length=1)] = None
    params: Annotated[dict[str, Any], _MayBeEmpty] = Field({})

    @model_validator(mode="before")
    @classmethod
    def _bare_name(cls, part: Any) -> Any:
        return {"name": part} if isinstance(part, str) else part

    def parameter_grid(self, root: Path) -> ParameterGrid:
        """Return the pools that this entry stands for: more than one where a parameter is a list of values."""
        if (self.name is None) == (self.file is None):
            raise RequestError.of("give either `name`, a built-in pool, or `file`, a pool of your own")
        spec = self.name or _expanded(str(self.file), root)
        grid = pool.expand(spec, self.params, class_name=self.class_name, label=self.label, root=root)
        if problems := list(_meant_otherwise(grid)):
            raise RequestError(problems)
        return grid


class _PoolPart(_PoolSpec, extra="forbid"):
    role: Role = CANDIDATE


def _expanded(file: str, root: Path) -> str:
    """Return the path of a pool's file with `~` and `$NAME` expanded as in a shell, unless a file has that very name.

    No trial's identity depends on this, only on the file's name and its text.
    """
    if os.path.isfile(root / file):  # noqa: PTH113 - which says no to a name that is too long, and raises nothing
        return file
    path = os.path.expanduser(os.path.expandvars(file))  # noqa: PTH111 - which raises for ~nobody
    names = re.finditer(r"\$(?:(\w+)|\{(\w+)\})", file)
    unset = [found[0] for found in names if not os.environ.get(found[1] or found[2])]
    nobody = re.findall("^~[^/]*", path)
    if left := next(iter(unset + nobody), None):
        raise RequestError.of(f"got {short(file)}, and {left} is nothing here; write the path out", "file")
    return path


def _meant_otherwise(grid: ParameterGrid) -> Iterator[Problem]:
    """Yield the texts where a default is a number or a boolean: `off`, which Python takes for true, or `1_000`."""
    for key, values in grid.values.items():
        default = grid.constructor.defaults.get(key)
        for value in values if isinstance(default, bool | int | float) else ():
            kind, meant = ("true or false", meant_boolean) if isinstance(default, bool) else ("a number", meant_number)
            if isinstance(value, str) and (hint := meant(value)):
                yield Problem(f"params.{key}", expected(f"{kind}, as {short(default)} is", value) + hint)


class _File(Options):
    name: Annotated[str, Field(min_length=1)]
    recipe: Annotated[Recipe, _MayBeEmpty] = Recipe()
    pairs: Annotated[list[_PairPart] | None, Field(min_length=1)] = None
    architectures: Annotated[list[_Arch] | None, Field(min_length=1)] = None
    datasets: Annotated[list[_Dataset] | None, Field(min_length=1)] = None
    pools: Annotated[list[_PoolPart], Field(min_length=1)]
    seeds: Annotated[list[Seed], Field(min_length=1)]
    max_trials: Annotated[int, Field(ge=1, le=MOST_TRIALS)] = MAX_TRIALS


def _space(form: _File, grids: Mapping[int, ParameterGrid]) -> Space:
    product = itertools.product(form.architectures or (), form.datasets or ())  # or pairs: the file has either
    pairs = [Pair(part.arch, part.dataset, part.hidden) for part in form.pairs or ()]
    pairs += itertools.starmap(Pair, product)
    entries = tuple(
        Entry(pool, part.role) for part, pools in zip(form.pools, grids.values(), strict=True) for pool in pools
    )
    grid = Grid(form.name, entries, tuple(pairs), tuple(form.seeds), form.recipe)
    return Space.model_construct(grid=grid, **{name: getattr(form, name) for name in Options.model_fields})


# What can be wrong

_FORMS = {"": _File, "recipe": Recipe, "pairs": _PairPart, "pools": _PoolPart, "resources": Resources}


def _problems_across(document: Mapping[str, Any]) -> Iterator[Problem]:
    """Yield what is wrong between keys. This reads the raw data, so it is found along with problems within them."""
    product = [key for key in ("architectures", "datasets") if document.get(key) is not None]
    if document.get("pairs") is not None and product:
        yield Problem("pairs", f"give either pairs or {' and '.join(product)}, not both")
    elif document.get("pairs") is None and len(product) < 2:
        has = f"; got only {product[0]}" if product else ""
        yield Problem("pairs", f"missing; give pairs, or both architectures and datasets{has}")
    for key in ("seeds", "pairs", "architectures", "datasets", "loggers"):
        values = document.get(key)
        first: dict[str, int] = {}
        for index, value in enumerate(values if isinstance(values, list) else ()):
            item = _spell_item(value)
            if first.setdefault(item, index) != index:
                what = f"{item} stands twice (first as {key}[{first[item]}]), so each of its trials would; take one out"
                yield Problem(f"{key}[{index}]", what)


def _spell_item(value: Any) -> str:
    return f"{value.get('arch')}-{value.get('dataset')}" if isinstance(value, Mapping) else str(value)


def _parameter_grids(parts: Any, root: Path) -> tuple[dict[int, ParameterGrid], list[Problem]]:
    """Return {index of an entry under `pools`: its pools}, and what is wrong with those that have none."""
    grids, problems = dict[int, ParameterGrid](), list[Problem]()
    for index, part in enumerate(parts if isinstance(parts, list) else ()):
        with contextlib.suppress(ValidationError):  # which the whole file's validation says too
            try:
                grids[index] = _PoolSpec.model_validate(part).parameter_grid(root)
            except RequestError as error:
                problems += [problem.under(f"pools[{index}]") for problem in error.problems]
    return grids, problems


def _problems_of_pools(document: Mapping[str, Any], grids: Mapping[int, ParameterGrid]) -> Iterator[Problem]:
    """Yield that the pools are too many, or those that stand twice or have the same label as another."""
    parts = document.get("pools")
    unknown_pools = len(parts) - len(grids) if isinstance(parts, list) else 0
    if too_many := _too_many(document, sum(grid.count for grid in grids.values()) + unknown_pools):
        yield too_many
        return
    by_pool: dict[Pool, int] = {}
    by_label: dict[str, int] = {}
    for index, grid in grids.items():
        here = f"pools[{index}]"
        for one in grid:
            if one in by_pool:
                first = f"first in pools[{by_pool[one]}]"
                yield Problem(here, f"{one.label} stands twice ({first}), so each of its trials would; take one out")
            elif one.label in by_label:
                other = f"pools[{by_label[one.label]}]"
                what = f"is shown as {one.label!r}, and so is another pool, {other}; give one of them a label"
                yield Problem(here, what)
            by_pool.setdefault(one, index)
            by_label.setdefault(one.label, index)


def _too_many(document: Mapping[str, Any], pools: int) -> Problem | None:
    """Return the problem of a space whose pools make more trials than it may have; None if they do not."""
    sizes = {key: len(values) for key, values in document.items() if isinstance(values, list)}
    pairs = math.prod(sizes.get(key, 1) for key in ("pairs", "architectures", "datasets"))  # the file has either
    seeds = sizes.get("seeds", 1)
    asked = document.get("max_trials")
    most = asked if type(asked) is int and 1 <= asked <= MOST_TRIALS else MAX_TRIALS
    trials = pools * pairs * seeds
    if trials <= most:
        return None
    spelled = f"{trials:,}" if trials < 10**15 else "more than 10^15"
    return Problem(
        "pools",
        f"expected at most {most:,} trials, got {spelled}: pools x {pairs:,} pairs x {seeds:,} seeds; take some out, "
        f"or raise max_trials, up to {MOST_TRIALS:,}",
    )


def _find(file: Path) -> Path:
    places = [file] if file.is_absolute() else [file, SHIPPED / file]
    there = [place for place in places if os.path.exists(place)]  # noqa: PTH110 - a name too long is none
    if there:
        return next(filter(os.path.isfile, there), there[0])  # another than a file is refused where it is read
    shipped = [path.name for path in SHIPPED.glob("*.yaml")]
    looked = " and ".join(str(place.parent.resolve()) for place in places)
    raise RequestError.of(f"there is no space file {file} (looked in {looked}); {did_you_mean(file.name, shipped)}")
