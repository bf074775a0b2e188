"""By which protocol an evaluation was made: all that its numbers depend on but the model."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from erasediff_lora.evaluation.evidence import Evidence
from erasediff_lora.evaluation.protocols.base import NamedProtocol
from erasediff_lora.recipe import Recipe
from erasediff_lora.registry import ATTACKS, METRICS, PROTOCOLS, SURVIVAL, Registry
from erasediff_lora.storage.files import sha256


def record(recipe: Recipe, evidence: Evidence) -> dict[str, Any]:
    """What the numbers were found with, and what that is called.

    Returns:
        'name': of the protocol, with what was changed of it, or 'own' with the beginning of a hash; 'source' of a known
        one; 'settings': everything; 'parts': the options of each metric and attack.
    """
    options = recipe.evaluation
    own_size = evidence.candidates.base.denoiser.resolution
    templates = [recipe.forget.templates, recipe.retain.templates]
    settings: dict[str, Any] = {
        "judge": options.without_folders()["judge"],
        "judge_labels": options.judge_labels,
        "base_rate": options.base_rate,
        "steps": recipe.sampling.steps,
        "guidance": recipe.sampling.guidance,
        "resolution": recipe.sampling.resolution or own_size,
        "seed": options.seed,
        "prompts": [[told["sha256"], told["uses"]] for told in evidence.from_files.files] or templates,
        "pictures": [len(evidence.forget_prompts), len(evidence.retain_prompts)],
    }
    if options.first_of is not None:
        settings["first_of"] = options.first_of
    parts = _parts(recipe, METRICS, options.metrics) | _parts(recipe, ATTACKS, options.attacks)
    parts |= _parts(recipe, SURVIVAL, options.survival)
    content = json.dumps([settings, parts], sort_keys=True)
    found = {"settings": settings, "parts": parts}
    if options.protocol is None:
        return {"name": f"own {sha256(content.encode())[:8]}"} | found
    protocol: NamedProtocol = PROTOCOLS[options.protocol]
    changed = _changed(recipe, evidence, protocol)
    name = f"{options.protocol} {protocol.version}" + (f", but {'; '.join(changed)}" if changed else "")
    return {"name": name, "source": protocol.source} | found


def _parts(recipe: Recipe, registry: Registry, names: Sequence[str]) -> dict[str, Any]:
    shown = recipe.evaluation.without_folders()
    return {name: shown[name] for name in names if name in registry and name in shown}


def _changed(recipe: Recipe, evidence: Evidence, protocol: NamedProtocol) -> list[str]:
    """What is not as the protocol has it."""
    options = recipe.evaluation
    values = options.model_dump(mode="json")
    found = []
    for dotted, wanted in protocol.values.items():
        value: Any = values
        for name in dotted.split("."):
            value = value[name]
        missing = [one for one in wanted if one not in value] if dotted in ("metrics", "attacks", "survival") else None
        if missing or (missing is None and value != wanted):
            found.append(f"{dotted} {value}")
    if protocol.files:
        odd = [told["file"] for told in evidence.from_files.files if told["sha256"] not in protocol.files]
        found += [f"prompts {file}" for file in odd] if evidence.from_files.files else ["prompts of the recipe"]
    if any(file.rows for file in options.prompts):
        found.append("the first rows alone")
    return found


def differences(protocols: Sequence[Mapping[str, Any]]) -> list[str]:
    """In what evaluations were not made alike: of metrics and attacks only those that several have."""
    found = []
    for name in dict.fromkeys(key for one in protocols for key in one.get("settings", {})):
        values = {json.dumps(one.get("settings", {}).get(name), sort_keys=True) for one in protocols}
        found += [name] * (len(values) > 1)
    for part in dict.fromkeys(key for one in protocols for key in one.get("parts", {})):
        tables = [one["parts"][part] for one in protocols if part in one.get("parts", {})]
        for option in dict.fromkeys(key for table in tables for key in table):
            unlike = {json.dumps(table.get(option), sort_keys=True): table.get(option) for table in tables}
            if len(unlike) > 1:
                shown = ", ".join(str(value) for value in unlike.values())
                found.append(f"{part}.{option} ({shown})" if len(shown) < 60 else f"{part}.{option}")
    return found
