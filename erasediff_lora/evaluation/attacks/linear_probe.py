"""A linear probe: whether the network's activations still tell noised pictures of the concept from others.

A diagnosis rather than an attack: it brings nothing back, and a model that never learned the concept tells pictures
apart too. What it says lies between the base's number and that model's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pydantic import Field

from erasediff_lora.errors import Problem, UserError
from erasediff_lora.evaluation.attacks.base import Attack, Outcome, of_each_concept
from erasediff_lora.evaluation.parts import Found, Work, out_of_range
from erasediff_lora.evaluation.shares import percent
from erasediff_lora.recipe.schema import Section

if TYPE_CHECKING:
    from torch import Tensor, nn

    from erasediff_lora.denoisers import Denoiser
    from erasediff_lora.evaluation.candidates import Candidate
    from erasediff_lora.evaluation.evidence import Evidence
    from erasediff_lora.evaluation.pictures import Drawn
    from erasediff_lora.recipe.checks import Sections
    from erasediff_lora.recipe.evaluation import Evaluation

LEAST = 8
"""Pictures of each kind: half of them train the probe."""
RIDGE = 1.0


class LinearProbeSettings(Section):
    """A line through the network's activations."""

    noise: list[float] = Field([0.2, 0.5, 0.8], min_length=1, description="shares of the noise schedule that are added")
    prompt: str = Field("", description="what the network is told")
    samples: int = Field(60, ge=LEAST, description="pictures of the concept, and as many of others")

    def check(self, sections: Sections) -> list[Problem]:
        return out_of_range("evaluation.linear_probe.noise", self.noise, 0, 1)


class LinearProbe(Attack):
    """A try is an amount of noise; its success the share of held-out pictures that are told apart, 50% by chance."""

    Settings = LinearProbeSettings
    decides = False
    searches = False
    title = "Linear probe: a line through the network's activations tells pictures of the concept from others"

    def work(self, evaluation: Evaluation, concepts: int) -> Work:
        options = evaluation.settings(LinearProbeSettings)
        return Work(looked=2 * options.samples * len(options.noise) * concepts)

    def budget(self, evidence: Evidence) -> str:
        options = evidence.settings(LinearProbeSettings)
        shares = ", ".join(f"{share:.0%}" for share in options.noise)
        return f"{options.samples} pictures{of_each_concept(evidence)} and as many others, noised by {shares}"

    def run(self, evidence: Evidence, candidate: Candidate) -> Outcome:
        """Train the probe on half of the pictures, and test it on the others.

        Raises:
            UserError: If there is no judge, or there are too few pictures of the concept or of others.
        """
        from erasediff_lora.evaluation.attacks.latent_start import seeds_of

        options = evidence.settings(LinearProbeSettings)
        per_concept: dict[str, dict[str, Any]] = {}
        for concept in evidence.forgotten:
            shown, others = pictures_of(evidence, concept, options.samples)
            settings = options.model_dump() | {"concept": concept, "pictures": [seeds_of(shown), seeds_of(others)]}
            settings |= {"base": evidence.candidates.base.store.depends["base"], "seed": evidence.spare_seed}

            def compute(shown: list[Drawn] = shown, others: list[Drawn] = others) -> dict[str, Any]:
                with candidate.active() as denoiser:
                    return {"tries": told_apart(denoiser, shown, others, options, evidence.spare_seed)}

            tries = dict(candidate.store.state("linear_probe", settings, compute)["tries"])
            held_out = 2 * (len(shown) - len(shown) // 2)
            per_concept[concept] = {"success": max(tries.values()), "tries": tries, "pictures": held_out}
        names = list(next(iter(per_concept.values()))["tries"])
        together = {name: sum(own["tries"][name] for own in per_concept.values()) / len(per_concept) for name in names}
        held_out = sum(own["pictures"] for own in per_concept.values())
        return Outcome(max(together.values()), together, [], {"held_out": held_out}, per_concept)

    def words(self, found: Found) -> str:
        return f"{percent(found['success'])} of {found['held_out']} told apart (50% by chance)"

    def rows(self, found: Mapping[str, Any]) -> dict[str, str | None]:
        return {
            f"linear probe, told apart, {model} (50% by chance)": percent(achieved["success"])
            for model, achieved in found["models"].items()
        }


def pictures_of(evidence: Evidence, concept: str, count: int) -> tuple[list[Drawn], list[Drawn]]:
    """The base's pictures that show the concept, and as many of what is to stay.

    Raises:
        UserError: If there are fewer than `LEAST` of one kind.
    """
    from erasediff_lora.evaluation.attacks.base import looked_at

    base, judge = evidence.candidates.base, evidence.require_judge("a linear probe")
    asked = [item for item in evidence.forget(base) if item.prompt.concept == concept]
    shown = [item for item, hit in looked_at(judge, asked) if hit]
    others = evidence.retain(base)
    number = min(count, len(shown), len(others))
    if number < LEAST:
        what = f"leaves {min(len(shown), len(others))} pictures of a kind for a linear probe, which takes {LEAST}."
        remedy = "Raise evaluation.forget_samples and evaluation.retain_samples."
        raise UserError(Problem("evaluation.linear_probe.samples", count, what, remedy))
    return shown[:number], others[:number]


def told_apart(
    denoiser: Denoiser, shown: Sequence[Drawn], others: Sequence[Drawn], options: LinearProbeSettings, seed: int
) -> dict[str, float]:
    """Amount of noise -> share of held-out pictures that a ridge regression on activations puts on the right side."""
    import torch

    from erasediff_lora.data.imaging import to_unit_tensor

    images = [item.image for item in (*shown, *others)]
    pixels = torch.stack([to_unit_tensor(image, images[0].size) for image in images])
    latents = torch.cat([denoiser.encode_images(batch) for batch in pixels.split(16)])
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(seed)).to(latents)
    classes = torch.tensor([1.0] * len(shown) + [-1.0] * len(others))
    total = int(denoiser.noise_scheduler.config.num_train_timesteps)
    found = {}
    for share in options.noise:
        steps = torch.full((len(latents),), min(int(share * total), total - 1), device=latents.device)
        noisy = denoiser.noise_scheduler.add_noise(latents, noise, steps)
        features = activations(denoiser, noisy, steps, options.prompt)
        found[f"{share:.0%}"] = held_out_accuracy(features, classes)
    return found


def activations(denoiser: Denoiser, noisy: Tensor, steps: Tensor, prompt: str) -> Tensor:
    """What the network's middle makes of noised latents, the mean over all places: (N, D) float32 on the CPU."""
    import torch

    found: list[Tensor] = []

    def keep(module: Any, inputs: Any, output: Any) -> None:
        tensor = output[-1] if isinstance(output, tuple) else output
        places = tuple(range(2, tensor.ndim)) if tensor.ndim == 4 else (1,)
        found.append(tensor.detach().float().mean(dim=places).cpu())

    handle = middle_of(denoiser.network).register_forward_hook(keep)
    try:
        with torch.no_grad():
            for rows, times in zip(noisy.split(16), steps.split(16), strict=True):
                told = denoiser.encode_prompts([prompt] * len(rows)).to(denoiser.dtype)
                denoiser.predict(rows.to(denoiser.dtype), times, told)
    finally:
        handle.remove()
    return torch.cat(found)


def middle_of(network: nn.Module) -> nn.Module:
    """The block between the way down and the way up; of a transformer the middle one of its longest row of blocks."""
    from torch import nn

    if isinstance(block := getattr(network, "mid_block", None), nn.Module):
        return block
    rows = [module for module in network.children() if isinstance(module, nn.ModuleList)]
    longest = max(rows, key=len)
    return longest[len(longest) // 2]


def held_out_accuracy(features: Tensor, classes: Tensor) -> float:
    """Every second picture trains a ridge regression; the share of the others that it puts on the right side.

    Args:
        features: (N, D).
        classes: (N,), 1 or -1, as many of each.
    """
    import torch

    wide = features.double()
    train, test = torch.arange(len(wide)) % 2 == 0, torch.arange(len(wide)) % 2 == 1
    mean, deviation = wide[train].mean(dim=0), wide[train].std(dim=0).clamp_min(1e-8)
    known, asked = (wide[train] - mean) / deviation, (wide[test] - mean) / deviation
    gram = known @ known.T / known.shape[1] + RIDGE / len(known) * torch.eye(len(known), dtype=wide.dtype)
    weights = known.T @ torch.linalg.solve(gram, classes[train].double()) / known.shape[1]
    right = ((asked @ weights) * classes[test].double() > 0).double()
    return float(sum(right[classes[test] == side].mean() for side in (1, -1)) / 2)
