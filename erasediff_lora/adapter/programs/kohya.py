"""kohya's sd-scripts: `networks/merge_lora.py` and `networks/sdxl_merge_lora.py`."""

from __future__ import annotations

from erasediff_lora.adapter.programs.base import (
    BIASES,
    DORA,
    MERGE,
    OTHER_KINDS,
    OUTSIDE_BLOCKS,
    PLAIN,
    PROJECTION,
    SD,
    XL,
    Limit,
    Program,
)

PROGRAM = Program(
    title="kohya's sd-scripts",
    version="0.10.1",
    repository="https://github.com/kohya-ss/sd-scripts, 48d368fa",
    reads={"kohya": (SD, XL)},
    limits=(
        Limit(
            DORA,
            "read otherwise",
            "dora_scale is left out, and DoRA becomes LoRA",
            PLAIN,
            "networks/merge_lora.py, networks/sdxl_merge_lora.py: merge_to_sd_model",
        ),
        Limit(
            OUTSIDE_BLOCKS,
            "not read",
            "only what lies in transformers, ResNet blocks and samplers is looked for",
            MERGE,
            "networks/lora.py: LoRANetwork.UNET_TARGET_REPLACE_MODULE",
        ),
        Limit(
            PROJECTION,
            "not read",
            "only attention and feed-forward layers of text encoders are looked for",
            MERGE,
            "networks/lora.py: LoRANetwork.TEXT_ENCODER_TARGET_REPLACE_MODULE",
        ),
        Limit(
            OTHER_KINDS,
            "not read",
            "only LoRA is known",
            "Make it a LoRA: convert --as lora --rank RANK.",
            "networks/merge_lora.py, networks/sdxl_merge_lora.py: merge_to_sd_model",
        ),
        Limit(
            BIASES,
            "not read",
            "only lora_up, lora_down and alpha are looked at",
            MERGE,
            "networks/merge_lora.py, networks/sdxl_merge_lora.py: merge_to_sd_model",
        ),
    ),
)
