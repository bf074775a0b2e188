"""Starting an adapter from the closed form: the names are forgotten before the first step.

What is left for the steps is what the closed form cannot do: it sends the words of a concept elsewhere, and another
word still finds it.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from erasediff_lora.adapter.closed_form import Translation, one_after_the_other, still_read
from erasediff_lora.data.prompts import expand, forget_prompts, substitute
from erasediff_lora.denoisers import Denoiser
from erasediff_lora.errors import Problem, UserError
from erasediff_lora.recipe import Recipe
from erasediff_lora.training.trainables import Trainable

log = logging.getLogger(__name__)
AT_ONCE = 32
"""Prompts that are moved together."""
TEXT = "text"
"""The preset of target modules that read the prompt; families whose network reads none do without it."""
ENOUGH = 0.9
"""Share of the change below which a rank counts as too small."""

Pair = tuple[str, list[str]]
"""A prompt that names a concept, and those that stand in for it: the mean of several is aimed at."""


def start_from_closed_form(recipe: Recipe, denoiser: Denoiser, trainable: Trainable) -> None:
    """Give the layers that read the prompt the change that forgets the concepts' names.

    Args:
        recipe: Says what is forgotten, what takes its place, and what is preserved.
        denoiser: The base, with its text encoders.
        trainable: The adapter, fresh.

    Raises:
        UserError: If the family has no such layers, or the adapter leaves them out.
    """
    layers = _reading_layers(denoiser, trainable)
    adapter = trainable.settings
    translations = _translations(recipe, denoiser, adapter.start_preserve, adapter.start_ridge)
    rounds, ridge = recipe.objective.closed_form_search
    if rounds:
        weights = _weights(denoiser, layers)
        for _ in range(rounds):
            seen = {name: still_read(weights[name], t, ridge) for name, t in translations.items()}
            further = _translations(recipe, denoiser, adapter.start_preserve, adapter.start_ridge, seen)
            translations = {name: one_after_the_other(t, further[name]) for name, t in translations.items()}
    kept = [trainable.set_change(path, translations[reads]) for path, reads in layers.items()]
    log.info("the closed form is in %d layers, each of which holds %.1f%% of it or more", len(kept), 100 * min(kept))
    if min(kept) < ENOUGH:
        log.warning("it is cut by adapter.rank: a larger one would hold the rest")


def reading_layers(recipe: Recipe, denoiser: Denoiser) -> str | list[str]:
    """`adapter.targets`; of the closed form alone, which changes no others, the layers that read the prompt.

    Raises:
        UserError: If the closed form is asked for, and no layer of the family reads a prompt.
    """
    if recipe.starts_from_closed_form and TEXT not in denoiser.target_presets:
        field, value = "adapter.start", "closed_form"
        if recipe.objective.closed_form:
            field, value = "objective.name", recipe.objective.name
        what = "needs layers that read the words of a prompt; this model is told a class."
        raise UserError(Problem(field, value, what, "Train with adapter.start: zero, and another objective."))
    return TEXT if recipe.objective.closed_form else recipe.adapter.targets


def _reading_layers(denoiser: Denoiser, trainable: Trainable) -> dict[str, str]:
    """Path of every adapted layer that reads the prompt -> its pattern in `Denoiser.prompt_tokens`."""
    patterns = denoiser.target_presets[TEXT]
    layers = {path: pattern for path in trainable.modules for pattern in patterns if re.fullmatch(pattern, path)}
    if not layers:
        what = "leaves out the layers that read the prompt, which the closed form changes."
        raise UserError(
            Problem("adapter.targets", trainable.settings.targets, what, f"Add {patterns}, or set adapter.start: zero.")
        )
    return layers


def _weights(denoiser: Denoiser, layers: Mapping[str, str]) -> dict[str, Tensor]:
    """Σ Wᵀ W over the layers of each pattern, (D, D) float64."""
    from peft.utils.integrations import dequantize_module_weight

    found: dict[str, Tensor] = {}
    for path, pattern in layers.items():
        layer = denoiser.network.get_submodule(path)
        weight = dequantize_module_weight(getattr(layer, "base_layer", layer)).detach().cpu().double()
        found[pattern] = found.get(pattern, 0) + weight.T @ weight
    return found


def _translations(
    recipe: Recipe, denoiser: Denoiser, preserve: float, ridge: float, seen: Mapping[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """T for each pattern of layers, (D, D).

    Args:
        recipe: Says what is forgotten, what takes its place, and what is preserved.
        denoiser: The base.
        preserve: What a preserved token weighs.
        ridge: What keeps the change small.
        seen: What is moved in the place of the concepts' tokens: those, multiplied by this; None: themselves.
    """
    found: dict[str, Translation] = {}

    def of(pattern: str, tokens: Tensor) -> Translation:
        return found.setdefault(pattern, Translation(tokens.shape[-1], preserve, ridge))

    for pairs in _chunks(_pairs(recipe)):
        for pattern, tokens, to in _moved(denoiser, pairs):
            of(pattern, tokens).move(tokens if seen is None else tokens.detach().cpu().double() @ seen[pattern].T, to)
    for texts in _chunks(_preserved(recipe)):
        for pattern, sequences in denoiser.prompt_tokens(denoiser.encode_prompts(texts)).items():
            for tokens in sequences:
                of(pattern, tokens).keep(tokens.flatten(0, 1))
    return {pattern: translation.solve() for pattern, translation in found.items()}


def _pairs(recipe: Recipe) -> list[Pair]:
    """Every prompt of every concept, with what the objective lets stand in for it: an anchor, any of them, nothing."""
    forget, anchors = recipe.forget, recipe.objective.anchors
    named = {concept.name: concept.anchor for concept in forget.concepts}
    pairs: dict[str, list[str]] = {}
    for prompt in forget_prompts(forget):
        concept = prompt.concept or forget.concepts[0].name
        chosen = [named[concept]] if anchors == "named" or named[concept] else recipe.retain.concepts
        others = [substitute(prompt.text, concept, anchor or "") for anchor in chosen]
        pairs[prompt.text] = [""] if anchors is None else others
    return list(pairs.items())


def _preserved(recipe: Recipe) -> list[str]:
    """The retain set's prompts, and the empty one."""
    retain = recipe.retain
    return list(dict.fromkeys(["", *(p.text for p in expand(retain.templates, retain.concepts, retain.placeholders))]))


def _moved(denoiser: Denoiser, pairs: Sequence[Pair]) -> Iterator[tuple[str, Tensor, Tensor]]:
    """For each pattern of layers the tokens (N, D) of the prompts, and where they are to go."""
    texts = list(dict.fromkeys(text for prompt, others in pairs for text in (prompt, *others)))
    row = {text: number for number, text in enumerate(texts)}
    read = [tokens.ids for tokens in denoiser.tokenize(texts)]
    for pattern, sequences in denoiser.prompt_tokens(denoiser.encode_prompts(texts)).items():
        for number, tokens in enumerate(sequences):
            ids = [of_text[0 if number == 0 else -1] for of_text in read]

            def beside(prompt: int, other: int, tokens: Tensor = tokens, ids: Any = ids) -> Tensor:
                return tokens[other, aligned(ids[prompt], ids[other], tokens.shape[1])]

            to = [torch.stack([beside(row[prompt], row[o]) for o in others]).mean(dim=0) for prompt, others in pairs]
            yield pattern, tokens[[row[prompt] for prompt, _ in pairs]].flatten(0, 1), torch.cat(to)


def aligned(tokens: Sequence[object], others: Sequence[object], length: int) -> list[int]:
    """Which place of another prompt each of `length` places of a prompt corresponds to.

    The prompts differ in a name, which may have more tokens in one of them: what stands before and behind it keeps
    together, and of the name itself the last token does, which is where an encoder that reads forwards knows it whole.

    Args:
        tokens: Of the prompt, without the end and what fills it up.
        others: Of the other one.
        length: Of both, filled up.
    """
    before = 0
    while before < min(len(tokens), len(others)) and tokens[before] == others[before]:
        before += 1
    behind = 0
    while behind < min(len(tokens), len(others)) - before and tokens[-1 - behind] == others[-1 - behind]:
        behind += 1
    end, other_end = len(tokens) - behind, len(others) - behind
    shift = other_end - end
    places = [place if place < before else max(before, place + shift) for place in range(end)]
    places += [place + shift for place in range(end, length)]
    return [min(place, length - 1) for place in places[:length]]


def _chunks(items: Sequence[Any]) -> Iterator[Any]:
    for start in range(0, len(items), AT_ONCE):
        yield items[start : start + AT_ONCE]
