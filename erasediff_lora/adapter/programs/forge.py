"""Forge (stable-diffusion-webui-forge): `<lora:name:1>`, by the code of ComfyUI of its day."""

from __future__ import annotations

from erasediff_lora.adapter.programs.base import (
    ATTENTION,
    BIASES,
    DORA,
    DORA_OF_OUTPUTS,
    KOHYA,
    PLAIN,
    SCALED,
    SD,
    XL,
    Limit,
    Program,
)

PROGRAM = Program(
    title="Forge",
    version="of June 2025",
    repository="https://github.com/lllyasviel/stable-diffusion-webui-forge, dfdcbab6",
    reads={"kohya": (SD, XL), "diffusers": (SD, XL)},
    limits=(
        Limit(
            DORA_OF_OUTPUTS,
            "read otherwise",
            "DoRA divides by the norm of the base's weight, not by that of the changed one",
            PLAIN,
            "backend/patcher/lora.py: weight_decompose",
            formats=("kohya",),
        ),
        Limit(
            DORA,
            "read otherwise",
            "lora_magnitude_vector is left out, and DoRA becomes LoRA",
            PLAIN,
            "packages_3rdparty/comfyui_lora_collection/lora.py: load_lora",
            formats=("diffusers",),
        ),
        Limit(
            SCALED,
            "read otherwise",
            "alpha stands where it is not read, and is taken for the rank",
            KOHYA,
            "packages_3rdparty/comfyui_lora_collection/lora.py: load_lora",
            formats=("diffusers",),
        ),
        Limit(
            ATTENTION,
            "not read",
            "diffusers' names of a UNet's attention are known in their old spelling (processor.to_q_lora) only",
            KOHYA,
            "packages_3rdparty/comfyui_lora_collection/lora.py: model_lora_keys_unet",
            formats=("diffusers",),
        ),
        Limit(
            BIASES,
            "not read",
            "biases are known by the name diff_b only",
            KOHYA,
            "packages_3rdparty/comfyui_lora_collection/lora.py: load_lora",
            formats=("diffusers",),
        ),
    ),
    tolerates=12,
)
