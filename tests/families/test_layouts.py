"""The table of names, against the networks themselves: every module with a weight, and the weight's shape."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import diffusers
import pytest
import torch
from architectures import SD_1_5, SD_2_1, SDXL
from diffusers import SD3Transformer2DModel, UNet2DConditionModel
from diffusers.loaders.single_file_utils import convert_sd3_transformer_checkpoint_to_diffusers
from published_configs import BASES
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, T5Config, T5EncoderModel

from erasediff_lora.families.layouts import Layout, Swapped
from erasediff_lora.families.names import Size, sizes, spelled
from erasediff_lora.registry import FAMILIES

SD3: dict[str, Any] = {
    **{"attention_head_dim": 64, "joint_attention_dim": 4096, "pooled_projection_dim": 2048},
    **{"in_channels": 16, "out_channels": 16, "pos_embed_max_size": 192, "patch_size": 2, "sample_size": 128},
}


def mmdit(depth: int, **options: Any) -> nn.Module:
    width = {"num_layers": depth, "num_attention_heads": depth, "caption_projection_dim": 64 * depth}
    return SD3Transformer2DModel(**SD3, **width, **options)


def clip(kind: Any, width: int, layers: int) -> nn.Module:
    config = CLIPTextConfig(
        hidden_size=width, intermediate_size=4 * width, num_hidden_layers=layers, projection_dim=width
    )
    return kind(config)


def t5() -> nn.Module:
    sizes: dict[str, Any] = {
        "d_model": 4096,
        "d_ff": 10240,
        "num_layers": 24,
        "num_heads": 64,
        "d_kv": 64,
        "vocab_size": 32128,
    }
    return T5EncoderModel(T5Config(**sizes, feed_forward_proj="gated-gelu"))


def layout(family: str, number: int, component: str) -> Layout:
    return sizes(FAMILIES[family])[number].layouts[component]


PUBLISHED: dict[str, tuple[Layout, Callable[[], nn.Module]]] = {
    "sd-1.5": (layout("stable_diffusion", 0, "unet"), lambda: UNet2DConditionModel(**SD_1_5)),
    "sd-1.5 inpainting": (
        layout("stable_diffusion", 1, "unet"),
        lambda: UNet2DConditionModel(**SD_1_5, in_channels=9),
    ),
    "sd-2.1": (layout("stable_diffusion", 2, "unet"), lambda: UNet2DConditionModel(**SD_2_1)),
    "sdxl": (layout("stable_diffusion_xl", 0, "unet"), lambda: UNet2DConditionModel(**SDXL)),
    "sd-3": (layout("stable_diffusion_3", 0, "transformer"), lambda: mmdit(24)),
    "sd-3.5 medium": (
        layout("stable_diffusion_3", 1, "transformer"),
        lambda: mmdit(24, dual_attention_layers=tuple(range(13)), qk_norm="rms_norm"),
    ),
    "sd-3.5 large": (layout("stable_diffusion_3", 2, "transformer"), lambda: mmdit(38, qk_norm="rms_norm")),
    "clip l": (layout("stable_diffusion", 0, "text_encoder"), lambda: clip(CLIPTextModel, 768, 12)),
    "clip h": (layout("stable_diffusion", 2, "text_encoder"), lambda: clip(CLIPTextModel, 1024, 23)),
    "clip g": (
        layout("stable_diffusion_xl", 0, "text_encoder_2"),
        lambda: clip(CLIPTextModelWithProjection, 1280, 32),
    ),
    "t5": (layout("stable_diffusion_3", 0, "text_encoder_3"), t5),
}


def transformer(family: str) -> nn.Module:
    _, config = BASES[family][1]["transformer"]
    return getattr(diffusers, config["_class_name"]).from_config(config)


PUBLISHED |= {name: (layout(name, 0, "transformer"), partial(transformer, name)) for name in BASES}


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_modules_of_a_published_model(name: str) -> None:
    mine, build = PUBLISHED[name]
    with torch.device("meta"):
        network = build()
    found = {
        path.removeprefix("text_model."): tuple(module.weight.shape)
        for path, module in network.named_modules()
        if isinstance(getattr(module, "weight", None), torch.Tensor)
    }
    found.pop("encoder.embed_tokens", None)  # T5's other name for its table
    assert dict(mine.weights()) == found


def test_native_names_of_sd3_are_those_that_diffusers_converts() -> None:
    """Each native tensor holds its row numbers: what diffusers makes of them says where the rows go."""
    mine = layout("stable_diffusion_3", 1, "transformer")
    width = 1536
    marks: dict[str, tuple[int, int, int]] = {}
    state: dict[str, torch.Tensor] = {}
    for number, (theirs, ours) in enumerate(mine.native()):
        rows = len(ours) * width if len(ours) > 1 else 8
        for leaf in ("weight", "bias"):
            state[f"{theirs}.{leaf}"] = torch.arange(rows) + number * 10_000
        marks |= {path: (number, part, rows // len(ours)) for part, path in enumerate(ours)}
    swapped = {ours[0] for _, ours in mine.native() if isinstance(ours, Swapped)}
    assert swapped == {"norm_out.linear", "transformer_blocks.23.norm1_context.linear"}
    converted = convert_sd3_transformer_checkpoint_to_diffusers(state | {"pos_embed": torch.zeros(1)})
    for path, (number, part, rows) in marks.items():
        expected = torch.arange(rows) + part * rows + number * 10_000
        expected = torch.cat(expected.chunk(2)[::-1]) if path in swapped else expected
        assert torch.equal(converted[f"{path}.weight"], expected), path


SIZES = {f"{name} {number}": size for name in FAMILIES for number, size in enumerate(sizes(FAMILIES[name]))}


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
def test_no_two_modules_are_spelled_alike(size: Size) -> None:
    for component, mine in size.layouts.items():
        paths = [spelled(path) for path, _ in mine.weights()]
        assert len(set(paths)) == len(paths)
        for path, shape in mine.weights():
            for prefix in (f"{component}.", f"lora_{component}_"):
                name = prefix + (path if "." in prefix else path.replace(".", "_"))
                assert size.find(name, shape) == (f"{component}.{path}",)
