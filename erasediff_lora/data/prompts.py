"""Prompts from templates, and the names of concepts in texts."""

from __future__ import annotations

import itertools
import random
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache

from erasediff_lora.recipe.names import plural
from erasediff_lora.recipe.tables import Concept, ForgetSet, Placeholders, RetainSet
from erasediff_lora.recipe.templates import fill, names_in

_UNSPACED = re.compile(r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\uf900-\ufaff]")
"""Letters of scripts that write no space between words, or none after a name."""


@dataclass(frozen=True)
class Prompt:
    """A filled template.

    Attributes:
        text: What the model reads.
        concept: What filled {concept}, if the template has it.
        attributes: What filled the other placeholders.
        seed: It is drawn from; None: counted on.
        guidance: It is drawn with; None: the recipe's.
        size: Width and height in pixels; None: the recipe's.
        case: What a file of prompts calls it.
    """

    text: str
    concept: str | None = None
    attributes: dict[str, str] = field(default_factory=dict)
    seed: int | None = None
    guidance: float | None = None
    size: tuple[int, int] | None = None
    case: str = ""


def attributes_of(
    template: str, placeholders: Placeholders, seed: int, index: int, given: Mapping[str, object]
) -> dict[str, str]:
    """Values of the {names} in the template of one picture.

    Args:
        template: The template.
        placeholders: The values to choose from.
        seed: Of the choice, with `index`.
        index: Of the picture.
        given: What is known of it, by name: that goes before a choice.
    """
    chance = random.Random(f"{seed}, {index}")
    chosen = {name: chance.choice(placeholders[name]) for name in names_in(template) if name in placeholders}
    known = {name: value for name in chosen if isinstance(value := given.get(name), str) and value}
    return chosen | known


def expand(templates: Sequence[str], concepts: Sequence[str], placeholders: Placeholders) -> list[Prompt]:
    """Every filling of every template: concepts vary fastest, so that any prefix is balanced over them."""
    prompts = []
    for template in templates:
        names = names_in(template)
        others = [name for name in names if name != "concept"]
        for values in itertools.product(*(placeholders[name] for name in others)):
            attributes = dict(zip(others, values, strict=True))
            for concept in concepts if "concept" in names else [None]:
                prompts.append(Prompt(fill(template, concept, attributes), concept, attributes))
    return prompts


def templates_of(data: ForgetSet, concept: Concept) -> tuple[Sequence[str], Placeholders]:
    """The templates of a concept, its own or the set's, and the placeholders: its own over the set's."""
    templates = data.templates if concept.templates is None else concept.templates
    return templates, data.placeholders | (concept.placeholders or {})


def attributes_in(data: ForgetSet | RetainSet) -> set[str]:
    """The names of all placeholders of a set."""
    own = [concept.placeholders or {} for concept in data.concepts] if isinstance(data, ForgetSet) else []
    return {name for table in (data.placeholders, *own) for name in table}


def forget_prompts(data: ForgetSet) -> list[Prompt]:
    """Every prompt of every concept, concepts in turn; those of a concept that has fewer come again."""
    own = []
    for concept in data.concepts:
        templates, placeholders = templates_of(data, concept)
        own.append(expand(templates, [concept.name], placeholders))
    return [prompts[index % len(prompts)] for index in range(max(map(len, own))) for prompts in own]


def paraphrased(data: ForgetSet, concept: str, others: Sequence[str]) -> list[Prompt]:
    """The prompts of a concept under other names."""
    own = next((known for known in data.concepts if known.name == concept), Concept(name=concept))
    templates, placeholders = templates_of(data, own)
    return expand(templates, others, placeholders)


def balanced(prompts: Sequence[Prompt], count: int, seed: int) -> list[Prompt]:
    """`count` prompts in equal shares: whole passes in order, the last one a random choice."""
    passes, rest = divmod(count, len(prompts))
    return list(prompts) * passes + random.Random(seed).sample(list(prompts), rest)


def shared_out(prompts: Sequence[Prompt], count: int, seed: int) -> list[Prompt]:
    """`count` prompts in equal shares over the concepts, and of each over its prompts; any prefix is as balanced."""
    own: dict[str | None, list[Prompt]] = {}
    for prompt in prompts:
        own.setdefault(prompt.concept, []).append(prompt)
    share, rest = divmod(count, len(own))
    chosen = [balanced(group, share + (index < rest), seed) for index, group in enumerate(own.values())]
    return [prompt for row in itertools.zip_longest(*chosen) for prompt in row if prompt is not None]


def fairly(prompts: Sequence[Prompt], count: int, seed: int) -> list[Prompt]:
    """`count` prompts: every one as often; where that is less than one each, every concept as often."""
    return (balanced if count >= len(prompts) else shared_out)(prompts, count, seed)


def is_named(text: str, concept: str) -> bool:
    """Whether the text names the concept, in the singular or the plural, as a word of its own."""
    return _pattern(concept).search(normalized(text)) is not None


def substitute(text: str, concept: str, anchor: str) -> str:
    """The text with the concept's name replaced by the anchor's, whatever its case; the anchor if it isn't named.

    The name counts as a word of its own: 'car' is not in 'scarf', nor 'ray' in 'x-ray'. A regular plural is replaced by
    the anchor's, and what follows an apostrophe or a hyphen stays: 'two cats', 'a cat's tail', 'a cat-like robot'.
    """
    replaced, hits = _pattern(concept).subn(lambda hit: plural(anchor) if hit["plural"] else anchor, normalized(text))
    return replaced if hits else anchor


def normalized(text: str) -> str:
    """The text with letters and their accents composed, as tokenizers read it."""
    return unicodedata.normalize("NFC", text)


@cache
def _pattern(name: str) -> re.Pattern[str]:
    def words(text: str) -> str:
        return r"\s+".join(map(re.escape, text.split()))

    name = normalized(name.strip())
    if not name:
        return re.compile(r"(?P<plural>(?!))")  # never
    start = "" if _UNSPACED.match(name[0]) else r"(?<!\w)(?<!\W\w-)(?<!^\w-)"  # 'x-ray' is another word
    end = "" if _UNSPACED.match(name[-1]) else r"(?!\w)"
    return re.compile(f"{start}(?:(?P<plural>{words(plural(name))})|{words(name)}){end}", re.IGNORECASE)
