"""An evaluation.json with chosen numbers, as `evaluate` would write it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def accuracy(
    forgotten: float = 1.0,
    base: float = 0.0,
    retained: float = 1.0,
    pictures: int = 400,
    per_concept: dict[str, Any] | None = None,
) -> dict[str, Any]:
    return {
        "unlearning_accuracy": forgotten,
        "unlearning_accuracy_base": base,
        "forget_prompt_attributes_accuracy": None,
        "retain_accuracy": retained,
        "retain_accuracy_base": 1.0,
        **{f"{name}_retain_accuracy{end}": retained for name in ("in_domain", "cross_domain") for end in ("", "_base")},
        "counted": {"forget": pictures, "forget_base": 60, "retain": 400},
        "per_concept": per_concept or {},
    }


def concept(forgotten: float, base: float = 0.0, pictures: int = 400, **became: float) -> dict[str, Any]:
    shares = {"unlearning_accuracy": forgotten, "unlearning_accuracy_base": base}
    return shares | {"pictures": pictures, "pictures_base": 60, "became": became or {"dog": 1.0}}


def attack(title: str, erased: float, base: float = 1.0, pictures: int = 400) -> dict[str, Any]:
    models = {
        name: {"success": success, "tries": {"1": success}, "pictures": pictures}
        for name, success in (("erased", erased), ("base", base))
    }
    return {"title": title, "budget": "2 restarts", "models": models}


def inversion(erased: float, **options: Any) -> dict[str, Any]:
    return {"inversion": attack("Concept inversion: a new word", erased, **options)}


def edit(run: Path, **changes: Any) -> dict[str, Any]:
    """Change entries of a run's evaluation.json."""
    result: dict[str, Any] = json.loads((run / "evaluation.json").read_text()) | changes
    (run / "evaluation.json").write_text(json.dumps(result))
    return result


def measure(run: Path, found: dict[str, Any] | None = None, attacks: dict[str, Any] | None = None, **more: Any) -> None:
    """Give a run the numbers of a judge."""
    edit(run, judge="demo", metrics={"accuracy": found or accuracy()}, attacks=attacks or {}, **more)
