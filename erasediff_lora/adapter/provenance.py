"""What an adapter's header says about where it comes from."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from erasediff_lora.errors import Problem, UserError

log = logging.getLogger(__name__)
PREFIX = "erasediff."
LONGEST_TITLE = 200
"""Bytes, of the 255 that a file's name may have: some scripts take four a letter."""


@dataclass(frozen=True)
class Provenance:
    """Carried in the safetensors header of every format, under `erasediff.*`. None and () mean unknown.

    Attributes:
        base_model: Hub id or folder name of the base.
        base_fingerprint: See `erasediff_lora.adapter.checkpoint.fingerprint`.
        architecture: Modelspec id of the base's architecture, such as 'stable-diffusion-v1'.
        prediction_type: What the base's network predicts, such as 'epsilon'.
        resolution: Side of the base's pictures in pixels.
        concepts: What the adapter erases.
        objective: How it was trained.
        recipe_sha256: Hash of the part of the recipe that determines the adapter.
        version: Version of this package that made it.
        history: What was done to it since, one line each.
    """

    base_model: str | None = None
    base_fingerprint: str | None = None
    architecture: str | None = None
    prediction_type: str | None = None
    resolution: int | None = None
    concepts: tuple[str, ...] = ()
    objective: str | None = None
    recipe_sha256: str | None = None
    version: str | None = None
    history: tuple[str, ...] = ()

    @property
    def is_erasure(self) -> bool:
        """Whether it is recorded that the adapter erases something: of others nothing may be claimed."""
        return bool(self.concepts)

    @property
    def title(self) -> str:
        """A name for people and files, such as 'erase-cat'."""
        if not self.is_erasure:
            return "adapter"
        more = f" and {len(self.concepts) - 2} more" if len(self.concepts) > 2 else ""
        words = re.findall(r"\w+", "erase " + " ".join(self.concepts[:2]) + more)
        return "-".join(words).lower()[:80].encode()[:LONGEST_TITLE].decode(errors="ignore")

    def header(self) -> dict[str, str]:
        """Safetensors metadata: strings, lists as JSON."""
        known = {name: value for name, value in asdict(self).items() if value not in (None, ())}
        return {
            PREFIX + name: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            for name, value in known.items()
        }

    @classmethod
    def from_header(cls, metadata: Mapping[str, str]) -> Provenance:
        """Read back what `header` wrote; anything else is ignored."""
        values: dict[str, Any] = {}
        for field in fields(cls):
            text = metadata.get(PREFIX + field.name)
            if text is None:
                continue
            try:
                if field.name in ("concepts", "history"):
                    values[field.name] = tuple(str(item) for item in json.loads(text))
                else:
                    values[field.name] = int(text) if field.name == "resolution" else text
            except (ValueError, TypeError, RecursionError):
                log.warning("the adapter's header field %s%s is unreadable: %r", PREFIX, field.name, text[:80])
        return cls(**values)

    def require_base(self, fingerprint: str | None, base: str, *, strict: bool) -> None:
        """Say so if the adapter was trained on other weights than those it is put on.

        Args:
            fingerprint: Of the weights at hand; None if it can't be told.
            base: Name of the weights at hand.
            strict: Refuse instead of warning, also where either fingerprint is unknown.

        Raises:
            UserError: If `strict` and the fingerprints are not known to be equal.
        """
        if self.base_fingerprint is not None and self.base_fingerprint == fingerprint:
            return
        if self.base_fingerprint is None or fingerprint is None:
            what = f"cannot be compared with the base of the adapter, {self.base_model or 'unknown'}: no fingerprint"
            remedy = "Make sure that they are the same model."
        else:
            what = (
                f"is not the base that the adapter was trained on, {self.base_model or 'unnamed'}"
                f" (fingerprints {fingerprint} and {self.base_fingerprint})"
            )
            remedy = "Erasure on other weights is untested: look at what it draws."
        if strict:
            raise UserError(Problem("base", base, what + ".", "Use the adapter's own base, or leave out --strict."))
        log.warning("warning: base = %r %s. %s", base, what, remedy)
