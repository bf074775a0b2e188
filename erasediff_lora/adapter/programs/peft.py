"""peft: `PeftModel.from_pretrained`, one model at a time."""

from __future__ import annotations

from erasediff_lora.adapter.programs.base import (
    DORA_OF_INPUTS,
    PLAIN,
    SD,
    SD3,
    XL,
    Limit,
    Program,
)

PROGRAM = Program(
    title="peft",
    version="0.21.2",
    repository="https://github.com/huggingface/peft",
    reads={"peft": (SD, XL, SD3, "class_conditional")},
    limits=(
        Limit(
            DORA_OF_INPUTS,
            "read otherwise",
            "DoRA's magnitudes are taken for those of the outputs",
            PLAIN,
            "tuners/lora/dora.py",
        ),
    ),
)
