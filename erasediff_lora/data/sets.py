"""The forget and the retain set, encoded once and cached."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from erasediff_lora.data.buckets import by_shape, cut
from erasediff_lora.data.encoding import Encoded, Entry
from erasediff_lora.data.imaging import contact_sheet
from erasediff_lora.data.rows import Kind
from erasediff_lora.data.samples import Sample, list_samples
from erasediff_lora.data.set_report import Noted, SetReport
from erasediff_lora.data.shards import Conditions, Rows, select
from erasediff_lora.denoisers import Denoiser
from erasediff_lora.errors import Problem, UserError
from erasediff_lora.recipe import ForgetSet, Recipe, RetainSet
from erasediff_lora.storage.files import atomic, sha256, sweep
from erasediff_lora.storage.locks import making

log = logging.getLogger(__name__)
FORMAT = 6
NO_CONCEPT = -1


@dataclass(frozen=True)
class EncodedSet:
    """Latents and prompt embeddings of one set; of a large one on the disk, else in memory, on the CPU.

    Attributes:
        latents: (N, C, H, W), scaled as the network takes them; of several shapes as `buckets.padded` puts them.
        shapes: (N, 2), heights and widths.
        embeddings: What the network is told of P distinct prompts; row 0 is the empty one.
        captions: (N,) rows of `embeddings`.
        anchors: (N, A) rows of `embeddings`: what may take the caption's place. A = 0 in a retain set.
        prompts: The P distinct prompts.
        counterparts: Of every picture its anchor, drawn by the base from the same seed; as `latents`, on request.
        concepts: (N,) indices of `names`, what each picture shows; NO_CONCEPT in a retain set where nothing says so.
        names: The concepts, in the order of the recipe.
        report: What became of the pictures that the set was made from.
        fingerprint: Hash of captions, anchors and pictures that were read.
    """

    latents: Rows
    shapes: Tensor
    embeddings: Conditions
    captions: Tensor
    anchors: Tensor
    prompts: list[str]
    counterparts: Rows | None = None
    concepts: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.long))
    names: list[str] = field(default_factory=list)
    report: SetReport = field(default_factory=SetReport)
    fingerprint: str = ""

    def select(self, rows: Tensor) -> EncodedSet:
        """The pictures of these rows."""
        pictures: dict[str, Any] = {
            name: getattr(self, name)[rows] for name in ("shapes", "captions", "anchors", "concepts")
        }
        counterparts = None if self.counterparts is None else select(self.counterparts, rows)
        return replace(self, latents=select(self.latents, rows), counterparts=counterparts, **pictures)

    def rows_of(self, concept: str) -> list[int]:
        """Which pictures show the concept.

        Raises:
            UserError: If none does.
        """
        rows: list[int] = []
        if concept in self.names:
            rows = (self.concepts == self.names.index(concept)).nonzero().flatten().tolist()
        if not rows:
            raise UserError(Problem("forget", concept, "no picture of the forget set shows it.", "Add pictures of it."))
        return rows


@dataclass(frozen=True)
class Listed:
    """The pictures of a set before they are encoded.

    Attributes:
        kind: 'forget' or 'retain'.
        samples: The pictures, in order.
        report: What became of those that the set is made from.
    """

    kind: Kind
    samples: Sequence[Sample]
    report: SetReport

    @cached_property
    def fingerprint(self) -> str:
        """Hash of captions, anchors and pictures that were read."""
        return sha256(json.dumps(self.content).encode())

    @property
    def content(self) -> list[Any]:
        """What the set depends on of its pictures."""
        return [[s.caption, s.anchors, None if s.picture is None else s.picture.pixels] for s in self.samples]


def list_set(recipe: Recipe, kind: Kind) -> Listed:
    """See which pictures make up a set.

    Raises:
        UserError: For unusable pictures.
    """
    report = SetReport()
    return Listed(kind, list_samples(recipe, kind, report), report)


def prepare(recipe: Recipe, denoiser: Denoiser, kind: Kind, *, sheet: Path | None = None) -> EncodedSet:
    """List a set and load it from the cache, or draw or read its pictures and encode them; as `encoded`.

    Raises:
        UserError: For unusable pictures, or when the cache cannot be written.
    """
    return encoded(recipe, denoiser, list_set(recipe, kind), sheet=sheet)


def encoded(recipe: Recipe, denoiser: Denoiser, listed: Listed, *, sheet: Path | None = None) -> EncodedSet:
    """Load a set from the cache, or draw or read its pictures and encode them.

    Args:
        recipe: The recipe.
        denoiser: The base model; its encoders are used on a cache miss only.
        listed: The set's pictures.
        sheet: Where to write a contact sheet of the set, if it had to be made.

    Raises:
        UserError: For unusable pictures, or when the cache cannot be written.
    """
    kind = listed.kind
    folder = recipe.cache.expanduser() / f"{kind}-{_key(recipe, denoiser, listed)[:32]}"
    entry = Entry(folder, recipe, denoiser, kind, listed.samples)
    if (found := entry.read()) is None:
        entry.require_disk()
        with making(folder, f"the {kind} set"):
            found = entry.read(say=False)  # made by the one that was waited for
            if found is None:
                sweep(folder)
                show = partial(_show, denoiser, listed, entry, sheet)
                return _described(recipe, listed, entry, entry.make(show))
    log.info("%s set: %d pictures from the cache %s", kind, len(found.latents), folder)
    return _described(recipe, listed, entry, found)


def _described(recipe: Recipe, listed: Listed, entry: Entry, found: Encoded) -> EncodedSet:
    """The set with what is known of its pictures besides what is encoded."""
    samples, report = listed.samples, listed.report
    asked = [c if isinstance(c, str) else c.name for c in getattr(recipe, listed.kind).concepts]
    names = list(dict.fromkeys([*asked, *(s.concept for s in samples if s.concept is not None)]))
    cut = set(found.cut)
    for sample in samples:
        if sample.caption in cut:
            report.note(Noted.CUT_CAPTION, sample.caption)
    index = {name: number for number, name in enumerate(names)}
    row = {prompt: number for number, prompt in enumerate(entry.prompts)}
    return EncodedSet(
        latents=found.latents,
        shapes=found.shapes,
        embeddings=found.embeddings,
        captions=torch.tensor([row[s.caption] for s in samples]),
        anchors=torch.tensor([[row[a] for a in s.anchors] for s in samples]).reshape(len(samples), -1).long(),
        prompts=entry.prompts,
        counterparts=found.counterparts,
        concepts=torch.tensor([NO_CONCEPT if s.concept is None else index[s.concept] for s in samples]),
        names=names,
        report=report,
        fingerprint=listed.fingerprint,
    )


def _key(recipe: Recipe, denoiser: Denoiser, listed: Listed) -> str:
    """SHA-256 of all that the encoded set depends on."""
    data: ForgetSet | RetainSet = getattr(recipe, listed.kind)
    depends: dict[str, Any] = {
        "format": FORMAT,
        "kind": listed.kind,
        "base": denoiser.fingerprint,
        "dtype": str(denoiser.dtype),
        "device": denoiser.device.type,
        "resolution": recipe.sampling.resolution,
        "batch_size": recipe.sampling.batch_size,
        "samples": listed.content,
    }
    counterparts = listed.kind == "forget" and recipe.objective.counterparts
    if counterparts:
        depends["counterparts"] = recipe.forget.count
    if data.images is not None:
        depends["aspect_buckets"] = data.images.aspect_buckets
    if data.images is None or counterparts:
        depends["sampling"] = recipe.sampling.model_dump(mode="json")
    return sha256(json.dumps(depends, sort_keys=True).encode())


def _show(denoiser: Denoiser, listed: Listed, entry: Entry, path: Path | None, encoded: Encoded) -> None:
    """Decode up to eight pictures of every caption, and their counterparts, so that a person can check the set."""
    if path is None:
        return

    def decoded(latents: Rows, chosen: list[int]) -> list[Image.Image]:
        rows = torch.tensor(chosen)
        alike = [(shape, rows[of_shape]) for shape, of_shape in by_shape(encoded.shapes[rows])]
        return [picture for shape, some in alike for picture in denoiser.decode(cut(latents[some], shape))]

    known: dict[str, list[int]] = {}
    for row, sample in enumerate(listed.samples):
        known.setdefault(sample.caption, []).append(row)
    rows = []
    for caption in [prompt for prompt in entry.prompts if prompt in known][:40]:
        chosen = known[caption][:8]
        rows.append((caption, decoded(encoded.latents, chosen)))
        if encoded.counterparts is not None:
            rows.append(("counterparts", decoded(encoded.counterparts, chosen)))
    with atomic(path) as temporary:
        contact_sheet(rows, label_width=240).save(temporary, format="PNG")
