"""Who takes a turn, and which concepts a step sees."""

from __future__ import annotations

import json
from collections import Counter

from fixtures import Cli, RecipeFile

from erasediff_lora.training.concept_turns import ConceptTurns
from erasediff_lora.training.turns import LEAST, Turns

MANY = [f"concept {number}" for number in range(30)]


def test_everyone_has_its_turn_and_who_needs_most_has_most() -> None:
    turns, seen = Turns(MANY), Counter[str]()
    last = dict.fromkeys(MANY, 0)
    longest = 0
    for step in range(1, 2001):
        chosen = turns.next(8)
        assert len(set(chosen)) == 8
        turns.measured({name: 1.0 if name in MANY[:3] or not seen[name] else 0.01 for name in chosen})
        for name in chosen:
            longest = max(longest, step - last[name])
            last[name] = step
        seen.update(chosen)
    assert min(seen[name] for name in MANY[:3]) > 3 * max(seen[name] for name in MANY[3:])
    assert longest < len(MANY) / 8 / LEAST


def test_a_resumed_rota_goes_on_as_it_would_have() -> None:
    whole, first = Turns(MANY), Turns(MANY)
    for turns in (whole, first):
        for step in range(7):
            turns.measured(dict.fromkeys(turns.next(4), 1 / (step + 1)))
    second = Turns(MANY)
    second.load_state(json.loads(json.dumps(first.state())))
    assert [whole.next(4) for _ in range(9)] == [second.next(4) for _ in range(9)]


def test_a_batch_with_room_shows_all() -> None:
    hook = ConceptTurns(["a", "b", "c"], batch_size=6)
    for step in range(3):
        hook.before_step(step)
        assert hook.forget_concepts() == ["a", "b", "c"]


def test_a_step_sees_as_many_concepts_as_the_batch_has_room_for(cli: Cli, recipe_file: RecipeFile) -> None:
    names = ["cat", "fish", "house", "tree", "clock"]
    recipe = recipe_file(
        forget={"concepts": names, "count": 10}, training={"batch_size": 4, "steps": 10, "checkpoint_every": 5}
    )
    assert cli("train", recipe).status == 0
    rows = [json.loads(line) for line in (recipe.parent / "run" / "training_log.jsonl").read_text().splitlines()]
    shown = [{name for name in names if f"forget_loss/{name}" in row} for row in rows]
    assert all(len(one) == 2 for one in shown)
    assert set.union(*shown) == set(names)
    assert all(row[f"lambda/{name}"] >= 0 for row, one in zip(rows, shown, strict=True) for name in one)
