"""Attacks: ways to make an erased model draw the concept. A new one is a file here and a line in the registry."""

from __future__ import annotations

from erasediff_lora.evaluation.attacks.base import Attack, Outcome

__all__ = ["Attack", "Outcome"]
