"""Relearning: how much fine-tuning on a few pictures brings the concept back."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model
from torch.nn import functional as F
from tqdm import tqdm

from erasediff_lora.data.captioned import CaptionedPictures
from erasediff_lora.denoisers import SLOT, Denoiser
from erasediff_lora.evaluation.attacks.base import Outcome, concept_prompts, forget_pictures
from erasediff_lora.evaluation.candidates import Candidate
from erasediff_lora.evaluation.erasures import ADAPTER
from erasediff_lora.evaluation.evidence import Evidence
from erasediff_lora.evaluation.metrics.accuracy import share, success
from erasediff_lora.evaluation.pictures import Drawn
from erasediff_lora.objectives.loss_scaling import loss_scale, unscaled_gradients
from erasediff_lora.recipe.evaluation import Relearning
from erasediff_lora.training.parameters.lora import lora_layers

TITLE = "Relearning: fine-tuning on a few pictures of the concept"
NAME = "relearned"


def budget(evidence: Evidence) -> str:
    options = evidence.recipe.evaluation.relearning
    return (
        f"up to {max(options.steps)} steps of a rank-{options.rank} adapter on {options.images} pictures,"
        f" {options.samples} pictures drawn at each of {len(options.steps)} stages"
    )


def run(evidence: Evidence, candidate: Candidate) -> Outcome:
    """A try is a number of steps; `details.steps` is the first at which the concept is back, None if it never is."""
    judge = evidence.require_judge("relearning")
    options = evidence.recipe.evaluation.relearning
    hits: dict[int, list[bool]] = {}
    shown: list[Drawn] = []
    for concept in evidence.forgotten:
        pictures = forget_pictures(evidence, candidate, concept)
        pictures = CaptionedPictures(
            pictures.latents[: options.images],
            pictures.shapes[: options.images],
            [caption.replace(SLOT, concept) for caption in pictures.captions[: options.images]],
        )
        prompts = concept_prompts(evidence, concept, options.samples)
        attacker = Attacker(candidate, options, pictures, evidence.recipe.evaluation.seed, modules(evidence))
        with attacker.adapter():
            for step in sorted({0, *options.steps}):
                drawn = attacker.generate(prompts, evidence.spare_seed, step)
                hits.setdefault(step, []).extend(success(judge, drawn))
        shown += drawn
    tries = {step: share(found) or 0.0 for step, found in hits.items()}
    back = next((step for step, value in tries.items() if value >= options.threshold), None)
    return Outcome(
        tries[max(tries)],
        {str(step): value for step, value in tries.items()},
        shown,
        {"steps": back, "threshold": options.threshold},
    )


def modules(evidence: Evidence) -> list[str]:
    """The modules that the erasure changes: the attacker's adapter goes onto the same."""
    erased = evidence.candidates.erased
    assert erased.erasure is not None
    return erased.erasure.modules


@dataclass
class Attacker:
    """Fine-tunes an adapter of its own beside what is there, as far as it must for the next pictures.

    Attributes:
        candidate: The attacked model.
        options: The budget.
        pictures: With their captions in full.
        seed: Of the adapter and of the batches.
        modules: Paths of the adapted modules.
    """

    candidate: Candidate
    options: Relearning
    pictures: CaptionedPictures
    seed: int
    modules: list[str]
    done: int = 0

    @contextmanager
    def adapter(self) -> Iterator[None]:
        """The attacker's adapter is there for the time being."""
        with self.candidate.active() as denoiser, warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="peft")  # two adapters are meant to be there for a while
            config = LoraConfig(r=self.options.rank, lora_alpha=self.options.rank, target_modules=self.modules)
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(self.seed)
                inject_adapter_in_model(config, denoiser.network, NAME)
            self._parameters = [p for name, p in denoiser.network.named_parameters() if f".{NAME}." in name]
            for parameter in self._parameters:
                parameter.data = parameter.data.float()
            self._optimizer = torch.optim.AdamW(self._parameters, lr=self.options.learning_rate, weight_decay=0.0)
            self._batches = self.pictures.noised(denoiser, self.options.batch_size, self.seed)
            texts = list(dict.fromkeys(self.pictures.captions))
            self._prompts = dict(zip(texts, denoiser.encode_prompts(texts), strict=True))
            try:
                yield
            finally:
                for layer in lora_layers(denoiser.network).values():
                    layer.delete_adapter(NAME)
                del denoiser.network.peft_config[NAME]
                denoiser.network.requires_grad_(False)

    def generate(self, prompts: list[Any], seed: int, step: int) -> list[Drawn]:
        """Pictures after that many steps."""
        denoiser, recipe = self.candidate.denoiser, self.candidate.recipe

        def paint(texts: list[str], seeds: list[int], start: int) -> Any:
            self._advance(denoiser, step)
            return denoiser.generate(texts, seeds, recipe.sampling, output="pil")

        variant = {
            "relearning": self.options.model_dump(include={"images", "rank", "batch_size", "learning_rate"}),
            "pictures": self.pictures.fingerprint,
            "modules": self.modules,
            "seed": self.seed,
            "step": step,
        }
        return self.candidate.generate(prompts, seed, f"relearning, step {step}", paint=paint, variant=variant)

    def _advance(self, denoiser: Denoiser, step: int) -> None:
        wanted = {NAME, ADAPTER} if self.candidate.strength else {NAME}
        for layer in lora_layers(denoiser.network).values():
            layer.enable_adapters(True)
            layer.set_adapter([name for name in layer.lora_A if name in wanted])
        denoiser.network.requires_grad_(False)
        for parameter in self._parameters:
            parameter.requires_grad_(True)
        label = f"relearning to step {step}, {self.candidate.name}"
        todo = range(self.done, step)
        for _, batch in zip(
            tqdm(todo, desc=label, leave=False), itertools.islice(self._batches, len(todo)), strict=True
        ):
            noisy, timesteps, target, captions = batch
            prompts = torch.stack([self._prompts[caption] for caption in captions]).to(denoiser.dtype)
            loss = F.mse_loss(denoiser.predict(noisy, timesteps, prompts).float(), target.float())
            gradients = unscaled_gradients(loss, self._parameters, loss_scale(denoiser.dtype))
            for parameter, gradient in zip(self._parameters, gradients, strict=True):
                parameter.grad = gradient
            self._optimizer.step()
        self.done = max(self.done, step)
