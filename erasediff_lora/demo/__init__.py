"""The embedded text-to-image model: its concepts, styles, prompts and files."""

from __future__ import annotations

from pathlib import Path

MODEL_DIR = Path(__file__).parent / "model"
JUDGE_FILE = MODEL_DIR / "judge.safetensors"

CONCEPTS = ["cat", "heart", "flower", "car", "fish", "house", "book", "cloud", "face", "clock"]
STYLES = ["color", "line", "blueprint"]
TEMPLATE = "a {style} drawing of a {concept}"
