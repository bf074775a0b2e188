"""Judges of the field: open_clip's files, UnlearnCanvas' classifiers, models that are asked; against plain torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fixtures import Cli, RecipeFile
from PIL import Image
from refusals import refused
from safetensors.torch import save_file
from tiny import tiny_pipeline
from torch import Tensor, nn
from torch.nn import functional as F

from erasediff_lora.evaluation import judges
from erasediff_lora.evaluation.clip_model import Clip
from erasediff_lora.evaluation.judges import Names
from erasediff_lora.evaluation.judges.unlearncanvas import OBJECTS, STYLES, prepared

WIDTH, LAYERS, PATCH, SIDE, CONTEXT, EMBEDDING = 16, 2, 8, 32, 12, 10


def pictures(count: int = 3) -> list[Image.Image]:
    noise = np.random.default_rng(0).integers(0, 256, (count, SIDE, SIDE, 3), dtype=np.uint8)
    return [Image.fromarray(one) for one in noise]


class Block(nn.Module):
    """As open_clip has it: attention with one matrix for q, k and v."""

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.attn = nn.MultiheadAttention(WIDTH, heads, batch_first=True)
        self.mlp = nn.ModuleDict({"c_fc": nn.Linear(WIDTH, 4 * WIDTH), "c_proj": nn.Linear(4 * WIDTH, WIDTH)})

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        inside = self.ln_1(x)
        x = x + self.attn(inside, inside, inside, need_weights=False, attn_mask=mask)[0]
        return x + self.mlp["c_proj"](F.gelu(self.mlp["c_fc"](self.ln_2(x))))


class Tower(nn.Module):
    def __init__(self, heads: int) -> None:
        super().__init__()
        self.resblocks = nn.ModuleList(Block(heads) for _ in range(LAYERS))


class OpenClip(nn.Module):
    """The picture's and the text's half, by the names of open_clip's files."""

    def __init__(self, words: int) -> None:
        super().__init__()
        patches = (SIDE // PATCH) ** 2
        self.visual = nn.Module()
        self.visual.conv1 = nn.Conv2d(3, WIDTH, PATCH, PATCH, bias=False)
        self.visual.class_embedding = nn.Parameter(torch.randn(WIDTH))
        self.visual.positional_embedding = nn.Parameter(torch.randn(patches + 1, WIDTH))
        self.visual.ln_pre, self.visual.ln_post = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.visual.transformer = Tower(heads=2)
        self.visual.proj = nn.Parameter(torch.randn(WIDTH, EMBEDDING))
        self.token_embedding = nn.Embedding(words, WIDTH)
        self.positional_embedding = nn.Parameter(torch.randn(CONTEXT, WIDTH))
        self.transformer = Tower(heads=4)
        self.ln_final = nn.LayerNorm(WIDTH)
        self.text_projection = nn.Parameter(torch.randn(WIDTH, EMBEDDING))
        self.logit_scale = nn.Parameter(torch.tensor(2.0))

    def encode_image(self, pixels: Tensor) -> Tensor:
        visual: Any = self.visual
        x = visual.conv1(pixels).flatten(2).transpose(1, 2)
        x = torch.cat([visual.class_embedding.expand(len(x), 1, -1), x], dim=1) + visual.positional_embedding
        x = visual.ln_pre(x)
        for block in visual.transformer.resblocks:
            x = block(x)
        return visual.ln_post(x[:, 0]) @ visual.proj

    def encode_text(self, ids: Tensor, ends: list[int]) -> Tensor:
        x = self.token_embedding(ids) + self.positional_embedding[: ids.shape[1]]
        mask = torch.full((ids.shape[1],) * 2, float("-inf")).triu(1)
        for block in self.transformer.resblocks:
            x = block(x, mask)
        x = self.ln_final(x)
        return x[torch.arange(len(ids)), torch.tensor(ends)] @ self.text_projection


@pytest.fixture
def open_clip(tmp_path: Path) -> tuple[Path, OpenClip]:
    folder = tmp_path / "open"
    tokenizer = tiny_pipeline().tokenizer
    torch.manual_seed(4)
    model = OpenClip(len(tokenizer)).eval()
    tokenizer.save_pretrained(folder)
    save_file(
        {name: tensor.contiguous() for name, tensor in model.state_dict().items()},
        folder / "open_clip_model.safetensors",
    )
    vision = {"image_size": SIDE, "layers": LAYERS, "width": WIDTH, "patch_size": PATCH, "head_width": 8}
    text = {"context_length": CONTEXT, "vocab_size": len(tokenizer), "width": WIDTH, "heads": 4, "layers": LAYERS}
    table = {"embed_dim": EMBEDDING, "vision_cfg": vision, "text_cfg": text}
    seen = {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.4]}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": table, "preprocess_cfg": seen}))
    return folder, model


def test_open_clips_files_are_the_same_network(open_clip: tuple[Path, OpenClip]) -> None:
    folder, model = open_clip
    clip = Clip(str(folder), "evaluation.judge", "clip")
    pixels = torch.stack([torch.from_numpy(np.array(one)).permute(2, 0, 1) / 255 for one in pictures()])
    mean, deviation = (torch.tensor(one).view(3, 1, 1) for one in ((0.4, 0.5, 0.6), (0.2, 0.3, 0.4)))
    with torch.no_grad():
        wanted = model.encode_image((pixels - mean) / deviation)
    assert torch.allclose(clip.images(pictures()), wanted, atol=1e-4)

    texts = ["cat", "a dog"]
    ids = [clip.processor.tokenizer(text).input_ids for text in texts]
    padded = torch.tensor([one + [0] * (max(map(len, ids)) - len(one)) for one in ids])  # open_clip pads with 0
    with torch.no_grad():
        told = model.encode_text(padded, [len(one) - 1 for one in ids])
    assert torch.allclose(clip.texts(texts), told, atol=1e-4)


def test_it_judges(open_clip: tuple[Path, OpenClip]) -> None:
    judge = judges.load(f"clip:{open_clip[0]}", Names(["cat"], ["dog"]))
    assert all(len(seen) == 1 and seen <= {"cat", "dog"} for seen in judge.recognise(pictures()))


def test_what_is_missing_in_an_open_clip_folder_is_said(
    open_clip: tuple[Path, OpenClip], recipe_file: RecipeFile, cli: Cli
) -> None:
    folder, _ = open_clip
    asked = recipe_file(evaluation={"judge": f"clip:{folder}", "metrics": ["accuracy"]})
    table = json.loads((folder / "open_clip_config.json").read_text())
    table["model_cfg"]["vision_cfg"]["layers"] = [3, 4, 6, 3]
    (folder / "open_clip_config.json").write_text(json.dumps(table))
    refused(cli("train", asked), "evaluation.judge = 'clip:", "is no CLIP of two plain transformers")
    table["model_cfg"]["vision_cfg"]["layers"] = LAYERS + 1
    (folder / "open_clip_config.json").write_text(json.dumps(table))
    refused(cli("train", asked), "is not what its open_clip_config.json says")
    (folder / "open_clip_model.safetensors").rename(folder / "weights.bin")
    refused(cli("train", asked), "has no open_clip_model.safetensors", "safetensors")
    for name in ("tokenizer.json", "vocab.json", "merges.txt"):
        (folder / name).unlink(missing_ok=True)
    refused(cli("train", asked), "has no tokenizer.json")


class TimmViT(nn.Module):
    """timm's vision transformer, by the names of its files."""

    def __init__(self, classes: int, width: int = 64, patch: int = 56) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.randn(1, 1, width))
        self.pos_embed = nn.Parameter(torch.randn(1, (224 // patch) ** 2 + 1, width))
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, width, patch, patch)})
        self.blocks = nn.ModuleList(
            nn.ModuleDict(
                {
                    "norm1": nn.LayerNorm(width, eps=1e-6),
                    "attn": nn.ModuleDict({"qkv": nn.Linear(width, 3 * width), "proj": nn.Linear(width, width)}),
                    "norm2": nn.LayerNorm(width, eps=1e-6),
                    "mlp": nn.ModuleDict({"fc1": nn.Linear(width, 32), "fc2": nn.Linear(32, width)}),
                }
            )
            for _ in range(2)
        )
        self.norm, self.head = nn.LayerNorm(width, eps=1e-6), nn.Linear(width, classes)

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.patch_embed["proj"](pixels).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], dim=1) + self.pos_embed
        for block in self.blocks:
            one: Any = block
            q, k, v = one["attn"]["qkv"](one["norm1"](x)).chunk(3, dim=-1)  # a single head
            x = x + one["attn"]["proj"]((q @ k.transpose(1, 2) / q.shape[-1] ** 0.5).softmax(dim=-1) @ v)
            x = x + one["mlp"]["fc2"](F.gelu(one["mlp"]["fc1"](one["norm2"](x))))
        return self.head(self.norm(x)[:, 0])


def test_unlearncanvas_classifiers_are_the_same_network(tmp_path: Path) -> None:
    torch.manual_seed(6)
    styles, objects = TimmViT(len(STYLES)).eval(), TimmViT(len(OBJECTS)).eval()
    folder = tmp_path / "cls_model"
    folder.mkdir()
    torch.save({"model_state_dict": styles.state_dict(), "epoch": 3}, folder / "style50.pth")
    save_file(objects.state_dict(), folder / "cls.safetensors")
    judge = judges.load(f"unlearncanvas:{folder}", Names(["Van Gogh"], ["Cats"]))
    assert {"Van Gogh", "Van_Gogh", "Cats"} <= judge.labels and len(STYLES) == 51 and len(OBJECTS) == 20
    with torch.no_grad():
        pixels = torch.stack([prepared(one) for one in pictures()])
        best = zip(styles(pixels).argmax(dim=1).tolist(), objects(pixels).argmax(dim=1).tolist(), strict=True)
    wanted = [{STYLES[style], STYLES[style].replace("_", " "), OBJECTS[one]} for style, one in best]
    assert judge.recognise(pictures()) == wanted


def test_what_is_no_classifier_of_unlearncanvas(recipe_file: RecipeFile, cli: Cli, tmp_path: Path) -> None:
    file = tmp_path / "other.safetensors"
    asked = recipe_file(evaluation={"judge": f"unlearncanvas:{file}", "metrics": ["accuracy"]})
    refused(cli("train", asked), "there is no such file")
    save_file(TimmViT(7).state_dict(), file)
    refused(cli("train", asked), "tells 7 classes apart; known are 51, 20")
    save_file({"layers.0.weight": torch.zeros(1)}, file)
    refused(cli("train", asked), "is no ViT as timm names it", "transformers:FOLDER")
    save_file(TimmViT(len(OBJECTS)).state_dict(), file)
    refused(cli("train", asked), "has no label for 'cat'", "'Cats'", "evaluation.judge_labels")


def test_swin_in_transformers_layout_is_a_judge(tmp_path: Path) -> None:
    from transformers import SwinConfig, SwinForImageClassification, ViTImageProcessorPil

    torch.manual_seed(0)
    labels = ["cat", "dog"]
    config = SwinConfig(
        image_size=32, patch_size=4, embed_dim=8, depths=[1, 1], num_heads=[1, 2], window_size=4,
        id2label=dict(enumerate(labels)), label2id={label: index for index, label in enumerate(labels)},
    )  # fmt: skip
    SwinForImageClassification(config).save_pretrained(tmp_path)
    ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(tmp_path)
    judge = judges.load(f"transformers:{tmp_path}", Names(["cat"], ["dog"]))
    assert judge.labels == {"cat", "dog"} and all(len(seen) == 1 for seen in judge.recognise(pictures()))


@pytest.fixture
def blip(tmp_path: Path) -> Path:
    """A BLIP that answers questions, tiny and with random weights."""
    from transformers import (
        BertTokenizer,
        BlipConfig,
        BlipForQuestionAnswering,
        BlipImageProcessorPil,
        BlipProcessor,
    )

    folder = tmp_path / "blip"
    known = "[PAD] [UNK] [CLS] [SEP] [MASK] [DEC] [ENC] yes no does this picture show cat dog ? answer or ."
    words = known.split()
    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(words))
    tokenizer = BertTokenizer(vocab=str(folder / "vocab.txt"))
    shape = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = shape | {"vocab_size": len(words), "encoder_hidden_size": 16, "projection_dim": 8, "pad_token_id": 0}
    text |= {"bos_token_id": 5, "eos_token_id": 3, "sep_token_id": 3, "max_position_embeddings": 32}
    vision = shape | {"image_size": SIDE, "patch_size": 16, "projection_dim": 8}
    torch.manual_seed(1)
    model = BlipForQuestionAnswering(BlipConfig(text_config=text, vision_config=vision, projection_dim=8))
    model.save_pretrained(folder)
    size = {"height": SIDE, "width": SIDE}
    BlipProcessor(BlipImageProcessorPil(size=size), tokenizer).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(("answer", "seen"), [("yes", {"cat", "dog"}), ("no", set())])
def test_a_model_is_asked_for_each_label(blip: Path, answer: str, seen: set[str]) -> None:
    from transformers import BlipForQuestionAnswering

    model = BlipForQuestionAnswering.from_pretrained(blip)
    bias = model.text_decoder.cls.predictions.decoder.bias
    bias.data[:] = -1e4
    bias.data[7 if answer == "yes" else 8] = 1e4
    model.save_pretrained(blip)
    judge = judges.load(f"vqa:{blip}", Names(["cat"], ["dog"]))
    assert judge.labels == {"cat", "dog"} and judge.recognise(pictures(2)) == [seen, seen]
    assert judge.recognise([]) == []


def test_what_answers_no_questions(open_clip: tuple[Path, OpenClip], recipe_file: RecipeFile, cli: Cli) -> None:
    from transformers import ViTConfig, ViTForImageClassification

    folder = open_clip[0].parent / "vit"
    shape: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    ViTForImageClassification(ViTConfig(image_size=32, patch_size=16, num_attention_heads=2, **shape)).save_pretrained(
        folder
    )
    asked = recipe_file(evaluation={"judge": f"vqa:{folder}", "metrics": ["accuracy"]})
    refused(cli("train", asked), "is a ViTForImageClassification, which answers no questions", "blip-vqa-base")
    refused(cli("train", recipe_file(evaluation={"judge": "vqa"})), "names no weights", "vqa:FOLDER")
