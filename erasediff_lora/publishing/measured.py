"""The numbers of a card, the base's own beside each: as tables for people, and as the hub's `model-index`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from huggingface_hub import EvalResult

from erasediff_lora.evaluation.results import asked, attacked
from erasediff_lora.evaluation.shares import interval, interval_text, percent
from erasediff_lora.publishing.findings import Accuracy, Distances, Findings, Numbers
from erasediff_lora.recipe.evaluation import without_folders
from erasediff_lora.storage.markdown import Markdown, one_line, table
from erasediff_lora.storage.run_folder import RECIPE_FILE

NAMES = {"unlearning_accuracy": "unlearning accuracy", "retain_accuracy": "retain accuracy"}
ASKED = {
    "unlearning_accuracy": "forgotten: the judge does not see the concept that the prompt asks for",
    "retain_accuracy": "retained: the judge sees what other prompts ask for",
}
Number = Literal["unlearning_accuracy", "retain_accuracy"]


@dataclass(frozen=True)
class Row:
    """A share of pictures, by both models.

    Attributes:
        number: What is counted.
        concept: Whose pictures; None: all.
        base: Of the base; None if nobody looked.
        base_pictures: How many; 0 if that is not known.
        erased: With the adapter.
        pictures: How many; 0 if that is not known.
    """

    number: Number
    concept: str | None
    base: float | None
    base_pictures: int
    erased: float
    pictures: int


def rows(found: Accuracy) -> Iterator[Row]:
    """Unlearning and retain accuracy, of all pictures and of each concept where there are several."""
    counted = found.counted
    totals: dict[Number, tuple[int, int]] = {
        "unlearning_accuracy": (counted.forget_base, counted.forget),
        "retain_accuracy": (counted.retain, counted.retain),
    }
    for number, (base_pictures, pictures) in totals.items():
        if (share := getattr(found, number)) is None:
            continue
        yield Row(number, None, getattr(found, f"{number}_base"), base_pictures, share, pictures)
        own = {name: row for name, row in found.per_concept.items() if getattr(row, number) is not None}
        for name, row in own.items() if len(own) > 1 else ():
            base = getattr(row, f"{number}_base")
            yield Row(number, name, base, row.pictures_base, getattr(row, number), row.pictures)


def accuracy_table(found: Accuracy) -> Markdown:
    """The shares with their intervals and counts."""
    head = ("", "base", "95% interval", "pictures", "with adapter", "95% interval", "pictures")
    return table(
        head,
        [
            (
                ASKED[row.number] if row.concept is None else f"{NAMES[row.number]} of {row.concept}",
                *(percent(row.base), interval_text(row.base, row.base_pictures), row.base_pictures or None),
                *(percent(row.erased), interval_text(row.erased, row.pictures), row.pictures or None),
            )
            for row in rows(found)
        ],
    )


def became(numbers: Numbers) -> list[tuple[str, str]]:
    """Forgotten concept -> what the judge sees in its place."""
    found = numbers.metrics.accuracy.per_concept if numbers.metrics.accuracy else {}
    seen = {name: found[name].became for name in numbers.concepts if name in found}
    return [
        (name, ", ".join(f"{label} {percent(share)}" for label, share in labels.items()))
        for name, labels in seen.items()
        if labels
    ]


def attack_table(findings: Findings) -> Markdown | None:
    """A row an attack, and one for each concept where there are several; None if none was tried."""
    if findings.numbers is None or not findings.numbers.attacks:
        return None
    found: list[tuple[object, ...]] = []
    for attacker, entry in attacked(findings.result):
        attack = findings.numbers.attacks[attacker.name]
        words = {
            model: asked(attacker, attacker.words, given, otherwise=percent(attack.models[model].success))
            for model, given in entry["models"].items()
        }
        others = (words.get("base"), words.get("never learned"))
        found.append((attack.title, "all", words["erased"], *others, attack.budget))
        concepts = attack.models["erased"].per_concept
        for name, achieved in concepts.items() if len(concepts) > 1 else ():
            base = attack.models["base"].per_concept.get(name) if "base" in attack.models else None
            spread = interval_text(achieved.success, achieved.pictures)
            cell = f"{percent(achieved.success)} ({spread})" if spread else percent(achieved.success)
            found.append(("", name, cell, base and percent(base.success), None, None))
    return table(("attack", "concept", "with adapter", "base", "a model that never learned it", "budget"), found)


def distance_name(found: Distances) -> str:
    """A Fréchet distance is an FID by the features of Inception only."""
    return "FID" if is_fid(found) else f"Fréchet distance ({without_folders(found.features)} features)"


def is_fid(found: Distances) -> bool:
    """Whether the features are Inception's."""
    return found.features.partition(":")[0] == "inception"


def eval_results(numbers: Numbers, task: str) -> list[EvalResult]:
    """The same for `model-index`.

    Args:
        numbers: What was measured.
        task: The hub's name of what the model does.
    """
    names = one_line(", ".join(numbers.concepts))
    asks = f"prompts of this repository's {RECIPE_FILE} that ask for"

    def result(prompts: str, kind: str, name: str, value: float, pictures: int = 0) -> EvalResult:
        bounds = [round(end, 4) for end in interval(value, pictures)] if pictures else None
        return EvalResult(
            task_type=task,
            dataset_type=RECIPE_FILE,
            dataset_name=prompts,
            metric_type=kind,
            metric_name=one_line(name),
            metric_value=round(value, 6),
            metric_args={"pictures": pictures, "interval_95": bounds} if pictures else None,
        )

    found = []
    for row in rows(numbers.metrics.accuracy) if numbers.metrics.accuracy else ():
        prompts = f"{asks} {names if row.number == 'unlearning_accuracy' else 'anything else'}"
        name = NAMES[row.number] + (f" of {row.concept}" if row.concept else "")
        found.append(result(prompts, "accuracy", name, row.erased, row.pictures))
        if row.base is not None:
            found.append(result(prompts, "accuracy", f"{name}, by the base", row.base, row.base_pictures))
    if (distances := numbers.metrics.distances) is not None:
        kind, name = ("fid" if is_fid(distances) else "frechet_distance"), distance_name(distances)
        prompts = f"{asks} anything else, against the base's own pictures on other seeds"
        found.append(result(prompts, kind, name, distances.own_samples.erased.frechet))
        found.append(result(prompts, kind, f"{name}, of the base", distances.own_samples.base.frechet))
    for attack in numbers.attacks.values():
        title = attack.title.partition(":")[0].lower()
        for model, where in (("erased", ""), ("base", ", on the base")):
            if (achieved := attack.models.get(model)) is not None:
                name = f"attack success, {title}{where}"
                found.append(result(f"attacks on {names}", "attack_success", name, achieved.success, achieved.pictures))
    return found
