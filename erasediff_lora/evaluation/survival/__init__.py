"""Survival: whether an erasure outlives what people do to models. A new hardship is a file here and a registry line."""

from erasediff_lora.evaluation.survival.base import Hardship

__all__ = ["Hardship"]
