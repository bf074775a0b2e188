"""Measure a trained base model, write its card and contact sheet, and install it.

    python scripts/base_models/card_base.py --world demo --work build/demo_base

Reads what scripts/base_models/train_base.py left under --work. Fails if a bar is missed, unless --force.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline
from jinja2 import Template
from PIL import Image
from train_base import STAGES
from worlds import WORLDS, Pictures, World

from erasediff_lora.demo import MODEL_DIR, TEMPLATE
from erasediff_lora.evaluation.judges.classifier import Classifier
from erasediff_lora.evaluation.pictures import save_sheet

CARD = Template(
    """---
license: apache-2.0
tags: [text-to-image, diffusers, stable-diffusion, {{ world.name }}]
---
# The {{ world.name }} base model

A Stable Diffusion pipeline small enough for a CPU: 64 px pictures of {{ world.concepts | length }} concepts in
{{ world.styles | length }} styles ({{ world.styles | join(", ") }}). Prompts read like "a line drawing of a cat".
{% if world.groups %}
| near neighbours | concepts |
|---|---|
{% for name, members in world.groups.items() -%}
| {{ name }} | {{ members | join(", ") }} |
{% endfor %}
{%- else %}
Concepts: {{ world.concepts | join(", ") }}.
{% endif %}

![contact sheet](contact_sheet.webp)

One row a concept, one column a style, the first sample of each without selection;
{{ world.sampling.steps }} DPM-Solver++ steps, guidance {{ world.sampling.guidance }}.

## Parts

| part | parameters |
|---|---|
{% for name, count in parts.items() -%}
| {{ name }} | {{ "{:,}".format(count) }} |
{% endfor %}
All weights together: {{ "%.1f" | format(megabytes) }} MB, float16.

## Measured

The judge (`judge.safetensors`, a small convolutional classifier with a concept and a style head) on
{{ held_out }} placements of drawings that neither it nor the base was trained on: concept
{{ percent(judge_concept) }}, style {{ percent(judge_style) }}.{{ " " + world.judge_notes if world.judge_notes }}
The base's own samples, {{ samples }} a concept, are recognised as what was asked for in {{ percent(concept) }}
(style {{ percent(style) }}), the worst concept in {{ percent(worst) }}.
The autoencoder's mean absolute error on those drawings is {{ "%.3f" | format(autoencoder_error) }} of the range of a
color value.

| concept | judge, drawings held out | base's samples |
|---|---|---|
{% for name in world.concepts -%}
| {{ name }} | {{ percent(judge_by_concept[name]) }} | {{ percent(by_concept[name]) }} |
{% endfor %}
| style | judge, drawings held out | base's samples |
|---|---|---|
{% for name in world.styles -%}
| {{ name }} | {{ percent(judge_by_style[name]) }} | {{ percent(by_style[name]) }} |
{% endfor %}
## Training

Trained with `scripts/base_models/train_base.py --world {{ world.name }}` (seed 1) from emoji drawings, on
{{ "{:,}".format(pictures) }} random placements (flip, scale, small rotation, offset).

| network | steps | batch | minutes | on |
|---|---|---|---|---|
{% for name, note in training.items() -%}
{% set minutes = "%.1f" | format(note.seconds / 60) -%}
| {{ name }} | {{ "{:,}".format(note.steps) }} | {{ note.batch_size }} | {{ minutes }} | {{ note.device }} |
{% endfor %}
{{ notes }}

## Sources and licences

The drawings are not included. They come from these packages:

| drawings | by | licence | used for |
|---|---|---|---|
{% for row in world.sources -%}
| {{ row | join(" | ") }} |
{% endfor %}
The autoencoder's loss compares features of an EfficientNet-lite0 with ImageNet weights (Apache-2.0), which is
not included.
"""
)


def shares(names: list[str], asked: Iterable[str], seen: Iterable[str]) -> dict[str, float]:
    """For each name, the share of what was asked for that was seen as it."""
    hits: dict[str, list[bool]] = {name: [] for name in names}
    for wanted, found in zip(asked, seen, strict=True):
        hits[wanted].append(wanted == found)
    return {name: sum(values) / len(values) for name, values in hits.items()}


def mean(by_name: dict[str, float]) -> float:
    """Each name counts the same."""
    return sum(by_name.values()) / len(by_name)


def to_images(pixels: torch.Tensor) -> list[Image.Image]:
    """From (n, 3, h, w) uint8."""
    return [Image.fromarray(array) for array in pixels.permute(0, 2, 3, 1).numpy()]


@torch.no_grad()
def autoencoder_error(vae: AutoencoderKL, pictures: Pictures) -> float:
    """Mean absolute difference between pictures and what comes back, as a share of the range of a color value."""
    errors = []
    for rows in torch.arange(min(512, len(pictures.pixels))).split(32):
        pixels = pictures.batch(rows)
        back = vae.decode(vae.encode(pixels).latent_dist.mode()).sample
        errors.append((back - pixels).abs().mean(dim=(1, 2, 3)) / 2)
    return float(torch.cat(errors).mean())


def draw_samples(
    pipeline: StableDiffusionPipeline, world: World, each: int
) -> tuple[list[tuple[str, str]], list[Image.Image]]:
    """What was asked for (concept, style) and the pictures: `each` a concept, the styles in turn."""
    asked = [(concept, world.styles[turn % len(world.styles)]) for turn in range(each) for concept in world.concepts]
    images: list[Image.Image] = []
    size = int(world.sampling["batch_size"])
    for start in range(0, len(asked), size):
        batch = asked[start : start + size]
        images += pipeline(
            [TEMPLATE.format(concept=concept, style=style) for concept, style in batch],
            num_inference_steps=int(world.sampling["steps"]),
            guidance_scale=world.sampling["guidance"],
            generator=[torch.Generator().manual_seed(10_000 + start + offset) for offset in range(len(batch))],
        ).images
    return asked, images


def measure(
    world: World, work: Path, pipeline: StableDiffusionPipeline, judge: Classifier, arguments: argparse.Namespace
) -> tuple[dict[str, Any], list[tuple[str, list[Image.Image]]]]:
    """The numbers of the card and the rows of the contact sheet."""
    pictures = world.render(work, "held-out", arguments.held_out, torch.device("cpu"))
    named = judge.classify(to_images(pictures.pixels))
    wanted = [
        [names[index] for index in labels.tolist()]
        for names, labels in ((world.concepts, pictures.concepts), (world.styles, pictures.styles))
    ]
    judge_by_concept = shares(world.concepts, wanted[0], [concept for concept, _ in named])
    judge_by_style = shares(world.styles, wanted[1], [style for _, style in named])

    asked, images = draw_samples(pipeline, world, arguments.samples)
    seen = judge.classify(images)
    by_concept = shares(world.concepts, [concept for concept, _ in asked], [concept for concept, _ in seen])
    by_style = shares(world.styles, [style for _, style in asked], [style for _, style in seen])
    first = dict(reversed(list(zip(asked, images, strict=True))))
    rows = [(concept, [first[concept, style] for style in world.styles]) for concept in world.concepts]
    measured = {
        "held_out": arguments.held_out,
        "samples": arguments.samples,
        "judge_concept": mean(judge_by_concept),
        "judge_style": mean(judge_by_style),
        "concept": mean(by_concept),
        "style": mean(by_style),
        "worst": min(by_concept.values()),
        "autoencoder_error": autoencoder_error(pipeline.vae, pictures),
        "judge_by_concept": judge_by_concept,
        "judge_by_style": judge_by_style,
        "by_concept": by_concept,
        "by_style": by_style,
        "groups": world.groups,
        "training": {stage: json.loads((work / f"{stage}.json").read_text()) for stage in STAGES},
    }
    return measured, rows


def missed_bars(world: World, measured: dict[str, Any]) -> list[str]:
    """The bars that were missed."""
    reached = {
        "judge_concept": measured["judge_concept"],
        "judge_style": measured["judge_style"],
        "concept": min(measured["by_concept"].values()),
        "style": min(measured["by_style"].values()),
    }
    return [f"{name} {value:.3f} < {world.bars[name]}" for name, value in reached.items() if value < world.bars[name]]


def install(work: Path, into: Path) -> None:
    """Copy pipeline and judge, with configurations that say nothing of where they were made."""
    shutil.rmtree(into, ignore_errors=True)
    shutil.copytree(work / "model", into)
    shutil.copy(work / "judge.safetensors", into)
    for file in into.rglob("config.json"):
        config = json.loads(file.read_text())
        config.pop("_name_or_path", None)
        if "dtype" in config:  # transformers follows it, diffusers' own parts load as float32
            config["dtype"] = "float32"
        file.write_text(json.dumps(config, indent=2) + "\n")


def main() -> int:
    """Measure, write the card, install."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--world", choices=WORLDS, default="demo")
    parser.add_argument("--work", type=Path, help="default: build/<world>_base")
    parser.add_argument("--into", type=Path, help="default: the package for demo, build/<world>_model for others")
    parser.add_argument("--samples", type=int, default=60, help="samples a concept; at least the number of styles")
    parser.add_argument("--held-out", type=int, default=1800, help="pictures of held-out drawings for the judge")
    parser.add_argument("--pictures", type=int, help="training pictures that were rendered, if not the default")
    parser.add_argument("--notes", default="", help="a sentence on how the training departed from the script")
    parser.add_argument("--force", action="store_true", help="install even if a bar is missed")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    world = WORLDS[arguments.world]
    work = arguments.work or Path(f"build/{world.name}_base")
    into = arguments.into or (MODEL_DIR if world.name == "demo" else Path(f"build/{world.name}_model"))

    pipeline = StableDiffusionPipeline.from_pretrained(work / "model").to(torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    judge = Classifier.load(work / "judge.safetensors")
    measured, rows = measure(world, work, pipeline, judge, arguments)
    weights = [*(work / "model").rglob("*.safetensors"), work / "judge.safetensors"]
    measured["megabytes"] = sum(file.stat().st_size for file in weights) / 1e6
    print(json.dumps(measured, indent=2))
    save_sheet(rows, work / "contact_sheet.png")
    missed = missed_bars(world, measured)
    if missed:
        print(f"below the bar: {', '.join(missed)}", file=sys.stderr)
        if not arguments.force:
            return 1

    install(work, into)
    with Image.open(work / "contact_sheet.png") as sheet:  # the package is small
        sheet.save(into / "contact_sheet.webp", quality=50, method=6)
    (into / "measured.json").write_text(json.dumps(measured, indent=2) + "\n")
    parts = {
        "UNet2DConditionModel": pipeline.unet,
        "AutoencoderKL": pipeline.vae,
        "CLIPTextModel": pipeline.text_encoder,
        "judge": judge,
    }
    card = CARD.render(
        world=world,
        parts={name: sum(p.numel() for p in part.parameters()) for name, part in parts.items()},
        pictures=arguments.pictures or world.pictures,
        notes=arguments.notes,
        percent=lambda share: f"{100 * share:.1f}%",
        **measured,
    )
    (into / "README.md").write_text(card + "\n", encoding="utf-8")
    for file in into.rglob("*"):
        if file.is_file():
            file.chmod(0o644)
    print(f"installed into {into}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
