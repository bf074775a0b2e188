"""Names of weights in the authors' single files of Stable Diffusion 3.

The attentions keep queries, keys and values in one weight, and the two layers that shift and scale last have their
halves the other way round.
"""

from __future__ import annotations

import re
from collections.abc import Collection

from erasediff_lora.families.layouts.mmdit import IMAGE, LAST, OUTER, TEXT
from erasediff_lora.families.slot import Slot

NETWORK = "model.diffusion_model."
ENCODERS = {
    "text_encoders.clip_l.transformer.": "text_encoder",
    "text_encoders.clip_g.transformer.": "text_encoder_2",
    "text_encoders.t5xxl.transformer.": "text_encoder_3",
}
_BLOCK = re.compile(r"joint_blocks\.(\d+)\.(x|context)_block\.(.+)")


def slots(keys: Collection[str]) -> dict[str, Slot]:
    """Adapter name -> slot, for every weight of the transformer and the text encoders of a checkpoint."""
    numbers = [int(match[1]) for key in keys if (match := _BLOCK.fullmatch(key.removeprefix(NETWORK)))]
    if not numbers:
        return {}
    found: dict[str, Slot] = {}
    for key in keys:
        path = key.removesuffix(".weight")
        if path == key:
            continue
        if key.startswith(NETWORK):
            found |= _network(key, path.removeprefix(NETWORK), max(numbers))
        for prefix, component in ENCODERS.items():
            if key.startswith(prefix):
                found[f"{component}.{path.removeprefix(prefix).removeprefix('text_model.')}"] = Slot(key)
    return found


def _network(key: str, path: str, last: int) -> dict[str, Slot]:
    if path in OUTER:
        return {f"transformer.{OUTER[path]}": Slot(key)}
    if path in LAST:
        return {f"transformer.{LAST[path]}": Slot(key, swapped=True)}
    match = _BLOCK.fullmatch(path)
    names = () if match is None else (IMAGE if match[2] == "x" else TEXT).get(match[3], ())
    if match is None or not names:
        return {}
    swapped = int(match[1]) == last and names[0] == "norm1_context.linear"
    block = f"transformer.transformer_blocks.{match[1]}."
    return {block + name: Slot(key, part, len(names), swapped) for part, name in enumerate(names)}
