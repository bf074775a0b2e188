"""The networks of a base model that learn to draw, and the language that they are asked in."""

from __future__ import annotations

import json

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer
from worlds import World

PROMPT_LENGTH = 16
EMPTY_SHARE = 0.12
"""Of the captions, so that guidance has an unconditional branch."""
SYNONYM_SHARE = 0.15


class Captions:
    """Every caption of a world as tokens, to draw from by index.

    Args:
        world: Whose captions.
        tokenizer: What reads them.
        device: Where the tokens are kept.
    """

    def __init__(self, world: World, tokenizer: CLIPTokenizer, device: torch.device) -> None:
        most = max(len(names) for names in world.synonyms.values())
        # Shorter lists of synonyms go round again, so that the table has no holes.
        nouns = [
            [concept, *(world.synonyms[concept][i % len(world.synonyms[concept])] for i in range(most))]
            for concept in world.concepts
        ]
        texts = [
            template.format(style=style, concept=noun)
            for names in nouns
            for style in world.styles
            for template in world.templates
            for noun in names
        ]

        def tokens(prompts: list[str]) -> Tensor:
            return tokenizer(prompts, padding="max_length", truncation=True, return_tensors="pt").input_ids.to(device)

        shape = (len(nouns), len(world.styles), len(world.templates), 1 + most, PROMPT_LENGTH)
        self.table = tokens(texts).view(shape)
        self.empty = tokens([""])

    def draw(self, concepts: Tensor, styles: Tensor, generator: torch.Generator) -> Tensor:
        """A random wording for each picture, empty for some: (n, PROMPT_LENGTH)."""
        chance = torch.rand(4, len(concepts), generator=generator, device=concepts.device)
        templates = (chance[0] * self.table.shape[2]).long()
        synonyms = 1 + (chance[1] * (self.table.shape[3] - 1)).long()
        nouns = torch.where(chance[2] < SYNONYM_SHARE, synonyms, 0)
        tokens = self.table[concepts, styles, templates, nouns]
        return torch.where((chance[3] < EMPTY_SHARE)[:, None], self.empty, tokens)


def new_tokenizer(world: World) -> CLIPTokenizer:
    """A CLIP tokenizer whose merges are learnt from every caption we can write."""
    nouns = [noun for concept in world.concepts for noun in (concept, *world.synonyms[concept])]
    captions = [
        t.format(style=s, concept=n) for t in dict.fromkeys(world.templates) for s in world.styles for n in nouns
    ]
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
        merges=[tuple(merge) for merge in learnt["merges"]],  # type: ignore[misc]  # pairs, not lines
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


def new_text_and_unet(world: World, tokenizer: CLIPTokenizer) -> TextToNoise:
    """A fresh text encoder and UNet."""
    text_encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=world.text_width,
            intermediate_size=2 * world.text_width,
            projection_dim=world.text_width,
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
        in_channels=world.latent_channels,
        out_channels=world.latent_channels,
        layers_per_block=1,
        block_out_channels=world.unet_widths,
        down_block_types=("CrossAttnDownBlock2D",) * len(world.unet_widths),
        up_block_types=("CrossAttnUpBlock2D",) * len(world.unet_widths),
        cross_attention_dim=world.text_width,
        attention_head_dim=2,
        norm_num_groups=16,
    )
    return TextToNoise(text_encoder, unet)


def new_vae(world: World) -> AutoencoderKL:
    """A fresh autoencoder from 64 x 64 pixels to 8 x 8 latents."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * len(world.vae_widths),
        up_block_types=("UpDecoderBlock2D",) * len(world.vae_widths),
        block_out_channels=world.vae_widths,
        layers_per_block=1,
        latent_channels=world.latent_channels,
        norm_num_groups=8,
        sample_size=64,
    )
