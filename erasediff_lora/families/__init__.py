"""Families of base models: what is known of each, and which one something belongs to.

A new family is a file with a `Family` and a line in `registry.FAMILIES`, or an entry point of another package in the
group `erasediff_lora.families`.
"""

from __future__ import annotations

from collections.abc import Collection

from erasediff_lora.families.base import Architecture, Family, License
from erasediff_lora.families.kohya import KohyaNames
from erasediff_lora.families.layouts import Shapes
from erasediff_lora.families.names import Size, shares, sizes
from erasediff_lora.families.native import NativeNames
from erasediff_lora.families.recognition import Recognised, Unfit, asked, identifiers, recognise, said_by
from erasediff_lora.families.slot import Slot
from erasediff_lora.registry import FAMILIES


def networks() -> tuple[str, ...]:
    """Components that predict; a pipeline has one of them."""
    return tuple(dict.fromkeys(FAMILIES[name].component for name in FAMILIES))


def components() -> tuple[str, ...]:
    """All components that can be adapted, those that predict first."""
    encoders = {encoder for name in FAMILIES for encoder in FAMILIES[name].encoders}
    return (*networks(), *sorted(encoders))


def of_pipeline(pipeline: str) -> str | None:
    """Name of the family whose folders say that they hold this pipeline; None if no family's do."""
    return next((name for name in FAMILIES if FAMILIES[name].pipeline == pipeline), None)


def name_of(family: Family) -> str:
    """The family's name in the registry."""
    return next(name for name in FAMILIES if FAMILIES[name] is family)


def of_architecture(identifier: str | None) -> tuple[Family, Architecture] | None:
    """The family and the architecture with this modelspec id; None if it is unknown."""
    found = ((family, one) for family in asked() for one in family.architectures if one.id == identifier)
    return next(found, None)


def architectures() -> tuple[str, ...]:
    """Modelspec ids of all architectures."""
    return tuple(one.id for name in FAMILIES for one in FAMILIES[name].architectures)


def network_in(keys: Collection[str]) -> str | None:
    """The component whose tensors lie in a file by diffusers' names, without its own before them; None if none do."""
    return next((family.component for family in asked() if any(k.startswith(family.modules) for k in keys)), None)


def slots(keys: Collection[str]) -> dict[str, Slot]:
    """Adapter name -> slot, for every weight of a single-file checkpoint that the family knows which knows most."""
    found = [family.single_file(keys) for family in asked() if family.single_file is not None]
    return max(found, key=len, default={})


__all__ = [
    "FAMILIES",
    "Architecture",
    "Family",
    "KohyaNames",
    "License",
    "NativeNames",
    "Recognised",
    "Shapes",
    "Size",
    "Slot",
    "Unfit",
    "architectures",
    "asked",
    "components",
    "identifiers",
    "name_of",
    "network_in",
    "networks",
    "of_architecture",
    "of_pipeline",
    "recognise",
    "said_by",
    "shares",
    "sizes",
    "slots",
]
