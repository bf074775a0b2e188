"""The embedded text-to-image model: its concepts, styles, prompts and files."""

from __future__ import annotations

from pathlib import Path

MODEL_DIR = Path(__file__).parent / "model"
JUDGE_FILE = MODEL_DIR / "judge.safetensors"

CONCEPTS = ["cat", "heart", "flower", "car", "fish", "house", "book", "cloud", "face", "clock"]
STYLES = ["color", "line", "blueprint"]
SYNONYMS = {
    "cat": ["kitten", "kitty"],
    "heart": ["love heart", "valentine"],
    "flower": ["blossom", "bloom"],
    "car": ["automobile", "vehicle"],
    "fish": ["sea animal", "swimmer"],
    "house": ["building", "home"],
    "book": ["notebook", "volume"],
    "cloud": ["cloudy sky", "weather"],
    "face": ["smiley", "emoticon"],
    "clock": ["watch", "timepiece"],
}
"""Names that the model learned beside the concepts' own."""

TEMPLATE = "a {style} drawing of a {concept}"
CONCEPT_TEMPLATES = [TEMPLATE, "a drawing of a {concept}", "a {concept}"]
STYLE_TEMPLATES = ["a {concept} drawing of a {object}", "a {object} in {concept} style"]
