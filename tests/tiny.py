"""A Stable Diffusion pipeline of the real architecture, tiny and with random weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
    UNet2DModel,
)
from tokenizers import pre_tokenizers
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from erasediff_lora.denoisers.class_conditional import ClassConditionalPipeline

UNET: dict[str, Any] = {
    "sample_size": 4,
    "in_channels": 4,
    "out_channels": 4,
    "layers_per_block": 1,
    "block_out_channels": (16, 32),
    "attention_head_dim": 2,
    "norm_num_groups": 8,
}
"""What the tiny UNets have in common."""


def tiny_pipeline(prediction_type: str = "epsilon") -> StableDiffusionPipeline:
    """32 px pictures, 4x4 latents, 32-dimensional prompts."""
    torch.manual_seed(0)
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces = letters + [letter + "</w>" for letter in letters] + ["<|startoftext|>", "<|endoftext|>"]
    tokenizer = CLIPTokenizer(vocab={p: i for i, p in enumerate(pieces)}, merges=[], model_max_length=32)
    text_encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(pieces),
            hidden_size=32,
            intermediate_size=32,
            projection_dim=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=32,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8, 8, 8, 8),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=32,
    )
    unet = UNet2DConditionModel(
        **UNET,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=32,
    )
    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type=prediction_type,
    )
    return StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def tiny_xl_pipeline() -> StableDiffusionXLPipeline:
    """32 px pictures, 4x4 latents, two text encoders of 32 and 16 dimensions, a pooled embedding of 16."""
    plain = tiny_pipeline()
    torch.manual_seed(3)
    config = plain.text_encoder.config.to_dict() | {"hidden_size": 16, "projection_dim": 16, "num_hidden_layers": 2}
    first = plain.text_encoder.config.to_dict() | {"num_hidden_layers": 2}
    unet = UNet2DConditionModel(
        **UNET,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=48,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=16 + 6 * 8,
    )
    return StableDiffusionXLPipeline(
        vae=plain.vae,
        text_encoder=CLIPTextModel(CLIPTextConfig(**first)),
        text_encoder_2=CLIPTextModelWithProjection(CLIPTextConfig(**config)),
        tokenizer=plain.tokenizer,
        tokenizer_2=plain.tokenizer,
        unet=unet,
        scheduler=plain.scheduler,
        add_watermarker=False,
    )


def tiny_sd3_pipeline() -> StableDiffusion3Pipeline:
    """32 px pictures, 4x4 latents in 2x2 patches, two text encoders of 32 and 16 dimensions, no T5."""
    xl = tiny_xl_pipeline()
    torch.manual_seed(4)
    first = xl.text_encoder.config.to_dict() | {"projection_dim": 32}
    xl.vae.register_to_config(shift_factor=0.1)
    transformer = SD3Transformer2DModel(
        sample_size=4,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=64,
        caption_projection_dim=16,
        pooled_projection_dim=48,
        pos_embed_max_size=8,
    )
    return StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=xl.vae,
        text_encoder=CLIPTextModelWithProjection(CLIPTextConfig(**first)),
        tokenizer=xl.tokenizer,
        text_encoder_2=xl.text_encoder_2,
        tokenizer_2=xl.tokenizer,
        text_encoder_3=None,
        tokenizer_3=None,
    )


def tiny_class_pipeline(labels: Mapping[int, str]) -> ClassConditionalPipeline:
    """8 px grey pictures of classes."""
    torch.manual_seed(0)
    unet = UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        layers_per_block=1,
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=8,
        norm_num_groups=4,
        num_class_embeds=len(labels) + 1,
    )
    return ClassConditionalPipeline(unet, DDIMScheduler(), labels)


def tiny_values(base: Path, root: Path, **sections: Any) -> dict[str, Any]:
    """Recipe values for a run of a few steps on a tiny base."""
    values: dict[str, Any] = {
        "model": {"base": str(base)},
        "forget": {"concepts": ["cat"], "templates": ["a photo of a {concept}"], "count": 4},
        "retain": {"concepts": ["dog", "car"], "templates": ["a photo of a {concept}"], "count": 4},
        "sampling": {"steps": 2, "guidance": 2.0, "batch_size": 4},
        "adapter": {"rank": 2, "targets": "attention"},
        "training": {"steps": 4, "batch_size": 2, "threads": 1, "checkpoint_every": 2},
        "evaluation": {"forget_samples": 2, "retain_samples": 2, "metrics": []},
        "output": str(root / "run"),
        "cache": str(root / "cache"),
    }
    for section, changes in sections.items():
        values[section] = values.get(section, {}) | changes if isinstance(changes, dict) else changes
    return values


def tiny_classifier(folder: Path, labels: list[str], favourite: str | None = None) -> Path:
    """A random image classifier in transformers' layout; with a favourite it sees that in everything."""
    from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessorPil

    torch.manual_seed(1)
    model = ViTForImageClassification(
        ViTConfig(
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=16,
            image_size=32,
            patch_size=16,
            id2label=dict(enumerate(labels)),
            label2id={label: index for index, label in enumerate(labels)},
        )
    )
    if favourite is not None:
        assert isinstance(model.classifier, nn.Linear)
        model.classifier.bias.data[labels.index(favourite)] = 1e3
    model.save_pretrained(folder)
    ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


def tiny_clip(folder: Path) -> Path:
    """A random CLIPModel with its processor."""
    from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel

    torch.manual_seed(2)
    tokenizer = tiny_pipeline().tokenizer
    text = {
        "vocab_size": len(tokenizer),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "max_position_embeddings": 77,
    }
    shape = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = CLIPConfig(
        text_config=text | shape, vision_config={"image_size": 32, "patch_size": 16} | shape, projection_dim=16
    )
    CLIPModel(config).save_pretrained(folder)
    tokenizer.model_max_length = 77
    tokenizer.save_pretrained(folder)
    CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


def tiny_base_recipe(base: Path, root: Path, **sections: Any) -> Path:
    """A file with `tiny_values`."""
    file = root / "recipe.yaml"
    file.write_text(yaml.safe_dump(tiny_values(base, root, **sections)))
    return file
