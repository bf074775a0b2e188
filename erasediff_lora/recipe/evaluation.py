"""The recipe's `evaluation` table: what is measured, by which judge, and which attacks are tried.

Here stands what all of them share. A metric or an attack with options brings a table of its own, its `Settings`, which
is found under its name: `evaluation.inversion.steps`.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path, PureWindowsPath
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

from pydantic import Field, create_model

from erasediff_lora.errors import Problem, nearest
from erasediff_lora.recipe.prompt_files import PromptFile
from erasediff_lora.recipe.schema import Section, one_of
from erasediff_lora.registry import ATTACKS, JUDGES, METRICS, PROTOCOLS, SURVIVAL, Registry

if TYPE_CHECKING:
    from erasediff_lora.recipe.checks import Sections

log = logging.getLogger(__name__)
S = TypeVar("S", bound=Section)
PARTS = re.compile(r":(?![\\/])|(?<=\w\w):")
"""Between the parts of NAME:WEIGHTS; what stands behind the letter of a drive is none."""
LEAST_EACH = 8
"""Pictures of each concept where several share a number: none goes without."""


class Evaluation(Section):
    """What is measured after training."""

    judge: str | None = Field(
        None,
        description="what names the content of a picture: demo, classifier:FILE, clip:WEIGHTS, transformers:WEIGHTS, "
        "torchvision:MODEL[:FILE], unlearncanvas:FILE, vqa:WEIGHTS, nudenet, opennsfw; none: pictures only",
    )
    judge_labels: dict[str, list[str]] = Field(
        default_factory=dict,
        description="concept or placeholder value: the judge's labels for it, any of which counts; "
        "omit where it has one of that name",
    )
    base_rate: Literal["usual", "low"] = Field(
        "usual",
        description="how often the base draws what forget prompts stand for; low, as for prompts that only hint at it: "
        "judged by the reduction against the base",
    )
    protocol: Annotated[str, one_of(PROTOCOLS)] | None = Field(
        None, description="a well-known benchmark, whose settings the fields that are left open take"
    )
    steps: int | None = Field(None, ge=1, description="denoising steps of its pictures; omit for sampling.steps")
    guidance: float | None = Field(None, ge=0, description="their guidance; omit for sampling.guidance")
    metrics: list[Annotated[str, one_of(METRICS)]] = Field(
        ["accuracy", "distances", "drift"], description="what to measure"
    )
    attacks: list[Annotated[str, one_of(ATTACKS)]] = Field(
        default_factory=list, description="what to try to bring the concept back"
    )
    survival: list[Annotated[str, one_of(SURVIVAL)]] = Field(
        default_factory=list, description="harmless changes of the model that the erasure is to outlive"
    )
    survival_samples: int = Field(60, ge=1, description="pictures of each kind of prompts after each such change")
    prompts: list[PromptFile] = Field(
        default_factory=list,
        description="files of prompts that are drawn in the place of the templates' (CSV, TSV, JSONL, JSON, lines, "
        "datasets): FILE, or {file: FILE, use: retain, columns: {prompt: NAME}}",
    )
    forget_samples: int = Field(
        200, ge=1, description="pictures for forget prompts, shared by all concepts; several get at least 8 each"
    )
    retain_samples: int = Field(
        200, ge=1, le=10_000_000, description="pictures for retain prompts, drawn with and without adapter"
    )
    first_of: list[int] | None = Field(
        None,
        min_length=2,
        max_length=2,
        description="of how many pictures for forget and for retain prompts those are the first, seeds and all, as"
        " --quick draws them; omit where they are all",
    )
    seed: int = Field(1_000_000, ge=0, description="seed of the first picture")
    never_learned: str | None = Field(
        None, description="base that never learned the concept (folder): the floor that attacks are compared with"
    )
    retain_floor: float = Field(
        0.95,
        ge=0,
        le=1,
        description="retain accuracy, as a share of the base's, below which no adapter is kept as best",
    )
    blur: bool | None = Field(
        None, description="blur the report's pictures until tapped; omit to blur where nudity is the subject"
    )

    @classmethod
    def table(cls, name: str, given: Any) -> type[Section]:
        return evaluation_table()

    @classmethod
    def tables(cls) -> Sequence[type[Section]]:
        return [evaluation_table()]

    def settings(self, kind: type[S]) -> S:
        """The table of a metric or an attack.

        Args:
            kind: Its `Settings`.
        """
        return next((table for table in self._values() if type(table) is kind), kind())

    def _values(self) -> Iterator[Any]:
        return (getattr(self, name) for name in type(self).model_fields)

    @property
    def other_names(self) -> dict[str, list[str]]:
        """Concept -> paraphrases, as the attack of that name has them."""
        found: dict[str, list[str]] = getattr(getattr(self, "paraphrases", None), "names", {})
        return found

    def check(self, sections: Sections) -> list[Problem]:
        judge = None if self.judge is None else check_spec("evaluation.judge", self.judge, JUDGES, "is no judge.")
        brought = [table for table in self._values() if isinstance(table, Section)]
        return [
            *([judge] if judge else []),
            *self._check_labels(sections),
            *self._check_first_of(),
            *self._check_prompts(),
            *(problem for table in brought for problem in table.check(sections)),
        ]

    def _check_first_of(self) -> Iterator[Problem]:
        for given, drawn in zip(self.first_of or (), (self.forget_samples, self.retain_samples), strict=False):
            if given < drawn:
                what = f"names fewer pictures than are drawn: {given} < {drawn}."
                yield Problem("evaluation.first_of", self.first_of, what, "Draw fewer, or omit it.")

    def _check_prompts(self) -> Iterator[Problem]:
        """The same file twice would be twice as many pictures of the same prompts, seeds and all."""
        for number, given in enumerate(self.prompts):
            if given in self.prompts[:number]:
                remedy = "Name it once; pictures: 2 draws each prompt twice."
                yield Problem(f"evaluation.prompts.{number}", str(given.file), "is named twice.", remedy)

    def _check_labels(self, sections: Sections) -> Iterator[Problem]:
        field = "evaluation.judge_labels"
        forget, retain = sections.forget, sections.retain
        known: set[str] = set()
        if forget and retain:
            tables = [forget.placeholders, retain.placeholders, *(c.placeholders or {} for c in forget.concepts)]
            known = {value for table in tables for values in table.values() for value in values}
            known |= {*retain.concepts, *(concept.name for concept in forget.concepts)}
        for name, labels in self.judge_labels.items():
            if known and name not in known:
                yield Problem(field, name, "is in no prompt.", nearest(name, known))
            if not labels or not all(label.strip() for label in labels):
                yield Problem(f"{field}.{name}", labels, "holds no label.", "List the judge's labels, or omit it.")

    @staticmethod
    def shared(pictures: int, concepts: int) -> int:
        """A number of pictures that concepts share, raised so that each of several gets some."""
        return max(pictures, LEAST_EACH * concepts) if concepts > 1 else pictures

    def without_folders(self) -> dict[str, Any]:
        """The table as it may be shown to others: names of local files and folders, without where they lie."""
        shown: dict[str, Any] = without_folders(self.model_dump(mode="json"))
        return shown

    def quick(self, batch: int) -> dict[str, Any]:
        """Values of the preset that takes a minute or two on the embedded model, and seconds where the rest is done.

        Its pictures are the first of those of the recipe's own evaluation: what that has drawn is in the cache.

        Args:
            batch: Pictures that are drawn at once, and kept together.
        """
        own, most = (self.forget_samples, self.retain_samples), (120, 200)
        fewer = [min(count, math.ceil(bound / batch) * batch) for count, bound in zip(own, most, strict=True)]
        return {
            "metrics": [name for name in self._able(METRICS) if METRICS[name].quick],
            "attacks": [name for name in self._able(ATTACKS) if ATTACKS[name].quick],
            "forget_samples": fewer[0],
            "retain_samples": fewer[1],
            "first_of": self.first_of or list(own),
        }

    def full(self) -> dict[str, Any]:
        """Values of the preset that measures all that the recipe has the means for."""
        return {"metrics": self._able(METRICS), "attacks": self._able(ATTACKS)}

    def _able(self, registry: Registry) -> list[str]:
        return [name for name, part in registry.items() if part(name).available(self)]


@cache
def evaluation_table() -> type[Evaluation]:
    """`Evaluation` with the tables of all metrics and attacks that have one."""
    taken = {*Evaluation.model_fields, *dir(Evaluation)}
    tables: dict[str, Any] = {}
    for registry in (METRICS, ATTACKS, SURVIVAL):
        for name, part in registry.items():
            if part.Settings is None:
                continue
            if name in taken:
                log.warning("the options of %r (%s) cannot be set: the name is taken", name, registry.kind)
                continue
            taken.add(name)
            tables[name] = (part.Settings, Field(default_factory=part.Settings))
    return create_model("Evaluation", __base__=Evaluation, __module__=__name__, **tables)


def check_spec(field: str, spec: str, registry: Registry, unknown: str) -> Problem | None:
    """What is wrong with `NAME` or `NAME:WEIGHTS`, as far as can be told without loading.

    Args:
        field: The recipe's field.
        spec: What stands there.
        registry: Parts that say what `needs` to follow their name.
        unknown: What to say of another name.
    """
    name, _, weights = spec.partition(":")
    if name not in registry:
        return Problem(field, spec, unknown, nearest(name, registry))
    if registry[name].needs and not weights:
        return Problem(field, spec, "names no weights.", f"Write {name}:{registry[name].needs}.")
    if registry[name].alone and ":" in spec:
        return Problem(field, spec, f"says more than {name}, which has weights of its own.", f"Write {name}.")
    return None


def without_folders(value: Any) -> Any:
    """A value as it may be shown to others: names of local files and folders, without where they lie."""
    if isinstance(value, dict):
        return {key: without_folders(inside) for key, inside in value.items()}
    if isinstance(value, list):
        return [without_folders(inside) for inside in value]
    return ":".join(map(_name, PARTS.split(value))) if isinstance(value, str) else value


def _name(text: str) -> str:
    """The last part of a path that exists here, or that can only be one; anything else as it is."""
    try:
        path = PureWindowsPath(text) if re.match(r"\\|[A-Za-z]:[\\/]", text) else Path(text).expanduser()
        return path.name if path.root or (isinstance(path, Path) and path.exists()) else text
    except (OSError, RuntimeError):  # too long for a path; nobody's home
        return text
