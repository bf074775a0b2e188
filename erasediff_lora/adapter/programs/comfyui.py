"""ComfyUI: the nodes Load LoRA."""

from __future__ import annotations

from erasediff_lora.adapter.programs.base import (
    ATTENTION,
    DORA,
    DORA_OF_OUTPUTS,
    KOHYA,
    MERGE,
    PLAIN,
    PROJECTION,
    SCALED,
    SD,
    SD3,
    T5,
    XL,
    Limit,
    Program,
    named,
)

PROGRAM = Program(
    title="ComfyUI",
    version="0.3.64",
    repository="https://github.com/comfyanonymous/ComfyUI, a125cd84",
    reads={"kohya": (SD, XL), "diffusers": (SD3, SD, XL), "peft": (SD3,)},
    limits=(
        Limit(
            DORA_OF_OUTPUTS,
            "read otherwise",
            "DoRA divides by the norm of the base's weight, not by that of the changed one",
            PLAIN,
            "comfy/weight_adapter/base.py: weight_decompose",
            formats=("kohya",),
        ),
        Limit(
            DORA,
            "read otherwise",
            "lora_magnitude_vector is left out, and DoRA becomes LoRA",
            PLAIN,
            "comfy/weight_adapter/lora.py: LoRAAdapter.load",
            formats=("diffusers", "peft"),
        ),
        Limit(
            SCALED,
            "read otherwise",
            "alpha stands where it is not read, and is taken for the rank",
            "Write it anew, with scale 1: convert --format diffusers.",
            "comfy/weight_adapter/lora.py: LoRAAdapter.calculate_weight",
            formats=("diffusers", "peft"),
        ),
        Limit(
            ATTENTION,
            "not read",
            "diffusers' names of a UNet's attention are known in their old spelling (processor.to_q_lora) only",
            KOHYA,
            "comfy/lora.py: model_lora_keys_unet",
            formats=("diffusers",),
            families=(SD, XL),
        ),
        Limit(
            PROJECTION,
            "not read",
            "the projection has no diffusers name",
            KOHYA,
            "comfy/lora.py: model_lora_keys_clip",
            formats=("diffusers",),
        ),
        Limit(
            T5,
            "not read",
            "T5 is known by OneTrainer's names (lora_te3) only",
            MERGE,
            "comfy/lora.py: model_lora_keys_clip",
            families=(SD3,),
        ),
        Limit(
            named(r"text_encoder", "text encoders"),
            "not read",
            "a text encoder's own file in peft's format has no names of its own",
            "Give it the diffusers file: convert --format diffusers.",
            "comfy/lora.py: model_lora_keys_clip",
            formats=("peft",),
        ),
    ),
)
