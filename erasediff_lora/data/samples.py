"""Which pictures make up a set: captions, anchors, and the pictures themselves where they are read."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from PIL import Image

from erasediff_lora.data import images as disk
from erasediff_lora.data.prompts import balanced, expand, substitute
from erasediff_lora.recipe import Recipe

Kind = Literal["forget", "retain"]


@dataclass(frozen=True)
class Sample:
    """One picture of a set, before it is encoded."""

    caption: str
    anchors: list[str]
    image: Image.Image | None = None


def list_samples(recipe: Recipe, kind: Kind) -> list[Sample]:
    """The pictures of the set, in their order.

    Raises:
        UserError: For pictures that cannot be read.
    """
    if kind == "forget":
        return _forget_samples(recipe)
    data = recipe.retain
    if data.images:
        return [Sample(p.caption, [], p.image) for p in disk.read(kind, data.images, [], data.templates, data.concepts)]
    prompts = balanced(expand(data.templates, data.concepts, data.placeholders), data.count, recipe.sampling.seed)
    return [Sample(prompt.text, []) for prompt in prompts]


def _forget_samples(recipe: Recipe) -> list[Sample]:
    data = recipe.forget
    names = [concept.name for concept in data.concepts]
    fixed = {concept.name: concept.anchor for concept in data.concepts}

    def anchors(caption: str, concept: str) -> list[str]:
        match recipe.objective.anchors:
            case "named":
                chosen = [fixed[concept] or ""]
            case "any":
                chosen = [fixed[concept]] if fixed[concept] else list(recipe.retain.concepts)  # type: ignore[list-item]
            case _:
                return []
        return [substitute(caption, concept, anchor) for anchor in chosen]

    if data.images:
        pictures = disk.read("forget", data.images, names, data.templates, names)
        samples = [Sample(p.caption, anchors(p.caption, p.concept or names[0]), p.image) for p in pictures]
    else:
        prompts = balanced(expand(data.templates, names, data.placeholders), data.count, recipe.sampling.seed)
        samples = [Sample(prompt.text, anchors(prompt.text, prompt.concept or names[0])) for prompt in prompts]
    if recipe.objective.counterparts:  # the one anchor that the counterpart shows
        samples = [replace(s, anchors=[s.anchors[row % len(s.anchors)]]) for row, s in enumerate(samples)]
    return samples
