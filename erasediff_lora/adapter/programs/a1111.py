"""AUTOMATIC1111's stable-diffusion-webui: `<lora:name:1>`."""

from __future__ import annotations

from erasediff_lora.adapter.programs.base import (
    BIASES,
    DORA,
    DORA_OF_OUTPUTS,
    MERGE,
    PLAIN,
    PROJECTION,
    SCALED,
    SD,
    SD3,
    XL,
    Limit,
    Program,
    named,
)

PROGRAM = Program(
    title="A1111",
    version="1.10.1",
    repository="https://github.com/AUTOMATIC1111/stable-diffusion-webui in ussoewwin/A1111-for-Python3.12, dcce1fb1",
    reads={"kohya": (SD, XL), "diffusers": (SD3,)},
    limits=(
        Limit(
            DORA_OF_OUTPUTS,
            "read otherwise",
            "DoRA takes the norm over the outputs, for magnitudes of the inputs",
            PLAIN,
            "extensions-builtin/Lora/network.py: NetworkModule.apply_weight_decompose",
            formats=("kohya",),
        ),
        Limit(
            PROJECTION,
            "not read",
            "the projection of a text encoder has no name",
            MERGE,
            "extensions-builtin/Lora/networks.py: convert_diffusers_name_to_compvis",
            formats=("kohya",),
        ),
        Limit(
            named(
                r"(?!transformer\.transformer_blocks\.\d+\.attn\.to_(q|k|v|out\.0)$)",
                "all but to_q, to_k, to_v, to_out.0",
            ),
            "not read",
            "only the attention of the picture's own tokens has names",
            MERGE,
            "modules/models/sd3/sd3_model.py: SD3Inferencer.diffusers_weight_mapping",
            families=(SD3,),
        ),
        Limit(
            SCALED,
            "read otherwise",
            "alpha stands where it is not read, and is taken for the rank",
            "Write it anew, with scale 1: convert --format diffusers.",
            "extensions-builtin/Lora/network.py: NetworkModule.calc_scale",
            formats=("diffusers",),
        ),
        Limit(
            DORA,
            "read otherwise",
            "lora_magnitude_vector is left out, and DoRA becomes LoRA",
            PLAIN,
            "extensions-builtin/Lora/network_lora.py: ModuleTypeLora",
            formats=("diffusers",),
        ),
        Limit(
            BIASES,
            "not read",
            "diff_b is read of whole differences only",
            MERGE,
            "extensions-builtin/Lora/network_lora.py: NetworkModuleLora",
        ),
    ),
)
