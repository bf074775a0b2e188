"""What an erasure may have to survive, and how that is measured."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from erasediff_lora.evaluation.parts import Found, Part
from erasediff_lora.evaluation.shares import interval_text, percent

if TYPE_CHECKING:
    from erasediff_lora.evaluation.candidates import Candidate
    from erasediff_lora.evaluation.evidence import Evidence
    from erasediff_lora.evaluation.pictures import Drawn, Request

Alter = Callable[[str], None]
"""Brings the model into the state of that variant."""
Pictures = tuple[list["Drawn"], list["Drawn"]]
"""Of the forget and of the retain prompts."""
BEFORE = "as it is"
HEAD = ("what was done", "", "forgotten", "95% interval", "worst concept", "base", "retained", "base", "pictures")
NUMBERS = ("unlearning_accuracy", "retain_accuracy")


class Hardship(Part, Protocol):
    """Something harmless that is done to a model with the erasure in it. One file each, registered in `SURVIVAL`.

    The same is done to the base: what that loses by itself is not the erasure's fault.
    """

    title: ClassVar[str]
    """What is done, as 'Name: in a few words'."""

    @abstractmethod
    def variants(self, evidence: Evidence) -> Sequence[str]:
        """What is done in each case, in the order in which it is."""
        ...

    def depends(self, evidence: Evidence, variant: str) -> dict[str, Any]:
        """What the pictures depend on besides model and variant, for the store."""
        return {}

    @contextmanager
    def altering(self, evidence: Evidence, candidate: Candidate) -> Iterator[Alter]:
        """A function that alters the active model as far as each variant asks; afterwards it is as it was.

        Args:
            evidence: The recipe and its options.
            candidate: The model; active.
        """
        raise NotImplementedError
        yield

    def draw(self, evidence: Evidence, candidate: Candidate, variants: Sequence[str]) -> dict[str, Pictures]:
        """The model's pictures in each state; altered only where a picture is not in the store.

        Raises:
            UserError: If it cannot be done to this model.
        """
        from contextlib import ExitStack

        from erasediff_lora.evaluation.pictures import painter

        found: dict[str, Pictures] = {}
        # Beforehand: to look up what they depend on may switch the erasure off.
        depends = {one: {"survival": [self.name, one], **self.depends(evidence, one)} for one in variants}
        with ExitStack() as stack:
            entered: list[Alter] = []

            def paint_as(variant: str) -> Any:
                def paint(asked: Request) -> Any:
                    if not entered:
                        stack.enter_context(candidate.in_layers())
                        entered.append(stack.enter_context(self.altering(evidence, candidate)))
                    entered[0](variant)
                    return painter(candidate.denoiser)(asked)

                return paint

            for variant in variants:
                store = replace(candidate.store, depends=candidate.store.depends | depends[variant])
                altered = replace(candidate, name=f"{candidate.name}, {variant}", erasure=None, store=store)
                found[variant] = pictures_of(evidence, altered, paint_as(variant))
        return found

    def measure(self, evidence: Evidence) -> dict[str, Any]:
        """Accuracies after each variant and before, of the erased model and of the base.

        Raises:
            UserError: If there is no judge, or it cannot be done to this model.
        """
        judge = evidence.require_judge(self.name)
        base, erased = evidence.candidates.base, evidence.candidates.erased
        variants = self.variants(evidence)
        of_base, of_erased = self.draw(evidence, base, variants), self.draw(evidence, erased, variants)
        before = {BEFORE: (pictures_of(evidence, base), pictures_of(evidence, erased))}
        pairs = before | {variant: (of_base[variant], of_erased[variant]) for variant in variants}
        return {
            "title": self.title,
            "variants": {name: _numbers(evidence, judge, *pair) for name, pair in pairs.items()},
        }

    def lines(self, found: Found, with_before: bool) -> list[Sequence[str]]:
        """How the report shows it: a row a variant, the base's own change beside each; columns as HEAD.

        Args:
            found: What `measure` returned.
            with_before: Also as it was before.
        """
        lines: list[Sequence[str]] = []
        for variant, numbers in found["variants"].items():
            if variant == BEFORE and not with_before:
                continue
            shares, counted = numbers["per_concept"], numbers["counted"]
            worst = min(shares, key=lambda name: shares[name], default="")
            what = "nothing" if variant == BEFORE else str(found["title"]).partition(":")[0].lower()
            lines.append(
                (
                    what,
                    "" if variant == BEFORE else variant,
                    percent(numbers["unlearning_accuracy"]),
                    interval_text(numbers["unlearning_accuracy"], counted["forget"]),
                    f"{worst} {percent(shares[worst])}" if len(shares) > 1 else "",
                    percent(numbers["unlearning_accuracy_base"]),
                    percent(numbers["retain_accuracy"]),
                    percent(numbers["retain_accuracy_base"]),
                    f"{counted['forget']} + {counted['retain']}",
                )
            )
        return lines

    def rows(self, found: Found) -> dict[str, str | None]:
        return {
            f"after {self.name.replace('_', ' ')}, {variant}, forgotten": percent(numbers["unlearning_accuracy"])
            for variant, numbers in found["variants"].items()
            if variant != BEFORE
        }


def pictures_of(evidence: Evidence, candidate: Candidate, paint: Any = None) -> Pictures:
    """Pictures of the first forget and retain prompts."""
    count = evidence.recipe.evaluation.survival_samples
    forget = evidence.forget_prompts[: evidence.recipe.evaluation.shared(count, len(evidence.forgotten))]
    variant: dict[str, Any] | None = None if paint is None else {}
    return (
        candidate.generate(forget, evidence.forget_seed, "forget", paint=paint, variant=variant),
        candidate.generate(
            evidence.retain_prompts[:count], evidence.retain_seed, "retain", paint=paint, variant=variant
        ),
    )


def _numbers(evidence: Evidence, judge: Any, base: Pictures, erased: Pictures) -> dict[str, Any]:
    from erasediff_lora.evaluation.metrics.accuracy import accuracy

    found = accuracy(judge, base[0], erased[0], base[1], erased[1], evidence.concepts)
    per_concept = {name: found["per_concept"][name] for name in evidence.forgotten if name in found["per_concept"]}
    numbers = {f"{name}{end}": found[f"{name}{end}"] for name in NUMBERS for end in ("", "_base")}
    return numbers | {
        "counted": {"forget": found["counted"]["forget"], "retain": found["counted"]["retain"]},
        "per_concept": {name: row["unlearning_accuracy"] for name, row in per_concept.items()},
    }
