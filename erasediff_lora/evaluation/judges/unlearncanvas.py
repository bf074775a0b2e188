"""UnlearnCanvas' own classifiers of styles and objects: timm's ViT-L/16 with another head, read without timm.

Labels, sizes and preprocessing are those of machine_unlearning/evaluation/ (quantitative/accuracy.py and
constants/const.py) in github.com/OPTML-Group/UnlearnCanvas.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from erasediff_lora.errors import Problem, UserError
from erasediff_lora.evaluation.judges.base import Judge, Names
from erasediff_lora.evaluation.loading import loading
from erasediff_lora.storage.files import PICKLE_SUFFIXES, open_safetensors

_STYLES = (
    "Abstractionism Artist_Sketch Blossom_Season Bricks Byzantine Cartoon Cold_Warm Color_Fantasy Comic_Etch Crayon"
    " Cubism Dadaism Dapple Defoliation Early_Autumn Expressionism Fauvism French Glowing_Sunset Gorgeous_Love"
    " Greenfield Impressionism Ink_Art Joy Liquid_Dreams Magic_Cube Meta_Physics Meteor_Shower Monet Mosaic Neon_Lines"
    " On_Fire Pastel Pencil_Drawing Picasso Pop_Art Red_Blue_Ink Rust Seed_Images Sketch Sponge_Dabbed Structuralism"
    " Superstring Surrealism Ukiyoe Van_Gogh Vibrant_Flow Warm_Love Warm_Smear Watercolor Winter"
)
_OBJECTS = (
    "Architectures Bears Birds Butterfly Cats Dogs Fishes Flame Flowers Frogs Horses Human Jellyfish Rabbits Sandwiches"
    " Sea Statues Towers Trees Waterfalls"
)
STYLES = _STYLES.split()
"""Fifty, and photographs, in the order of the head."""
OBJECTS = _OBJECTS.split()
HEADS = {len(STYLES): STYLES, len(OBJECTS): OBJECTS}
FIELD = "evaluation.judge"
SIDE, HEAD_WIDTH, EPSILON, BATCH = 224, 64, 1e-6, 16
FIXED = {
    "cls_token": "vit.embeddings.cls_token",
    "pos_embed": "vit.embeddings.position_embeddings",
    "patch_embed.proj": "vit.embeddings.patch_embeddings.projection",
    "norm": "vit.layernorm",
    "head": "classifier",
}
INSIDE = {
    "norm1": "layernorm_before",
    "norm2": "layernorm_after",
    "attn.proj": "attention.o_proj",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}
BLOCK = re.compile(r"blocks\.(\d+)\.(.+)\.(weight|bias)")


class UnlearnCanvasJudge(Judge):
    """The most likely style, the most likely object, or both, with spaces in the place of underscores too.

    Args:
        path: A checkpoint, of styles or of objects, or a folder with both.

    Raises:
        UserError: If there is none, or it is of something else.
    """

    needs = "FILE"

    @classmethod
    def load(cls, weights: str, names: Names) -> UnlearnCanvasJudge:
        return cls(Path(weights).expanduser())

    def __init__(self, path: Path) -> None:
        given = f"unlearncanvas:{path}"
        kinds = {".safetensors", *PICKLE_SUFFIXES}
        files = sorted(file for file in path.iterdir() if file.suffix in kinds) if path.is_dir() else [path]
        if not files:
            what = "holds no checkpoint."
            raise UserError(Problem(FIELD, given, what, "Give style50 and cls of UnlearnCanvas' cls_model."))
        with loading(FIELD, given):
            self._heads = [_read(file, given) for file in files]

    @property
    def labels(self) -> set[str]:
        return {name for _, labels in self._heads for label in labels for name in _spelled(label)}

    @torch.no_grad()
    def recognise(self, images: list[Image.Image]) -> list[set[str]]:
        seen: list[set[str]] = []
        for start in range(0, len(images), BATCH):
            pixels = torch.stack([prepared(image) for image in images[start : start + BATCH]])
            best = [network(pixel_values=pixels).logits.argmax(dim=1).tolist() for network, _ in self._heads]
            for row in zip(*best, strict=True):
                labels = (labels[index] for (_, labels), index in zip(self._heads, row, strict=True))
                seen.append({name for label in labels for name in _spelled(label)})
        return seen


def prepared(image: Image.Image) -> Tensor:
    """Squeezed to 224×224, in [-1, 1]: (3, 224, 224)."""
    small = image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BILINEAR)
    pixels = torch.frombuffer(bytearray(small.tobytes()), dtype=torch.uint8).reshape(SIDE, SIDE, 3)
    return pixels.permute(2, 0, 1).float() / 127.5 - 1


def _spelled(label: str) -> set[str]:
    return {label, label.replace("_", " ")}


def _read(file: Path, given: str) -> tuple[Any, list[str]]:
    """The network of a checkpoint, and its labels."""
    from transformers import ViTConfig, ViTForImageClassification

    stored = _tensors(file)
    if "head.weight" not in stored or "patch_embed.proj.weight" not in stored:
        what = f"is no ViT as timm names it: {', '.join(list(stored)[:2]) or 'nothing'}."
        raise UserError(Problem(FIELD, given, what, "A ViT or Swin in transformers' layout is transformers:FOLDER."))
    labels = HEADS.get(len(stored["head.weight"]))
    if labels is None:
        what = f"tells {len(stored['head.weight'])} classes apart; known are {', '.join(map(str, HEADS))}."
        raise UserError(Problem(FIELD, given, what, "Give style50 or cls of UnlearnCanvas' cls_model."))
    width, _, patch, _ = stored["patch_embed.proj.weight"].shape
    config = ViTConfig(
        hidden_size=width,
        num_hidden_layers=sum(name.endswith("norm1.weight") for name in stored),
        num_attention_heads=max(1, width // HEAD_WIDTH),
        intermediate_size=len(stored["blocks.0.mlp.fc1.weight"]),
        layer_norm_eps=EPSILON,
        image_size=SIDE,
        patch_size=patch,
        id2label=dict(enumerate(labels)),
    )
    network = ViTForImageClassification(config)
    network.load_state_dict(renamed(stored))
    return network.eval(), labels


def _tensors(file: Path) -> dict[str, Tensor]:
    if file.suffix in PICKLE_SUFFIXES:
        loaded = torch.load(file, map_location="cpu", weights_only=True)
        found = loaded.get("model_state_dict", loaded)
        return {str(name): tensor.float() for name, tensor in found.items()}
    with open_safetensors(file, FIELD) as stored:
        return {name: stored.get_tensor(name).float() for name in stored.keys()}  # noqa: SIM118


def renamed(stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Timm's weights of a ViT under transformers' names; q, k and v, which lie in one matrix, apart."""
    found: dict[str, Tensor] = {}
    for name, tensor in stored.items():
        if (block := BLOCK.fullmatch(name)) is None:
            module, _, leaf = name.rpartition(".")
            found[FIXED.get(name) or f"{FIXED.get(module, module)}.{leaf}"] = tensor
        elif block[2] == "attn.qkv":
            for letter, own in zip("qkv", tensor.chunk(3), strict=True):
                found[f"vit.layers.{block[1]}.attention.{letter}_proj.{block[3]}"] = own
        else:
            found[f"vit.layers.{block[1]}.{INSIDE[block[2]]}.{block[3]}"] = tensor
    return found
