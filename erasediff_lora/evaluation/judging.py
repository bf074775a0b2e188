"""The recipe's judge, checked before anything is drawn."""

from __future__ import annotations

from erasediff_lora.data.prompt_files import file_prompts
from erasediff_lora.errors import UserError
from erasediff_lora.evaluation import judges
from erasediff_lora.evaluation.judges import Judge, Names, PictureJudge
from erasediff_lora.evaluation.judges.labels import NamedJudge, complaints, labels_of
from erasediff_lora.recipe import Recipe


def judge_of(recipe: Recipe) -> PictureJudge | None:
    """The recipe's judge, if it names one, answering in the recipe's words.

    Raises:
        UserError: If it cannot be loaded, or has no label for a forgotten concept.
    """
    options = recipe.evaluation
    if options.judge is None:
        return None
    named = names(recipe)
    judge = judges.load(options.judge, named.spelled(options.judge_labels))
    if isinstance(judge, Judge):
        judge = judge.set_up(options)
    if problems := complaints(options.judge, named.forget, options.judge_labels, judge.labels):
        raise UserError(*problems)
    return NamedJudge(judge, labels_of(named.all, options.judge_labels, judge.labels))


def unjudged(recipe: Recipe, judge: PictureJudge) -> list[str]:
    """What other prompts name that the judge has no label for: it is not counted."""
    return [name for name in names(recipe).all if name not in judge.labels]


def names(recipe: Recipe) -> Names:
    """What the recipe's prompts name."""
    tables = [recipe.forget.placeholders, recipe.retain.placeholders]
    placeholders: dict[str, list[str]] = {}
    for table in [*tables, *(concept.placeholders or {} for concept in recipe.forget.concepts)]:
        for name, values in table.items():
            placeholders[name] = list(dict.fromkeys([*placeholders.get(name, []), *values]))
    drawn = (prompt.concept for prompt in file_prompts(recipe).retain)
    retained = dict.fromkeys([*recipe.retain.concepts, *(name for name in drawn if name)])
    forgotten = [concept.name for concept in recipe.forget.concepts]
    return Names(forgotten, [name for name in retained if name not in forgotten], list(placeholders.values()))
