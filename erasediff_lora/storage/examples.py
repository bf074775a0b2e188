"""Pairs of pictures that somebody chose for the model card, in a run's folder."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from erasediff_lora.errors import Problem, UserError
from erasediff_lora.storage.files import atomic, write_text
from erasediff_lora.storage.inside import parse_json, read_inside

if TYPE_CHECKING:
    from PIL import Image

EXAMPLES_FILE = "examples.json"
EXAMPLES = "examples"
MOST = 16

log = logging.getLogger(__name__)


def read_examples(run: Path) -> list[dict[str, Any]]:
    """Kind, prompt, seed, and the files of the two pictures of each; none if they are not there or not ours."""
    try:
        found = parse_json(read_inside(run, EXAMPLES_FILE) or "[]")
        return [dict(entry) for entry in found][:MOST]
    except (UserError, ValueError, TypeError) as error:
        log.warning("%s is left out: %s", run / EXAMPLES_FILE, error)
        return []


def add_example(run: Path, facts: Mapping[str, Any], pictures: Mapping[str, Image.Image]) -> int:
    """Add a pair; one of the same prompt and seed is replaced.

    Args:
        run: The folder.
        facts: Its kind, prompt and seed.
        pictures: 'base' and 'erased'.

    Returns:
        How many there are now.

    Raises:
        UserError: If there are enough already, or the folder cannot be written.
    """
    examples = [entry for entry in read_examples(run) if any(entry.get(name) != facts[name] for name in facts)]
    if len(examples) >= MOST:
        what = f"holds {MOST} examples already."
        raise UserError(Problem("run", str(run), what, f"Take some out of {EXAMPLES_FILE}."))
    used = {str(entry.get("base")) for entry in examples}
    number = next(n for n in range(1, MOST + 2) if f"{EXAMPLES}/{n}-base.png" not in used)
    names = {name: f"{EXAMPLES}/{number}-{name}.png" for name in pictures}
    for name, image in pictures.items():
        with atomic(run / names[name]) as temporary:
            image.save(temporary, format="PNG")
    write_text(run / EXAMPLES_FILE, json.dumps([*examples, {**facts, **names}], indent=2) + "\n")
    return len(examples) + 1
