"""Drawing what a recipe's prompts give, and showing it."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from erasediff_lora.data import prompts as templates
from erasediff_lora.data.imaging import contact_sheet
from erasediff_lora.data.prompts import Prompt, balanced, expand
from erasediff_lora.denoisers import Denoiser
from erasediff_lora.denoisers.side_by_side import in_order
from erasediff_lora.evaluation.picture_store import OneByOne, PictureStore, read_kept
from erasediff_lora.machine.progress import tqdm, whole
from erasediff_lora.recipe import Recipe, Sampling
from erasediff_lora.storage.files import atomic

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Drawn:
    """A picture with the prompt and the seed that made it.

    Attributes:
        prompt: Of the picture.
        seed: Of the picture.
        picture: It, or the file that the store has of it.
    """

    prompt: Prompt
    seed: int
    picture: Image.Image | Path

    @property
    def image(self) -> Image.Image:
        """The picture.

        Raises:
            UserError: If it has been removed from the store.
        """
        return read_kept(self.picture) if isinstance(self.picture, Path) else self.picture


def images_of(drawn: Sequence[Drawn]) -> OneByOne:
    """The pictures, none of which is read before it is asked for."""
    return OneByOne(len(drawn), lambda row: drawn[row].image)


def forget_prompts(recipe: Recipe) -> list[Prompt]:
    """The prompts that name a forgotten concept, as many of each."""
    return templates.forget_prompts(recipe.forget)


def retain_prompts(recipe: Recipe) -> list[Prompt]:
    """The distinct prompts that must go on working."""
    return expand(recipe.retain.templates, recipe.retain.concepts, recipe.retain.placeholders)


@dataclass(frozen=True)
class Request:
    """Pictures that are drawn at once.

    Attributes:
        texts: Their prompts.
        seeds: Of each.
        rows: Their places among all that are asked for.
        sampling: How to draw.
        size: Width and height; None: the sampling's.
    """

    texts: list[str]
    seeds: list[int]
    rows: list[int]
    sampling: Sampling
    size: tuple[int, int] | None = None


Paint = Callable[[Request], list[Image.Image]]
"""Draws one picture a prompt."""


def painter(denoiser: Denoiser, negative: str | None = None) -> Paint:
    """Draws the texts as they are, away from a negative prompt if there is one."""
    more = {} if negative is None else {"negative": negative}
    return lambda asked: denoiser.generate(
        asked.texts, asked.seeds, asked.sampling, output="pil", size=asked.size, **more
    )


def requests(recipe: Recipe, prompts: Sequence[Prompt], seed: int) -> list[Request]:
    """The prompts in batches of one guidance and one size each; seeds count on from `seed` where none are given."""
    alike: dict[tuple[float | None, tuple[int, int] | None], list[int]] = {}
    for row, prompt in enumerate(prompts):
        alike.setdefault((prompt.guidance, prompt.size), []).append(row)
    found = []
    for (guidance, size), rows in alike.items():
        given = {} if guidance is None else {"guidance": guidance}
        sampling = recipe.sampling.model_copy(update=given)
        for start in range(0, len(rows), recipe.sampling.batch_size):
            batch = rows[start : start + recipe.sampling.batch_size]
            chosen = [prompts[row] for row in batch]
            seeds = [seed + row if one.seed is None else one.seed for row, one in zip(batch, chosen, strict=True)]
            found.append(Request([one.text for one in chosen], seeds, batch, sampling, size))
    return found


def generate(
    paint: Paint,
    recipe: Recipe,
    prompts: Sequence[Prompt],
    seed: int,
    label: str,
    store: PictureStore | None = None,
    threads: int = 1,
) -> list[Drawn]:
    """Draw one picture a prompt, or take it from the store.

    Args:
        paint: Draws.
        recipe: For the sampling.
        prompts: What to draw, each from its own seed, guidance and size where it has them.
        seed: Of the first picture; the others count on.
        label: For the progress bar.
        store: Of pictures drawn before.
        threads: How many batches go at a time, if `paint` can be called by several threads at once.
    """

    def draw(asked: Request) -> tuple[list[Image.Image], bool]:
        make = partial(paint, asked)
        if store is None:
            return make(), False
        return _store_of(store, asked, recipe).get(asked.texts, asked.seeds, make)

    drawn: dict[int, Drawn] = {}
    stored = 0
    asked_for = requests(recipe, prompts, seed)
    done = in_order(draw, asked_for, threads)
    for asked in tqdm(asked_for, desc=label, unit="batch", leave=False):
        images, was_stored = next(done)
        stored += len(images) * was_stored
        whole.add(len(images) * asked.sampling.steps * (1 + (asked.sampling.guidance > 1)), is_done=not was_stored)
        kept: Sequence[Image.Image | Path] = images
        if store is not None:
            kept = _store_of(store, asked, recipe).keep(asked.texts, asked.seeds, images)
        for row, own_seed, picture in zip(asked.rows, asked.seeds, kept, strict=True):
            drawn[row] = Drawn(prompts[row], own_seed, picture)
    if store is not None and stored:
        log.info("%s: %d of %d pictures from the cache %s", label, stored, len(prompts), store.folder)
    return [drawn[row] for row in range(len(prompts))]


def _store_of(store: PictureStore, asked: Request, recipe: Recipe) -> PictureStore:
    """The store of pictures that are drawn like these."""
    own: dict[str, Any] = {"size": list(asked.size)} if asked.size else {}
    if asked.sampling != recipe.sampling:
        own["sampling"] = asked.sampling.model_dump(mode="json")
    return replace(store, depends=store.depends | own) if own else store


def generate_prompts(denoiser: Denoiser, recipe: Recipe, count: int = 24) -> list[Drawn]:
    """A few pictures of some forget and some retain prompts, for a look while training."""
    chosen = [
        *balanced(forget_prompts(recipe), count // 3, 0),
        *balanced(retain_prompts(recipe), count - count // 3, 0),
    ]
    return generate(painter(denoiser), recipe, chosen, recipe.evaluation.seed, "samples")


def save_pairs(
    folder: Path, kind: str, before: Sequence[Drawn], after: Sequence[Drawn], count: int
) -> list[dict[str, Any]]:
    """Write a few pictures, each of another concept where there are enough, without and with the adapter.

    Returns:
        One entry a pair: kind, prompt, seed, and the two file names under `folder`'s parent.
    """
    rounds = itertools.zip_longest(*by_concept(before).values())
    chosen = [index for indices in rounds for index in indices if index is not None][:count]
    pairs = []
    for number, index in enumerate(chosen, 1):
        entry: dict[str, Any] = {"kind": kind, "prompt": before[index].prompt.text, "seed": before[index].seed}
        for name, drawn in (("base", before), ("erased", after)):
            file = folder / f"{kind}-{number}-{name}.png"
            with atomic(file) as temporary:
                drawn[index].image.save(temporary, format="PNG")
            entry[name] = f"{folder.name}/{file.name}"
        pairs.append(entry)
    return pairs


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


def save_grid(
    path: Path,
    forget_before: Sequence[Drawn],
    forget_after: Sequence[Drawn],
    retain_before: Sequence[Drawn],
    retain_after: Sequence[Drawn],
    *,
    columns: int = 10,
    prompts: int = 9,
) -> None:
    """Same seeds, without and with the adapter, one pair of rows a concept."""
    rows: list[tuple[str, Sequence[Image.Image]]] = []
    for title, before, after in (
        ("FORGET", forget_before, forget_after),
        ("RETAIN", retain_before, retain_after),
    ):
        rows.append((title, []))
        for name, chosen in list(by_concept(before).items())[:prompts]:
            for label, drawn in (("base", before), ("erased", after)):
                rows.append((f"{name}, {label}", [drawn[i].image for i in chosen[:columns]]))
    save_sheet(rows, path)


def by_concept(drawn: Sequence[Drawn]) -> dict[str, list[int]]:
    """Indices by concept, or by prompt where it names none."""
    found: dict[str, list[int]] = {}
    for index, item in enumerate(drawn):
        found.setdefault(item.prompt.concept or item.prompt.text, []).append(index)
    return found
