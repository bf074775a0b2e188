"""What attacks found, as files that others can use: learned words as embeddings, searched prompts as a list."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from erasediff_lora.storage.files import save_safetensors, write_text

if TYPE_CHECKING:
    from erasediff_lora.denoisers import Denoiser
    from erasediff_lora.evaluation.attacks.restarts import Condition

FOLDER = "attacks"
PROMPTS = "prompts.csv"
COLUMNS = ("prompt", "type", "concept", "case_number", "exact")


def export(
    folder: Path, denoiser: Denoiser, found: Mapping[str, Mapping[str, Condition]], texts: Sequence[str]
) -> None:
    """Write what searches found on the erased model, the best of each concept.

    Args:
        folder: Of the evaluation; files go to `attacks/` in it.
        denoiser: For the tokenizer and the widths of the encoders.
        found: Attack -> concept -> condition.
        texts: A prompt that names each concept, in the order of the concepts of each attack.
    """
    from erasediff_lora.denoisers import SLOT

    rows: list[dict[str, Any]] = []
    for attack, conditions in found.items():
        for concept, condition in conditions.items():
            name = f"{attack}-{'-'.join(re.findall(r'[a-z0-9]+', concept.lower())) or 'concept'}"
            named = next((text for text in texts if concept in text), concept)
            if condition.tokens is None:
                parts = condition.exported(denoiser)
                header = {"attack": attack, "prompt": condition.wording(named).replace(SLOT, name)}
                save_safetensors(parts, folder / FOLDER / f"{name}.safetensors", header)
                continue
            text, exact = _text(denoiser, condition.tokens)
            prompt = condition.wording(named).replace(SLOT, text)
            rows.append(dict(zip(COLUMNS, (prompt, "attack", concept, name, "yes" if exact else "no"), strict=True)))
    if rows:
        table = io.StringIO()
        writer = csv.DictWriter(table, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write_text(folder / FOLDER / PROMPTS, table.getvalue())


def _text(denoiser: Denoiser, tokens: Sequence[int]) -> tuple[str, bool]:
    """The tokens as text, and whether the tokenizer reads the same tokens in it."""
    tokenizer = denoiser.pipeline.tokenizer
    special = set(tokenizer.all_special_ids)
    ordinary = [index for index in range(len(tokenizer)) if index not in special]
    ids = [ordinary[token] for token in tokens]
    text = str(tokenizer.decode(ids)).strip()
    return text, list(tokenizer(text, add_special_tokens=False).input_ids) == ids
