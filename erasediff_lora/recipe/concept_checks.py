"""What can be wrong with the concepts of a recipe: names, anchors, neighbours."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from erasediff_lora import demo
from erasediff_lora.errors import Problem, UserError, nearest
from erasediff_lora.recipe.names import folded, spellings
from erasediff_lora.recipe.tables import AUTO, Concept, ForgetSet, ObjectiveSettings, RetainSet
from erasediff_lora.recipe.templates import names_in
from erasediff_lora.recipe.vocabulary import read_words
from erasediff_lora.registry import FAMILIES

if TYPE_CHECKING:
    from erasediff_lora.recipe.checks import Sections

MOST_NEIGHBOURS = 10_000
"""Over all concepts."""


def _concepts(sections: Sections) -> Iterator[Problem]:
    forget, retain, model = sections.forget, sections.retain, sections.model
    if forget is None:
        return
    for index, concept in enumerate(forget.concepts):
        field = f"forget.concepts.{index}"
        yield from _anchor(field, concept, sections)
        if model and model.base == "demo":
            yield from _known_to_demo(field, concept)
    yield from _anchors_forgotten(forget, retain)
    yield from _named_twice("forget.concepts", [concept.name for concept in forget.concepts])
    yield from _named_twice("retain.concepts", retain.concepts if retain else [])
    forgotten = {name for concept in forget.concepts for name in spellings(concept.name)}
    for index, name in enumerate(retain.concepts if retain else []):
        if folded(name) in forgotten and name not in (retain.near if retain else ()):
            yield Problem(f"retain.concepts.{index}", name, "is to be forgotten as well.", "Take it out of one set.")
    stated = retain.images.concept if retain and retain.images else None
    if stated is not None and folded(stated) in forgotten:
        yield Problem("retain.images.concept", stated, "is to be forgotten.", "Say what is to be retained, or omit it.")


def _named_twice(field: str, names: Sequence[str]) -> Iterator[Problem]:
    first: dict[str, int] = {}
    for index, name in enumerate(names):
        if (before := first.setdefault(folded(name), index)) != index:
            yield Problem(f"{field}.{index}", name, f"is there already: {field}.{before}.", "Take one out.")


def _anchors_forgotten(forget: ForgetSet, retain: RetainSet | None) -> Iterator[Problem]:
    """What takes a concept's place must stay."""
    number = {folded(concept.name): index for index, concept in enumerate(forget.concepts)}
    remedy = "Name a concept that stays" + (f", such as {retain.concepts[0]!r}." if retain and retain.concepts else ".")
    for index, concept in enumerate(forget.concepts):
        other = None if concept.anchor is None else number.get(folded(concept.anchor))
        if other is None or other == index:
            continue
        what, anchors_back = f"is to be forgotten as well (forget.concepts.{other}).", forget.concepts[other].anchor
        if anchors_back is not None and folded(anchors_back) == folded(concept.name):
            what = f"has {concept.name!r} as its own anchor (forget.concepts.{other}), and both are to be forgotten."
        yield Problem(f"forget.concepts.{index}.anchor", concept.anchor, what, remedy)


def _pictures_for_all(sections: Sections) -> Iterator[Problem]:
    """The base draws at least one picture of every concept, if it draws any."""
    forget = sections.forget
    if sections.takes_no_steps:
        return
    if forget and forget.images is None and forget.count < len(forget.concepts):
        without = forget.concepts[forget.count].name
        what = f"is less than the number of concepts, {len(forget.concepts)}: some, like {without!r}, have no picture."
        yield Problem("forget.count", forget.count, what, f"Set it to {len(forget.concepts)} or more.")


def _anchor(field: str, concept: Concept, sections: Sections) -> Iterator[Problem]:
    if concept.anchor is not None and folded(concept.anchor) == folded(concept.name):
        yield Problem(f"{field}.anchor", concept.anchor, "is the concept itself.", "Name another concept.")
    model, retain, objective = sections.model, sections.retain, sections.objective
    if not (model and retain and objective and chosen_by_encoder(concept, objective)):
        return
    option, remedy = ("anchor: auto", "Name an anchor.") if concept.anchor else objective.wants_anchors
    what = f"{concept.name!r} has no anchor, and {option} wants one"
    if not FAMILIES[model.family].text_to_image:
        what += f"; {model.family} has no text encoder to choose one by."
        yield Problem(f"{field}.anchor", concept.anchor, what, remedy)
    elif not (retain.concepts or retain.neighbours):
        what += "; there is nothing to choose it from."
        remedy = f"List retain.concepts. {remedy}"
        yield Problem(f"{field}.anchor", concept.anchor, what, remedy)


def chosen_by_encoder(concept: Concept, objective: ObjectiveSettings) -> bool:
    """Whether the recipe leaves the concept's anchor to the text encoder."""
    return concept.anchor == AUTO or (concept.anchor is None and objective.anchors == "named")


def _known_to_demo(field: str, concept: Concept) -> Iterator[Problem]:
    known = demo.CONCEPTS + demo.STYLES
    for key, name in (("name", concept.name), ("anchor", concept.anchor)):
        if name is not None and name not in known and (key, name) != ("anchor", AUTO):
            yield Problem(f"{field}.{key}", name, "the demo model does not know it.", nearest(name, known))


def _anchors_to_draw(sections: Sections) -> Iterator[Problem]:
    objective, retain = sections.objective, sections.retain
    if (
        sections.forget
        and objective
        and retain
        and objective.anchors == "any"
        and not (retain.concepts or retain.neighbours)
    ):
        option, _ = objective.wants_anchors
        remedy = "List concepts, or choose another target."
        yield Problem("retain.concepts", [], f"{option} draws its anchors from it.", remedy)


def _neighbours(sections: Sections) -> Iterator[Problem]:
    forget, retain = sections.forget, sections.retain
    if forget is None or retain is None or not retain.neighbours:
        return
    field, given = "retain.neighbours", retain.neighbours
    if retain.images:
        what = "are drawn by the base, and retain.images reads pictures."
        yield Problem(field, given, what, "Omit one of them.")
    if not any("concept" in _names_in(template) for template in retain.templates):
        what = "fill the {concept} of templates, and no template of retain has one."
        yield Problem(field, given, what, "Add a template with {concept}.")
    check = _listed_neighbours if isinstance(given, dict) else _neighbours_to_find
    yield from check(sections, forget, retain)


def _names_in(template: str) -> list[str]:
    try:
        return names_in(template)
    except ValueError:  # which is said elsewhere
        return ["concept"]


def _listed_neighbours(sections: Sections, forget: ForgetSet, retain: RetainSet) -> Iterator[Problem]:
    forgotten = {folded(concept.name): concept.name for concept in forget.concepts}
    assert isinstance(retain.neighbours, dict)
    for name, words in retain.neighbours.items():
        if folded(name) not in forgotten:
            remedy = nearest(name, forgotten.values())
            yield Problem("retain.neighbours", name, "is not to be forgotten.", remedy)
        for word in words:
            if not spellings(word).isdisjoint(forgotten):
                what = "is to be forgotten as well."
                yield Problem(f"retain.neighbours.{name}", word, what, "Take it out of one set.")


def _neighbours_to_find(sections: Sections, forget: ForgetSet, retain: RetainSet) -> Iterator[Problem]:
    field, count, model = "retain.neighbours", retain.neighbours, sections.model
    assert isinstance(count, int)
    if model and not FAMILIES[model.family].text_to_image:
        what = f"are found by a text encoder, and {model.family} has none."
        yield Problem(field, count, what, "List them: {concept: [word, …]}.")
    if count * len(forget.concepts) > MOST_NEIGHBOURS:
        what = f"of {len(forget.concepts)} concepts are more than {MOST_NEIGHBOURS:,}."
        remedy = f"Ask for {MOST_NEIGHBOURS // len(forget.concepts)} or fewer."
        yield Problem(field, count, what, remedy)
    try:
        read_words(retain.vocabulary)
    except UserError as error:
        yield from error.problems


CONCEPTS: list[Callable[[Sections], Iterator[Problem]]] = [_concepts, _anchors_to_draw, _pictures_for_all, _neighbours]
"""Of recipes' checks, those that are about concepts."""
