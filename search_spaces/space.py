"""What a YAML file asks for, checked whole before anything is started.

Every problem of a file is found in one pass and named with its line, its key, what was found and what is allowed.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator, model_validator

from search_spaces.document import Document, KeyPath, spell
from trainer import arch as archs
from trainer import data
from trainer import pool as pools
from trainer.grid import CANDIDATE, Entry, Grid, Pair
from trainer.pool import Pool
from trainer.problems import Problem, RequestError, did_you_mean, gather, unknown
from trainer.recipe import Recipe

SHIPPED = Path(__file__).parent
LOGGERS = ("tensorboard", "mlflow", "wandb")


class _Part(BaseModel):
    """A mapping of the file. Strict: `"3"` is no integer, and an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Resources(_Part):
    """What one trial is given.

    Attributes:
        gpus_per_trial: 1, the default, is one GPU each, and CPU trials on a cluster that has no GPU at all; 0 is CPU
            trials always. A trial never computes on more than one.
        cpus_per_trial: CPU cores to reserve, and the threads that a CPU trial computes with. One, because two trials
            with a thread each are faster than one after another with two: measured, see benchmarks/NOTES.md.
        trials_per_gpu: how many trials of one architecture and dataset train side by side on a GPU; `auto` measures
            it. Trials on the CPU have a process each.
    """

    gpus_per_trial: Annotated[int, Field(ge=0)] = 1
    cpus_per_trial: Annotated[int, Field(ge=1)] = 1
    trials_per_gpu: Annotated[int, Field(ge=1)] | Literal["auto"] = 1


@dataclass(frozen=True, slots=True)
class Space:
    """A grid of trials, and how to run it.

    Attributes:
        checkpoint_every: epochs between two checkpoints of a trial.
        max_failures: how often a trial is started again after its worker died.
        compiled: whether torch.compile makes the kernels: the same function, to rounding.
        skip_invalid: whether the others run when the gate refuses a pool.
        test_budget: how many revisions of a candidate may be trained on the visible pairs.
        keep_weights: whether a trial that completes leaves its final weights in the run folder.
        loggers: of LOGGERS those that every trial is logged with when it has ended.
    """

    grid: Grid
    resources: Resources
    checkpoint_every: int
    max_failures: int
    compiled: bool
    skip_invalid: bool
    keep_weights: bool
    test_budget: int | None
    loggers: tuple[str, ...] = ()


def load(file: Path | str, overrides: Sequence[str] = ()) -> Space:
    """The space that a YAML file describes.

    Args:
        file: looked for as given, then in `search_spaces/`.
        overrides: `KEY=VALUE` each, the value in YAML: a recipe field (`epochs=2`) or a path of keys
            (`resources.cpus_per_trial=2`, `seeds=[1, 2]`).

    Raises:
        RequestError: with every problem of the file.
    """
    document = Document(_find(Path(file)))
    for override in overrides:
        key = override.partition("=")[0]
        document.set(f"recipe.{override}" if key in Recipe.__dataclass_fields__ else override)
    root = document.path.parent
    found = list(_problems_across(document.data))
    try:
        form = _File.model_validate(document.data, context={"root": root})
    except ValidationError as error:
        found = [*_problems_within(error), *found]
    else:
        found += _problems_of_pools(form, root)
        if not found:
            return _space(form, root)
    in_order = sorted(found, key=lambda item: document.line(item[0]))
    raise RequestError(document.locate(problem, path) for path, problem in in_order)


# The file's form


class _PairPart(_Part):
    arch: str
    dataset: str
    hidden: bool = False

    @field_validator("arch")
    @classmethod
    def _known_arch(cls, name: str) -> str:
        archs.get(name)
        return name

    @field_validator("dataset")
    @classmethod
    def _known_dataset(cls, name: str) -> str:
        data.get(name)
        return name


class _PoolPart(_Part):
    name: str | None = None
    file: Annotated[str | None, Field(pattern=r"\.py$")] = None
    class_name: Annotated[str | None, Field(alias="class")] = None
    label: Annotated[str | None, Field(min_length=1)] = None
    params: dict[str, Any] = {}
    role: Literal["baseline", "candidate"] = CANDIDATE

    @model_validator(mode="before")
    @classmethod
    def _bare_name(cls, part: Any) -> Any:
        return {"name": part} if isinstance(part, str) else part

    @model_validator(mode="after")
    def _can_be_expanded(self, info: ValidationInfo) -> _PoolPart:
        self.expand(info.context["root"] if info.context else Path())
        return self

    def expand(self, root: Path) -> list[Pool]:
        """The pools that this entry stands for: more than one where a parameter is a grid."""
        if (self.name is None) == (self.file is None):
            raise RequestError.of("give either `name`, a pool of the shelf, or `file`, a pool of your own")
        return pools.expand(
            self.name or str(self.file), self.params, class_name=self.class_name, label=self.label, root=root
        )


class _File(_Part):
    name: Annotated[str, Field(min_length=1)]
    recipe: dict[str, Any] = {}
    pairs: Annotated[list[_PairPart] | None, Field(min_length=1)] = None
    architectures: Annotated[list[str] | None, Field(min_length=1)] = None
    datasets: Annotated[list[str] | None, Field(min_length=1)] = None
    pools: Annotated[list[_PoolPart], Field(min_length=1)]
    seeds: Annotated[list[Annotated[int, Field(ge=0, lt=2**63)]], Field(min_length=1)]
    resources: Resources = Resources()
    checkpoint_every: Annotated[int, Field(ge=1)] = 10
    max_failures: Annotated[int, Field(ge=0)] = 2
    compiled: Annotated[bool, Field(alias="compile")] = False  # `on` and `off` are YAML 1.1's true and false
    skip_invalid: bool = False
    test_budget: Annotated[int | None, Field(ge=1)] = None
    keep_weights: bool = False
    loggers: list[str] = []

    @field_validator("recipe")
    @classmethod
    def _valid_recipe(cls, values: dict[str, Any]) -> dict[str, Any]:
        Recipe.of(values)
        return values

    @field_validator("architectures")
    @classmethod
    def _known_architectures(cls, names: list[str] | None) -> list[str] | None:
        return _each(archs.get, names)

    @field_validator("datasets")
    @classmethod
    def _known_datasets(cls, names: list[str] | None) -> list[str] | None:
        return _each(data.get, names)

    @field_validator("loggers")
    @classmethod
    def _known_loggers(cls, names: list[str]) -> list[str]:
        _each(_known_logger, names)
        return names


def _space(form: _File, root: Path) -> Space:
    if form.pairs is not None:
        pairs = tuple(Pair(part.arch, part.dataset, part.hidden) for part in form.pairs)
    else:
        pairs = tuple(itertools.starmap(Pair, itertools.product(form.architectures or (), form.datasets or ())))
    entries = tuple(Entry(pool, part.role) for part in form.pools for pool in part.expand(root))
    grid = Grid(form.name, entries, pairs, tuple(form.seeds), Recipe.of(form.recipe))
    return Space(
        grid,
        form.resources,
        form.checkpoint_every,
        form.max_failures,
        form.compiled,
        skip_invalid=form.skip_invalid,
        keep_weights=form.keep_weights,
        test_budget=form.test_budget,
        loggers=tuple(form.loggers),
    )


# What can be wrong

Found = tuple[KeyPath, Problem]

_FORMS: Mapping[KeyPath, type[_Part]] = {
    (): _File,
    ("pairs",): _PairPart,
    ("pools",): _PoolPart,
    ("resources",): Resources,
}


def _problems_within(error: ValidationError) -> Iterator[Found]:
    """What pydantic found, in our words."""
    for item in error.errors():
        path: KeyPath = item["loc"]
        cause = item.get("ctx", {}).get("error")
        if isinstance(cause, RequestError):
            yield from ((path, problem.under(spell(path))) for problem in cause.problems)
            continue
        if item["type"] in ("extra_forbidden", "invalid_key"):
            form = _FORMS[tuple(key for key in path[:-1] if isinstance(key, str))]
            keys = [field.alias or name for name, field in form.model_fields.items()]
            what = f"unknown key; {did_you_mean(path[-1], keys)}"
        elif item["type"] == "missing":
            what = "missing; it must be given"
        elif cause is not None:
            what = str(cause)
        elif item["type"] == "string_pattern_mismatch":
            what = f"found {item['input']!r}, allowed is a path to a .py file"
        else:
            what = f"found {_short(item['input'])}, {item['msg'].replace('Input should', 'it should')}"
        yield path, Problem(spell(path), what)


def _problems_across(document: Mapping[str, Any]) -> Iterator[Found]:
    """What is wrong between keys; reads the raw data, so that it is found beside the problems within them."""
    product = [key for key in ("architectures", "datasets") if document.get(key) is not None]
    if document.get("pairs") is not None and product:
        yield ("pairs",), Problem("pairs", f"give either pairs or {' and '.join(product)}, not both")
    elif document.get("pairs") is None and len(product) < 2:
        has = f"; found only {product[0]}" if product else ""
        yield (), Problem("pairs", f"missing; give pairs, or both architectures and datasets{has}")
    for key in ("seeds", "pairs", "architectures", "datasets", "loggers"):
        values = document.get(key)
        items = [_spell_pair(value) for value in values] if isinstance(values, list) else []
        for index, item in enumerate(items):
            if item in items[:index]:
                first = items.index(item)
                what = f"{item} stands twice (first as {key}[{first}]), so each of its trials would; take one out"
                yield (key, index), Problem(f"{key}[{index}]", what)


def _spell_pair(value: Any) -> Any:
    return f"{value.get('arch')}-{value.get('dataset')}" if isinstance(value, Mapping) else value


def _problems_of_pools(form: _File, root: Path) -> Iterator[Found]:
    """Pools that are one and the same trial twice, and different ones that a table could not tell apart."""
    by_pool: dict[Pool, int] = {}
    by_label: dict[str, int] = {}
    for index, part in enumerate(form.pools):
        for pool in part.expand(root):
            here: KeyPath = ("pools", index)
            if pool in by_pool:
                first = f"first in pools[{by_pool[pool]}]"
                what = f"{pool.label} stands twice ({first}), so each of its trials would; take one out"
                yield here, Problem(spell(here), what)
            elif pool.label in by_label:
                other = f"pools[{by_label[pool.label]}]"
                what = f"is shown as {pool.label!r}, and so is another pool, {other}; give one of them a label"
                yield here, Problem(spell(here), what)
            by_pool.setdefault(pool, index)
            by_label.setdefault(pool.label, index)


def _each(get: Callable[[str], Any], names: list[str] | None) -> list[str] | None:
    gather(*((f"[{index}]", functools.partial(get, name)) for index, name in enumerate(names or ())))
    return names


def _known_logger(name: str) -> None:
    if name not in LOGGERS:
        raise RequestError.of(unknown("logger", name, LOGGERS))


def _find(file: Path) -> Path:
    places = [file] if file.is_absolute() else [file, SHIPPED / file]
    for place in places:
        if place.is_file():
            return place
    shipped = [path.name for path in SHIPPED.glob("*.yaml")]
    looked = " and ".join(str(place.parent.resolve()) for place in places)
    raise RequestError.of(f"there is no space file {file} (looked in {looked}); {did_you_mean(file.name, shipped)}")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
