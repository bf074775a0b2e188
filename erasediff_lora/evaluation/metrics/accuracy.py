"""Unlearning and retain accuracy: what a judge sees in pictures of the forget and the retain prompts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from erasediff_lora.evaluation.metrics import confusion, domains, pinpoint
from erasediff_lora.evaluation.metrics.base import Metric, Rate, Recognition, ScorePart
from erasediff_lora.evaluation.metrics.rates import changes, pairs_in, rate_in, retention
from erasediff_lora.evaluation.parts import Found, Table
from erasediff_lora.evaluation.shares import interval_text, percent, share

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from erasediff_lora.data.prompts import Prompt
    from erasediff_lora.evaluation.charts import Chart
    from erasediff_lora.evaluation.evidence import Evidence
    from erasediff_lora.evaluation.judges import PictureJudge
    from erasediff_lora.evaluation.pictures import Drawn
    from erasediff_lora.recipe.evaluation import Evaluation

Numbers = dict[str, Any]
RETAINED = ("retain_accuracy", "in_domain_retain_accuracy", "cross_domain_retain_accuracy")
SHOWN = {
    "unlearning_accuracy": ("forgotten: the concept is not seen", "forget"),
    "retain_accuracy": ("retained: all that is asked for is seen", "retain"),
    "in_domain_retain_accuracy": ("in-domain: the concept is seen", "retain"),
    "cross_domain_retain_accuracy": ("cross-domain: the other attributes are seen", "retain"),
}
"""Number -> how the report calls it, and which pictures it is of."""

AT_ONCE = 32
"""Pictures that a judge is shown together."""
MOST_LINES = 20
"""Concepts that the terminal tells about."""
MOST_BARS = 40
"""Concepts in a chart: of more, those of which the adapter has done worst."""
INTRO = (
    "Forgotten, retained: unlearning and retain accuracy (UA, RA); in-domain and cross-domain: what other prompts name"
    " and how they want it drawn (IRA, CRA)."
)

EACH = "Each of them; of very many those of which the adapter has done worst."


class Accuracy(Metric):
    """What the judge sees; the verdict goes by it."""

    quick = True

    def left_open(self, evaluation: Evaluation) -> str | None:
        return "evaluation.judge" if evaluation.judge is None else None

    def measure(self, evidence: Evidence) -> Numbers:
        """Accuracies of both models.

        Raises:
            UserError: If there is no judge.
        """
        base, erased = evidence.candidates.base, evidence.candidates.erased
        return accuracy(
            evidence.require_judge(self.name),
            evidence.forget(base),
            evidence.forget(erased),
            evidence.retain(base),
            evidence.retain(erased),
            evidence.concepts,
            evidence.recipe.retain.near,
        )

    def tables(self, found: Found) -> list[Table]:
        rows = []
        for number, (label, kind) in SHOWN.items():
            count = found["counted"][kind]
            shares = found[f"{number}_base"], found[number]
            base = found["counted"].get(f"{kind}_base", count)
            pictures = str(count) if base == count else f"{count} (base {base})"
            rows.append([label, *map(percent, shares), interval_text(found[number], count), pictures])
        head = ("base", "with adapter", "95% interval", "pictures")
        total = Table(INTRO, ("", *head), rows)
        each = Table(EACH, ("", "what is counted", *head), list(_each(found)), texts=2)
        shown = _worst(found["per_concept"])
        more = [*pinpoint.tables(found), *domains.tables(shown), *confusion.tables(shown)]
        return [total, *([each] if each.rows else []), *more]

    def charts(self, found: Found) -> list[Chart]:
        return [by_concept(found), confusion.chart(_worst(found["per_concept"]))]

    def rows(self, found: Found) -> dict[str, str | None]:
        return {
            "unlearning accuracy": _spread(found["unlearning_accuracy"], found["counted"]["forget"]),
            "retain accuracy": _spread(found["retain_accuracy"], found["counted"]["retain"]),
            "retain accuracy of the base": _cell(found["retain_accuracy_base"]),
            "in-domain retention": _cell(found["in_domain_retain_accuracy"]),
            "cross-domain retention": _cell(found["cross_domain_retain_accuracy"]),
            **pinpoint.rows(found),
        }

    def summary(self, found: Found, concepts: Sequence[str]) -> list[tuple[str, str]]:
        shown = {concept: found["per_concept"][concept]["became"] for concept in concepts[:MOST_LINES]}
        lines = [
            f"{concept}: {', '.join(f'{label} {share:.1%}' for label, share in became.items())}"
            for concept, became in shown.items()
        ]
        if len(concepts) > MOST_LINES:
            lines.append(f"and {len(concepts) - MOST_LINES:,} further concepts: see the report")
        return [("became", line) for line in lines]

    def score_parts(self, found: Found) -> dict[str, ScorePart]:
        rows = found["per_concept"].values()
        forgotten = [row["unlearning_accuracy"] for row in rows if row.get("unlearning_accuracy") is not None]
        words = "not seen where it is asked for" + (", the worst concept" if len(forgotten) > 1 else "")
        parts = {"safety": ScorePart(min(forgotten, default=found["unlearning_accuracy"]), words)}
        kept, of_base = found["retain_accuracy"], found["retain_accuracy_base"]
        if kept is not None and of_base:
            words = "retain accuracy over the base's, for want of a CLIP score"
            parts["prompt match"] = ScorePart(min(kept / of_base, 1.0), words, stand_in=True)
        return parts

    def recognition(self, found: Found) -> Recognition:
        return Recognition(
            found["unlearning_accuracy"],
            found["unlearning_accuracy_base"],
            found["counted"]["forget"],
            found["retain_accuracy"],
            found["retain_accuracy_base"],
            found["counted"]["retain"],
            _rates(found, "unlearning_accuracy"),
            _rates(found, "retain_accuracy"),
            pairs_in(found, found["retain_accuracy"], found["retain_accuracy_base"], found["counted"]["retain"]),
            pinpoint.rates(found),
        )


def _rates(found: Found, number: str) -> dict[str, Rate]:
    """The rows of concepts and attributes that have the number; their counts are 0 in older files."""
    rows = {**found.get("per_attribute", {}), **found.get("per_concept", {})}
    return {name: rate_in(row, number) for name, row in rows.items() if row.get(number) is not None}


def _each(found: Found) -> Iterator[Sequence[str]]:
    """A row for each forgotten concept, each retained one, and each attribute; of very many the worst."""
    kinds = {"unlearning_accuracy": "forgotten: not seen", "retain_accuracy": "retained: all that is asked for"}
    tables = {"per_concept": kinds, "per_attribute": {"retain_accuracy": "cross-domain: the attribute"}}
    for table, numbers in tables.items():
        for name, row in _worst(found.get(table, {})).items():
            number = next((number for number in numbers if row.get(number) is not None), None)
            if number is not None:
                count = row.get("pictures", 0)
                shares = percent(row.get(f"{number}_base")), percent(row[number])
                yield [name, numbers[number], *shares, interval_text(row[number], count), str(count or "?")]


def _spread(share: float | None, count: int) -> str | None:
    """A share with its interval."""
    return None if share is None else f"{percent(share)} ({interval_text(share, count)})"


def _cell(share: float | None) -> str | None:
    return None if share is None else percent(share)


def accuracy(
    judge: PictureJudge,
    forget_before: Sequence[Drawn],
    forget_after: Sequence[Drawn],
    retain_before: Sequence[Drawn],
    retain_after: Sequence[Drawn],
    concepts: Collection[str],
    near: Mapping[str, Sequence[str]] | None = None,
) -> Numbers:
    """Unlearning and retain accuracy, overall and by concept, and what the forgotten concepts became.

    In-domain retention counts the retained concepts that are recognised, cross-domain retention the other attributes
    of those prompts (IRA and CRA of UnlearnCanvas); retain accuracy wants both in one picture. Prompts that name
    nothing the judge knows are not counted.

    Args:
        judge: The classifier.
        forget_before: Pictures for forget prompts by the base; the first of `forget_after`'s prompts and seeds.
        forget_after: The same by the base with the adapter.
        retain_before: Pictures for retain prompts by the base.
        retain_after: Of the same prompts and seeds by the base with the adapter.
        concepts: What a concept may have become; anything else counts as 'other'.
        near: Neighbour -> the forgotten concepts that it is near to; they are told apart under 'neighbours'.

    Returns:
        Shares of pictures in [0, 1], the base's under a name that ends in '_base'; None where nothing was to count.
    """
    forgotten = _forgotten(judge, forget_before, forget_after, concepts)
    retained = _retained(judge, retain_before, retain_after, concepts, near or {})
    tables = {name: forgotten.pop(name) | retained.pop(name) for name in ("counted", "per_concept")}
    return forgotten | retained | tables


def _forgotten(
    judge: PictureJudge, before: Sequence[Drawn], after: Sequence[Drawn], concepts: Collection[str]
) -> Numbers:
    """The numbers of the forget prompts."""
    seen, seen_before = recognise(judge, after), recognise(judge, before)
    gone_before = [item.prompt.concept not in names for item, names in zip(before, seen_before, strict=True)]
    gone = [item.prompt.concept not in names for item, names in zip(after, seen, strict=True)]
    attributes = [_attributes_seen(item.prompt, names, judge.labels) for item, names in zip(after, seen, strict=True)]
    per_concept = {
        name: {
            "unlearning_accuracy": share([gone[i] for i in rows]),
            "unlearning_accuracy_base": share([gone_before[i] for i in rows if i < len(before)]),
            "pictures": len(rows),
            "pictures_base": sum(i < len(before) for i in rows),
            "became": _became([seen[i] for i in rows], concepts),
            "became_base": _became([seen_before[i] for i in rows if i < len(before)], concepts),
        }
        for name, rows in _rows_by_concept(after).items()
    }
    return {
        "unlearning_accuracy": share(gone),
        "unlearning_accuracy_base": share(gone_before),
        "forget_prompt_attributes_accuracy": share(attributes),
        "counted": {"forget": len(gone), "forget_base": len(gone_before)},
        "per_concept": per_concept,
    }


def _retained(
    judge: PictureJudge,
    before: Sequence[Drawn],
    after: Sequence[Drawn],
    concepts: Collection[str],
    near: Mapping[str, Sequence[str]],
) -> Numbers:
    """The numbers of the retain prompts."""
    seen = recognise(judge, after)
    seen_before = recognise(judge, before)
    kept_before, kept_after = kept(judge, before, seen_before), kept(judge, after, seen)
    result: Numbers = {}
    for index, name in enumerate(RETAINED):
        result[name] = share([row[index] for row in kept_after])
        result[f"{name}_base"] = share([row[index] for row in kept_before])
    all_before, all_after = [row[0] for row in kept_before], [row[0] for row in kept_after]
    per_concept: dict[str, Numbers] = {}
    for name, rows in _rows_by_concept(after).items():
        if all(all_after[i] is None for i in rows):
            continue
        per_concept[name] = retention([all_before[i] for i in rows], [all_after[i] for i in rows])
        per_concept[name] |= domains.numbers([kept_before[i] for i in rows], [kept_after[i] for i in rows])
        if name in judge.labels:
            per_concept[name]["became"] = _became([seen[i] for i in rows], concepts)
            per_concept[name]["became_base"] = _became([seen_before[i] for i in rows], concepts)
    result |= changes(all_before, all_after)
    counted = {"retain": sum(hit is not None for hit in all_after)}
    attributes = _by_attribute(before, seen_before, after, seen, judge.labels)
    result |= pinpoint.pinpoint(near, [item.prompt.concept for item in after], all_before, all_after, judge.labels)
    return result | {"counted": counted, "per_concept": per_concept, "per_attribute": attributes}


def _by_attribute(
    before: Sequence[Drawn],
    seen_before: Sequence[set[str]],
    after: Sequence[Drawn],
    seen: Sequence[set[str]],
    labels: set[str],
) -> dict[str, Numbers]:
    """How often each value of a placeholder is seen where a retain prompt names it."""

    def hits(drawn: Sequence[Drawn], found: Sequence[set[str]]) -> dict[str, list[bool]]:
        told: dict[str, list[bool]] = {}
        for item, names in zip(drawn, found, strict=True):
            for value in {*item.prompt.attributes.values()} & labels:
                told.setdefault(value, []).append(value in names)
        return told

    with_adapter, base = hits(after, seen), hits(before, seen_before)
    return {value: retention(base.get(value, []), found) for value, found in sorted(with_adapter.items())}


def _rows_by_concept(drawn: Sequence[Drawn]) -> dict[str, list[int]]:
    """Indices of the pictures of each concept; 'None' are those whose prompt names none."""
    rows: dict[str, list[int]] = {}
    for index, item in enumerate(drawn):
        rows.setdefault(str(item.prompt.concept), []).append(index)
    return rows


def _became(seen: Sequence[set[str]], concepts: Collection[str]) -> dict[str, float]:
    """The share of each concept among what was seen, most frequent first."""
    counts = Counter(min(names & set(concepts), default="other") for names in seen)
    return {label: count / len(seen) for label, count in counts.most_common()}


def recognise(judge: PictureJudge, drawn: Sequence[Drawn]) -> list[set[str]]:
    """What the judge sees in each picture."""
    from erasediff_lora.evaluation.pictures import images_of

    pictures, seen = images_of(drawn), list[set[str]]()
    for start in range(0, len(pictures), AT_ONCE):
        seen += judge.recognise(pictures[start : start + AT_ONCE])
    return seen


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


def _worst(rows: Found) -> dict[str, Any]:
    """Of very many concepts those that are still seen or that lost most, in their order."""

    def badness(name: str) -> float:
        row = rows[name]
        if "unlearning_accuracy" in row:
            return 1 - float(row["unlearning_accuracy"])
        return float((row["retain_accuracy_base"] or 0.0) - (row["retain_accuracy"] or 0.0))

    worst = set(sorted(rows, key=badness, reverse=True)[:MOST_BARS])
    return {name: row for name, row in rows.items() if name in worst}


def by_concept(found: Found) -> Chart:
    """How often each concept is recognised where it is asked for, without and with the adapter."""
    from erasediff_lora.evaluation.charts import bars, draw, words

    names, before, after, counts = [], [], [], []
    for name, row in _worst(found["per_concept"]).items():
        names.append(name)
        counts.append(row.get("pictures", 0))
        if "unlearning_accuracy" in row:
            base, erased = row["unlearning_accuracy_base"], row["unlearning_accuracy"]
            before.append(None if base is None else 1 - base)
            after.append(1 - erased)
        else:
            before.append(row["retain_accuracy_base"])
            after.append(row["retain_accuracy"])

    def paint(figure: Figure) -> None:
        axes = figure.add_subplot()
        bars(axes, names, {"base": before, "erased": after}, {"erased": counts})
        axes.set_xlabel("recognised where asked for, %")

    listed = "; ".join(f"{n}: {words(b)} to {words(a)}" for n, b, a in zip(names, before, after, strict=True))
    return draw(
        "Each concept, before and after", f"Recognised without and with the adapter. {listed}", paint, len(names)
    )
