"""peft: `PeftModel.from_pretrained`, one model at a time."""

from __future__ import annotations

from erasediff_lora.adapter.programs.base import SD, SD3, XL, Program

PROGRAM = Program(
    title="peft",
    version="0.21.2",
    repository="https://github.com/huggingface/peft",
    reads={"peft": (SD, XL, SD3, "class_conditional")},
)
