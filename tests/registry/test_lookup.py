"""The registry: what is in it can be imported, what others add is found, what they break is named and left out."""

from __future__ import annotations

import logging
from importlib.metadata import EntryPoint
from typing import Any

import pytest

from erasediff_lora import registry
from erasediff_lora.registry import lookup
from erasediff_lora.registry.lookup import Registry

KINDS = {name: found for name, found in vars(registry).items() if isinstance(found, Registry)}


@pytest.mark.parametrize("kind", KINDS)
def test_every_line_leads_to_a_part(kind: str) -> None:
    for name in KINDS[kind]:
        assert KINDS[kind][name] is not None


@pytest.fixture
def with_plugins(monkeypatch: pytest.MonkeyPatch) -> Any:
    def install(**points: str) -> Registry:
        found = [EntryPoint(name, value, "erasediff_lora.things") for name, value in points.items()]
        monkeypatch.setattr(lookup, "entry_points", lambda group: found if group == "erasediff_lora.things" else [])
        return Registry("things", {"own": "json:loads"})

    return install


def test_parts_of_other_packages_come_after_our_own(with_plugins: Any) -> None:
    import json
    import math

    things = with_plugins(root="math:sqrt")
    assert list(things) == ["own", "root"] and len(things) == 2
    assert things["own"] is json.loads and things["root"] is math.sqrt
    assert "root" in things and "square" not in things and 3 not in things
    with pytest.raises(KeyError):
        things["square"]


def test_a_broken_plug_in_is_named_once_and_left_out(with_plugins: Any, caplog: pytest.LogCaptureFixture) -> None:
    things = with_plugins(broken="no_such_module:Thing", lacking="math:no_such_thing", root="math:sqrt")
    with caplog.at_level(logging.WARNING):
        assert list(things) == ["own", "root"]
        assert "broken" not in things and things.get("broken") is None
    warnings = [record.getMessage() for record in caplog.records]
    assert [text.partition(" is left out: ")[0] for text in warnings] == [
        "the plug-in 'broken' (things, no_such_module:Thing)",
        "the plug-in 'lacking' (things, math:no_such_thing)",
    ]
    assert "No module named 'no_such_module'" in warnings[0]


def test_a_name_of_our_own_is_not_taken(with_plugins: Any, caplog: pytest.LogCaptureFixture) -> None:
    import json

    with caplog.at_level(logging.WARNING):
        assert with_plugins(own="math:sqrt")["own"] is json.loads
        assert list(with_plugins(own="math:sqrt")) == ["own"]
    assert "there is one of that name" in caplog.text
