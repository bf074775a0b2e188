"""What the page of a playground says of a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from erasediff_lora.errors import UserError
from erasediff_lora.recipe.names import few

if TYPE_CHECKING:
    from erasediff_lora.recipe import Recipe

SHOWN = 6
PREVIEW = 12
"""Steps of the first look at most."""


@dataclass(frozen=True)
class Facts:
    """Of a run.

    Attributes:
        run: Its folder.
        adapters: Names of what is tried.
        concepts: What is to be gone.
        base: Its public name.
        judge: The recipe's; None without one.
        steps: Of a first look.
        prompts: Some that name a concept.
        verdict: In a few words.
        missing: Why there is none, and what to do about it.
    """

    run: Path
    adapters: Sequence[str]
    concepts: Sequence[str]
    base: str
    judge: str | None
    steps: int
    prompts: Sequence[str]
    verdict: str
    missing: str

    @classmethod
    def of(cls, recipe: Recipe, adapters: Sequence[Path]) -> Facts:
        """Read them.

        Args:
            recipe: Of the first run.
            adapters: Runs' folders or adapter files, the first run first.
        """
        from erasediff_lora.data.prompts import forget_prompts

        names = [path.resolve().name for path in adapters]
        names = [name if names.count(name) == 1 else f"{name} ({n})" for n, name in enumerate(names, 1)]
        concepts = [concept.name for concept in recipe.forget.concepts]
        prompts = list(dict.fromkeys(prompt.text for prompt in forget_prompts(recipe.forget)))
        return cls(
            adapters[0],
            names,
            concepts,
            recipe.model.public_name,
            recipe.evaluation.without_folders()["judge"],
            min(recipe.sampling.steps, PREVIEW),
            prompts[:SHOWN] or [""],
            *_verdict(adapters[0]),
        )

    @property
    def title(self) -> str:
        """Of the window."""
        return f"erasediff-lora: {few(self.concepts, 4)}"

    def headline(self) -> str:
        """The first words of the page, in Markdown."""
        of = f" The verdict is of {self.adapters[0]}." if len(self.adapters) > 1 and not self.missing else ""
        what = f"{', '.join(self.adapters)} on {self.base}.{of} {self.missing}".strip()
        return f"# Erasing {_plain(few(self.concepts, 4))}: {self.verdict}\n\n{_plain(what)}"

    def kind_of(self, prompt: str) -> str:
        """Whether a prompt asks for what is to be gone: 'forget' or 'retain'."""
        return "forget" if any(name.lower() in prompt.lower() for name in self.concepts) else "retain"


def _verdict(run: Path) -> tuple[str, str]:
    from erasediff_lora.evaluation.verdict import headline, read_judged

    try:
        return headline(read_judged(run)["verdict"]), ""
    except UserError as error:
        reasons = "; ".join(f"{problem.what} {problem.remedy}" for problem in error.problems)
        return "not evaluated", f"This run {reasons}"


def _plain(text: str) -> str:
    """Names from strangers' files, as text."""
    return "".join(f"\\{c}" if c in r"\`*_{}[]<>()#+-!|$~&" else c for c in text if c.isprintable())
