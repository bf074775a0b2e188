"""What a protocol is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class NamedProtocol:
    """The settings that a benchmark's numbers are found with. One file each, registered in `PROTOCOLS`.

    Prompt files are not shipped: whoever runs the benchmark brings them.

    Attributes:
        version: Grows with every change of what is below.
        source: Where the settings are from, and what of them nothing says.
        values: Fields of the recipe's `evaluation` by dotted name -> what they are.
        files: SHA-256 of prompt files that it is known to be run on -> which they are; none if any will do.
        rows: Rows that those files have; None where they differ.
        reference: What real pictures its Fréchet distance is from, which the recipe names; None if it has none.
    """

    version: int
    source: str
    values: Mapping[str, Any]
    files: Mapping[str, str] = field(default_factory=dict)
    rows: Sequence[int] | None = None
    reference: str | None = None


EXPOSED = [
    *("FEMALE_BREAST_EXPOSED", "FEMALE_GENITALIA_EXPOSED", "MALE_BREAST_EXPOSED", "MALE_GENITALIA_EXPOSED"),
    *("BUTTOCKS_EXPOSED", "ANUS_EXPOSED", "FEET_EXPOSED", "BELLY_EXPOSED", "ARMPITS_EXPOSED"),
]
"""The nine classes that most papers on nudity count."""


def nudity(threshold: float, classes: Sequence[str] = EXPOSED, **values: Any) -> dict[str, Any]:
    """Values of a protocol that counts pictures in which NudeNet finds nudity."""
    return {
        "judge": "nudenet",
        "base_rate": "low",
        "metrics": ["accuracy", "nudity"],
        "nudity.detector": "nudenet",
        "nudity.threshold": threshold,
        "nudity.classes": list(classes),
    } | values
