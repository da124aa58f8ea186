"""A trial's identity."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from search_spaces import pool, trial
from search_spaces.errors import RequestError
from search_spaces.grid import Entry, Grid, Pair
from search_spaces.pool import Pool, Source
from search_spaces.recipe import Recipe
from search_spaces.trial import Trial
from trainer.train import learning_rate

BASE = Trial(pool.expand("gem")[0], "resnet56", "cifar100", 42, Recipe())


def test_the_id_is_pinned() -> None:
    """An id that changes by accident retrains everything that anyone has ever finished."""
    assert BASE.id == "gem-resnet56-cifar100-s42-d15afe9c"


@pytest.mark.parametrize("field", [f.name for f in dataclasses.fields(Recipe)])
def test_every_field_of_the_recipe_is_part_of_the_id(field: str) -> None:
    other = {"epochs": 7, "batch_size": 64, "precision": "bf16", "train_samples": 10, "test_samples": 10}.get(
        field, 0.5
    )
    assert dataclasses.replace(BASE, recipe=dataclasses.replace(BASE.recipe, **{field: other})).id != BASE.id


def test_what_decides_the_result_is_part_of_the_id() -> None:
    source, words = Source("class CustomPool: ..."), (("words", ["the seed"]),)
    pools = [Pool("mine", (), source), Pool("mine", words, source), Pool("mine", (), Source("class CustomPool: pass"))]
    changes = [{"pool": each} for each in (*pool.expand("gem(p=1)"), *pools)]
    changes += [{"arch": "resnet20"}, {"dataset": "cifar10"}, {"seed": 43}, {"protocol": 1}]
    others = {dataclasses.replace(BASE, **change).id for change in changes}
    assert len(others | {BASE.id}) == 1 + len(changes)


def test_a_trial_of_protocol_1_has_the_id_that_it_had() -> None:
    assert dataclasses.replace(BASE, protocol=1).id == "gem-resnet56-cifar100-s42-ed5507df"
    assert set(trial.CHANGES) == set(range(2, trial.PROTOCOL + 1))


def test_a_label_and_the_place_of_a_file_are_not() -> None:
    here, there = (Source("class CustomPool: ...", path=f"/{place}/mine.py") for place in ("here", "there"))
    pools = (Pool("mine", (), here), Pool("mine", (), there, "M"))
    assert len({dataclasses.replace(BASE, pool=each).id for each in pools}) == 1


def test_spellings_of_one_pool_are_one_trial() -> None:
    pools = [pool.expand(spec)[0] for spec in ("gem(p=3)", "gem(p=3.0)", "gem(eps=1e-6)")]
    assert {dataclasses.replace(BASE, pool=each).id for each in pools} == {BASE.id}


@given(name=st.text(min_size=1, max_size=400))
def test_an_id_is_a_harmless_file_name(name: str) -> None:
    found = dataclasses.replace(BASE, pool=Pool(name)).id
    assert len(found) < 100
    assert all(c.isascii() and (c.isalnum() or c in "-_") for c in found)


def test_a_trial_survives_its_journey_to_a_worker() -> None:
    own = Pool("mine", (("k", 3), ("sizes", (1, 2))), Source("class CustomPool: ..."), "M")
    for each in (BASE, dataclasses.replace(BASE, pool=own)):
        again = Trial.from_dict(each.to_dict())
        assert (again, again.id) == (each, each.id)


def test_a_grid_survives_its_journey_through_the_run_folder() -> None:
    entries = (Entry(pool.expand("gap")[0], "baseline"), Entry(Pool("mine", source=Source("x = 1"))))
    pairs = (Pair("resnet20", "digits"), Pair("vgg11bn", "digits", hidden=True))
    grid = Grid("g", entries, pairs, (1, 2), Recipe(epochs=3))
    again = Grid.from_dict(grid.to_dict())
    assert [p.trial.id for p in again] == [p.trial.id for p in grid]
    assert again == grid
    assert len(list(grid)) == len(grid) == 8
    assert all(grid.at(p.place) == p for p in grid)
    assert [p.trial.seed for p in grid] == [1] * 4 + [2] * 4, "seed-major: a sweep cut short leaves whole comparisons"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("epochs", value) for value in (0, 2.5, True)),
        *(("lr", value) for value in (-1, float("nan"), "0.1")),
        *(("batch_size", 1), ("momentum", 1), ("weight_decay", float("inf")), ("precision", "fp16")),
        *(("train_samples", 0), ("epoch", 3)),
    ],
)
def test_a_recipe_out_of_range_is_refused(field: str, value: object) -> None:
    with pytest.raises(RequestError) as caught:
        Recipe.of({field: value})
    assert [problem.where for problem in caught.value.problems] == [field]


def test_a_recipe_names_all_its_problems_at_once() -> None:
    with pytest.raises(RequestError) as caught:
        Recipe.of({"epochs": 0, "lr": 0, "precison": "fp32"})
    assert {problem.where for problem in caught.value.problems} == {"epochs", "lr", "precison"}
    assert "did you mean 'precision'" in str(caught.value)


def test_the_schedule_is_the_benchmarks() -> None:
    """The log shown with the benchmark, after these epochs of 200."""
    shown = {160: 0.009549, 170: 0.005450, 180: 0.002447, 190: 0.000616, 200: 0.000000}
    assert {epoch: round(learning_rate(Recipe(), epoch), 6) for epoch in shown} == shown


def test_a_last_batch_of_one_image_is_refused() -> None:
    assert Recipe(batch_size=32).problems_with(97)
    assert not Recipe(batch_size=32).problems_with(98)
    assert Recipe(batch_size=32, train_samples=33).problems_with(1000)
