"""What happens where a version of Ray lacks a private part that is touched."""

from __future__ import annotations

import importlib

import pytest

from orchestrator import compat


def test_this_version_has_all_of_them() -> None:
    assert compat.missing() == []
    assert len(compat.PARTS) == 6


@pytest.mark.parametrize("place", compat.PARTS)
def test_what_is_missing_is_said_and_nothing_raises(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module, _, name = place.rpartition(".")
    monkeypatch.delattr(importlib.import_module(module), name)
    assert compat.missing() == [f"{place}: {compat.PARTS[place]}"]
    compat.count_no_callbacks()
    assert compat.dead_process() is None
    with compat.sigterm_left_alone():
        pass


def test_what_was_taken_out_is_put_back() -> None:
    utils = importlib.import_module("ray._private.utils")
    theirs = utils.set_sigterm_handler
    with compat.sigterm_left_alone():
        assert utils.set_sigterm_handler is not theirs
    assert utils.set_sigterm_handler is theirs


def test_without_the_services_nothing_is_found_and_ray_itself_says_whether_this_is_a_node(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    services = importlib.import_module("ray._private.services")
    for name in ("find_gcs_addresses", "find_bootstrap_address", "find_node_ids"):
        monkeypatch.delattr(services, name)
    assert (compat.running(), compat.last_started(), compat.is_node()) == ([], None, True)
