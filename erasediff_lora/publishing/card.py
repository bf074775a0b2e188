"""The model card of an adapter."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from erasediff_lora import families
from erasediff_lora.adapter.formats import Published
from erasediff_lora.adapter.weights import LoraAdapter
from erasediff_lora.families import License
from erasediff_lora.registry import FORMATS
from erasediff_lora.storage.run_folder import GRID_FILE, RECIPE_FILE

log = logging.getLogger(__name__)
TEMPLATE = Path(__file__).parent / "card.md.jinja"
TAGS = ["text-to-image", "diffusers", "lora", "template:sd-lora", "erasediff", "concept-erasure"]
TEXT_TAGS = {"text-to-image", "template:sd-lora"}


def model_card(
    adapter: LoraAdapter,
    folder: Path,
    repo: str,
    files: Mapping[str, Path],
    base_model: str | None,
    license: str | None,
    evaluation: Mapping[str, Any],
    shown: Sequence[Mapping[str, Any]],
) -> str:
    """The card of what lies in a hub folder.

    Args:
        adapter: The adapter.
        folder: The hub folder.
        repo: 'user/name' on the hub.
        files: Format -> its weights file, from the folder on.
        base_model: Hub id of the base, if there is one.
        license: Licence id; None: that of the base's family.
        evaluation: What was measured; empty if nothing was.
        shown: The pictures in the folder: kind, prompt, seed and picture of each.
    """
    is_demo = adapter.provenance.base_model == "demo"
    base_id = base_model or "PATH_OF_THE_BASE"
    card = ModelCard.from_template(
        _data(adapter, base_model, license, shown),
        template_path=str(TEMPLATE),
        adapter=adapter,
        provenance=adapter.provenance,
        base=base_model or ("the embedded model of erasediff-lora" if is_demo else adapter.provenance.base_model),
        concepts=list(adapter.provenance.concepts),
        evaluation=evaluation,
        repo=repo,
        has_grid=(folder / GRID_FILE).is_file(),
        usage=[
            text
            for name, file in files.items()
            if (text := FORMATS[name].usage(Published(adapter, repo, file.as_posix(), base_id)))
        ],
        parameters=sum(layer.down.numel() + layer.up.numel() for layer in adapter.layers.values()),
        kibibytes=round((folder / next(iter(files.values()))).stat().st_size / 1024),
        has_recipe=(folder / RECIPE_FILE).is_file(),
    )
    return f"{card}\n"


def _data(
    adapter: LoraAdapter, base_model: str | None, license: str | None, shown: Sequence[Mapping[str, Any]]
) -> ModelCardData:
    """What the hub itself reads."""
    found = families.of_architecture(adapter.architecture)
    draws_text = found is None or found[0].text_to_image
    named = License(license) if license else _license(adapter)
    if named is None:
        log.warning("warning: the licence of the base is unknown, so the card names none; give it with --license")
    return ModelCardData(
        license=named.id if named else None,
        license_name=named.name if named else None,
        license_link=named.link if named else None,
        library_name="diffusers",
        pipeline_tag="text-to-image" if draws_text else "unconditional-image-generation",
        tags=TAGS if draws_text else [tag for tag in TAGS if tag not in TEXT_TAGS],
        widget=[{"text": entry["prompt"], "output": {"url": entry["picture"]}} for entry in shown] or None,
        base_model=base_model,
        base_model_relation="adapter" if base_model else None,
    )


def _license(adapter: LoraAdapter) -> License | None:
    """That of the base's family; None if it is unknown."""
    if adapter.provenance.base_model == "demo":
        return License("apache-2.0")
    found = families.of_architecture(adapter.architecture)
    return None if found is None else found[1].license
