"""What noising makes of latents: the target of a prediction, its weight, and how it moves with the picture."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def denoising_target(noise_scheduler: Any, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
    """What the network should predict for the noised latents, by the scheduler's prediction type; (B, C, h, w).

    Args:
        noise_scheduler: A diffusers scheduler.
        latents: Clean ones, (B, C, h, w).
        noise: What was added, (B, C, h, w).
        timesteps: (B,) int64.
    """
    match noise_scheduler.config.prediction_type:
        case "epsilon":
            return noise
        case "v_prediction":
            return noise_scheduler.get_velocity(latents, noise, timesteps)
        case "sample":
            return latents
        case "flow":
            return noise - latents
        case other:
            raise ValueError(f"unsupported prediction type {other!r}")


def draw_timesteps(
    count: int, total: int, generator: torch.Generator, density: str = "uniform", shift: float = 1.0
) -> Tensor:
    """Timesteps t in 0 … T − 1, (count,) int64.

    Args:
        count: How many.
        total: T.
        generator: On the CPU.
        density: 'uniform', or 'logit_normal' (Esser et al., 2024): σ is the sigmoid of a standard normal.
        shift: s of σ ↦ s σ / (1 + (s − 1) σ), for larger pictures, of which noise leaves more.
    """
    if density == "uniform" and shift == 1:
        return torch.randint(0, total, (count,), generator=generator)
    normal = density == "logit_normal"
    sigmas = torch.randn(count, generator=generator).sigmoid() if normal else torch.rand(count, generator=generator)
    return (shift * sigmas / (1 + (shift - 1) * sigmas) * total).long().clamp_max(total - 1)


def counterpart_shift(noise_scheduler: Any, latents: Tensor, counterparts: Tensor, timesteps: Tensor) -> Tensor:
    """What the denoising target changes by as the picture under x_t goes to its counterpart; (B, C, h, w).

    x_t = √ᾱ x_0 + √(1 − ᾱ) ε stays as it is, so picture and noise change together: to x_0 + (1 − ᾱ)² Δ and
    ε − √ᾱ (1 − ᾱ)^{3/2} Δ, with Δ the way to the counterpart. It goes all of it where x_t is noise, and next to none
    where x_t is the picture already: what is asked for there leaks into retained pictures. Of flow matching likewise.

    Args:
        noise_scheduler: A diffusers scheduler.
        latents: x_0, (B, C, h, w).
        counterparts: What it goes to, (B, C, h, w).
        timesteps: (B,) int64.
    """
    one, nothing = torch.ones_like(latents), torch.zeros_like(latents)
    signal = noise_scheduler.add_noise(one, nothing, timesteps)
    spread = noise_scheduler.add_noise(nothing, one, timesteps)
    share = spread.square() / (signal.square() + spread.square())
    step = share.square() * (counterparts - latents)
    return denoising_target(noise_scheduler, step, -signal / spread * step, timesteps)  # it is linear in both


def min_snr_weights(noise_scheduler: Any, timesteps: Tensor, gamma: float) -> Tensor:
    """min(SNR, γ) in units of the x₀ loss, carried over to the prediction type (Hang et al., 2023); (B,).

    At SNR 0, where nothing is left of the picture, it is the limit: 1 where the noise is predicted.

    Args:
        noise_scheduler: A diffusers scheduler with betas.
        timesteps: (B,) int64.
        gamma: γ.
    """
    alphas = noise_scheduler.alphas_cumprod[timesteps]
    snr = alphas / (1 - alphas)
    clipped = snr.clamp_max(gamma)
    match noise_scheduler.config.prediction_type:
        case "epsilon":
            return (gamma / snr).clamp_max(1)
        case "v_prediction":
            return clipped / (snr + 1)
        case _:
            return clipped
