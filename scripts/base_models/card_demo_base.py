"""Install a trained demo base into the package: measure it, write its card and contact sheet.

    python scripts/base_models/card_demo_base.py --work build/demo_base

Reads what scripts/base_models/train_demo_base.py left under --work. Fails if a bar is missed, unless --force.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path

import demo_drawings
import torch
from jinja2 import Template
from PIL import Image
from train_demo_base import DIFFUSION_STEPS, JUDGE_STEPS, PICTURES, VAE_STEPS

from erasediff_lora import denoisers
from erasediff_lora.data.prompts import balanced, expand
from erasediff_lora.demo import CONCEPTS, JUDGE_FILE, MODEL_DIR, STYLES, TEMPLATE
from erasediff_lora.evaluation.judges.classifier import Classifier
from erasediff_lora.evaluation.pictures import save_sheet
from erasediff_lora.recipe import Model, Recipe

DEMO_RECIPE = MODEL_DIR.parent / "recipe.yaml"
BARS = {"judge_concept": 0.95, "judge_style": 0.95, "concept": 0.90, "style": 0.85}

CARD = Template(
    """---
license: apache-2.0
tags: [text-to-image, diffusers, stable-diffusion, demo]
---
# The demo base model

A Stable Diffusion pipeline small enough for a CPU: 64 px pictures of {{ concepts | length }} concepts
({{ concepts | join(", ") }}) in {{ styles | length }} styles ({{ styles | join(", ") }}).
Prompts read like "a line drawing of a cat".

![contact sheet](contact_sheet.webp)

One row a prompt, seeds 0 to 4 without selection, {{ steps }} DPM-Solver++ steps, guidance {{ guidance }}.

## Parts

| part | parameters |
|---|---|
{% for name, count in parts.items() -%}
| {{ name }} | {{ "{:,}".format(count) }} |
{% endfor %}
All weights together: {{ "%.1f" | format(megabytes) }} MB, float16.

## Measured

The judge (`judge.safetensors`, a small convolutional classifier with a concept and a style head) on
{{ held_out }} placements of {{ held_out_drawings }} drawings that neither it nor the base was trained on:
concept {{ "%.1f" | format(100 * judge_concept) }}%, style {{ "%.1f" | format(100 * judge_style) }}%.

The base's own samples, {{ per_concept_samples }} a concept, as the judge sees them:

| concept | recognised |
|---|---|
{% for name, share in by_concept.items() -%}
| {{ name }} | {{ "%.1f" | format(100 * share) }}% |
{% endfor %}
| style | recognised |
|---|---|
{% for name, share in by_style.items() -%}
| {{ name }} | {{ "%.1f" | format(100 * share) }}% |
{% endfor %}

## Training

Trained on the CPU with `scripts/base_models/train_demo_base.py` from emoji drawings, on {{ pictures }} random
placements (flip, scale, small rotation, offset) of {{ training_drawings }} drawings: judge {{ judge_steps }} steps,
autoencoder {{ vae_steps }}, text encoder and UNet {{ diffusion_steps }}. {{ notes }}

## Sources and licences

The drawings are not included. They come from these packages:

| drawings | by | licence | used for |
|---|---|---|---|
| Noto Emoji (`@iconify-json/noto`) | Google | Apache-2.0 | *color* |
| Fluent Emoji High Contrast (`@iconify-json/fluent-emoji-high-contrast`) | Microsoft | MIT | *line*, *blueprint* |
| Fluent Emoji Flat (`@iconify-json/fluent-emoji-flat`) | Microsoft | MIT | the judge only |
| Noto Emoji v1 (`@iconify-json/noto-v1`) | Google | Apache-2.0 | the judge only |
| Twemoji (`@iconify-json/twemoji`) | Twitter and contributors | CC-BY-4.0 | the judge only |
| EmojiOne Monotone (`@iconify-json/emojione-monotone`) | EmojiOne | CC-BY-4.0 | the judge only |

The autoencoder's loss compares features of an EfficientNet-lite0 with ImageNet weights (Apache-2.0), which is
not included.
"""
)


def judge_accuracy(judge: Classifier, drawings: list[demo_drawings.Drawing], count: int) -> tuple[float, float]:
    """Shares of held-out pictures with the right concept and the right style."""
    pixels, chosen = demo_drawings.render_balanced(drawings, count, seed=99)
    named = judge.classify([Image.fromarray(array) for array in pixels])
    concept = sum(c == d.concept for (c, _), d in zip(named, chosen, strict=True)) / count
    style = sum(s == d.style for (_, s), d in zip(named, chosen, strict=True)) / count
    return concept, style


def main() -> int:
    """Measure, write the card, install."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("build/demo_base"))
    parser.add_argument("--samples", type=int, default=60, help="samples a concept")
    parser.add_argument("--notes", default="", help="a sentence on how the training departed from the script")
    parser.add_argument("--force", action="store_true", help="install even if a bar is missed")
    arguments = parser.parse_args()
    torch.set_num_threads(1)

    recipe = Recipe.load(DEMO_RECIPE)
    model = arguments.work / "model"
    denoiser = denoisers.load(Model(base=str(model)))
    judge = Classifier.load(arguments.work / "judge.safetensors")
    training, held_out, _ = demo_drawings.load(arguments.work / "drawings")
    judge_concept, judge_style = judge_accuracy(judge, held_out, 1800)

    prompts = expand([TEMPLATE], CONCEPTS, {"style": STYLES})
    asked = balanced(prompts, arguments.samples * len(CONCEPTS), seed=0)
    images: list[Image.Image] = []
    for start in range(0, len(asked), recipe.sampling.batch_size):
        batch = asked[start : start + recipe.sampling.batch_size]
        seeds = list(range(10_000 + start, 10_000 + start + len(batch)))
        images += denoiser.generate([prompt.text for prompt in batch], seeds, recipe.sampling, output="pil")
    named = judge.classify(images)
    hits: dict[str, list[bool]] = {name: [] for name in CONCEPTS + STYLES}
    for prompt, (concept, style) in zip(asked, named, strict=True):
        hits[str(prompt.concept)].append(concept == prompt.concept)
        hits[prompt.attributes["style"]].append(style == prompt.attributes["style"])
    shares = {name: sum(values) / len(values) for name, values in hits.items()}

    rows = []
    for prompt in prompts:
        rows.append((prompt.text, denoiser.generate([prompt.text] * 5, list(range(5)), recipe.sampling, output="pil")))
    pipeline = denoiser.pipeline
    parts = {
        "UNet2DConditionModel": pipeline.unet,
        "AutoencoderKL": pipeline.vae,
        "CLIPTextModel": pipeline.text_encoder,
        "judge": judge,
    }
    weights = [*model.rglob("*.safetensors"), arguments.work / "judge.safetensors"]
    measured = {
        "judge_concept": judge_concept,
        "judge_style": judge_style,
        "by_concept": {name: shares[name] for name in CONCEPTS},
        "by_style": {name: shares[name] for name in STYLES},
        "megabytes": sum(file.stat().st_size for file in weights) / 1e6,
    }
    print(json.dumps(measured, indent=2))
    missed = [
        name
        for name, value, bar in (
            ("judge_concept", judge_concept, BARS["judge_concept"]),
            ("judge_style", judge_style, BARS["judge_style"]),
            *((name, shares[name], BARS["concept"]) for name in CONCEPTS),
            *((name, shares[name], BARS["style"]) for name in STYLES),
        )
        if value < bar
    ]
    if missed and not arguments.force:
        save_sheet(rows, arguments.work / "contact_sheet.png")
        print(f"not installed, below the bar: {', '.join(missed)}", file=sys.stderr)
        return 1

    shutil.rmtree(MODEL_DIR, ignore_errors=True)
    shutil.copytree(model, MODEL_DIR)
    shutil.copy(arguments.work / "judge.safetensors", JUDGE_FILE)
    for file in MODEL_DIR.rglob("config.json"):  # where it was trained is nobody's business
        config = json.loads(file.read_text())
        config.pop("_name_or_path", None)
        if "dtype" in config:  # transformers follows it, diffusers' own parts load as float32
            config["dtype"] = "float32"
        file.write_text(json.dumps(config, indent=2) + "\n")
    for file in MODEL_DIR.rglob("*"):
        if file.is_file():
            file.chmod(0o644)
    save_sheet(rows, arguments.work / "contact_sheet.png")
    with Image.open(arguments.work / "contact_sheet.png") as sheet:  # the package is small
        sheet.save(MODEL_DIR / "contact_sheet.webp", quality=50, method=6)
    (MODEL_DIR / "measured.json").write_text(json.dumps(measured, indent=2) + "\n")
    card = CARD.render(
        concepts=CONCEPTS,
        styles=STYLES,
        steps=recipe.sampling.steps,
        guidance=recipe.sampling.guidance,
        parts={name: sum(p.numel() for p in part.parameters()) for name, part in parts.items()},
        held_out=1800,
        held_out_drawings=len(held_out),
        training_drawings=len(training),
        per_concept_samples=arguments.samples,
        pictures=f"{PICTURES:,}",
        judge_steps=JUDGE_STEPS,
        vae_steps=VAE_STEPS,
        diffusion_steps=DIFFUSION_STEPS,
        notes=arguments.notes,
        **measured,
    )
    (MODEL_DIR / "README.md").write_text(card + "\n", encoding="utf-8")
    print(f"installed into {MODEL_DIR}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
