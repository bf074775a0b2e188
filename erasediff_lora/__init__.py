"""Concept erasure for diffusion models as a distributable LoRA adapter."""

from __future__ import annotations

import os

# Read when these libraries are imported, so set before any of them is.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

__version__ = "0.1.0"
