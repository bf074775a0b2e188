"""Drawing what a recipe's prompts give, and showing it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from erasediff_lora.data.prompts import Prompt, balanced, expand
from erasediff_lora.denoisers import Denoiser
from erasediff_lora.files import atomic
from erasediff_lora.imaging import contact_sheet
from erasediff_lora.recipe import Recipe


@dataclass(frozen=True)
class Drawn:
    """A picture with the prompt and the seed that made it."""

    prompt: Prompt
    seed: int
    image: Image.Image


def forget_prompts(recipe: Recipe) -> list[Prompt]:
    """The distinct prompts that name a forgotten concept."""
    data = recipe.forget
    return expand(data.templates, [concept.name for concept in data.concepts], data.placeholders)


def retain_prompts(recipe: Recipe) -> list[Prompt]:
    """The distinct prompts that must go on working."""
    return expand(recipe.retain.templates, recipe.retain.concepts, recipe.retain.placeholders)


def draw(denoiser: Denoiser, recipe: Recipe, prompts: Sequence[Prompt], seed: int, label: str) -> list[Drawn]:
    """Draw one picture a prompt, from the seeds `seed`, `seed` + 1 and so on."""
    size = recipe.sampling.batch_size
    drawn = []
    for start in tqdm(range(0, len(prompts), size), desc=label, unit="batch", leave=False):
        batch = prompts[start : start + size]
        seeds = list(range(seed + start, seed + start + len(batch)))
        images = denoiser.draw([prompt.text for prompt in batch], seeds, recipe.sampling, output="pil")
        drawn += [Drawn(*row) for row in zip(batch, seeds, images, strict=True)]
    return drawn


def draw_prompts(denoiser: Denoiser, recipe: Recipe, count: int = 24) -> list[Drawn]:
    """A few pictures of some forget and some retain prompts, for a look while training."""
    chosen = [
        *balanced(forget_prompts(recipe), count // 3, 0),
        *balanced(retain_prompts(recipe), count - count // 3, 0),
    ]
    return draw(denoiser, recipe, chosen, recipe.evaluation.seed, "samples")


def prompt_sheet(drawn: Sequence[Drawn], path: Path, columns: int = 8) -> None:
    """A sheet with a row a prompt."""
    rows: dict[str, list[Image.Image]] = {}
    for item in drawn:
        rows.setdefault(item.prompt.text, []).append(item.image)
    save_sheet([(text, images[:columns]) for text, images in rows.items()], path)


def save_sheet(rows: Sequence[tuple[str, Sequence[Image.Image]]], path: Path) -> None:
    """Write a contact sheet as PNG, atomically."""
    cell = min(128, max(64, *(image.width for _, images in rows for image in images))) if rows else 64
    longest = max((len(label) for label, _ in rows), default=0)
    with atomic(path) as temporary:
        contact_sheet(rows, cell=cell, label_width=20 + 7 * longest).save(temporary, format="PNG")
