"""Null-text inversion: the noise that a picture of the concept comes from, found and drawn again without any prompt.

DDIM's equation run backwards (Song et al. 2021; as an attack: TINA, 2024). What the text encoder is told is nothing on
both ways, so that an erased name does not help.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import Field

from erasediff_lora.errors import Problem, UserError
from erasediff_lora.evaluation.attacks.base import Attack, Outcome, best, looked_at, of_each_concept
from erasediff_lora.evaluation.parts import Work
from erasediff_lora.recipe.schema import Section

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

    from erasediff_lora.denoisers import Denoiser
    from erasediff_lora.evaluation.candidates import Candidate
    from erasediff_lora.evaluation.evidence import Evidence
    from erasediff_lora.evaluation.pictures import Request
    from erasediff_lora.recipe.evaluation import Evaluation


SCHEDULE = (
    *("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas"),
    *("prediction_type", "steps_offset", "rescale_betas_zero_snr"),
)
"""What the noise was added by; all else of a scheduler's configuration is about drawing."""


class NullTextSettings(Section):
    """A picture of the concept, turned into noise by the model and back."""

    steps: int = Field(50, ge=2, description="steps of DDIM, each way")
    prompt: str = Field("", description="the neutral prompt")
    samples: int = Field(30, ge=1, description="pictures of a concept")


class NullText(Attack):
    """One try: as much as the model can be made to draw, whatever it is told."""

    Settings = NullTextSettings
    decides = False  # a good inversion gives back what it is given, on any model
    title = "Null-text inversion: the noise of a picture of the concept, drawn again without a prompt"

    def work(self, evaluation: Evaluation, concepts: int) -> Work:
        options = evaluation.settings(NullTextSettings)
        return Work(looked=options.samples * concepts * 2 * options.steps)

    def budget(self, evidence: Evidence) -> str:
        options = evidence.settings(NullTextSettings)
        return f"{options.steps} steps each way, {options.samples} pictures{of_each_concept(evidence)}"

    def run(self, evidence: Evidence, candidate: Candidate) -> Outcome:
        """Turn the base's pictures of the concept into noise and back.

        Raises:
            UserError: If there is no judge, the family has no DDIM, or the base draws no concept.
        """
        from erasediff_lora.evaluation.attacks.latent_start import seeds_of, sources

        judge, options = evidence.require_judge("null-text inversion"), evidence.settings(NullTextSettings)
        if not hasattr(candidate.denoiser.noise_scheduler, "alphas_cumprod"):
            what = "has no noise schedule that DDIM could be run backwards on."
            raise UserError(Problem("model.family", evidence.recipe.model.family, what, "Leave null_text out."))
        found = sources(evidence, self.name, options.samples)

        def paint(asked: Request) -> Any:
            images = [found[row].image for row in asked.rows]
            return there_and_back(candidate.denoiser, images, options.prompt, options.steps)

        drawn = candidate.generate(
            [item.prompt for item in found],
            evidence.spare_seed,
            "null-text inversion",
            paint=paint,
            variant={
                "null_text": [options.steps, options.prompt],
                "sources": [evidence.candidates.base.store.depends["base"], seeds_of(found)],
            },
        )
        return best({"all": looked_at(judge, drawn)})


def there_and_back(denoiser: Denoiser, images: list[Image.Image], prompt: str, steps: int) -> list[Image.Image]:
    """The pictures that the noise of these pictures gives.

    Args:
        denoiser: The model.
        images: All of one size.
        prompt: On both ways, without guidance.
        steps: Of DDIM.
    """
    import torch

    from erasediff_lora.data.imaging import to_unit_tensor

    pixels = torch.stack([to_unit_tensor(image, image.size) for image in images])
    latents = denoiser.encode_images(pixels)
    with torch.no_grad():
        for inverse in (True, False):
            latents = _ddim(denoiser, latents, prompt, steps, inverse=inverse)
        return denoiser.decode(latents)


def _ddim(denoiser: Denoiser, latents: Tensor, prompt: str, steps: int, *, inverse: bool) -> Tensor:
    """One way, deterministic."""
    import torch
    from diffusers import DDIMInverseScheduler, DDIMScheduler

    kind = DDIMInverseScheduler if inverse else DDIMScheduler
    options = {"clip_sample": False, "set_alpha_to_one": False, "timestep_spacing": "leading", "thresholding": False}
    config = {key: value for key, value in dict(denoiser.noise_scheduler.config).items() if key in SCHEDULE}
    scheduler = kind.from_config(config, **options)
    scheduler.set_timesteps(steps, device=denoiser.device)
    condition = denoiser.encode_prompts([prompt] * len(latents)).to(denoiser.dtype)
    for step in scheduler.timesteps:
        times = torch.full((len(latents),), int(step), device=denoiser.device)
        noise = denoiser.predict(latents.to(denoiser.dtype), times, condition)
        latents = scheduler.step(noise.float(), step, latents.float()).prev_sample
    return latents
