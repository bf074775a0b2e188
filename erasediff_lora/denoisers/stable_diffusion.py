"""Stable Diffusion 1.x and 2.x, epsilon and v prediction."""

from __future__ import annotations

import ctypes
import gc
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
from diffusers import (
    AutoencoderKL,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from diffusers.utils import logging as diffusers_logging
from PIL import Image
from torch import Tensor
from transformers.utils import logging as transformers_logging

from erasediff_lora import demo, families
from erasediff_lora.denoisers import loading, noise_schedule, on_meta
from erasediff_lora.denoisers.base import SLOT, Tokens
from erasediff_lora.errors import Problem, UserError
from erasediff_lora.families.stable_diffusion import FAMILY
from erasediff_lora.recipe import Model, Sampling
from erasediff_lora.storage.files import PICKLE_SUFFIXES, fingerprint
from erasediff_lora.storage.paths import existing

diffusers_logging.disable_progress_bar()
transformers_logging.disable_progress_bar()

CLIP_TOKENS = 77
WORDS_AT_ONCE = 128
LARGE_LATENTS = 96
"""Side from which on the autoencoder takes one picture at a time: 768 pixels."""

_ATTENTION = r"(to_q|to_k|to_v|to_out\.0)"
_CROSS = rf".*\battn2\.{_ATTENTION}"
READS_PROMPT = r".*\battn2\.to_[kv]"
_SELF = rf".*\battn1\.{_ATTENTION}"
_FEED_FORWARD = r".*\bff\.net\.(0\.proj|2)"
_CONVOLUTIONS = r".*\b(resnets\.\d+\.(conv1|conv2|conv_shortcut)|proj_in|proj_out|(down|up)samplers\.0\.conv)"


class StableDiffusion:
    """A Stable Diffusion base: diffusers folder, hub id, single file, or the embedded demo model."""

    component: ClassVar[str] = FAMILY.component
    network_class: ClassVar[Any] = UNet2DConditionModel
    pipeline_class: ClassVar[Any] = StableDiffusionPipeline
    image_pipeline_class: ClassVar[Any] = StableDiffusionImg2ImgPipeline
    pipeline_options: ClassVar[dict[str, Any]] = {"safety_checker": None, "requires_safety_checker": False}
    encoders: ClassVar[tuple[str, ...]] = FAMILY.encoders
    tokenizers: ClassVar[tuple[str, ...]] = ("tokenizer",)
    reads: ClassVar[dict[str, int]] = {}
    """Tokenizer -> tokens that the pipeline gives the encoder, where they are not all that this one takes."""
    optional: ClassVar[tuple[str, ...]] = ()
    """Parts that a base may do without."""
    target_presets: ClassVar[dict[str, list[str]]] = {
        "text": [READS_PROMPT],
        "cross_attention": [_CROSS],
        "self_attention": [_SELF],
        "attention": [_CROSS, _SELF],
        "attention_feed_forward": [_CROSS, _SELF, _FEED_FORWARD],
        "attention_feed_forward_convolutions": [_CROSS, _SELF, _FEED_FORWARD, _CONVOLUTIONS],
    }

    def __init__(self, model: Model) -> None:
        self.model = model
        self.device = loading.device(model)
        self.dtype = loading.dtype(model, self.device)
        self.source = _locate(model, self.pipeline_class)
        self._quantization = loading.quantization(model, self.device, self.dtype, is_file=self.source.is_file())
        self._pipeline: Any = None
        self._network: Any = None

    @property
    def pipeline(self) -> Any:
        """The whole pipeline, quiet, frozen, without safety checker; around `network` if that is loaded."""
        if self._pipeline is None:
            self._pipeline = self._load_pipeline()
            self._network = getattr(self._pipeline, self.component)
        return self._pipeline

    @property
    def network(self) -> Any:
        """The network that predicts; loaded alone where the weights lie in a folder."""
        if self._network is None and self.source.is_file():
            return getattr(self.pipeline, self.component)
        if self._network is None:
            self._network = self._load_network()
        return self._network

    def _load_pipeline(self) -> Any:
        options: dict[str, Any] = {"dtype": self.dtype, **self.pipeline_options}
        if self._network is not None or self._quantization:
            options[self.component] = self.network
        if self.source.is_dir():
            options |= {name: None for name in self.optional if not (self.source / name).is_dir()}
        with loading.readable(self.model):
            pipeline = self._read_file(options) if self.source.is_file() else self._read_folder(options)
        pipeline.set_progress_bar_config(disable=True)
        for name in {self.component, "vae", *self.encoders} - options.keys():  # a network at hand may be in training
            if (part := getattr(pipeline, name)) is not None:
                part.requires_grad_(False)
        self._cut_up(getattr(pipeline, self.component), pipeline.vae)
        pipeline.scheduler = noise_schedule.drawing_scheduler(pipeline.scheduler, self._stated)
        if self.model.offload:
            pipeline.enable_model_cpu_offload(device=self.device)
            return pipeline
        return pipeline.to(self.device)

    def _read_file(self, options: Mapping[str, Any]) -> Any:
        return self.pipeline_class.from_single_file(
            str(self.source),
            config=None if self.model.config is None else str(self.model.config),
            local_files_only=self.model.config is not None,
            **options,
        )

    def _read_folder(self, options: Mapping[str, Any]) -> Any:
        return self.pipeline_class.from_pretrained(
            self.source,
            use_safetensors=None if self.model.allow_pickle else True,
            variant=self.model.variant,
            **options,
        )

    def _load_network(self) -> Any:
        with loading.readable(self.model):
            network = self.network_class.from_pretrained(
                self.source,
                subfolder=self.component,
                dtype=self.dtype,
                use_safetensors=None if self.model.allow_pickle else True,
                variant=self.model.variant,
                **self._quantization,
            )
        network.requires_grad_(False)
        return network if self._quantization else network.to(self.device)

    def _cut_up(self, network: Any, vae: Any) -> None:
        """Large pictures are decoded one at a time, which gives the same result; in tiles if asked, which does not."""
        if network.config.sample_size >= LARGE_LATENTS:
            vae.enable_slicing()
        if self.model.vae_tiling:
            vae.enable_tiling()

    @cached_property
    def noise_scheduler(self) -> Any:
        if self.source.is_file():
            return noise_schedule.training_scheduler(self.model, self.pipeline.scheduler.config, self._stated)
        return noise_schedule.of_folder(self.model, self.source, self._stated)

    @cached_property
    def _stated(self) -> dict[str, Any]:
        return noise_schedule.stated(self.model, self.source)

    @property
    def architecture(self) -> str:
        """Version 2 is told by the width of OpenCLIP's embeddings."""
        if self.network.config.cross_attention_dim != 1024:
            return "stable-diffusion-v1"
        is_v = self.noise_scheduler.config.prediction_type == "v_prediction"
        return f"stable-diffusion-v2-{'768-v' if is_v else '512'}"

    @property
    def resolution(self) -> int:
        """Pixels of the base's own pictures: latent side times the VAE's factor, which halves once a block but one."""
        if self.source.is_dir() and self._pipeline is None:
            with loading.readable(self.model):
                vae = AutoencoderKL.load_config(self.source, subfolder="vae")
        else:
            vae = self.pipeline.vae.config
        return int(self.network.config.sample_size) * 2 ** (len(vae["block_out_channels"]) - 1)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over the base's weight and configuration files, names included; and how its pictures are decoded."""
        files = [self.source]
        if self.source.is_dir():
            parts = (self.component, "vae", *self.encoders, *self.tokenizers, "scheduler")
            files = sorted(file for part in parts for file in (self.source / part).rglob("*") if file.is_file())
        marks = ("-tiled" if self.model.vae_tiling else "") + noise_schedule.mark(self.model)
        return fingerprint(files, self.source) + marks

    def predict(self, noisy: Tensor, timesteps: Tensor, prompts: Tensor) -> Tensor:
        return self.network(noisy, timesteps, encoder_hidden_states=prompts).sample

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
    def encode_prompts(self, prompts: Sequence[str]) -> Tensor:
        chunks = [
            self.pipeline.encode_prompt(list(prompts[start : start + 32]), self.device, 1, False)[0]
            for start in range(0, len(prompts), 32)
        ]
        return torch.cat(chunks)

    def prompt_tokens(self, prompts: Tensor) -> dict[str, list[Tensor]]:
        """Cross attention makes keys and values of the tokens."""
        return {READS_PROMPT: [prompts]}

    def encode_slots(self, prompts: Sequence[str], vectors: Tensor) -> Tensor:
        return self._encode_slots(self.pipeline.tokenizer, self.pipeline.text_encoder, prompts, vectors)[0]

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

    @contextmanager
    def _precise_vae(self) -> Iterator[Any]:
        """The autoencoder, for the time being in float32 where its configuration says that float16 overflows."""
        vae = self.pipeline.vae
        if not (vae.dtype == torch.float16 and vae.config.force_upcast):
            yield vae
            return
        vae.to(torch.float32)
        try:
            yield vae
        finally:
            vae.to(torch.float16)

    @torch.no_grad()
    def encode_images(self, pixels: Tensor) -> Tensor:
        with self._precise_vae() as vae:
            latents = vae.encode(pixels.to(self.device, vae.dtype)).latent_dist.mode()
        return ((latents - _shift(vae)) * vae.config.scaling_factor).to(self.dtype)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> list[Image.Image]:
        with self._precise_vae() as vae:
            pixels = vae.decode(latents.to(self.device, vae.dtype) / vae.config.scaling_factor + _shift(vae)).sample
        return self.pipeline.image_processor.postprocess(pixels, output_type="pil")

    @torch.no_grad()
    def generate(
        self,
        prompts: Sequence[str] | Tensor,
        seeds: Sequence[int],
        sampling: Sampling,
        *,
        output: str = "pil",
        size: tuple[int, int] | None = None,
    ) -> Any:
        side = sampling.resolution or self.resolution
        width, height = size or (side, side)
        return self.pipeline(
            **self._given(prompts),
            height=height,
            width=width,
            num_inference_steps=sampling.steps,
            guidance_scale=sampling.guidance,
            generator=loading.generators(seeds),
            output_type=output,
        ).images

    def _given(self, prompts: Sequence[str] | Tensor) -> dict[str, Any]:
        """Prompts, or their embeddings, as the pipeline takes them."""
        return {"prompt_embeds": prompts} if isinstance(prompts, Tensor) else {"prompt": list(prompts)}

    @torch.no_grad()
    def generate_from(
        self,
        images: Sequence[Image.Image],
        strength: float,
        prompts: Sequence[str],
        seeds: Sequence[int],
        sampling: Sampling,
    ) -> list[Image.Image]:
        off = {name: value for name, value in self.pipeline_options.items() if name not in self.pipeline.components}
        pipeline = self.image_pipeline_class(**self.pipeline.components, **off)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline(
            prompt=list(prompts),
            image=list(images),
            strength=strength,
            num_inference_steps=sampling.steps,
            guidance_scale=sampling.guidance,
            generator=loading.generators(seeds),
        ).images

    def without_weights(self) -> dict[str, Any]:
        folder = self.model.config if self.source.is_file() else self.source
        if folder is None:
            raise UserError(
                Problem(
                    "model.config",
                    None,
                    f"is needed: {self.source.name} alone does not say what network it holds.",
                    "Give the diffusers folder that describes it.",
                )
            )
        with loading.readable(self.model):
            networks = on_meta.networks(folder, self.dtype)
        self._network = networks[self.component]
        self._cut_up(networks[self.component], networks["vae"])
        return networks

    @property
    def prompt_shape(self) -> tuple[int, int]:
        return CLIP_TOKENS, int(self.network.config.cross_attention_dim)

    def release_encoders(self) -> None:
        """Keep the network and the schedule, give the memory of autoencoder and text encoder back."""
        _ = self.network, self.noise_scheduler
        if self._pipeline is not None and self.model.offload:
            self._pipeline.remove_all_hooks()
            self.network.to(self.device)
        self._pipeline = None
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        elif hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
            libc.malloc_trim(0)  # glibc keeps freed pages otherwise


def _shift(vae: Any) -> float:
    return float(vae.config.shift_factor or 0.0)


def _locate(model: Model, pipeline_class: Any) -> Path:
    """The local folder or file of the base; hub models are downloaded."""
    if model.base == "demo":
        return demo.MODEL_DIR
    path = existing(model.base, "model.base")
    if path.is_file():
        return path
    if path.is_dir():
        if not (path / "model_index.json").is_file():
            raise UserError(
                Problem(
                    "model.base",
                    model.base,
                    "is not a diffusers folder: it has no model_index.json.",
                    "Give the folder that save_pretrained wrote, or a single-file checkpoint.",
                )
            )
        _require_family(model, path, pipeline_class)
        return path
    if (
        path.is_absolute()
        or path.suffix in {".safetensors", *PICKLE_SUFFIXES}
        or len(path.parts) != 2
        or model.base[0] in ".~"
    ):
        raise UserError(
            Problem(
                "model.base",
                model.base,
                "there is no such folder or file.",
                "Give 'demo', a diffusers folder, a hub id such as owner/name, or a checkpoint file.",
            )
        )
    try:
        return Path(
            pipeline_class.download(
                model.base,
                revision=model.revision,
                variant=model.variant,
                use_safetensors=None if model.allow_pickle else True,
            )
        )
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(
            Problem(
                "model.base",
                model.base,
                f"is neither a local path nor a hub model within reach: {reason}",
                "Check the name, the connection and the access rights.",
            )
        ) from error


def _require_family(model: Model, folder: Path, pipeline_class: Any) -> None:
    """The folder holds a pipeline of the family that the recipe names, as far as it says."""
    try:
        named = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))["_class_name"]
    except (OSError, ValueError, KeyError, TypeError):
        return  # the loader says what is wrong with it
    family = families.of_pipeline(named) or model.family
    if family != model.family:
        raise UserError(
            Problem("model.family", model.family, f"{model.base} is a {named}.", f"Set model.family: {family}.")
        )
