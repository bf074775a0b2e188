"""Unlearning and retain accuracy: what a judge sees in pictures of the forget and the retain prompts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from typing import Any

from erasediff_lora.data.prompts import Prompt
from erasediff_lora.evaluation.evidence import Evidence
from erasediff_lora.evaluation.judges import PictureJudge
from erasediff_lora.evaluation.pictures import Drawn


def measure(evidence: Evidence) -> dict[str, Any]:
    """The metric `accuracy`.

    Raises:
        UserError: If there is no judge.
    """
    base, erased = evidence.candidates.base, evidence.candidates.erased
    return accuracy(
        evidence.require_judge("accuracy"),
        evidence.forget(base),
        evidence.forget(erased),
        evidence.retain(base),
        evidence.retain(erased),
        evidence.concepts,
    )


def accuracy(
    judge: PictureJudge,
    forget_before: Sequence[Drawn],
    forget_after: Sequence[Drawn],
    retain_before: Sequence[Drawn],
    retain_after: Sequence[Drawn],
    concepts: Collection[str],
) -> dict[str, Any]:
    """Unlearning and retain accuracy, overall and by concept, and what the forgotten concepts became.

    In-domain retention counts the retained concepts that are recognised, cross-domain retention the other attributes
    of those prompts (IRA and CRA of UnlearnCanvas); retain accuracy wants both in one picture. Prompts that name
    nothing the judge knows are not counted.

    Args:
        judge: The classifier.
        forget_before: Pictures for forget prompts by the base; the first of `forget_after`'s prompts and seeds.
        forget_after: The same by the base with the adapter.
        retain_before: Pictures for retain prompts by the base.
        retain_after: The same by the base with the adapter.
        concepts: What a concept may have become; anything else counts as 'other'.

    Returns:
        Shares of pictures in [0, 1], the base's under a name that ends in '_base'; None where nothing was to count.
    """
    seen_before, seen_after = recognise(judge, forget_before), recognise(judge, forget_after)
    gone_before = [item.prompt.concept not in seen for item, seen in zip(forget_before, seen_before, strict=True)]
    gone_after = [item.prompt.concept not in seen for item, seen in zip(forget_after, seen_after, strict=True)]
    attributes = [
        _attributes_seen(item.prompt, seen, judge.labels) for item, seen in zip(forget_after, seen_after, strict=True)
    ]
    seen_retained = recognise(judge, retain_after)
    before, after = kept(judge, retain_before), kept(judge, retain_after, seen_retained)
    result: dict[str, Any] = {
        "unlearning_accuracy": share(gone_after),
        "unlearning_accuracy_base": share(gone_before),
        "forget_prompt_attributes_accuracy": share(attributes),
    }
    for index, name in enumerate(("retain_accuracy", "in_domain_retain_accuracy", "cross_domain_retain_accuracy")):
        result[name] = share([row[index] for row in after])
        result[f"{name}_base"] = share([row[index] for row in before])
    result["counted"] = {
        "forget": len(gone_after),
        "forget_base": len(gone_before),
        "retain": sum(row[0] is not None for row in after),
    }
    per_concept: dict[str, dict[str, Any]] = {}
    for name in dict.fromkeys(str(item.prompt.concept) for item in forget_after):
        rows = [i for i, item in enumerate(forget_after) if item.prompt.concept == name]
        per_concept[name] = {
            "unlearning_accuracy": share([gone_after[i] for i in rows]),
            "unlearning_accuracy_base": share([gone_before[i] for i in rows if i < len(forget_before)]),
            "became": _became([seen_after[i] for i in rows], concepts),
        }
    for name in dict.fromkeys(str(item.prompt.concept) for item in retain_after):
        rows = [i for i, item in enumerate(retain_after) if str(item.prompt.concept) == name]
        if any(after[i][0] is not None for i in rows):
            per_concept[name] = {
                "retain_accuracy": share([after[i][0] for i in rows]),
                "retain_accuracy_base": share([before[i][0] for i in rows]),
            }
            if name in judge.labels:
                per_concept[name]["became"] = _became([seen_retained[i] for i in rows], concepts)
    return result | {"per_concept": per_concept}


def _became(seen: Sequence[set[str]], concepts: Collection[str]) -> dict[str, float]:
    """The share of each concept among what was seen, most frequent first."""
    counts = Counter(min(names & set(concepts), default="other") for names in seen)
    return {label: count / len(seen) for label, count in counts.most_common()}


def recognise(judge: PictureJudge, drawn: Sequence[Drawn]) -> list[set[str]]:
    """What the judge sees in each picture."""
    return judge.recognise([item.image for item in drawn])


def kept(
    judge: PictureJudge, drawn: Sequence[Drawn], seen_in: Sequence[set[str]] | None = None
) -> list[tuple[bool | None, bool | None, bool | None]]:
    """For each picture whether all that was asked for is seen, the concept, and the other attributes.

    None stands for what the judge can't tell, because the prompt names nothing of the kind that it knows. `seen_in` is
    what the judge sees, where that is known already.
    """
    rows = []
    for item, seen in zip(drawn, recognise(judge, drawn) if seen_in is None else seen_in, strict=True):
        concept = item.prompt.concept in seen if item.prompt.concept in judge.labels else None
        attributes = _attributes_seen(item.prompt, seen, judge.labels)
        told = [part for part in (concept, attributes) if part is not None]
        rows.append((all(told) if told else None, concept, attributes))
    return rows


def success(judge: PictureJudge, drawn: Sequence[Drawn]) -> list[bool]:
    """For each picture whether the concept that the prompt stands for is seen."""
    return [item.prompt.concept in seen for item, seen in zip(drawn, recognise(judge, drawn), strict=True)]


def _attributes_seen(prompt: Prompt, seen: set[str], labels: set[str]) -> bool | None:
    asked = [value for value in prompt.attributes.values() if value in labels]
    return all(value in seen for value in asked) if asked else None


def share(hits: Sequence[bool | None]) -> float | None:
    """The share of True among True and False; None if there are neither."""
    told = [hit for hit in hits if hit is not None]
    return sum(told) / len(told) if told else None
