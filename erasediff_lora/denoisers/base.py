"""What the rest of the package asks of a model family."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch
from PIL import Image
from torch import Tensor

from erasediff_lora.objectives.condition import Condition
from erasediff_lora.recipe import Sampling

SLOT = "<*>"
"""Stands in a prompt for given token embeddings."""

NoisedBatch = tuple[Tensor, Tensor, Tensor, list[str]]
"""x_t (B, C, h, w), t (B,), the denoising target (B, C, h, w), and B captions."""


@dataclass(frozen=True)
class Tokens:
    """What a model reads of a prompt.

    Attributes:
        ids: Of every text encoder, as far as it reads.
        cut: Whether the prompt goes on behind that.
    """

    ids: tuple[tuple[Hashable, ...], ...]
    cut: bool


class Denoiser(Protocol):
    """A frozen base model of one family. One file each, named by its `families.Family`."""

    component: ClassVar[str]
    """Name of the adapted network in the pipeline, and prefix of its keys in diffusers' LoRA files."""

    target_presets: ClassVar[dict[str, list[str]]]
    """Preset name -> regexes of the full paths of the modules that it adapts."""

    source: Path
    """Folder or file that the weights come from."""

    dtype: torch.dtype
    device: torch.device

    @property
    def weights(self) -> Path:
        """Folder or file that the network's own come from."""
        ...

    @property
    def architecture(self) -> str:
        """Modelspec id of the base's architecture, such as 'stable-diffusion-v1'."""
        ...

    @property
    def resolution(self) -> int:
        """Side of the base's own pictures in pixels."""
        ...

    @property
    def pipeline(self) -> Any:
        """The diffusers pipeline around `network`, loaded on first use."""
        ...

    @property
    def network(self) -> Any:
        """The `nn.Module` that predicts, loaded on first use."""
        ...

    @property
    def noise_scheduler(self) -> Any:
        """Noises latents as the base was trained: a DDPMScheduler with its betas, or FlowMatching."""
        ...

    @property
    def fingerprint(self) -> str:
        """SHA-256 over the base's weights and configuration, read once."""
        ...

    def predict(self, noisy: Tensor, timesteps: Tensor, prompts: Condition) -> Tensor:
        """The network's prediction (B, C, h, w) for x_t (B, C, h, w), t (B,), what it is told of B prompts."""
        ...

    def tokenize(self, prompts: Sequence[str]) -> list[Tokens]:
        """What the network gets to know of each prompt: two of the same tokens are the same to it."""
        ...

    def encode_prompts(self, prompts: Sequence[str]) -> Condition:
        """What the network is told of N prompts."""
        ...

    def prompt_tokens(self, prompts: Condition) -> dict[str, list[Tensor]]:
        """What the layers of the network that read a prompt see of it.

        Args:
            prompts: As `encode_prompts` returns them.

        Returns:
            Regex of the layers' paths -> tokens, (N, T, D), of each sequence that they see; nothing where the network
            reads no prompt.
        """
        ...

    def encode_slots(self, prompts: Sequence[str], vectors: Tensor) -> Condition:
        """What the network is told with `vectors` in the place of SLOT; differentiable in them.

        Args:
            prompts: N texts.
            vectors: Token embeddings, (V, E), or (N, V, E) with others for each prompt.
        """
        ...

    @property
    def token_embeddings(self) -> Tensor:
        """The text encoder's table of ordinary tokens, (T, E)."""
        ...

    def embed_word(self, word: str) -> Tensor:
        """Embeddings of a word's tokens, (W, E)."""
        ...

    def embed_words(self, words: Sequence[str]) -> Tensor:
        """What the text encoder makes of each word by itself, the mean over its tokens and the end: (N, E).

        Raises:
            UserError: If there is no text encoder.
        """
        ...

    def decode_tokens(self, tokens: Sequence[int]) -> str:
        """Rows of `token_embeddings` as the tokenizer writes them, bytes that are no text included."""
        ...

    def encode_images(self, pixels: Tensor) -> Tensor:
        """Scaled latents (N, C, H/f, W/f) of pictures (N, 3, H, W) in [-1, 1]."""
        ...

    def encode_with(self, vae: Any, pixels: Tensor) -> Tensor:
        """The same by an autoencoder of this kind; of families that have one."""
        ...

    def decode_with(self, vae: Any, latents: Tensor) -> Tensor:
        """Pictures (N, 3, H, W) in [-1, 1] of scaled latents, by an autoencoder of this kind."""
        ...

    def decode(self, latents: Tensor) -> list[Image.Image]:
        """Pictures of scaled latents."""
        ...

    def generate(
        self,
        prompts: Sequence[str] | Condition,
        seeds: Sequence[int],
        sampling: Sampling,
        *,
        output: str,
        size: tuple[int, int] | None = None,
        negative: str | None = None,
    ) -> Any:
        """Draw a picture for each prompt, given as text or encoded, from its own seed, as 'pil' or 'latent'.

        `negative` is a prompt that guidance leads away from, in the place of the empty one.
        `size` is width and height, for families whose pictures have several; None: the recipe's square.
        """
        ...

    def generate_from(
        self,
        images: Sequence[Image.Image],
        strength: float,
        prompts: Sequence[str],
        seeds: Sequence[int],
        sampling: Sampling,
    ) -> list[Image.Image]:
        """Noise each picture by that share of the schedule and denoise it under its prompt (SDEdit)."""
        ...

    def without_weights(self) -> dict[str, Any]:
        """Take `network` from the base's configuration alone; return it and the encoders, by name.

        Raises:
            UserError: If there is no configuration but the weights' own.
        """
        ...

    def latent_shape(self, side: int) -> tuple[int, int, int]:
        """(C, h, w) of the latents of a square picture with sides of so many pixels."""
        ...

    def rows_drawn(self, guidance: float) -> int:
        """How many rows the network predicts for a picture that is drawn with that guidance."""
        ...

    def hollow_prompts(self, count: int) -> Condition:
        """Zeros in place of what `encode_prompts` returns for so many prompts of the greatest length."""
        ...

    def release_encoders(self) -> None:
        """Drop all but the network from memory."""
        ...
