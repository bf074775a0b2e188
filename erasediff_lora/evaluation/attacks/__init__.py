"""Attacks: ways to make an erased model draw the concept. A new one is a file here and a line in the registry."""

from __future__ import annotations

from erasediff_lora.evaluation.attacks.base import Attack, Outcome, Unknown
from erasediff_lora.registry import ATTACKS


def attack(name: str) -> Attack:
    """The attack of that name; one that shows whatever there is if it is not installed here."""
    found: Attack = ATTACKS[name](name) if name in ATTACKS else Unknown(name)
    return found


__all__ = ["Attack", "Outcome", "Unknown", "attack"]
