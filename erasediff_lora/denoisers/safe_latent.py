"""Safe latent diffusion: guidance away from a concept where the picture is on its way to it, without training.

Schramowski et al., Safe Latent Diffusion, CVPR 2023 (arXiv:2211.05105), equations 3 to 8; settings as the authors' code
and diffusers' SafetyConfig have them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from erasediff_lora.denoisers.base import Denoiser
from erasediff_lora.errors import Problem, UserError


@dataclass(frozen=True)
class SafetySettings:
    """A configuration of the paper.

    Attributes:
        warmup: Steps δ before it acts.
        scale: Guidance s_S.
        threshold: λ, below which the prompted prediction lies over the concept's.
        momentum: s_m.
        momentum_decay: β_m.
    """

    warmup: int
    scale: float
    threshold: float
    momentum: float
    momentum_decay: float


STRENGTHS = {
    "weak": SafetySettings(15, 20, 0.0, 0.0, 0.0),
    "medium": SafetySettings(10, 1000, 0.01, 0.3, 0.4),
    "strong": SafetySettings(7, 2000, 0.025, 0.5, 0.7),
    "max": SafetySettings(0, 5000, 1.0, 0.5, 0.7),
}


class SafetyGuidance:
    """What one picture's denoising is led by, step after step."""

    def __init__(self, settings: SafetySettings) -> None:
        self.settings, self.step = settings, 0
        self.past: Tensor | None = None

    def __call__(self, prompted: Tensor, empty: Tensor, concept: Tensor) -> Tensor:
        """γ of this step, (N, C, h, w): what is taken from the guided direction `prompted − empty`.

        Args:
            prompted: The prediction under the prompt.
            empty: Under no prompt.
            concept: Under what is to be avoided.
        """
        options = self.settings
        distance = prompted - concept
        weight = (distance.abs() * options.scale).clamp(max=1.0)  # equation 6; the sign does not count, as in the code
        weight = torch.where(distance >= options.threshold, torch.zeros_like(weight), weight)
        away = (concept - empty) * weight  # 4
        if self.past is None:
            self.past = torch.zeros_like(away)
        away = away + options.momentum * self.past  # 7
        self.past = options.momentum_decay * self.past + (1 - options.momentum_decay) * away  # 8
        self.step += 1
        return away if self.step > options.warmup else torch.zeros_like(away)


@contextmanager
def safely(denoiser: Denoiser, concept: str, settings: SafetySettings) -> Iterator[None]:
    """Pictures that are drawn inside are led away from a concept; one call of `generate` for each `with`.

    The pipeline is left as it is: of its batch, without and with prompts, the prompted half is changed, so that its own
    guidance, ε_∅ + g (ε_c − ε_∅), becomes ε_∅ + g (ε_c − ε_∅ − γ), which is equation 3.

    Args:
        denoiser: A base that predicts both halves in one batch.
        concept: In words.
        settings: Of the paper.

    Raises:
        UserError: If the family guides otherwise.
    """
    if not getattr(denoiser, "guided_in_one_batch", False):
        what = "does not predict without and with prompts in one batch, which safe latent diffusion acts on."
        remedy = "Leave safe_latent_diffusion out of evaluation.metrics."
        raise UserError(Problem("model.family", type(denoiser).__name__, what, remedy))
    told = denoiser.encode_prompts([concept])
    guidance, is_inside = SafetyGuidance(settings), False

    def lead(network: Any, inputs: Any, named: Any, output: Any) -> Any:
        nonlocal is_inside
        if is_inside:
            return output
        given = named | dict(zip(("sample", "timestep"), inputs, strict=False))
        noisy, timestep = given["sample"], given["timestep"]
        predicted = output[0]
        empty, prompted = predicted.chunk(2)
        latents = noisy.chunk(2)[1]
        steps = torch.as_tensor(timestep, device=latents.device).reshape(-1)[-1:].expand(len(latents))
        is_inside = True
        try:
            unwanted = denoiser.predict(latents, steps, told[[0] * len(latents)].to(latents))
        finally:
            is_inside = False
        led = torch.cat([empty, prompted - guidance(prompted, empty, unwanted)])
        return (led, *output[1:]) if isinstance(output, tuple) else type(output)(sample=led)

    handle = denoiser.network.register_forward_hook(lead, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()
