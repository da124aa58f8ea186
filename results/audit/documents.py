"""The audit of the YAML and JSON files beside the trials, which say what was asked and of what ids are made."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import yaml

from results.audit import finding
from results.audit.finding import Finding
from results.store.folder import RunFolder
from results.store.s3 import StoreError
from search_spaces import strict_yaml
from search_spaces.errors import RequestError, first_line
from search_spaces.grid import Grid
from search_spaces.pool import Pool
from search_spaces.recipe import Recipe

T = TypeVar("T")


class Documents:
    """Every such file, each read once.

    Attributes:
        pools: that a sweep on this folder has asked for, with their texts.
        is_partial: whether there is a space.yaml that cannot be read, so that nobody knows what was asked.
        findings: those that cannot be parsed, or are not what a sweep writes.

    Args:
        names: of the files in the folder itself; of these, what a sweep writes as YAML or JSON.
    """

    def __init__(self, run: RunFolder, names: Sequence[str]):
        self.findings: list[Finding] = []
        self._grid: Grid | None = self._read("space.yaml", run.grid, None)
        self.is_partial = bool(self.findings)
        # A sweep that was killed may have written its space.yaml and not yet pools.json.
        asked = [entry.pool for entry in self._grid.entries] if self._grid else []
        self.pools: list[Pool] = [*asked, *self._read("pools.json", run.pools, [])]
        others: dict[str, Callable[[], Any]] = {
            "submitted.json": run.submissions,
            "topups.json": run.topups,
            "packs.json": run.pack_sizes,
            "checks.json": run.equivalences,
        }
        for name in set(names) - {"space.yaml", "pools.json"}:
            self._read(name, others.get(name, functools.partial(_parse, run, name)), None)

    def recipe(self, trial_id: str) -> Recipe | None:
        """Of a trial of space.yaml; None if it was not asked for."""
        return self._grid.recipe if self._grid and trial_id in self._ids else None

    def _read(self, name: str, read: Callable[[], T], otherwise: T) -> T:
        try:
            return read()
        except FileNotFoundError:  # it has just gone
            pass
        except StoreError:  # which says nothing of the file
            raise
        except (RequestError, ValueError, yaml.YAMLError, RecursionError) as error:
            self.findings.append(Finding("unreadable", name, f"{first_line(error)}; {finding.RESTORE}", (name,)))
        return otherwise

    @functools.cached_property
    def _ids(self) -> set[str]:
        """An id takes 10 µs, and nobody asks while every trial has a row."""
        return {planned.trial.id for planned in self._grid or ()}


def _parse(run: RunFolder, name: str) -> Any:
    text = run.files.read(name).decode()
    return strict_yaml.load(text) if name.endswith(".yaml") else json.loads(text)
