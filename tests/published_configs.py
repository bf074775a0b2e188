"""The configuration files of published transformers, written out: enough to plan with, and no weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

CLIP_L: dict[str, Any] = {
    "architectures": ["CLIPTextModel"], "model_type": "clip_text_model", "hidden_size": 768, "intermediate_size": 3072,
    "num_attention_heads": 12, "num_hidden_layers": 12, "max_position_embeddings": 77, "vocab_size": 49408,
    "projection_dim": 768,
}  # fmt: skip
T5_XXL: dict[str, Any] = {
    "architectures": ["T5EncoderModel"], "model_type": "t5", "d_model": 4096, "d_kv": 64, "d_ff": 10240,
    "num_layers": 24, "num_heads": 64, "feed_forward_proj": "gated-gelu", "vocab_size": 32128,
    "tie_word_embeddings": False,
}  # fmt: skip
FLUX_VAE: dict[str, Any] = {
    "_class_name": "AutoencoderKL", "in_channels": 3, "out_channels": 3, "latent_channels": 16,
    "down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4,
    "block_out_channels": [128, 256, 512, 512], "layers_per_block": 2, "norm_num_groups": 32, "sample_size": 1024,
    "scaling_factor": 0.3611, "shift_factor": 0.1159, "use_quant_conv": False, "use_post_quant_conv": False,
}  # fmt: skip
SCHEDULER: dict[str, Any] = {
    "_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": 3.0,
    "use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 1.15, "base_image_seq_len": 256,
    "max_image_seq_len": 4096,
}  # fmt: skip
FLUX_DEV: dict[str, Any] = {
    "_class_name": "FluxTransformer2DModel", "in_channels": 64, "num_layers": 19, "num_single_layers": 38,
    "attention_head_dim": 128, "num_attention_heads": 24, "joint_attention_dim": 4096, "pooled_projection_dim": 768,
    "guidance_embeds": True, "axes_dims_rope": [16, 56, 56], "patch_size": 1,
}  # fmt: skip
QWEN3_4B: dict[str, Any] = {
    "architectures": ["Qwen3Model"], "model_type": "qwen3", "hidden_size": 2560, "intermediate_size": 9728,
    "num_hidden_layers": 36, "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128,
    "vocab_size": 151936, "max_position_embeddings": 40960,
}  # fmt: skip
Z_IMAGE: dict[str, Any] = {
    "_class_name": "ZImageTransformer2DModel", "in_channels": 16, "dim": 3840, "n_layers": 30, "n_refiner_layers": 2,
    "n_heads": 30, "n_kv_heads": 30, "cap_feat_dim": 2560, "axes_dims": [32, 48, 48], "axes_lens": [1536, 512, 512],
    "all_patch_size": [2], "all_f_patch_size": [1],
}  # fmt: skip
QWEN_VL_7B: dict[str, Any] = {
    "architectures": ["Qwen2_5_VLForConditionalGeneration"], "model_type": "qwen2_5_vl",
    "text_config": {
        "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28,
        "num_key_value_heads": 4, "vocab_size": 152064, "model_type": "qwen2_5_vl_text",
    },
    "vision_config": {
        "depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16, "out_hidden_size": 3584,
        "model_type": "qwen2_5_vl",
    },
}  # fmt: skip
QWEN_VAE: dict[str, Any] = {"_class_name": "AutoencoderKLQwenImage", "base_dim": 96, "z_dim": 16}
QWEN_IMAGE: dict[str, Any] = {
    "_class_name": "QwenImageTransformer2DModel", "in_channels": 64, "out_channels": 16, "num_layers": 60,
    "attention_head_dim": 128, "num_attention_heads": 24, "joint_attention_dim": 3584, "guidance_embeds": False,
    "axes_dims_rope": [16, 56, 56], "patch_size": 2,
}  # fmt: skip
FLUX_2_VAE: dict[str, Any] = {
    "_class_name": "AutoencoderKLFlux2", "latent_channels": 32, "sample_size": 1024,
    "block_out_channels": [128, 256, 512, 512],
}  # fmt: skip
FLUX_2_KLEIN: dict[str, Any] = {
    "_class_name": "Flux2Transformer2DModel", "in_channels": 128, "num_layers": 5, "num_single_layers": 20,
    "attention_head_dim": 128, "num_attention_heads": 24, "joint_attention_dim": 7680, "guidance_embeds": False,
    "mlp_ratio": 3.0, "axes_dims_rope": [32, 32, 32, 32], "rope_theta": 2000, "patch_size": 1,
}  # fmt: skip
GEMMA_2_2B: dict[str, Any] = {
    "architectures": ["Gemma2Model"], "model_type": "gemma2", "hidden_size": 2304, "intermediate_size": 9216,
    "num_hidden_layers": 26, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256, "vocab_size": 256000,
}  # fmt: skip
LUMINA_2: dict[str, Any] = {
    "_class_name": "Lumina2Transformer2DModel", "in_channels": 16, "hidden_size": 2304, "num_layers": 26,
    "num_refiner_layers": 2, "num_attention_heads": 24, "num_kv_heads": 8, "multiple_of": 256, "sample_size": 128,
    "axes_dim_rope": [32, 32, 32], "axes_lens": [300, 512, 512], "cap_feat_dim": 2304, "patch_size": 2,
}  # fmt: skip
BASES: dict[str, tuple[str, dict[str, tuple[str, dict[str, Any]]]]] = {
    "flux": (
        "FluxPipeline",
        {
            "transformer": ("diffusers", FLUX_DEV),
            "vae": ("diffusers", FLUX_VAE),
            "scheduler": ("diffusers", SCHEDULER),
            "text_encoder": ("transformers", CLIP_L),
            "text_encoder_2": ("transformers", T5_XXL),
        },
    ),
    "z_image": (
        "ZImagePipeline",
        {
            "transformer": ("diffusers", Z_IMAGE),
            "vae": ("diffusers", FLUX_VAE),
            "scheduler": ("diffusers", SCHEDULER | {"use_dynamic_shifting": False}),
            "text_encoder": ("transformers", QWEN3_4B),
        },
    ),
    "qwen_image": (
        "QwenImagePipeline",
        {
            "transformer": ("diffusers", QWEN_IMAGE),
            "vae": ("diffusers", QWEN_VAE),
            "scheduler": ("diffusers", SCHEDULER | {"shift": 1.0, "max_shift": 0.9, "max_image_seq_len": 8192}),
            "text_encoder": ("transformers", QWEN_VL_7B),
        },
    ),
    "lumina_2": (
        "Lumina2Pipeline",
        {
            "transformer": ("diffusers", LUMINA_2),
            "vae": ("diffusers", FLUX_VAE),
            "scheduler": ("diffusers", SCHEDULER | {"shift": 6.0, "use_dynamic_shifting": False}),
            "text_encoder": ("transformers", GEMMA_2_2B),
        },
    ),
    "flux_2_klein": (
        "Flux2KleinPipeline",
        {
            "transformer": ("diffusers", FLUX_2_KLEIN),
            "vae": ("diffusers", FLUX_2_VAE),
            "scheduler": ("diffusers", SCHEDULER),
            "text_encoder": ("transformers", QWEN3_4B | {"architectures": ["Qwen3ForCausalLM"]}),
        },
    ),
}
"""Family -> its pipeline, and the library and the configuration of each component."""


def published(family: str, folder: Path) -> Path:
    """A diffusers folder of the family's published model, without weights."""
    pipeline, components = BASES[family]
    index: dict[str, Any] = {"_class_name": pipeline}
    for name, (library, config) in components.items():
        kind = config.get("_class_name") or config["architectures"][0]
        index[name] = [library, kind]
        (folder / name).mkdir(parents=True)
        file = "scheduler_config.json" if name == "scheduler" else "config.json"
        (folder / name / file).write_text(json.dumps(config))
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder
