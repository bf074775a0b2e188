"""What a merged model says of itself: a card in a folder, an entry in the header of a single file."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from erasediff_lora import __version__, families
from erasediff_lora.adapter.checkpoint import Checkpoint
from erasediff_lora.adapter.provenance import PREFIX
from erasediff_lora.adapter.weighted import Weighted
from erasediff_lora.recipe.yaml_io import parse_yaml
from erasediff_lora.storage.files import write_text
from erasediff_lora.storage.markdown import table, template

FILE = "README.md"
NOTE = PREFIX + "merged"
"""Header, and field of the card: what has been merged, the first one first."""
STALE = ("modelspec.hash_sha256", "sshs_model_hash", "sshs_legacy_hash")
"""Headers that hold for the weights as they were."""
_TELLS_OF_BASE = re.compile(r"readme(\.\w+)?|model_?card\b.*|measured\.json", re.IGNORECASE)
_FRONT = re.compile(r"---\s*\n(.*?)\n---\s*(?:\n|$)", re.DOTALL)
LONGEST_CARD = 2**20
_PICTURES = frozenset((".png", ".jpg", ".jpeg", ".webp", ".gif", ".avif"))
_LICENCE = ("license", "license_name", "license_link")
_CARD = """\
# {{ base }}, {{ 'adapters taken out' if unmerge else 'with adapters merged in' }}

The weights of {{ base | code }}{% if fingerprint %} (fingerprint {{ fingerprint[:16] | code }}){% endif %}, changed \
with erasediff-lora {{ version }}:

{{ adapters }}

{% if concepts %}
These are meant to keep it from drawing {{ concepts }}. Whether they do was not measured on this model.
{% endif %}
Nothing was measured on this model at all. What the base's own card, its figures and its pictures say was true of the \
base{{ ', and they were left out: ' ~ left if left else '' }}.

**Licence**: {{ licence }} The files of the adapters do not say under which licences they are; mind those too.
"""


def tells_of_base(inside: Path) -> bool:
    """Whether a file of a model's folder says or shows what the model was like before merging."""
    return inside.suffix.lower() in _PICTURES or (
        len(inside.parts) == 1 and _TELLS_OF_BASE.fullmatch(inside.name) is not None
    )


@dataclass(frozen=True)
class Merged:
    """A base and what becomes of it.

    Attributes:
        checkpoint: The base.
        adapters: What is merged into it, or taken out.
        unmerge: Whether they are taken out.
        fingerprint: Of the base's network; None: unknown.
    """

    checkpoint: Checkpoint
    adapters: Sequence[Weighted]
    unmerge: bool = False
    fingerprint: str | None = None

    def header(self, metadata: Mapping[str, str]) -> dict[str, str]:
        """The header of the single file: the base's, without what is no longer so, and with what was merged."""
        kept = {key: value for key, value in metadata.items() if key not in STALE}
        return kept | {NOTE: json.dumps(_entries(metadata.get(NOTE)) + self._own_entries(), ensure_ascii=False)}

    def write_card(self, folder: Path, left: Sequence[str]) -> None:
        """Write the card into the new folder.

        Args:
            folder: Where to.
            left: Files that tell of the base and were not copied.
        """
        before = _front_matter(self.checkpoint.path / FILE)
        license, words = self._license(before)
        concepts = [c for one in self.adapters if self._strength(one) > 0 for c in one.adapter.provenance.concepts]
        text = template(_CARD).render(
            base=self._base,
            unmerge=self.unmerge,
            fingerprint=self.fingerprint,
            version=__version__,
            adapters=table(("adapter", "strength", "made to erase", "trained on this base"), self._rows()),
            concepts=", ".join(dict.fromkeys(concepts)),
            left=", ".join(left),
            licence=words,
        )
        was = before.get(NOTE)
        entries = (was if isinstance(was, list) else []) + self._own_entries()
        fields = license | {"library_name": "diffusers", NOTE: entries}
        write_text(folder / FILE, f"---\n{yaml.safe_dump(fields, sort_keys=False, allow_unicode=True)}---\n{text}\n")

    @property
    def _base(self) -> str:
        """The base's name: of the hub, if it lies in the hub's cache."""
        path = self.checkpoint.path
        owner = path.parent.parent.name
        if path.parent.name == "snapshots" and owner.startswith("models--"):
            return owner.removeprefix("models--").replace("--", "/")
        return path.resolve().name

    def _strength(self, one: Weighted) -> float:
        return -one.strength if self.unmerge else one.strength

    def _own_entries(self) -> list[dict[str, Any]]:
        return [
            {
                "adapter": Path(one.source).name,
                "strength": self._strength(one),
                "concepts": list(one.adapter.provenance.concepts),
            }
            for one in self.adapters
        ]

    def _rows(self) -> list[tuple[object, ...]]:
        rows: list[tuple[object, ...]] = []
        for one in self.adapters:
            origin = one.adapter.provenance
            same = None if None in (origin.base_fingerprint, self.fingerprint) else "no"
            same = "yes" if same and origin.base_fingerprint == self.fingerprint else same
            concepts = ", ".join(origin.concepts) or "nothing is recorded"
            rows.append((Path(one.source).name, f"{self._strength(one):g}", concepts, same or "unknown"))
        return rows

    def _license(self, before: Mapping[str, Any]) -> tuple[dict[str, str], str]:
        """The fields of the card, as the base's has them, and the sentence."""
        own = {field: before[field] for field in _LICENCE if isinstance(before.get(field), str)}
        if "license" in own:
            return own, f"that of the base, {own.get('license_name', own['license'])}, as its card says."
        found = families.of_architecture(next(iter(self.checkpoint.architectures), None))
        license = found[1].license if found is not None and len(self.checkpoint.architectures) == 1 else None
        of_family = f"; the published models of its family are under {license.name or license.id}" if license else ""
        return {}, f"that of the base, which is not known here{of_family}."


def is_merged_card(card: Path) -> bool:
    """Whether a card is one that is written here."""
    return card.name == FILE and NOTE in _front_matter(card)


def _front_matter(card: Path) -> dict[str, Any]:
    """The fields of a card; none if there is no card, or it is damaged."""
    try:
        if card.stat().st_size > LONGEST_CARD:
            return {}
        found = _FRONT.match(card.read_text(encoding="utf-8-sig"))
        fields = parse_yaml(found[1]) if found else {}
    except (OSError, ValueError):
        return {}
    return fields if isinstance(fields, dict) else {}


def _entries(text: str | None) -> list[Any]:
    """What a header or a card says was merged before."""
    try:
        found = json.loads(text or "[]")
    except (ValueError, RecursionError):
        return []
    return found if isinstance(found, list) else []
