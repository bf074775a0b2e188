"""Attacks: ways to make an erased model draw the concept. A new one is a file here, a line in ATTACKS and its name."""

from __future__ import annotations

from erasediff_lora.evaluation.attacks import adversarial_prompt, inversion, latent_start, paraphrases, relearning
from erasediff_lora.evaluation.attacks.base import Attack, Outcome

ATTACKS: dict[str, Attack] = {
    "paraphrases": paraphrases,
    "inversion": inversion,
    "adversarial_prompt": adversarial_prompt,
    "latent_start": latent_start,
    "relearning": relearning,
}

__all__ = ["ATTACKS", "Attack", "Outcome"]
