"""Pictures of the prompts that are to go on working."""

from __future__ import annotations

from collections.abc import Sequence

from erasediff_lora.evaluation.report.blocks import Block, Page
from erasediff_lora.evaluation.report.sections.asked import pictures


def title(page: Page) -> str:
    return "Pictures of other prompts"


def blocks(page: Page) -> Sequence[Block]:
    lost = [one["concept"] for one in page.claim("kept").get("concepts", ())]
    return pictures(page, "retain", lost)
