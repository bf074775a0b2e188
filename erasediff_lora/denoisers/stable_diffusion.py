"""Stable Diffusion 1.x and 2.x, epsilon and v prediction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, ClassVar

import torch
from diffusers import StableDiffusionImg2ImgPipeline, StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor

from erasediff_lora.denoisers import noise_schedule
from erasediff_lora.denoisers.base import SLOT, Tokens
from erasediff_lora.denoisers.pipeline import PipelineDenoiser
from erasediff_lora.families.stable_diffusion import FAMILY
from erasediff_lora.objectives.condition import Condition

CLIP_TOKENS = 77
AT_ONCE = 32
WORDS_AT_ONCE = 128

_ATTENTION = r"(to_q|to_k|to_v|to_out\.0)"
_CROSS = rf".*\battn2\.{_ATTENTION}"
READS_PROMPT = r".*\battn2\.to_[kv]"
_SELF = rf".*\battn1\.{_ATTENTION}"
_FEED_FORWARD = r".*\bff\.net\.(0\.proj|2)"
_CONVOLUTIONS = r".*\b(resnets\.\d+\.(conv1|conv2|conv_shortcut)|proj_in|proj_out|(down|up)samplers\.0\.conv)"


class StableDiffusion(PipelineDenoiser):
    """A Stable Diffusion base: diffusers folder, hub id, single file, or the embedded demo model."""

    component: ClassVar[str] = FAMILY.component
    network_class: ClassVar[Any] = UNet2DConditionModel
    pipeline_class: ClassVar[Any] = StableDiffusionPipeline
    image_pipeline_class: ClassVar[Any] = StableDiffusionImg2ImgPipeline
    pipeline_options: ClassVar[dict[str, Any]] = {"safety_checker": None, "requires_safety_checker": False}
    encoders: ClassVar[tuple[str, ...]] = FAMILY.encoders
    inside: ClassVar[Mapping[str, str]] = {"text_encoder": "cond_stage_model."}
    guided_in_one_batch: ClassVar[bool] = True
    """Whether a UNet predicts without and with prompts in one batch, in this order."""
    reads: ClassVar[dict[str, int]] = {}
    """Tokenizer -> tokens that the pipeline gives the encoder, where they are not all that this one takes."""
    target_presets: ClassVar[dict[str, list[str]]] = {
        "text": [READS_PROMPT],
        "cross_attention": [_CROSS],
        "self_attention": [_SELF],
        "attention": [_CROSS, _SELF],
        "attention_feed_forward": [_CROSS, _SELF, _FEED_FORWARD],
        "attention_feed_forward_convolutions": [_CROSS, _SELF, _FEED_FORWARD, _CONVOLUTIONS],
    }

    @cached_property
    def noise_scheduler(self) -> Any:
        if self.described is None or (self.source.is_file() and self._pipeline is not None):
            return noise_schedule.training_scheduler(self.model, self.pipeline.scheduler.config, self._stated)
        return noise_schedule.of_folder(self.model, self.described, self._stated)

    @property
    def architecture(self) -> str:
        """Version 2 is told by the width of OpenCLIP's embeddings."""
        if self.network.config.cross_attention_dim != 1024:
            return "stable-diffusion-v1"
        is_v = self.noise_scheduler.config.prediction_type == "v_prediction"
        return f"stable-diffusion-v2-{'768-v' if is_v else '512'}"

    def predict(self, noisy: Tensor, timesteps: Tensor, prompts: Condition) -> Tensor:
        return self.network(noisy, timesteps, encoder_hidden_states=prompts.tokens).sample

    def tokenize(self, prompts: Sequence[str]) -> list[Tokens]:
        if not prompts:
            return []
        rows: list[list[tuple[int, ...]]] = [[] for _ in prompts]
        cut = [False] * len(prompts)
        for name in self.tokenizers:
            if (tokenizer := getattr(self.pipeline, name)) is None:
                continue
            limit = self.reads.get(name, tokenizer.model_max_length)
            for index, ids in enumerate(tokenizer(list(prompts), verbose=False).input_ids):
                cut[index] |= len(ids) > limit
                rows[index].append(tuple(ids[: min(len(ids), limit) - 1]))  # without the end, which all have
        return [Tokens(tuple(ids), is_cut) for ids, is_cut in zip(rows, cut, strict=True)]

    @torch.no_grad()
    def encode_prompts(self, prompts: Sequence[str]) -> Condition:
        return Condition.cat(
            [self._encode(list(prompts[start : start + AT_ONCE])) for start in range(0, len(prompts), AT_ONCE)]
        )

    def _encode(self, prompts: list[str]) -> Condition:
        """Of a few prompts, by the pipeline's own function."""
        return Condition(self.pipeline.encode_prompt(prompts, self.device, 1, False)[0])

    def prompt_tokens(self, prompts: Condition) -> dict[str, list[Tensor]]:
        """Cross attention makes keys and values of the tokens."""
        return {READS_PROMPT: [prompts.tokens]}

    def encode_slots(self, prompts: Sequence[str], vectors: Tensor) -> Condition:
        return Condition(self._encode_slots(self.pipeline.tokenizer, self.pipeline.text_encoder, prompts, vectors)[0])

    def _encode_slots(
        self, tokenizer: Any, text_encoder: Any, prompts: Sequence[str], vectors: Tensor, **options: Any
    ) -> Any:
        """What the text encoder makes of the prompts with the vectors in the place of SLOT."""
        length = tokenizer.model_max_length
        vectors = vectors.expand(len(prompts), *vectors.shape[-2:])
        rows, places = [], []
        for index, prompt in enumerate(prompts):
            ids = [tokenizer.bos_token_id]
            for number, part in enumerate(prompt.split(SLOT)):
                if number:
                    places += [(index, len(ids) + offset, offset) for offset in range(vectors.shape[1])]
                    ids += [0] * vectors.shape[1]
                ids += tokenizer(part, add_special_tokens=False).input_ids
            ids = [*ids[: length - 1], tokenizer.eos_token_id]
            rows.append(ids + [tokenizer.pad_token_id] * (length - len(ids)))
        kept = torch.tensor([place for place in places if place[1] < length - 1], dtype=torch.long).reshape(-1, 3)
        row, column, source = kept.to(vectors.device).unbind(dim=1)

        def fill(module: Any, inputs: Any, output: Tensor) -> Tensor:
            return output.index_put((row, column), vectors[row, source].to(output))

        handle = text_encoder.get_input_embeddings().register_forward_hook(fill)
        try:
            return text_encoder(torch.tensor(rows, device=self.device), **options)
        finally:
            handle.remove()

    @property
    def _table(self) -> Tensor:
        """The embeddings of all tokens, those of several encoders side by side."""
        return torch.cat([getattr(self.pipeline, name).get_input_embeddings().weight for name in self.encoders], dim=1)

    @property
    def token_embeddings(self) -> Tensor:
        special = set(self.pipeline.tokenizer.all_special_ids)
        table = self._table
        return table[[index for index in range(len(table)) if index not in special]]

    def embed_word(self, word: str) -> Tensor:
        return self._table[self.pipeline.tokenizer(word, add_special_tokens=False).input_ids]

    @torch.no_grad()
    def embed_words(self, words: Sequence[str]) -> Tensor:
        """By the first encoder. It looks back only, so that a word is padded no further than the longest beside it."""
        tokenizer, encoder = self.pipeline.tokenizer, self.pipeline.text_encoder
        tokens = tokenizer(list(words), truncation=True, verbose=False).input_ids
        order = sorted(range(len(words)), key=lambda row: len(tokens[row]))
        found: list[Tensor] = []
        for start in range(0, len(order), WORDS_AT_ONCE):
            rows = [tokens[row] for row in order[start : start + WORDS_AT_ONCE]]
            lengths = torch.tensor([len(ids) for ids in rows], device=self.device)
            padded = [ids + [tokenizer.pad_token_id] * (len(rows[-1]) - len(ids)) for ids in rows]
            states = encoder(torch.tensor(padded, device=self.device)).last_hidden_state.float()
            places = torch.arange(len(rows[-1]), device=self.device)
            read = (places > 0) & (places < lengths[:, None])  # the first only marks the beginning
            found.append((states * read[:, :, None]).sum(dim=1) / (lengths[:, None] - 1))
        row_of = torch.empty(len(order), dtype=torch.long)
        row_of[order] = torch.arange(len(order))
        return torch.cat(found)[row_of.to(self.device)]

    def decode_tokens(self, tokens: Sequence[int]) -> str:
        tokenizer = self.pipeline.tokenizer
        ordinary = [index for index in range(len(tokenizer)) if index not in set(tokenizer.all_special_ids)]
        return " ".join(tokenizer.convert_ids_to_tokens([ordinary[token] for token in tokens]))

    def hollow_prompts(self, count: int) -> Condition:
        width = int(self.network.config.cross_attention_dim)
        return Condition(torch.zeros(count, CLIP_TOKENS, width, dtype=self.dtype))
