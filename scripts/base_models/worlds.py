"""The small worlds that base models are trained in: what can be asked for, how it is drawn, how large the networks are.

`demo` is the model embedded in the package; `atlas` has many concepts in groups of near neighbours, and more styles.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import atlas_drawings
import demo_drawings
import torch
from torch import Tensor

from erasediff_lora import demo


@dataclass(frozen=True)
class Pictures:
    """Pictures with their labels, all on one device.

    Args:
        pixels: (n, 3, 64, 64) uint8.
        concepts: (n) index into the world's concepts.
        styles: (n) index into the world's styles.
    """

    pixels: Tensor
    concepts: Tensor
    styles: Tensor

    def batch(self, rows: Tensor) -> Tensor:
        """(len(rows), 3, 64, 64) in [-1, 1]."""
        return self.pixels[rows].float() / 127.5 - 1


@dataclass(frozen=True)
class Stage:
    """How one network is trained.

    Args:
        batch_size: Pictures a step.
        learning_rate: Its peak.
        steps: How many.
        seconds: After which it ends even so; the learning rate falls to zero by then.
    """

    batch_size: int
    learning_rate: float
    steps: int
    seconds: float = math.inf


@dataclass(frozen=True)
class World:
    """A vocabulary, the pictures that show it and the networks that learn it.

    Args:
        name: What `--world` calls it.
        concepts: Names of the concepts.
        styles: Names of the styles.
        synonyms: Other names of the concepts.
        render: (work folder, "training", "judge" or "held-out", count, device) -> that many pictures.
        pictures: How many training pictures to render.
        judge, vae, diffusion: How each is trained.
        judge_widths, judge_depth: Of `Classifier`.
        vae_widths, latent_channels: Of the autoencoder.
        unet_widths: Of the UNet, one a level.
        text_width: Of the text encoder.
        sampling: Steps, guidance and batch size of the samples that the base is measured by.
        templates: Wordings of the captions.
        groups: Concepts that are easily taken for each other, for the card.
        bars: What the judge has to reach on held-out drawings, and the base with its worst concept and style.
        judge_notes: What the card says of the judge beside its numbers.
        sources: Drawings, artist, licence and use, for the card.
    """

    name: str
    concepts: list[str]
    styles: list[str]
    synonyms: dict[str, list[str]]
    render: Callable[[Path, str, int, torch.device], Pictures]
    pictures: int
    judge: Stage
    vae: Stage
    diffusion: Stage
    judge_widths: tuple[int, ...] = (32, 64, 128, 192)
    judge_depth: int = 1
    vae_widths: tuple[int, ...] = (16, 32, 64, 96)
    latent_channels: int = 8
    unet_widths: tuple[int, ...] = (96, 160)
    text_width: int = 128
    sampling: dict[str, float] = field(default_factory=lambda: {"steps": 12, "guidance": 4.0, "batch_size": 30})
    templates: tuple[str, ...] = (
        *[demo.TEMPLATE] * 4,
        "a drawing of a {concept}",
        "a {concept}",
        "a {style} picture of a {concept}",
        "a {concept} in {style} style",
    )
    groups: dict[str, list[str]] = field(default_factory=dict)
    bars: dict[str, float] = field(
        default_factory=lambda: {"judge_concept": 0.95, "judge_style": 0.95, "concept": 0.90, "style": 0.85}
    )
    judge_notes: str = ""
    sources: tuple[tuple[str, str, str, str], ...] = ()


def _render_demo(work: Path, role: str, count: int, device: torch.device) -> Pictures:
    file = work / f"pictures_{role}.pt"
    if not file.exists():
        demo_drawings.fetch(work / "drawings")
        training, held_out, extra = demo_drawings.load(work / "drawings")
        pixels, chosen = {
            "training": lambda: demo_drawings.render_balanced(training, count, seed=1),
            "judge": lambda: demo_drawings.render_balanced(training + extra, count, seed=2, smallest=0.7, tilt=20),
            "held-out": lambda: demo_drawings.render_balanced(held_out, count, seed=99),
        }[role]()
        torch.save(
            {
                "pixels": torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous(),
                "concepts": torch.tensor([demo.CONCEPTS.index(drawing.concept) for drawing in chosen]),
                "styles": torch.tensor([demo.STYLES.index(drawing.style) for drawing in chosen]),
            },
            file,
        )
    return Pictures(**torch.load(file, map_location=device, weights_only=True))


def _render_atlas(work: Path, role: str, count: int, device: torch.device) -> Pictures:
    drawings = atlas_drawings.Drawings.load(work)
    render = atlas_drawings.render_balanced
    if role == "judge":
        drawings = drawings.of("training", "extra")
        return Pictures(*render(drawings, count, 2, device, smallest=0.65, tilt=20, stretch=0.25))
    return Pictures(*render(drawings.of(role), count, {"training": 1, "held-out": 99}[role], device))


NOTO = ("Noto Emoji (`@iconify-json/noto`)", "Google", "Apache-2.0")
NOTO_V1 = ("Noto Emoji v1 (`@iconify-json/noto-v1`)", "Google", "Apache-2.0")
FLAT = ("Fluent Emoji Flat (`@iconify-json/fluent-emoji-flat`)", "Microsoft", "MIT")
INK = ("Fluent Emoji High Contrast (`@iconify-json/fluent-emoji-high-contrast`)", "Microsoft", "MIT")
TWEMOJI = ("Twemoji (`@iconify-json/twemoji`)", "Twitter and contributors", "CC-BY-4.0")

WORLDS = {
    world.name: world
    for world in (
        World(
            name="demo",
            concepts=demo.CONCEPTS,
            styles=demo.STYLES,
            synonyms=demo.SYNONYMS,
            render=_render_demo,
            pictures=24_000,
            judge=Stage(64, 2e-3, 3000),
            vae=Stage(16, 2e-3, 2500),
            diffusion=Stage(32, 1e-3, 6500),
            sources=(
                (*NOTO, "*color*"),
                (*INK, "*line*, *blueprint*"),
                (*FLAT, "the judge only"),
                (*NOTO_V1, "the judge only"),
                (*TWEMOJI, "the judge only"),
                ("EmojiOne Monotone (`@iconify-json/emojione-monotone`)", "EmojiOne", "CC-BY-4.0", "the judge only"),
            ),
        ),
        World(
            name="atlas",
            concepts=atlas_drawings.CONCEPTS,
            styles=list(atlas_drawings.STYLES),
            synonyms=atlas_drawings.SYNONYMS,
            render=_render_atlas,
            pictures=300_000,
            judge=Stage(256, 2e-3, 4900),
            vae=Stage(64, 2e-3, 5600),
            diffusion=Stage(512, 1e-3, 9400),
            judge_widths=(48, 96, 192, 256),
            judge_depth=2,
            vae_widths=(24, 48, 96, 128),
            latent_channels=12,
            unet_widths=(128, 192),
            groups={name: list(members) for name, members in atlas_drawings.GROUPS.items()},
            bars={"judge_concept": 0.90, "judge_style": 0.95, "concept": 0.80, "style": 0.85},
            judge_notes=(
                "Most concepts have one drawing held out, by an artist whose hand the judge knows from other concepts"
                " only: where that artist saw the thing differently, the judge fails for the whole row. Of 84 candidate"
                " concepts, 16 were dropped because the judge failed on them in trials with other drawings held out."
            ),
            sources=(
                (*NOTO, "base and judge"),
                (*NOTO_V1, "base and judge"),
                (*FLAT, "base and judge"),
                ("Firefox OS Emoji (`@iconify-json/fxemoji`)", "Mozilla", "Apache-2.0", "base and judge"),
                (*TWEMOJI, "the judge only"),
                ("EmojiOne (`@iconify-json/emojione`)", "EmojiOne", "CC-BY-4.0", "the judge only"),
            ),
        ),
    )
}
