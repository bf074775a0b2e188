"""Concept erasure for diffusion models as a distributable LoRA adapter."""

from __future__ import annotations

__version__ = "0.1.0"
