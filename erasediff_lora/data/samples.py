"""Which pictures make up a set: captions, anchors, and the pictures themselves where they are read."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

from erasediff_lora.data import images as disk
from erasediff_lora.data.images import Picture
from erasediff_lora.data.prompts import expand, fairly, forget_prompts, is_named, substitute
from erasediff_lora.data.rows import Kind
from erasediff_lora.data.set_report import Noted, SetReport
from erasediff_lora.recipe import Recipe, RetainSet

log = logging.getLogger(__name__)
MOST_ANCHORED = 4096
"""Prompts that anchors make, each a quarter of a mebibyte of embeddings of Stable Diffusion 1."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One picture of a set, before it is encoded.

    Attributes:
        caption: What the model reads.
        anchors: What may take the caption's place.
        concept: What the picture shows; in a retain set None where nothing says so.
        picture: Where it is read; None: the base draws it.
    """

    caption: str
    anchors: list[str]
    concept: str | None = None
    picture: Picture | None = None


def list_samples(recipe: Recipe, kind: Kind, report: SetReport) -> list[Sample]:
    """The pictures of the set, in their order.

    Args:
        recipe: The recipe.
        kind: 'forget' or 'retain'.
        report: Gets the account of them.

    Raises:
        UserError: For pictures that cannot be read.
    """
    samples = _forget_samples(recipe, report) if kind == "forget" else _retain_samples(recipe, report)
    report.pictures = len(samples)
    report.drawn = getattr(recipe, kind).images is None
    report.concepts.update(sample.concept for sample in samples if sample.concept is not None)
    return samples


def _forget_samples(recipe: Recipe, report: SetReport) -> list[Sample]:
    data = recipe.forget
    first = data.concepts[0].name
    if data.images:
        pictures = disk.read("forget", data, report, seed=recipe.sampling.seed, cache=recipe.cache.expanduser())
        samples = [Sample(picture.caption, [], picture.concept or first, picture) for picture in pictures]
    else:
        prompts = fairly(forget_prompts(data), data.count, recipe.sampling.seed)
        samples = [Sample(prompt.text, [], prompt.concept or first) for prompt in prompts]
    samples = _anchored(recipe, samples)
    for sample in samples:
        if sample.anchors and sample.caption.strip() and not is_named(sample.caption, sample.concept or ""):
            report.note(Noted.NOT_NAMED, sample.caption)
    if recipe.objective.counterparts:  # the one anchor that the counterpart shows
        samples = [replace(s, anchors=[s.anchors[row % len(s.anchors)]]) for row, s in enumerate(samples)]
    return samples


def _anchored(recipe: Recipe, samples: Sequence[Sample]) -> list[Sample]:
    """The samples with what may take their captions' place, as many of each."""
    fixed = {concept.name: concept.anchor for concept in recipe.forget.concepts}
    any_retained = _in_turns(recipe.retain.concepts, [sample.caption for sample in samples])

    def anchors(sample: Sample) -> list[str]:
        concept = sample.concept or ""
        match recipe.objective.anchors:
            case "named":
                chosen: Sequence[str] = [fixed[concept] or ""]
            case "any":
                chosen = [named] if (named := fixed[concept]) else any_retained[sample.caption]
            case _:
                chosen = []
        return [substitute(sample.caption, concept, anchor) for anchor in chosen]

    found = [anchors(sample) for sample in samples]
    width = max(map(len, found))  # a concept with an anchor beside one that takes any
    return [
        replace(sample, anchors=[own[n % len(own)] for n in range(width)])
        for sample, own in zip(samples, found, strict=True)
    ]


def _in_turns(concepts: Sequence[str], captions: Sequence[str]) -> dict[str, Sequence[str]]:
    """Of each caption the retained concepts that may stand in its place: all, or of very many some, by turns."""
    distinct = list(dict.fromkeys(captions))
    each = max(1, min(len(concepts), MOST_ANCHORED // len(distinct)))
    if each < len(concepts):
        log.info("each forgotten prompt has %d of the %d retained concepts as anchors, by turns", each, len(concepts))
    return {
        caption: [concepts[(turn * each + n) % len(concepts)] for n in range(each)] if concepts else []
        for turn, caption in enumerate(distinct)
    }


def _retain_samples(recipe: Recipe, report: SetReport) -> list[Sample]:
    data = recipe.retain
    forgotten = [concept.name for concept in recipe.forget.concepts]
    if data.images:
        seed, cache = recipe.sampling.seed, recipe.cache.expanduser()
        pictures = disk.read("retain", data, report, forgotten=forgotten, seed=seed, cache=cache)
        samples = [Sample(picture.caption, [], picture.concept, picture) for picture in pictures]
    else:
        prompts = fairly(expand(data.templates, data.concepts, data.placeholders), data.count, recipe.sampling.seed)
        samples = [Sample(prompt.text, [], prompt.concept) for prompt in prompts]
        _note_missing(data, samples, report)
    for sample in samples:
        if any(is_named(sample.caption, name) for name in forgotten):
            report.note(Noted.NAMES_FORGOTTEN, sample.caption)
    return samples


def _note_missing(data: RetainSet, samples: Sequence[Sample], report: SetReport) -> None:
    """What is to be retained and has no picture, since there are more concepts than pictures."""
    shown = {sample.concept for sample in samples}
    missing = [name for name in data.concepts if name not in shown] if shown - {None} else []
    for name in missing:
        report.note(Noted.NO_DRAWING, name)
    if missing:
        text = "retain.count: %d pictures for %d concepts, so %d have none; set it to %d or more"
        log.warning(text, data.count, len(data.concepts), len(missing), len(data.concepts))
