"""What transformers that were trained by flow matching have in common: one encoder's tokens, 1024 pixels, a shift."""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import torch
from diffusers.pipelines.flux.pipeline_flux import calculate_shift
from PIL import Image
from torch import Tensor, nn

from erasediff_lora.denoisers import loading
from erasediff_lora.denoisers.base import SLOT, Tokens
from erasediff_lora.denoisers.flow_matching import FlowMatching
from erasediff_lora.denoisers.pipeline import PipelineDenoiser
from erasediff_lora.denoisers.pixels import to_unit_tensor
from erasediff_lora.machine.devices import widest
from erasediff_lora.objectives.condition import Condition
from erasediff_lora.recipe import Sampling

AT_ONCE = 32
_SLOT = re.compile(rf"\s*{re.escape(SLOT)}")


class FlowTransformer(PipelineDenoiser):
    """A base that is told the tokens of one text encoder, and maybe a pooled embedding of another."""

    component: ClassVar[str] = "transformer"
    tokenizer_name: ClassVar[str] = "tokenizer"
    encoder_name: ClassVar[str] = "text_encoder"
    """The text encoder whose tokens the network reads."""
    slot_token: ClassVar[str]
    """A token of its tokenizer that no prompt has: given embeddings take its place."""
    guides_apart: ClassVar[bool] = False
    """Whether the pipeline predicts for the prompts and for the empty one by turns."""
    word_start: ClassVar[str] = ""
    """What stands before a word inside a prompt, as far as the tokenizer makes a difference."""

    @cached_property
    def noise_scheduler(self) -> FlowMatching:
        return FlowMatching.of(self)

    @property
    def resolution(self) -> int:
        return 1024

    @property
    def text_tokens(self) -> int:
        """The most tokens that the network is told of a prompt."""
        raise NotImplementedError

    @property
    def prefix_tokens(self) -> int:
        """How many tokens before a prompt the network is not told."""
        return 0

    def wrapped(self, prompts: list[str]) -> list[str]:
        """What the tokenizer gets of prompts."""
        return prompts

    def _encode(self, prompts: list[str]) -> Condition:
        """Of a few prompts, by the pipeline's own function."""
        raise NotImplementedError

    def _predict(self, noisy: Tensor, timesteps: Tensor, prompts: Condition, guidance: float) -> Tensor:
        """`predict` of a network that may be told the strength of guidance."""
        raise NotImplementedError

    def predict(self, noisy: Tensor, timesteps: Tensor, prompts: Condition) -> Tensor:
        return self._predict(noisy, timesteps, prompts, self.model.guidance)

    def is_large(self, network: Any) -> bool:
        return True

    def latent_shape(self, side: int) -> tuple[int, int, int]:
        return int(self.network.config.in_channels) // 4, side // 8, side // 8

    def rows_drawn(self, guidance: float) -> int:
        return 1

    @torch.no_grad()
    def encode_prompts(self, prompts: Sequence[str]) -> Condition:
        return Condition.cat(
            [self._encode(list(prompts[start : start + AT_ONCE])) for start in range(0, len(prompts), AT_ONCE)]
        )

    @property
    def _reader(self) -> tuple[Any, Any]:
        """The tokenizer and the encoder whose tokens the network reads."""
        return getattr(self.pipeline, self.tokenizer_name), getattr(self.pipeline, self.encoder_name)

    def encode_slots(self, prompts: Sequence[str], vectors: Tensor) -> Condition:
        """As the pipeline encodes prompts with a token of no meaning, whose embeddings are replaced."""
        tokenizer, encoder = self._reader
        vectors = vectors.expand(len(prompts), *vectors.shape[-2:])
        token = tokenizer.convert_tokens_to_ids(self.slot_token)

        def fill(module: Any, inputs: Any, output: Tensor) -> Tensor:
            here = inputs[0] == token
            row, column = here.nonzero(as_tuple=True)
            number = (here.cumsum(dim=1) - 1)[row, column] % vectors.shape[1]
            scale = getattr(module, "embed_scale", 1.0)  # of Gemma
            return output.index_put((row, column), (vectors[row, number] * scale).to(output))

        table = encoder.get_input_embeddings().weight  # of T5 in two modules
        looked_up = [m for m in encoder.modules() if isinstance(m, nn.Embedding) and m.weight is table]
        handles = [module.register_forward_hook(fill) for module in looked_up]
        try:
            return self._encode([_SLOT.sub(self.slot_token * vectors.shape[1], prompt) for prompt in prompts])
        finally:
            for handle in handles:
                handle.remove()

    def tokenize(self, prompts: Sequence[str]) -> list[Tokens]:
        if not prompts:
            return []
        tokenizer, limit = self._reader[0], self.text_tokens
        found = [ids[self.prefix_tokens :] for ids in tokenizer(self.wrapped(list(prompts)), verbose=False).input_ids]
        ends = [bool(ids) and ids[-1] == tokenizer.eos_token_id for ids in found]  # it stays where a prompt is cut
        return [
            Tokens((tuple(ids[: min(len(ids), limit) - end]),), len(ids) > limit)
            for ids, end in zip(found, ends, strict=True)
        ]

    @cached_property
    def _ordinary(self) -> list[int]:
        """The tokens that mean something."""
        tokenizer = self._reader[0]
        special = {*tokenizer.all_special_ids, tokenizer.convert_tokens_to_ids(self.slot_token)}
        return [index for index in range(len(tokenizer)) if index not in special]

    @property
    def token_embeddings(self) -> Tensor:
        return self._reader[1].get_input_embeddings().weight[self._ordinary]

    def embed_word(self, word: str) -> Tensor:
        tokenizer, encoder = self._reader
        ids = tokenizer(self.word_start + word, add_special_tokens=False).input_ids
        return encoder.get_input_embeddings().weight[ids]

    @torch.no_grad()
    def embed_words(self, words: Sequence[str]) -> Tensor:
        tokenizer, encoder = self._reader
        found = []
        for start in range(0, len(words), AT_ONCE):
            chunk = [self.word_start + word for word in words[start : start + AT_ONCE]]
            told = tokenizer(chunk, padding=True, truncation=True, return_tensors="pt").to(self.device)
            states = encoder(input_ids=told.input_ids, attention_mask=told.attention_mask, output_hidden_states=True)
            mask = told.attention_mask[:, :, None]
            found.append((states.hidden_states[-1].float() * mask).sum(dim=1) / mask.sum(dim=1))
        return torch.cat(found)

    def decode_tokens(self, tokens: Sequence[int]) -> str:
        return " ".join(self._reader[0].convert_ids_to_tokens([self._ordinary[token] for token in tokens]))

    def shift(self, scheduler: Any, noise: Tensor, steps: int) -> float | None:
        """μ of the schedule for pictures of this size, drawn in so many steps."""
        if not scheduler.config.use_dynamic_shifting:
            return None
        names = ("base_image_seq_len", "max_image_seq_len", "base_shift", "max_shift")
        return float(calculate_shift(noise.shape[2] * noise.shape[3] // 4, *(scheduler.config[name] for name in names)))

    @torch.no_grad()
    def sample(
        self,
        noise: Tensor,
        prompts: Condition,
        sampling: Sampling,
        *,
        pictures: Tensor | None = None,
        strength: float = 1.0,
    ) -> Tensor:
        """Latents (N, C, h, w), by a plain loop over `predict`: what the pipeline draws from that noise.

        Args:
            noise: (N, C, h, w).
            prompts: Of N pictures.
            sampling: Steps and guidance.
            pictures: Latents to start from, noised by a share of the schedule; None: from the noise.
            strength: That share.
        """
        scheduler = copy.deepcopy(self.pipeline.scheduler)
        steps = sampling.steps
        mu = self.shift(scheduler, noise, steps)
        scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps), mu=mu, device=noise.device)
        first = steps - min(int(steps * strength), steps)
        scheduler.set_begin_index(first)
        latents = noise
        if pictures is not None:
            latents = pictures
            if first < steps:
                latents = scheduler.scale_noise(pictures, scheduler.timesteps[first].expand(len(noise)), noise)
        told = prompts
        if self.rows_drawn(sampling.guidance) > 1:
            told = Condition.cat([prompts, self.encode_prompts([""] * len(prompts)).to(prompts.tokens)])
        for timestep in scheduler.timesteps[first:]:
            before = timestep.to(widest(timestep.device)) - 1
            velocity = self._guided(latents, before, told, sampling.guidance)
            latents = scheduler.step(velocity, timestep, latents, return_dict=False)[0]
        return latents

    def _guided(self, latents: Tensor, timestep: Tensor, told: Condition, guidance: float) -> Tensor:
        """The velocity (N, C, h, w) that pictures are drawn along; told of empty prompts too if guidance needs them."""
        rows = len(told) // len(latents)
        if rows == 1:
            return self._predict(latents, timestep.expand(len(told)), told, guidance)
        if self.guides_apart:
            steps = timestep.expand(len(latents))
            both = [self._predict(latents, steps, part.trimmed(), guidance) for part in told.split(len(latents))]
        else:
            found = self._predict(latents.repeat(rows, 1, 1, 1), timestep.expand(len(told)), told, guidance)
            both = list(found.chunk(rows))
        return self.combined(both[0], both[1], guidance)

    def combined(self, prompted: Tensor, empty: Tensor, guidance: float) -> Tensor:
        """What guidance makes of both predictions, (N, C, h, w)."""
        return empty + guidance * (prompted - empty)

    @torch.no_grad()
    def generate_from(
        self,
        images: Sequence[Image.Image],
        strength: float,
        prompts: Sequence[str],
        seeds: Sequence[int],
        sampling: Sampling,
    ) -> list[Image.Image]:
        latents = self.encode_images(torch.stack([to_unit_tensor(image, image.size) for image in images]))
        noise = [torch.randn(latents.shape[1:], generator=one) for one in loading.generators(seeds)]
        given = torch.stack(noise).to(latents), self.encode_prompts(prompts).to(latents)
        return self.decode(self.sample(*given, sampling, pictures=latents, strength=strength))


class ToldByQwen(FlowTransformer):
    """One whose prompts a Qwen language model reads."""

    slot_token: ClassVar[str] = "<|object_ref_start|>"
    word_start: ClassVar[str] = " "

    @property
    def text_tokens(self) -> int:
        return 512


def packed(latents: Tensor) -> Tensor:
    """Patches of 2 × 2, row by row: (N, C, h, w) as (N, h w / 4, 4 C)."""
    count, channels, height, width = latents.shape
    patches = latents.view(count, channels, height // 2, 2, width // 2, 2).permute(0, 2, 4, 1, 3, 5)
    return patches.reshape(count, height * width // 4, 4 * channels)


def unpacked(patches: Tensor, height: int, width: int) -> Tensor:
    """The inverse, (N, C, h, w)."""
    count, _, channels = patches.shape
    latents = patches.view(count, height // 2, width // 2, channels // 4, 2, 2).permute(0, 3, 1, 4, 2, 5)
    return latents.reshape(count, channels // 4, height, width)


def places(height: int, width: int, like: Tensor) -> Tensor:
    """Row and column of each patch behind a zero, (h w / 4, 3)."""
    rows, columns = torch.meshgrid(torch.arange(height // 2), torch.arange(width // 2), indexing="ij")
    return torch.stack([torch.zeros_like(rows), rows, columns], dim=-1).reshape(-1, 3).to(like)
