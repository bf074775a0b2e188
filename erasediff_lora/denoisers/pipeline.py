"""A base whose pipeline diffusers has: finding it, loading it whole or in part, drawing with it."""

from __future__ import annotations

import copy
import gc
import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
from diffusers import AutoencoderKL
from diffusers.utils import logging as diffusers_logging
from PIL import Image
from torch import Tensor
from transformers.utils import logging as transformers_logging

from erasediff_lora.denoisers import loading, network_file, noise_schedule, on_meta, part_files, published
from erasediff_lora.errors import Problem, UserError
from erasediff_lora.machine import devices
from erasediff_lora.objectives.condition import Condition
from erasediff_lora.recipe import Model, Sampling
from erasediff_lora.storage.files import PICKLE_SUFFIXES, all_in, fingerprint

diffusers_logging.disable_progress_bar()
transformers_logging.disable_progress_bar()

LOADING = threading.Lock()
LARGE_LATENTS = 96
"""Side from which on the autoencoder takes one picture at a time: 768 pixels."""


class PipelineDenoiser:
    """What all families do alike whose pipeline is one of diffusers': a folder, a hub id, or a single file."""

    component: ClassVar[str]
    network_class: ClassVar[Any]
    pipeline_class: ClassVar[Any]
    image_pipeline_class: ClassVar[Any]
    pipeline_options: ClassVar[dict[str, Any]] = {}
    encoders: ClassVar[tuple[str, ...]]
    tokenizers: ClassVar[tuple[str, ...]] = ("tokenizer",)
    inside: ClassVar[Mapping[str, str]] = {}
    """Text encoder -> how the names of its weights begin in a single file of a whole model."""
    noise_scheduler: Any

    def __init__(self, model: Model) -> None:
        self.model = model
        self.device = loading.device(model)
        self.dtype = loading.dtype(model, self.device)
        self.source = loading.locate(model, self.pipeline_class)
        self.files = loading.own_files(model)
        is_file = self.source.is_file()
        self._quantization = loading.quantization(model, self.device, self.dtype, is_file=is_file)
        self._in_bits = loading.quantized_encoders(model, self.encoders, self.device, self.dtype, is_file=is_file)
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
        """The network that predicts; loaded alone where a folder describes it."""
        if self._network is None and self.source.is_file() and self._network_file is None:
            return getattr(self.pipeline, self.component)
        if self._network is None:
            self._network = self._load_network()
        return self._network

    def _load_pipeline(self) -> Any:
        options: dict[str, Any] = {"dtype": self.dtype, **self.pipeline_options}
        if self._network is not None or self._quantization or self._network_file:
            options[self.component] = self.network
        with loading.readable(self.model):
            options |= dict.fromkeys(self.left_out)
            options |= {name: self._part(name) for name in self.files if name != "network"}
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

    @property
    def left_out(self) -> tuple[str, ...]:
        """Parts of the pipeline that this base does without."""
        return ()

    def _part(self, name: str) -> Any:
        """A part of the pipeline from a file of its own."""
        described = self.described
        if described is None:
            raise loading.undescribed(self.source)
        if name.startswith("tokenizer"):
            return part_files.tokenizer(name, described, self.files[name])
        return part_files.load(name, described, self.files[name], self.dtype)

    def _read_file(self, options: Mapping[str, Any]) -> Any:
        if (described := self.described) is None:  # diffusers asks the hub
            with loading.configurations_within_reach(self.source):
                return self.pipeline_class.from_single_file(str(self.source), **options)
        return self.pipeline_class.from_single_file(
            str(self.source),
            config=str(described),
            local_files_only=True,
            **options,
            **self._inside(described, options),
        )

    def _inside(self, described: Path, given: Collection[str]) -> dict[str, Any]:
        """The text encoders in a single file that have transformers' names there; others are left to diffusers.

        Raises:
            UserError: If the file has no weights of a part that is not given.
        """
        keys = noise_schedule.written(self.model, self.source)[0]
        begins = {"vae": ("first_stage_model.", "vae.")} | {name: (begin,) for name, begin in self.inside.items()}
        there = {
            name: begin
            for name in (*self.encoders, "vae")
            for begin in begins.get(name, ())
            if any(key.startswith(begin) for key in keys)
        }
        missing = [name for name in (*self.encoders, "vae") if name not in {*there, *given}]
        if missing:
            what = f"has no weights of {' and none of '.join(missing)} by names that are known."
            files = ", ".join(f"{name}: FILE" for name in missing)
            raise UserError(Problem("model.base", self.model.base, what, f"Add --model.parts '{{{files}}}'."))
        return {
            name: part_files.load(name, described, self.source, self.dtype, begin)
            for name, begin in there.items()
            if begin.startswith("text_encoders.") and name not in given
        }

    def _read_folder(self, options: Mapping[str, Any]) -> Any:
        missing = [name for name in self.encoders if name not in options and not (self.source / name).is_dir()]
        if missing:
            what = f"has no {' and no '.join(missing)}, which prompts are encoded by."
            remedy = "Take the whole folder, as save_pretrained writes it and the hub has it."
            raise UserError(Problem("model.base", self.model.base, what, remedy))
        return self.pipeline_class.from_pretrained(
            self.source,
            use_safetensors=None if self.model.allow_pickle else True,
            variant=self.model.variant,
            **self._in_bits,
            **options,
        )

    @property
    def weights(self) -> Path:
        return self.files.get("network", self.source)

    @property
    def _network_file(self) -> Path | None:
        """The file that the network's weights are read from by their names; None: diffusers reads them."""
        is_named = self.source.suffix.lower() not in PICKLE_SUFFIXES and self.described is not None
        return self.files.get("network") or (self.source if self.source.is_file() and is_named else None)

    def _load_network(self) -> Any:
        if (file := self._network_file) is not None:
            if self.described is None:
                raise loading.undescribed(self.source)
            field = "model.network" if "network" in self.files else "model.base"
            given = self.network_class, self.described, self.component, file, self.dtype, field
            with loading.readable(self.model):
                return network_file.load(*given).requires_grad_(False).to(self.device)
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
        if self.is_large(network):
            vae.enable_slicing()
        if self.model.vae_tiling:
            vae.enable_tiling()

    def is_large(self, network: Any) -> bool:
        """Whether the autoencoder takes one picture at a time."""
        return int(network.config.sample_size) >= LARGE_LATENTS

    @cached_property
    def _stated(self) -> dict[str, Any]:
        return noise_schedule.stated(self.model, self.source)

    @cached_property
    def described(self) -> Path | None:
        """The folder with the base's configurations: its own, or of a single file the recipe's or what is published."""
        if self.source.is_dir():
            return self.source
        return self.model.config or published.described(self.source, self.model.family)

    @property
    def resolution(self) -> int:
        """Pixels of the base's own pictures: latent side times the VAE's factor, which halves once a block but one."""
        if self.described is not None and self._pipeline is None:
            with loading.readable(self.model):
                vae = AutoencoderKL.load_config(self.described, subfolder="vae")
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
        marks = "-tiled" if self.model.vae_tiling else ""
        marks += noise_schedule.mark(self.model) + loading.mark(self.model)
        marks += "".join(f"-{name}:{fingerprint(all_in(file), file)}" for name, file in self.files.items())
        return fingerprint(files, self.source) + marks

    def encode_with(self, vae: Any, pixels: Tensor) -> Tensor:
        """Scaled latents (N, C, h, w) of pictures (N, 3, H, W) in [-1, 1], by an autoencoder."""
        return (vae.encode(pixels).latent_dist.mode() - _shift(vae)) * vae.config.scaling_factor

    def decode_with(self, vae: Any, latents: Tensor) -> Tensor:
        """The inverse."""
        return vae.decode(latents / vae.config.scaling_factor + _shift(vae)).sample

    @contextmanager
    def _precise_vae(self) -> Iterator[Any]:
        """The autoencoder, for the time being in float32 where its configuration says that float16 overflows."""
        vae = self.pipeline.vae
        if not (vae.dtype == torch.float16 and getattr(vae.config, "force_upcast", False)):
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
            return self.encode_with(vae, pixels.to(self.device, vae.dtype)).to(self.dtype)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> list[Image.Image]:
        with self._precise_vae() as vae:
            pixels = self.decode_with(vae, latents.to(self.device, vae.dtype))
        return self.pipeline.image_processor.postprocess(pixels, output_type="pil")

    @torch.no_grad()
    def generate(
        self,
        prompts: Sequence[str] | Condition,
        seeds: Sequence[int],
        sampling: Sampling,
        *,
        output: str = "pil",
        size: tuple[int, int] | None = None,
        negative: str | None = None,
    ) -> Any:
        noise_schedule.require_steps(self.noise_scheduler, sampling.steps)
        side = sampling.resolution or self.resolution
        width, height = size or (side, side)
        if negative is not None and self.rows_drawn(sampling.guidance) < 2:
            what = "draws without classifier-free guidance, so that no negative prompt has an effect."
            raise UserError(Problem("sampling.guidance", sampling.guidance, what, "Leave negative prompts out."))
        drawn = self._pipeline_of_this_thread()(
            **self._given(prompts),
            **({} if negative is None else {"negative_prompt": [negative] * len(seeds)}),
            height=height,
            width=width,
            num_inference_steps=sampling.steps,
            **self.guided_by(sampling.guidance),
            generator=loading.generators(seeds),
            output_type=output,
        ).images
        return self.drawn_latents(drawn, height, width) if output == "latent" else drawn

    def _pipeline_of_this_thread(self) -> Any:
        """Threads share the networks; a schedule and a tokenizer keep notes of what they are at."""
        if threading.current_thread() is threading.main_thread():
            return self.pipeline
        with LOADING:
            mine = copy.copy(self.pipeline)
        for name, part in mine.components.items():
            if not isinstance(part, torch.nn.Module):
                setattr(mine, name, copy.deepcopy(part))
        return mine

    def guided_by(self, guidance: float) -> dict[str, Any]:
        """Arguments of the pipeline."""
        return {"guidance_scale": guidance}

    def drawn_latents(self, drawn: Tensor, height: int, width: int) -> Tensor:
        """What the pipeline returns as latents of pictures with so many pixels, as (N, C, h, w)."""
        return drawn

    def latent_shape(self, side: int) -> tuple[int, int, int]:
        config = self.network.config
        height = side * int(config.sample_size) // self.resolution
        return int(config.in_channels), height, height

    def rows_drawn(self, guidance: float) -> int:
        return 2 if guidance > 1 else 1

    def _given(self, prompts: Sequence[str] | Condition) -> dict[str, Any]:
        """Prompts, or their embeddings, as the pipeline takes them."""
        return {"prompt_embeds": prompts.tokens} if isinstance(prompts, Condition) else {"prompt": list(prompts)}

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
        if self.described is None:
            raise loading.undescribed(self.source)
        with loading.readable(self.model):
            networks = on_meta.networks(self.described, self.dtype)
        networks = {name: network for name, network in networks.items() if name not in self.left_out}
        self._network = networks[self.component]
        self._cut_up(networks[self.component], networks["vae"])
        return networks

    def release_encoders(self) -> None:
        """Keep the network and the schedule, give the memory of autoencoder and text encoder back."""
        _ = self.network, self.noise_scheduler
        if self._pipeline is not None and self.model.offload:
            self._pipeline.remove_all_hooks()
            self.network.to(self.device)
        self._pipeline = None
        gc.collect()
        devices.give_back(self.device)


def _shift(vae: Any) -> float:
    return float(vae.config.shift_factor or 0.0)
