"""The report's sections, in their order: a module each, which is a `blocks.Section`."""

from __future__ import annotations

from collections.abc import Sequence

from erasediff_lora.evaluation.report.blocks import Section
from erasediff_lora.evaluation.report.sections import (
    asked,
    attacks,
    concepts,
    numbers,
    others,
    provenance,
    score,
    survival,
    training,
)

SECTIONS: Sequence[Section] = (
    concepts,
    asked,
    others,
    attacks,
    survival,
    score,
    numbers,
    training,
    provenance,
)
