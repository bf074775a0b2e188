"""What somebody asks the playground to draw, and what is refused."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from erasediff_lora.errors import Problem, UserError

LONGEST_PROMPT = 2000
"""Characters: some ten times what text encoders read."""
STRONGEST = 4.0
MOST_STEPS = 200
MOST_PROMPTS = 16
"""Drawn at once."""
LARGEST_SEED = 2**32 - 1


@dataclass(frozen=True)
class Wish:
    """One pair of pictures.

    Attributes:
        prompt: The text; SLOT in it stands for the embedding.
        seed: Of the noise.
        steps: Of the sampler.
        strengths: Of each adapter; 0 leaves it out.
        embedding: A file of token embeddings that somebody found.
    """

    prompt: str
    seed: int
    steps: int
    strengths: tuple[float, ...]
    embedding: Path | None = None

    def require_sound(self) -> None:
        """Refuse what cannot be drawn.

        Raises:
            UserError: With all that is wrong.
        """
        problems = []
        if not self.prompt.strip():
            problems.append(Problem("prompt", self.prompt, "is empty.", "Write what to draw."))
        if len(self.prompt) > LONGEST_PROMPT:
            what = f"has {len(self.prompt):,} characters; {LONGEST_PROMPT:,} are the most."
            problems.append(Problem("prompt", self.prompt, what, "Shorten it: text encoders read some 75 words."))
        problems += _whole("seed", self.seed, 0, LARGEST_SEED) + _whole("steps", self.steps, 1, MOST_STEPS)
        for number, strength in enumerate(self.strengths, 1):
            if not 0 <= strength <= STRONGEST:
                what = f"must be 0 to {STRONGEST:g}."
                problems.append(Problem(f"strength of adapter {number}", strength, what, "1 is as it was trained."))
        if problems:
            raise UserError(*problems)


def _whole(field: str, value: object, low: int, high: int) -> list[Problem]:
    if isinstance(value, int) and low <= value <= high:
        return []
    return [Problem(field, value, f"must be a whole number of {low} to {high:,}.", "Choose another.")]


def prompts_in(text: str) -> Sequence[str]:
    """The lines of a box with one prompt each.

    Raises:
        UserError: If there are none, or too many.
    """
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not 0 < len(lines) <= MOST_PROMPTS:
        what = f"holds {len(lines)} prompts; 1 to {MOST_PROMPTS} can be drawn at once."
        raise UserError(Problem("attack prompts", text, what, "Write one prompt a line."))
    return lines
