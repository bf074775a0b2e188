"""CLIP checkpoints in open_clip's own layout, read as transformers' CLIPModel: the same network under other names."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from erasediff_lora.errors import Problem, UserError
from erasediff_lora.storage.files import open_safetensors

CONFIG = "open_clip_config.json"
FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors")
MEAN, DEVIATION = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
HEAD_WIDTH, MLP_RATIO, CONTEXT = 64, 4.0, 77
FIXED = {
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.ln_pre": "vision_model.pre_layrnorm",
    "visual.ln_post": "vision_model.post_layernorm",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final": "text_model.final_layer_norm",
    "logit_scale": "logit_scale",
}
PROJECTIONS = {"visual.proj": "visual_projection.weight", "text_projection": "text_projection.weight"}
"""Matrices that are multiplied from the other side."""
INSIDE = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
BLOCK = re.compile(r"(visual\.)?transformer\.resblocks\.(\d+)\.(.+)")


def is_open_clip(weights: str) -> bool:
    """Whether it is a folder in open_clip's layout and in no other."""
    folder = Path(weights)
    return (folder / CONFIG).is_file() and not (folder / "config.json").is_file()


def load(folder: Path) -> tuple[Any, Any]:
    """The model and its processor.

    Args:
        folder: With open_clip_config.json, open_clip_model.safetensors and the tokenizer's files.

    Raises:
        UserError: If something is missing, or the network is none that CLIPModel is.
    """
    from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPProcessor, CLIPTokenizer

    table = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    if not any((folder / name).is_file() for name in ("tokenizer.json", "vocab.json")):
        what = "has no tokenizer.json, by which texts are read."
        raise UserError(Problem("weights", str(folder), what, "Put that of a CLIP model beside the weights."))
    tokenizer = CLIPTokenizer.from_pretrained(folder)
    options = configuration(folder, table["model_cfg"])
    marks = ("bos_token_id", "eos_token_id", "pad_token_id")
    options["text_config"] |= {name: getattr(tokenizer, name) for name in marks}
    model = CLIPModel(CLIPConfig(**options))
    with open_safetensors(_weights_in(folder), "weights") as file:
        stored = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    missing, unexpected = model.load_state_dict(renamed(stored), strict=False)
    if missing or unexpected:
        what = f"is not what its {CONFIG} says: {', '.join([*missing, *unexpected][:3])}."
        raise UserError(Problem("weights", str(folder), what, "Download it again."))
    seen, side = table.get("preprocess_cfg", {}), int(options["vision_config"]["image_size"])
    pictures = CLIPImageProcessorPil(
        size={"shortest_edge": side},
        crop_size={"height": side, "width": side},
        image_mean=list(seen.get("mean", MEAN)),
        image_std=list(seen.get("std", DEVIATION)),
    )
    tokenizer.model_max_length = options["text_config"]["max_position_embeddings"]
    return model.eval(), CLIPProcessor(image_processor=pictures, tokenizer=tokenizer)


def _weights_in(folder: Path) -> Path:
    found = next((folder / name for name in FILES if (folder / name).is_file()), None)
    if found is None:
        what = f"has no {FILES[0]}."
        raise UserError(Problem("weights", str(folder), what, "Convert open_clip_pytorch_model.bin to safetensors."))
    return found


def configuration(folder: Path, told: Mapping[str, Any]) -> dict[str, Any]:
    """CLIPConfig's options of an open_clip model.

    Raises:
        UserError: If its parts are not those of CLIP: a ResNet, an encoder of timm or of transformers.
    """
    vision, text = told["vision_cfg"], told["text_cfg"]
    if isinstance(vision.get("layers"), list) or "timm_model_name" in vision or "hf_model_name" in text:
        what = "is no CLIP of two plain transformers."
        raise UserError(Problem("weights", str(folder), what, "Take a ViT model with CLIP's own text encoder."))

    def part(table: Mapping[str, Any], heads: int) -> dict[str, Any]:
        width = int(table["width"])
        return {
            "hidden_size": width,
            "num_hidden_layers": int(table["layers"]),
            "num_attention_heads": heads,
            "intermediate_size": int(width * float(table.get("mlp_ratio", MLP_RATIO))),
            "hidden_act": "quick_gelu" if told.get("quick_gelu") else "gelu",
            "projection_dim": int(told["embed_dim"]),
        }

    size = vision["image_size"]
    return {
        "projection_dim": int(told["embed_dim"]),
        "vision_config": part(vision, int(vision["width"]) // int(vision.get("head_width", HEAD_WIDTH)))
        | {"image_size": size if isinstance(size, int) else int(size[0]), "patch_size": int(vision["patch_size"])},
        "text_config": part(text, int(text["heads"]))
        | {"vocab_size": int(text["vocab_size"]), "max_position_embeddings": int(text.get("context_length", CONTEXT))},
    }


def renamed(stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights under transformers' names; q, k and v, which lie in one matrix, apart."""
    found: dict[str, Tensor] = {}
    for name, tensor in stored.items():
        if name == "attn_mask":
            continue
        if (block := BLOCK.fullmatch(name)) is not None:
            part = "vision_model" if block[1] else "text_model"
            found |= _of_block(f"{part}.encoder.layers.{block[2]}", block[3], tensor)
        elif name in PROJECTIONS:
            found[PROJECTIONS[name]] = tensor.T.contiguous()
        else:
            module, dot, leaf = name.rpartition(".")
            found[FIXED.get(name) or f"{FIXED.get(module, module)}{dot}{leaf}"] = tensor
    return found


def _of_block(place: str, inside: str, tensor: Tensor) -> dict[str, Tensor]:
    if inside.startswith("attn.in_proj_"):
        leaf = inside.removeprefix("attn.in_proj_")
        parts = zip("qkv", tensor.chunk(3), strict=True)
        return {f"{place}.self_attn.{letter}_proj.{leaf}": own.contiguous() for letter, own in parts}
    module, _, leaf = inside.rpartition(".")
    return {f"{place}.{INSIDE.get(module, module)}.{leaf}": tensor}
