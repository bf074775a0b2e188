"""What an evaluation found of an adapter, by its numbers: an evaluation.json is input like any other."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, ValidationError

from erasediff_lora.errors import Problem, UserError
from erasediff_lora.evaluation.results import recognition
from erasediff_lora.evaluation.verdict import read_judged
from erasediff_lora.storage.examples import EXAMPLES_FILE, read_examples
from erasediff_lora.storage.files import sha256
from erasediff_lora.storage.markdown import without_folders
from erasediff_lora.storage.run_folder import EVALUATION_FILE, read_evaluation

log = logging.getLogger(__name__)
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=0)]
Distance = Annotated[float, Field(allow_inf_nan=False)]
ABOUT_THE_CONCEPTS = ("erased", "robust")
AGAIN = "Make it again: erasediff-lora evaluate RUN."


class ConceptNumbers(BaseModel):
    """Of one concept; older versions did not count its pictures."""

    unlearning_accuracy: Share | None = None
    unlearning_accuracy_base: Share | None = None
    retain_accuracy: Share | None = None
    retain_accuracy_base: Share | None = None
    pictures: Count = 0
    pictures_base: Count = 0
    became: dict[str, Share] = {}


class Counted(BaseModel):
    """Pictures that were judged."""

    forget: Count
    forget_base: Count = 0
    retain: Count = 0


class Accuracy(BaseModel):
    """What the judge saw."""

    unlearning_accuracy: Share
    unlearning_accuracy_base: Share | None = None
    retain_accuracy: Share | None = None
    retain_accuracy_base: Share | None = None
    counted: Counted
    per_concept: dict[str, ConceptNumbers] = {}


class Frechet(BaseModel):
    """From the base's own pictures."""

    frechet: Distance


class OwnSamples(BaseModel):
    """Of both models."""

    base: Frechet
    erased: Frechet


class Distances(BaseModel):
    """How far the pictures of other prompts moved."""

    features: str
    own_samples: OwnSamples


class Metrics(BaseModel):
    """Those that a card speaks of."""

    accuracy: Accuracy | None = None
    distances: Distances | None = None


class Achieved(BaseModel):
    """What an attack did to a model, by its best try."""

    success: Share
    pictures: Count = 0
    per_concept: dict[str, Achieved] = {}


class Attacked(BaseModel):
    """An attack."""

    title: str
    budget: str
    models: dict[str, Achieved]


class Pair(BaseModel):
    """A prompt's picture without and with the adapter: names of files in the run."""

    kind: Literal["forget", "retain"]
    prompt: str
    seed: int
    base: str
    erased: str


class Adapter(BaseModel):
    """What was evaluated."""

    sha256: str


class Sampling(BaseModel):
    """How the pictures were drawn."""

    steps: int
    guidance: float


class Seeds(BaseModel):
    """The first and the last of each set."""

    forget: tuple[int, int]
    retain: tuple[int, int]


class Numbers(BaseModel):
    """What a card takes from an evaluation.json."""

    adapter: Adapter
    concepts: Annotated[list[str], Field(min_length=1)]
    judge: str | None = None
    sampling: Sampling
    seeds: Seeds
    metrics: Metrics
    attacks: dict[str, Attacked]
    refused: dict[str, str] = {}
    pictures: list[Pair] = []
    blur: bool | None = None

    @property
    def reasons(self) -> dict[str, str]:
        """What was left out, and why; paths are shortened to names."""
        return {name: without_folders(reason) for name, reason in self.refused.items()}


@dataclass(frozen=True)
class Claim:
    """A claim of the verdict.

    Attributes:
        name: 'erased', 'kept' or 'robust'.
        holds: None if it cannot be told.
        measured: Whether anybody looked.
        text: The numbers that decide, and the rule.
        parts: The same of each concept, where there are several.
    """

    name: str
    holds: bool | None
    measured: bool
    text: str
    parts: tuple[Claim, ...] = ()

    @property
    def answer(self) -> str:
        """In words."""
        if self.holds is None:
            return "not decided" if self.measured else "not measured"
        return "yes" if self.holds else "no"


@dataclass(frozen=True)
class Findings:
    """What is known of an adapter.

    Attributes:
        result: The evaluation.json, with the verdict that its numbers give; empty if there is none.
        numbers: What stands in it, checked; None if there is none.
        claims: The verdict, by name.
    """

    result: Mapping[str, Any]
    numbers: Numbers | None
    claims: Mapping[str, Claim]


NOT_EVALUATED = Findings(
    {}, None, {name: Claim(name, None, False, "Nothing was measured.") for name in ("erased", "kept", "robust")}
)


def read_findings(run: Path, adapter: Path, concepts: Sequence[str]) -> Findings:
    """What a run's evaluation.json says of its adapter. The verdict is made anew: what stands there may be old, or lie.

    Args:
        run: The folder.
        adapter: The adapter's file; an evaluation of another file says nothing of it.
        concepts: What the adapter's header says that it erases.

    Raises:
        UserError: If the file is damaged, or its numbers cannot be understood.
    """
    if not (run / EVALUATION_FILE).is_file():
        log.warning("warning: %s has no evaluation.json, so the card states no numbers and shows no pictures", run)
        return NOT_EVALUATED
    written = read_evaluation(run)
    numbers = _checked(written, run / EVALUATION_FILE)
    if numbers.adapter.sha256 != sha256(adapter.read_bytes()):
        log.warning("warning: the evaluation.json is of another adapter than %s, and left out. %s", adapter, AGAIN)
        return NOT_EVALUATED
    result = read_judged(run)
    if _answers(result["verdict"]) != _answers(written["verdict"]):
        log.warning("warning: the verdict in %s is not what its numbers give; the card goes by these", EVALUATION_FILE)
    missing = [concept for concept in concepts if concept not in numbers.concepts]
    claims = [
        _claim(entry, result, missing, all_missing=len(missing) == len(concepts) > 0) for entry in result["verdict"]
    ]
    return Findings(result, numbers, {claim.name: claim for claim in claims})


def chosen_pairs(run: Path) -> list[Pair]:
    """Those that somebody chose in the playground.

    Raises:
        UserError: If they are not as the playground writes them.
    """
    try:
        return [Pair.model_validate(entry) for entry in read_examples(run)]
    except ValidationError as error:
        what = f"is not as expected: {error.errors()[0]['msg']}."
        raise UserError(Problem("run", str(run / EXAMPLES_FILE), what, "Correct it, or delete it.")) from None


def _checked(result: Mapping[str, Any], file: Path) -> Numbers:
    try:
        numbers = Numbers.model_validate(result)
    except ValidationError as error:
        raise UserError(
            *(
                Problem(
                    f"{file.name}: {'.'.join(map(str, wrong['loc']))}",
                    wrong["input"],
                    f"is not as expected: {wrong['msg']}.",
                    AGAIN,
                )
                for wrong in error.errors()
            )
        ) from None
    for name, attack in numbers.attacks.items():
        if "erased" not in attack.models:
            raise UserError(
                Problem(f"{file.name}: attacks.{name}.models", list(attack.models), "has no erased model.", AGAIN)
            )
    return numbers


def _answers(claims: Any) -> Any:
    """Claim -> whether it holds, of a verdict that may be of another make."""
    try:
        return {claim["claim"]: claim["holds"] for claim in claims}
    except (LookupError, TypeError):
        return None


def _claim(entry: Mapping[str, Any], result: Mapping[str, Any], missing: Iterable[str], *, all_missing: bool) -> Claim:
    """A claim about everything that the adapter is said to erase."""
    name, holds, text = entry["claim"], entry["holds"], entry["text"]
    if name in ABOUT_THE_CONCEPTS and (names := ", ".join(missing)):
        holds, text = (None if holds else holds), f"Not measured at all: {names}. {text}"
    seen = recognition(result)
    looked = {
        "erased": seen is not None and not all_missing,
        "kept": seen is not None and seen.retained is not None,
        "robust": bool(result["attacks"]) and not all_missing,
    }
    told = entry.get("concepts", ())
    parts = [Claim(f"{name}: {one['concept']}", one["holds"], looked[name], one["text"]) for one in told]
    return Claim(name, holds, looked[name], text, tuple(parts) if len(parts) > 1 else ())
