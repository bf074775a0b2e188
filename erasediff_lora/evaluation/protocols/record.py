"""By which protocol an evaluation was made: all that its numbers depend on but the model."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from erasediff_lora.evaluation.evidence import Evidence
from erasediff_lora.evaluation.metrics.distances import DistancesSettings
from erasediff_lora.evaluation.protocols.base import NamedProtocol
from erasediff_lora.recipe import Recipe
from erasediff_lora.recipe.evaluation import PARTS
from erasediff_lora.recipe.prompt_files import PromptFile
from erasediff_lora.recipe.schema import Section
from erasediff_lora.registry import ATTACKS, METRICS, PROTOCOLS, SURVIVAL, Registry
from erasediff_lora.storage.files import all_in, sha256

ENDS = 2**20
"""Bytes of a file that are looked at, from either end: weights of gigabytes are told apart in no time."""
FEW = 64
"""Files of a folder of weights; of more, as of real pictures, names and sizes will do."""


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
        "prompts": _prompts(recipe, evidence) or templates,
        "pictures": [len(evidence.forget_prompts), len(evidence.retain_prompts)],
    }
    if options.first_of is not None:
        settings["first_of"] = options.first_of
    settings |= {f"files of {field}": told(path) for field, path in _local(recipe).items()}
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


def _prompts(recipe: Recipe, evidence: Evidence) -> list[Any]:
    """Of each file what is drawn, and how."""
    read = zip(evidence.from_files.files, recipe.evaluation.prompts, strict=True)
    return [
        [told["sha256"], told["uses"], told["columns"], {"honour": sorted(given.honour), "pictures": given.pictures}]
        for told, given in read
    ]


def _real_images(recipe: Recipe) -> Path | None:
    return recipe.evaluation.settings(DistancesSettings).real_images


def _local(recipe: Recipe) -> dict[str, Path]:
    """Weights and other files that the evaluation names and that lie here: field -> path; prompts have a hash."""
    options = recipe.evaluation
    used = {*options.metrics, *options.attacks, *options.survival}
    values = {name: value for name, value in options if name != "prompts"}
    tables = {name: value for name, value in values.items() if isinstance(value, Section) and name in used}
    fields = {name: value for name, value in values.items() if not isinstance(value, Section)}
    fields |= {f"{name}.{field}": value for name, table in tables.items() for field, value in table}
    found = {}
    for field, value in fields.items():
        for one in value if isinstance(value, list) else [value]:
            path = one if isinstance(one, Path) else _weights(one) if isinstance(one, str) else None
            if path is not None and path.expanduser().exists():
                found[field if not isinstance(value, list) else f"{field} {path.name}"] = path.expanduser()
    return found


def _weights(spec: str) -> Path | None:
    """The path in NAME:WEIGHTS, or one by itself; a bare word may be anything."""
    tail = PARTS.split(spec)[-1]
    return Path(tail) if ":" in spec or Path(tail).name != tail else None


def told(path: Path) -> list[Any]:
    """What tells a file or a folder from others: how many files, and a hash of names, sizes, and of few files' ends."""
    files = all_in(path)
    digest = hashlib.sha256()
    for file in files:
        size = file.stat().st_size
        digest.update(f"{file.relative_to(path).as_posix()} {size}\n".encode())
        if len(files) <= FEW:
            with file.open("rb") as stream:
                digest.update(stream.read(ENDS))
                stream.seek(max(0, size - ENDS))
                digest.update(stream.read(ENDS))
    return [len(files), digest.hexdigest()[:16]]


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
        if missing or (missing is None and value != wanted and not _is_weights_of(value, wanted)):
            found.append(f"{dotted} {value}")
    if protocol.files and not options.prompts:
        found.append("prompts of the recipe")
    for told, given in zip(evidence.from_files.files, options.prompts, strict=True):
        if not protocol.files or told["sha256"] in protocol.files:
            found += [f"{change} of {told['file']}" for change in _read_otherwise(given)] if protocol.files else []
            continue
        is_as_long = not protocol.rows or told["rows"] in protocol.rows
        found.append(f"prompts {told['file']}" + ("" if is_as_long else f" of {told['rows']:,} rows"))
    if protocol.reference and _real_images(recipe) is None:
        found.append("no real pictures")
    if any(file.rows for file in options.prompts):
        found.append("the first rows alone")
    return found


def _is_weights_of(value: Any, wanted: Any) -> bool:
    """Whether it is NAME:WEIGHTS where a protocol, which ships none, has the name."""
    return isinstance(value, str) and ":" not in str(wanted) and value.partition(":")[0] == wanted


def _read_otherwise(given: PromptFile) -> list[str]:
    """What the recipe says of a file that is read without a word, and so is no longer what others measured with."""
    plain = PromptFile(file=given.file)
    values = {name: getattr(given, name) for name in ("use", "columns", "honour", "pictures")}
    return [f"{name} {value}" for name, value in values.items() if value != getattr(plain, name)]


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
