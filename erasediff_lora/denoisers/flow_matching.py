"""Noise for bases that were trained by flow matching: a straight line from the picture to the noise."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING

from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor

from erasediff_lora.denoisers import loading

if TYPE_CHECKING:
    from erasediff_lora.denoisers.pipeline import PipelineDenoiser


class FlowMatching:
    """x_t = (1 − σ) x_0 + σ ε with σ = (t + 1) / T for t in 0 … T − 1; the network predicts ε − x_0.

    Stands where other families have a diffusers scheduler, whose names it uses.
    """

    def __init__(self, train_timesteps: int) -> None:
        self.config = SimpleNamespace(num_train_timesteps=train_timesteps, prediction_type="flow")

    @classmethod
    def of(cls, base: PipelineDenoiser) -> FlowMatching:
        """That of a base, whose weights are read only if no folder describes it."""
        if base.described is None:
            return cls(base.pipeline.scheduler.config.num_train_timesteps)
        with loading.readable(base.model):
            config = FlowMatchEulerDiscreteScheduler.load_config(base.described, subfolder="scheduler")
        return cls(config["num_train_timesteps"])

    def sigmas(self, timesteps: Tensor) -> Tensor:
        """σ (B,) of timesteps (B,)."""
        return (timesteps + 1) / self.config.num_train_timesteps

    def add_noise(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """x_t, (B, C, h, w)."""
        sigmas = self.sigmas(timesteps).to(latents).view(-1, 1, 1, 1)
        return (1 - sigmas) * latents + sigmas * noise
