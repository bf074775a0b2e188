"""Class-conditional diffusion in pixel space: a UNet2DModel with class embeddings, as in the DDPM experiments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import torch
from diffusers import DDPMScheduler, DiffusionPipeline, UNet2DModel
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from erasediff_lora.denoisers import loading, noise_schedule, on_meta
from erasediff_lora.denoisers.base import SLOT, Tokens
from erasediff_lora.denoisers.pixels import to_unit_tensor
from erasediff_lora.errors import Problem, UserError, nearest
from erasediff_lora.families.class_conditional import ARCHITECTURE, FAMILY
from erasediff_lora.objectives.condition import Condition
from erasediff_lora.recipe import Model, Sampling
from erasediff_lora.storage.files import fingerprint
from erasediff_lora.storage.paths import existing

_ATTENTION = r".*\battentions\.\d+\.(to_q|to_k|to_v|to_out\.0)"
_CONVOLUTIONS = r".*\b(resnets\.\d+\.(conv1|conv2|conv_shortcut)|(down|up)samplers\.0\.conv)"
_TIME = r".*\bresnets\.\d+\.time_emb_proj"


class SoftEmbedding(nn.Embedding):
    """Class embeddings by weights instead of indices.

    A condition (B, K + E) holds the weight of each of the K classes, and a free vector that is added to the sum: a
    class is a one-hot row, an attack's invention a free vector.
    """

    def forward(self, condition: Tensor) -> Tensor:
        weights, free = condition.split([self.num_embeddings, self.embedding_dim], dim=-1)
        return weights @ self.weight + free


class ClassConditionalPipeline(DiffusionPipeline):
    """Draws pictures of classes, with classifier-free guidance.

    Args:
        unet: A UNet2DModel with one class embedding more than there are classes; the last one stands for no class.
        scheduler: A diffusers scheduler.
        id2label: Names of the classes by index, counted from 0; as text in a file.
    """

    model_cpu_offload_seq = "unet"
    unet: Any
    scheduler: Any
    config: Any
    register_modules: Any
    register_to_config: Any

    def __init__(self, unet: UNet2DModel, scheduler: Any, id2label: Mapping[Any, str] | None = None) -> None:
        super().__init__()
        self.register_modules(unet=unet, scheduler=scheduler)
        self.register_to_config(id2label={str(index): name for index, name in (id2label or {}).items()})
        soften(unet)

    @property
    def classes(self) -> list[str]:
        """Their names, in the order of their embeddings."""
        return [self.config.id2label[str(index)] for index in range(len(self.config.id2label))]

    @torch.no_grad()
    def __call__(
        self,
        conditions: Tensor,
        *,
        num_inference_steps: int = 50,
        guidance_scale: float = 1.0,
        generator: list[torch.Generator] | None = None,
        start: tuple[Tensor, float] | None = None,
    ) -> Tensor:
        """Pixels (N, C, H, W) in [-1, 1].

        Args:
            conditions: (N, K + E), see SoftEmbedding.
            num_inference_steps: Denoising steps.
            guidance_scale: Of classifier-free guidance; 1 and less draw without.
            generator: One a picture, on the CPU.
            start: Pixels (N, C, H, W) and the share of the schedule that they are noised by; else pure noise.
        """
        scheduler = self.scheduler
        scheduler.set_timesteps(num_inference_steps)
        timesteps = scheduler.timesteps
        side, channels = self.unet.config.sample_size, self.unet.config.in_channels
        noise = torch.cat(
            [torch.randn(1, channels, side, side, generator=one) for one in generator or [None] * len(conditions)]  # type: ignore[list-item]
        ).to(conditions)
        sample = noise * scheduler.init_noise_sigma
        if start is not None:
            pixels, strength = start
            timesteps = timesteps[len(timesteps) - min(int(num_inference_steps * strength), num_inference_steps) :]
            sample = pixels.to(noise)
            if len(timesteps):
                sample = scheduler.add_noise(sample, noise, timesteps[:1])
        nothing = one_hot([len(self.classes)], self.unet.class_embedding).to(conditions)
        extra = {"generator": generator} if isinstance(scheduler, DDPMScheduler) else {}
        for timestep in timesteps:
            if guidance_scale > 1:
                both = torch.cat([conditions, nothing.expand(len(conditions), -1)])
                predicted, unguided = self.unet(torch.cat([sample, sample]), timestep, both).sample.chunk(2)
                predicted = unguided + guidance_scale * (predicted - unguided)
            else:
                predicted = self.unet(sample, timestep, conditions).sample
            sample = scheduler.step(predicted, timestep, sample, **extra).prev_sample
        return sample.clamp(-1, 1)


def soften(unet: Any) -> None:
    """Let the network take weights of classes and free vectors (SoftEmbedding); its tensors stay as they are."""
    table = unet.class_embedding
    if not isinstance(table, SoftEmbedding):
        soft = SoftEmbedding(table.num_embeddings, table.embedding_dim, _weight=table.weight.data)
        unet.class_embedding = soft.requires_grad_(table.weight.requires_grad)


def one_hot(rows: Sequence[int], table: nn.Embedding) -> Tensor:
    """Conditions (N, K + E) of classes."""
    conditions = torch.zeros(len(rows), table.num_embeddings + table.embedding_dim)
    conditions[range(len(rows)), list(rows)] = 1
    return conditions


class ClassConditional:
    """A class-conditional base: a folder that ClassConditionalPipeline.save_pretrained wrote.

    A prompt is the name of a class, and the empty prompt no class. A picture is its own latent.
    """

    component: ClassVar[str] = FAMILY.component
    target_presets: ClassVar[dict[str, list[str]]] = {
        "attention": [_ATTENTION],
        "attention_convolutions": [_ATTENTION, _CONVOLUTIONS],
        "attention_convolutions_time": [_ATTENTION, _CONVOLUTIONS, _TIME],
    }

    def __init__(self, model: Model) -> None:
        self.model = model
        self.device = loading.device(model)
        self.dtype = loading.dtype(model, self.device)
        self.source = self.weights = existing(model.base, "model.base")
        self._hollow: Any = None  # the network as its configuration alone describes it
        if not (self.source / "model_index.json").is_file():
            raise UserError(
                Problem(
                    "model.base",
                    model.base,
                    "is no folder of a class-conditional pipeline.",
                    "Train one with scripts/base_models/train_ddpm_base.py, and give the folder that it wrote.",
                )
            )

    @cached_property
    def pipeline(self) -> Any:
        """The pipeline, frozen."""
        with loading.readable(self.model):
            pipeline = ClassConditionalPipeline.from_pretrained(self.source, dtype=self.dtype, use_safetensors=True)
        pipeline.scheduler = noise_schedule.drawing_scheduler(pipeline.scheduler, self._stated)
        pipeline.unet.requires_grad_(False)
        return pipeline.to(self.device)

    @property
    def network(self) -> Any:
        """The UNet."""
        return self.pipeline.unet if self._hollow is None else self._hollow

    @cached_property
    def noise_scheduler(self) -> DDPMScheduler:
        return noise_schedule.of_folder(self.model, self.source, self._stated)

    @cached_property
    def _stated(self) -> dict[str, Any]:
        return noise_schedule.stated(self.model, self.source)

    @property
    def architecture(self) -> str:
        return ARCHITECTURE.id

    @property
    def resolution(self) -> int:
        return int(self.network.config.sample_size)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over the folder's weights and configuration, names included."""
        parts = [file for part in ("unet", "scheduler") for file in sorted((self.source / part).iterdir())]
        return fingerprint([self.source / "model_index.json", *parts], self.source) + noise_schedule.mark(self.model)

    def predict(self, noisy: Tensor, timesteps: Tensor, prompts: Condition) -> Tensor:
        return self.network(noisy, timesteps, prompts.tokens[:, 0]).sample

    def tokenize(self, prompts: Sequence[str]) -> list[Tokens]:
        return [Tokens(((prompt,),), cut=False) for prompt in prompts]

    def encode_prompts(self, prompts: Sequence[str]) -> Condition:
        """Of tokens (N, 1, K + E).

        Raises:
            UserError: If a prompt is no class's name.
        """
        classes = self.pipeline.classes
        for prompt in prompts:
            if prompt and prompt not in classes:
                raise UserError(
                    Problem(
                        "prompt", prompt, "is no class of the base, which takes nothing else.", nearest(prompt, classes)
                    )
                )
        rows = [classes.index(prompt) if prompt else len(classes) for prompt in prompts]
        return Condition(one_hot(rows, self.network.class_embedding)[:, None].to(self.device, self.dtype))

    def prompt_tokens(self, prompts: Condition) -> dict[str, list[Tensor]]:
        """The class is part of the time embedding, which no layer reads alone."""
        return {}

    def encode_slots(self, prompts: Sequence[str], vectors: Tensor) -> Condition:
        """Where a prompt is SLOT, the mean of the vectors is the condition; there is one place for it."""
        rows = self.encode_prompts(["" if prompt.strip() == SLOT else prompt for prompt in prompts]).tokens
        free = vectors.mean(dim=-2).to(rows).expand(len(prompts), -1)
        free = F.pad(free, (self.network.class_embedding.num_embeddings, 0))
        is_slot = torch.tensor([prompt.strip() == SLOT for prompt in prompts], device=self.device)
        return Condition(torch.where(is_slot[:, None, None], free[:, None], rows))

    @property
    def token_embeddings(self) -> Tensor:
        """The embeddings of the classes."""
        return self.network.class_embedding.weight[:-1]

    def embed_word(self, word: str) -> Tensor:
        return self.network.class_embedding.weight[[self.pipeline.classes.index(word)]]

    def embed_words(self, words: Sequence[str]) -> Tensor:
        what = "has no text encoder to compare words by."
        raise UserError(Problem("model.family", "class_conditional", what, "Name anchors and neighbours."))

    def decode_tokens(self, tokens: Sequence[int]) -> str:
        return " ".join(self.pipeline.classes[token] for token in tokens)

    def encode_images(self, pixels: Tensor) -> Tensor:
        """The pixels themselves, grey where the network sees one channel."""
        pixels = pixels.to(self.device, self.dtype)
        return pixels.mean(dim=1, keepdim=True) if self.network.config.in_channels == 1 else pixels

    def decode(self, latents: Tensor) -> list[Image.Image]:
        array = ((latents.float().clamp(-1, 1) + 1) * 127.5).round().byte().cpu().permute(0, 2, 3, 1).numpy()
        return [Image.fromarray(np.repeat(picture, 3 // picture.shape[2], axis=2)) for picture in array]

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
        if negative is not None:
            what = "has no prompt that could be a negative one."
            raise UserError(Problem("model.family", "class_conditional", what, "Leave it out."))
        noise_schedule.require_steps(self.noise_scheduler, sampling.steps)
        pixels = self._draw(prompts, seeds, sampling)
        return pixels if output == "latent" else self.decode(pixels)

    def generate_from(
        self,
        images: Sequence[Image.Image],
        strength: float,
        prompts: Sequence[str],
        seeds: Sequence[int],
        sampling: Sampling,
    ) -> list[Image.Image]:
        pixels = self.encode_images(torch.stack([to_unit_tensor(image, self.resolution) for image in images]))
        return self.decode(self._draw(prompts, seeds, sampling, (pixels, strength)))

    def _draw(
        self,
        prompts: Sequence[str] | Condition,
        seeds: Sequence[int],
        sampling: Sampling,
        start: tuple[Tensor, float] | None = None,
    ) -> Tensor:
        told = prompts if isinstance(prompts, Condition) else self.encode_prompts(prompts)
        return self.pipeline(
            told.tokens[:, 0],
            num_inference_steps=sampling.steps,
            guidance_scale=sampling.guidance,
            generator=loading.generators(seeds),
            start=start,
        )

    def without_weights(self) -> dict[str, Any]:
        with loading.readable(self.model):
            networks = on_meta.networks(self.source, self.dtype)
        soften(networks["unet"])
        self._hollow = networks["unet"]
        return networks

    def latent_shape(self, side: int) -> tuple[int, int, int]:
        return int(self.network.config.in_channels), side, side

    def rows_drawn(self, guidance: float) -> int:
        return 2 if guidance > 1 else 1

    def hollow_prompts(self, count: int) -> Condition:
        table = self.network.class_embedding
        return Condition(torch.zeros(count, 1, table.num_embeddings + table.embedding_dim, dtype=self.dtype))

    def release_encoders(self) -> None:
        """There are none."""
