"""The networks of the embedded demo model that learn to draw, and the language that they are asked in."""

from __future__ import annotations

import json
import random

from diffusers import UNet2DConditionModel
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from erasediff_lora.demo import STYLES, SYNONYMS

PROMPT_LENGTH = 16
TEMPLATES = ["a {style} drawing of a {concept}"] * 4 + [
    "a drawing of a {concept}",
    "a {concept}",
    "a {style} picture of a {concept}",
    "a {concept} in {style} style",
]


def caption(concept: str, style: str, rng: random.Random) -> str:
    """A random wording; empty for 12% of the pictures, so that guidance has an unconditional branch."""
    if rng.random() < 0.12:
        return ""
    noun = rng.choice(SYNONYMS[concept]) if rng.random() < 0.15 else concept
    return rng.choice(TEMPLATES).format(style=style, concept=noun)


def make_tokenizer() -> CLIPTokenizer:
    """A CLIP tokenizer whose merges are learnt from every caption we can write."""
    nouns = [noun for concept, others in SYNONYMS.items() for noun in (concept, *others)]
    captions = [t.format(style=s, concept=n) for t in TEMPLATES for s in STYLES for n in nouns]
    blank = CLIPTokenizer().backend_tokenizer
    learner = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    learner.normalizer, learner.pre_tokenizer = blank.normalizer, blank.pre_tokenizer
    learner.train_from_iterator(
        captions, trainers.BpeTrainer(vocab_size=1200, end_of_word_suffix="</w>", show_progress=False)
    )
    learnt = json.loads(learner.to_str())["model"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces = alphabet + [letter + "</w>" for letter in alphabet] + list(learnt["vocab"])
    pieces = [*dict.fromkeys(pieces), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(
        vocab={piece: index for index, piece in enumerate(pieces)},
        merges=[tuple(merge) for merge in learnt["merges"]],
        model_max_length=PROMPT_LENGTH,
    )


class TextToNoise(nn.Module):
    """Text encoder and UNet in one forward."""

    def __init__(self, text_encoder: CLIPTextModel, unet: UNet2DConditionModel) -> None:
        super().__init__()
        self.text_encoder = text_encoder
        self.unet = unet

    def forward(self, noisy: Tensor, timesteps: Tensor, tokens: Tensor) -> Tensor:
        return self.unet(noisy, timesteps, self.text_encoder(tokens)[0]).sample


def new_text_and_unet(tokenizer: CLIPTokenizer) -> TextToNoise:
    """A fresh text encoder and UNet."""
    text_encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=128,
            intermediate_size=256,
            projection_dim=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=PROMPT_LENGTH,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    unet = UNet2DConditionModel(
        sample_size=8,
        in_channels=8,
        out_channels=8,
        layers_per_block=1,
        block_out_channels=(96, 160),
        down_block_types=("CrossAttnDownBlock2D",) * 2,
        up_block_types=("CrossAttnUpBlock2D",) * 2,
        cross_attention_dim=128,
        attention_head_dim=2,
        norm_num_groups=16,
    )
    return TextToNoise(text_encoder, unet)
