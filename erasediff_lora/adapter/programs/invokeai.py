"""InvokeAI."""

from __future__ import annotations

import re
from typing import Any

from erasediff_lora.adapter.programs.base import (
    BIASES,
    DORA_OF_OUTPUTS,
    MERGE,
    PLAIN,
    SD,
    XL,
    Limit,
    Program,
    Which,
)
from erasediff_lora.adapter.weights import Adapter

_TELLS_THE_BASE = re.compile(r"text_encoder|unet\..*attn2\.to_[kv]$|unet\..*transformer_blocks\.([2-9]|\d\d)\.")


def _without_a_hint(adapter: Adapter[Any]) -> list[str]:
    """All layers, if none tells for which base they are."""
    return [] if any(map(_TELLS_THE_BASE.match, adapter.layers)) else list(adapter.layers)


PROGRAM = Program(
    title="InvokeAI",
    version="6.14",
    repository="https://github.com/invoke-ai/InvokeAI, 8e71a8a5",
    reads={"kohya": (SD, XL)},
    limits=(
        Limit(
            DORA_OF_OUTPUTS,
            "read otherwise",
            "DoRA takes the norm over the outputs, for magnitudes of the inputs",
            PLAIN,
            "invokeai/backend/patches/layers/dora_layer.py: DoRALayer.get_weight",
        ),
        Limit(
            Which("no cross attention, text encoder or deep block at all", _without_a_hint),
            "not read",
            "the base is told by cross attention, text encoders or deep blocks, and there are none",
            MERGE,
            "invokeai/backend/model_manager/configs/lora.py: LoRA_LyCORIS_Config_Base._get_base_or_raise",
            families=(SD, XL),
        ),
        Limit(
            BIASES,
            "not read",
            "diff_b is read of whole differences only",
            MERGE,
            "invokeai/backend/patches/layers/lora_layer.py: LoRALayer.from_state_dict_values",
        ),
    ),
)
