"""Submissions: which revision of a candidate is trained on the hidden pairs.

Trying ten revisions on a test set and reporting the best fits the test set. So the hidden pairs see one revision of a
candidate, and it is named beforehand.
"""

from __future__ import annotations

from datetime import UTC, datetime

import pandas as pd

from results.store import schema
from results.store.folder import RunFolder
from search_spaces.errors import RequestError, did_you_mean
from search_spaces.grid import CANDIDATE
from search_spaces.pool import Pool, slug


def submit(run: RunFolder, spec: str) -> Pool:
    """Record a revision as the entry of its candidate, in place of an earlier one.

    Args:
        spec: `POOL` or `POOL@REVISION`: the label of a candidate on record, and the first digits of its short hash.

    Raises:
        RequestError: there is no such candidate, or several; or the hidden pairs have been asked already.
    """
    label, _, revision = spec.partition("@")
    trials = _candidates(run)
    keys, hidden = set(_keys(trials)), set(_keys(trials[trials["hidden"].eq(True)]))
    trained = [pool for pool in run.pools.read() if pool.key in keys]
    named = [pool for pool in trained if pool.label == label] or [pool for pool in trained if pool.name == label]
    if not named:
        known = did_you_mean(label, {pool.label for pool in trained}) if trained else "none has"
        raise RequestError.of(f"no candidate {label!r} has been trained here; {known}")
    found = [pool for pool in named if pool.revision.startswith(revision)]
    if len({spell(pool) for pool in found}) == 1:  # parameters that differ under one label: the newest sweep's
        grid = run.space.read()
        asked = {entry.pool.key for entry in grid.entries} if grid else set()
        found = [pool for pool in found if pool.key in asked] or found
    if len(found) != 1:
        which = ", ".join(map(spell, named))
        raise RequestError.of(f"{spec!r} names {len(found) or 'none'} of {which}; write one of them")
    (entry,) = found
    for pool in trained:
        if pool.key in hidden and slug(pool.name) == slug(entry.name):
            what = f"{spell(pool)} has been trained on the hidden pairs, so that is the entry of {entry.name!r}"
            raise RequestError.of(what)
    when = datetime.now(UTC).isoformat(timespec="seconds")
    run.submissions.write({**run.submissions.read(), entry.name: (entry, when)})
    return entry


def spell(pool: Pool) -> str:
    """Return `mine@3f2a91bc`, or `gem` for a built-in pool."""
    return f"{pool.label}@{pool.revision}" if pool.revision else pool.label


def revisions(run: RunFolder) -> set[tuple[str, str, str]]:
    """Return the keys (name, parameters, revision) of all candidates that have been trained."""
    return set(_keys(_candidates(run)))


def _candidates(run: RunFolder) -> pd.DataFrame:
    trials = run.trials.read(["pool_name", "pool_params", "pool_revision", "role", "hidden", "status"]).to_pandas()
    return trials[(trials["role"] == CANDIDATE) & (trials["status"] != schema.INVALID)]


def _keys(trials: pd.DataFrame) -> list[tuple[str, str, str]]:
    revisions = trials["pool_revision"].fillna("")
    return list(zip(trials["pool_name"], trials["pool_params"], revisions, strict=True))
