"""Other adapters beside the erasure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from erasediff_lora.errors import Problem, UserError
from erasediff_lora.evaluation.survival.base import Alter, Hardship
from erasediff_lora.recipe.schema import Section

if TYPE_CHECKING:
    from erasediff_lora.evaluation.candidates import Candidate
    from erasediff_lora.evaluation.evidence import Evidence
    from erasediff_lora.recipe.evaluation import Evaluation

OTHER = "stacked"
FIELD = "evaluation.stack.adapters"


class StackSettings(Section):
    """Adapters of the user's choice, loaded beside the erasure."""

    adapters: list[Path] = Field(default_factory=list, description="adapter files, or folders of runs")
    strength: float = Field(1.0, gt=0, le=10, description="of each of them")


class Stack(Hardship):
    """A variant is another adapter, by the name of its file or run."""

    Settings = StackSettings
    title = "Stacked: beside another adapter"

    def available(self, evaluation: Evaluation) -> bool:
        return bool(evaluation.settings(StackSettings).adapters)

    def require_means(self, evaluation: Evaluation) -> None:
        from erasediff_lora.adapter import formats

        problems = []
        files = evaluation.settings(StackSettings).adapters
        if not files:
            problems.append(Problem(FIELD, None, "names no adapter to stack with.", "List files or folders of runs."))
        for file in files:
            try:
                formats.read(file)
            except UserError as error:
                problems += error.problems
        if problems:
            raise UserError(*problems)

    def variants(self, evidence: Evidence) -> Sequence[str]:
        return list(_named(evidence))

    def depends(self, evidence: Evidence, variant: str) -> dict[str, Any]:
        from erasediff_lora.adapter import formats
        from erasediff_lora.storage.files import sha256

        file = formats.locate(_named(evidence)[variant])
        return {"adapter_beside": sha256(file.read_bytes()), "strength": evidence.settings(StackSettings).strength}

    @contextmanager
    def altering(self, evidence: Evidence, candidate: Candidate) -> Iterator[Alter]:
        from erasediff_lora.adapter.loading import load
        from erasediff_lora.evaluation.erasures import ADAPTER

        denoiser, options = candidate.denoiser, evidence.settings(StackSettings)
        pipeline, files = denoiser.pipeline, _named(evidence)
        if not hasattr(pipeline, "load_lora_weights"):
            what = f"cannot be stacked: {type(pipeline).__name__} loads no adapters."
            raise UserError(
                Problem(FIELD, [str(file) for file in files.values()], what, "Leave survival by stack out.")
            )
        loaded = ""

        def alter(variant: str) -> None:
            nonlocal loaded
            if loaded == variant:
                return
            if loaded:
                pipeline.delete_adapters(OTHER)
            load(pipeline, files[variant], name=OTHER, base=denoiser.weights)
            loaded = variant
            beside = candidate.strength and candidate.erasure is not None and candidate.erasure.is_adapter
            names = [ADAPTER, OTHER] if beside else [OTHER]
            pipeline.enable_lora()
            pipeline.set_adapters(names, [*[candidate.strength] * (len(names) - 1), options.strength])

        try:
            yield alter
        finally:
            if loaded:
                pipeline.delete_adapters(OTHER)


def _named(evidence: Evidence) -> dict[str, Path]:
    """Adapters by name; with their folders' where names are alike."""
    files = evidence.settings(StackSettings).adapters
    names = [file.stem for file in files]
    return {
        name if names.count(name) == 1 else f"{file.parent.name}/{name}": file
        for name, file in zip(names, files, strict=True)
    }
