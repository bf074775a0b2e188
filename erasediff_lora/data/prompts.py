"""Prompts from templates."""

from __future__ import annotations

import itertools
import random
import re
import string
from collections.abc import Sequence
from dataclasses import dataclass, field

from erasediff_lora.recipe.tables import Placeholders


@dataclass(frozen=True)
class Prompt:
    """A filled template.

    Attributes:
        text: What the model reads.
        concept: What filled {concept}, if the template has it.
        attributes: What filled the other placeholders.
    """

    text: str
    concept: str | None = None
    attributes: dict[str, str] = field(default_factory=dict)


def expand(templates: Sequence[str], concepts: Sequence[str], placeholders: Placeholders) -> list[Prompt]:
    """Every filling of every template: concepts vary fastest, so that any prefix is balanced over them."""
    prompts = []
    for template in templates:
        used = [name for _, name, _, _ in string.Formatter().parse(template) if name]
        others = [name for name in dict.fromkeys(used) if name != "concept"]
        for values in itertools.product(*(placeholders[name] for name in others)):
            attributes = dict(zip(others, values, strict=True))
            if "concept" in used:
                prompts += [
                    Prompt(template.format(concept=concept, **attributes), concept, attributes) for concept in concepts
                ]
            else:
                prompts.append(Prompt(template.format(**attributes), None, attributes))
    return prompts


def balanced(prompts: Sequence[Prompt], count: int, seed: int) -> list[Prompt]:
    """`count` prompts in equal shares: whole passes in order, the last one a random choice."""
    passes, rest = divmod(count, len(prompts))
    return list(prompts) * passes + random.Random(seed).sample(list(prompts), rest)


def substitute(text: str, concept: str, anchor: str) -> str:
    """The text with the concept's name replaced by the anchor's, whatever its case; the anchor if it isn't named."""
    replaced, hits = re.subn(re.escape(concept), lambda _: anchor, text, flags=re.IGNORECASE)
    return replaced if hits else anchor
