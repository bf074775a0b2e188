"""What must hold for any input, tried on inputs that nobody would think of."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import fuzz
import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from tiny import tiny_values

from erasediff_lora.data.prompts import balanced, expand, substitute
from erasediff_lora.errors import UserError
from erasediff_lora.recipe import Recipe, flags
from erasediff_lora.recipe.yaml_io import parse_yaml

FIELDS = [name for name, _, _ in flags()]
SCALARS = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.sampled_from(["none", "demo"])
)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
)
WORDS = st.text(min_size=1, max_size=12).filter(lambda text: text.strip() and not set(text) & set("{}"))
RELAXED = settings(
    derandomize=True, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150
)


@RELAXED
@given(changes=st.dictionaries(st.sampled_from(FIELDS), VALUES, max_size=4))
@example(changes={"adapter.kind": []})
@example(changes={"objective.preset": {}})
def test_any_recipe_is_read_or_refused(changes: Any, tiny_base: Path, tmp_path: Path) -> None:
    values = tiny_values(tiny_base, tmp_path)
    for name, value in changes.items():
        section, _, field = name.partition(".")
        if field and isinstance(values.get(section, {}), dict):
            values[section] = values.get(section, {}) | {field.split(".")[0]: value}
        else:
            values[section] = value
    try:
        recipe = Recipe.parse(values)
    except UserError as error:
        assert error.problems and str(error).replace("\n", "").isprintable()
    else:
        assert len(recipe.sha256()) == 64


@RELAXED
@given(concept=WORDS, anchor=WORDS, template=WORDS)
def test_a_recipe_survives_its_own_file(
    concept: Any, anchor: Any, template: Any, tiny_base: Path, tmp_path: Path
) -> None:
    values = tiny_values(tiny_base, tmp_path)
    values["forget"]["concepts"] = [{"name": concept, "anchor": anchor}]
    values["forget"]["templates"] = [template + "{concept}"]
    try:
        recipe = Recipe.parse(values)
    except UserError:
        return
    again = Recipe.parse(parse_yaml(recipe.to_yaml()))
    assert again.sha256() == recipe.sha256()
    assert again.forget.concepts[0].name == concept


@RELAXED
@given(concepts=st.lists(WORDS, min_size=1, max_size=4, unique=True), count=st.integers(1, 40), seed=st.integers(0, 9))
def test_prompts_come_in_equal_shares(concepts: Any, count: Any, seed: Any) -> None:
    prompts = expand(["a {concept}", "{concept}!"], concepts, {})
    drawn = balanced(prompts, count, seed)
    assert len(drawn) == count
    shares = [sum(prompt is other for other in drawn) for prompt in prompts]
    assert max(shares) - min(shares) <= 1
    assert drawn == balanced(prompts, count, seed)


@RELAXED
@given(before=WORDS, concept=WORDS, anchor=WORDS)
def test_an_anchor_takes_the_concepts_place(before: Any, concept: Any, anchor: Any) -> None:
    assert anchor in substitute(f"{before} {concept}", concept, anchor)


@pytest.mark.parametrize("target", fuzz.TARGETS)
@RELAXED
@given(data=st.binary(max_size=400))
def test_parsers_of_foreign_files(target: Any, data: Any) -> None:
    """The fuzzer's targets, on a few inputs: scripts/fuzzing/fuzz.py tries a million."""
    fuzz.once(target, data)


KEYS = st.sampled_from(["file_name", "text", "concept", "x"])


@RELAXED
@given(rows=st.lists(st.dictionaries(KEYS, VALUES, max_size=4), max_size=3))
def test_captions_of_any_type(rows: Any) -> None:
    fuzz.once("captions", "\n".join(json.dumps(row) for row in rows).encode())


@RELAXED
@given(value=VALUES)
def test_yaml_of_plain_values_is_read_back(value: Any) -> None:
    text = yaml.safe_dump(value, allow_unicode=True)
    assert repr(parse_yaml(text)) == repr(yaml.safe_load(text))
