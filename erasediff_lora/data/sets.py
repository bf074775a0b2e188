"""The forget and the retain set, encoded once and cached."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from erasediff_lora.condition import Condition
from erasediff_lora.data.buckets import by_shape, cut, padded
from erasediff_lora.data.imaging import contact_sheet
from erasediff_lora.data.latents import counterpart_latents, picture_latents, picture_sizes
from erasediff_lora.data.prompts import is_named, substitute
from erasediff_lora.data.rows import Kind
from erasediff_lora.data.samples import Sample, list_samples
from erasediff_lora.data.set_report import Noted, SetReport
from erasediff_lora.denoisers import Denoiser
from erasediff_lora.denoisers.noise_schedule import cannot_draw
from erasediff_lora.errors import Problem, UserError
from erasediff_lora.recipe import ForgetSet, Recipe, RetainSet
from erasediff_lora.storage import checksummed
from erasediff_lora.storage.files import atomic, sha256
from erasediff_lora.storage.locks import making

log = logging.getLogger(__name__)
FORMAT = 5
TOLD = "embeddings."
MEGABYTE = 2**20
NO_CONCEPT = -1


@dataclass(frozen=True)
class EncodedSet:
    """Latents and prompt embeddings of one set, on the CPU.

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
        cut: Those of `prompts` that are longer than the model reads.
        report: What became of the pictures that the set was made from.
    """

    latents: Tensor
    shapes: Tensor
    embeddings: Condition
    captions: Tensor
    anchors: Tensor
    prompts: list[str]
    counterparts: Tensor | None = None
    concepts: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.long))
    names: list[str] = field(default_factory=list)
    cut: list[str] = field(default_factory=list)
    report: SetReport = field(default_factory=SetReport)

    def select(self, rows: Tensor) -> EncodedSet:
        """The pictures of these rows."""
        pictures = {
            name: getattr(self, name)[rows] for name in ("latents", "shapes", "captions", "anchors", "concepts")
        }
        counterparts = None if self.counterparts is None else self.counterparts[rows]
        return replace(self, counterparts=counterparts, **pictures)

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


def prepare(recipe: Recipe, denoiser: Denoiser, kind: Kind, *, sheet: Path | None = None) -> EncodedSet:
    """Load the set from the cache, or draw or read its pictures and encode them.

    Args:
        recipe: The recipe.
        denoiser: The base model; its encoders are used on a cache miss only.
        kind: 'forget' or 'retain'.
        sheet: Where to write a contact sheet of the set, if it had to be made.

    Raises:
        UserError: For unusable pictures, or when the cache cannot be written.
    """
    report = SetReport()
    samples = list_samples(recipe, kind, report)
    file = recipe.cache.expanduser() / f"{kind}-{_key(recipe, denoiser, kind, samples)[:32]}.safetensors"
    encoded = _read(file, kind)
    if encoded is None:
        made = False
        prompts = list(dict.fromkeys([""] + [text for s in samples for text in (s.caption, *s.anchors)]))
        _check_disk(file, len(samples) * (2 if _with_counterparts(recipe, kind) else 1), len(prompts))
        with making(file, f"the {kind} set"):
            encoded = _read(file, kind)  # made by the one that was waited for
            if encoded is None:
                encoded, made = _encode(recipe, denoiser, kind, samples, prompts), True
                _write(file, encoded)
        if made and sheet is not None:
            _write_sheet(sheet, denoiser, encoded)
    return _described(recipe, kind, encoded, samples, report)


def _described(
    recipe: Recipe, kind: Kind, encoded: EncodedSet, samples: Sequence[Sample], report: SetReport
) -> EncodedSet:
    """The set with what is known of its pictures besides what is encoded."""
    asked = [c if isinstance(c, str) else c.name for c in getattr(recipe, kind).concepts]
    names = list(dict.fromkeys([*asked, *(s.concept for s in samples if s.concept is not None)]))
    cut = set(encoded.cut)
    for sample in samples:
        if sample.caption in cut:
            report.note(Noted.CUT_CAPTION, sample.caption)
    index = {name: number for number, name in enumerate(names)}
    concepts = [NO_CONCEPT if s.concept is None else index[s.concept] for s in samples]
    return replace(encoded, concepts=torch.tensor(concepts), names=names, report=report)


def _with_counterparts(recipe: Recipe, kind: Kind) -> bool:
    return kind == "forget" and recipe.objective.counterparts


def _encode(
    recipe: Recipe, denoiser: Denoiser, kind: Kind, samples: Sequence[Sample], prompts: list[str]
) -> EncodedSet:
    row = {prompt: index for index, prompt in enumerate(prompts)}
    cut = _cut_prompts(denoiser, kind, samples, prompts)
    sizes = picture_sizes(recipe, denoiser, kind, samples)
    latents, shapes = padded(picture_latents(recipe, denoiser, kind, samples, sizes))
    drawn = getattr(recipe, kind).images is None
    _require_finite(latents, [sample.caption for sample in samples], kind, "picture", denoiser, drawn=drawn)
    counterparts: Tensor | None = None
    if _with_counterparts(recipe, kind):
        counterparts, _ = padded(counterpart_latents(recipe, denoiser, samples, sizes))
        _require_finite(
            counterparts, [sample.anchors[0] for sample in samples], kind, "counterpart", denoiser, drawn=True
        )
    embeddings = denoiser.encode_prompts(prompts).to(denoiser.dtype).to(torch.device("cpu"))
    for part in embeddings.parts.values():
        _require_finite(part, prompts, kind, "prompt", denoiser)
    return EncodedSet(
        latents=latents,
        shapes=shapes,
        embeddings=embeddings,
        captions=torch.tensor([row[s.caption] for s in samples]),
        anchors=torch.tensor([[row[a] for a in s.anchors] for s in samples]).reshape(len(samples), -1).long(),
        prompts=prompts,
        counterparts=counterparts,
        cut=cut,
    )


def _cut_prompts(denoiser: Denoiser, kind: Kind, samples: Sequence[Sample], prompts: Sequence[str]) -> list[str]:
    """The prompts that are longer than the model reads.

    Raises:
        UserError: If a forgotten concept is named behind the cut only: what the model reads says nothing of it.
    """
    tokens = dict(zip(prompts, denoiser.tokenize(prompts), strict=True))
    cut = [prompt for prompt in prompts if tokens[prompt].cut]
    others = {
        s.caption: s.anchors or [substitute(s.caption, s.concept, "")]
        for s in samples
        if kind == "forget" and s.concept is not None and (s.anchors or is_named(s.caption, s.concept))
    }
    texts = list(dict.fromkeys(other for several in others.values() for other in several))
    tokens |= zip(texts, denoiser.tokenize(texts), strict=True)
    alike = [text for text, several in others.items() if any(tokens[text].ids == tokens[one].ids for one in several)]
    if alike:
        what = "reads the same as what is to take its place"
        if alike[0] in cut:
            what = "names the concept only behind the last token that the model reads"
        more = f"; {len(alike) - 1} more" * (len(alike) > 1)
        raise UserError(
            Problem(
                "forget.images" if samples[0].picture else "forget.templates",
                alike[0],
                f"{what}: nothing would be erased{more}.",
                "Name the concept near the beginning.",
            )
        )
    return cut


def _require_finite(
    values: Tensor, captions: Sequence[str], kind: Kind, what: str, denoiser: Denoiser, *, drawn: bool = False
) -> None:
    """No NaN reaches the cache."""
    broken = (~torch.isfinite(values.flatten(1)).all(dim=1)).nonzero().flatten().tolist()
    if not broken:
        return
    problem = f"{what} {broken[0]} is encoded as NaN or Inf in {denoiser.dtype}, with {len(broken) - 1} more"
    if drawn and cannot_draw(denoiser.noise_scheduler):
        problem += ": the schedule ends in noise alone (zero SNR), where a prediction of the noise says nothing"
        remedy = f"Set model.prediction_type: v_prediction if the base was trained so, or give {kind}.images."
    elif denoiser.dtype in (torch.float32, torch.float64):
        problem += ": the base's own weights or configuration make it"
        remedy = "Draw with the base alone; download or convert it again."
    else:  # half precision overflows in some networks
        remedy = "Use model.dtype: float32" + " or bfloat16." * (denoiser.dtype == torch.float16)
    raise UserError(Problem(kind, captions[broken[0]], problem + ".", remedy.removesuffix(".") + "."))


def _key(recipe: Recipe, denoiser: Denoiser, kind: Kind, samples: Sequence[Sample]) -> str:
    """SHA-256 of all that the encoded set depends on."""
    depends: dict[str, Any] = {
        "format": FORMAT,
        "kind": kind,
        "base": denoiser.fingerprint,
        "dtype": str(denoiser.dtype),
        "device": denoiser.device.type,
        "resolution": recipe.sampling.resolution,
        "samples": [[s.caption, s.anchors, None if s.picture is None else s.picture.pixels] for s in samples],
    }
    data: ForgetSet | RetainSet = getattr(recipe, kind)
    if _with_counterparts(recipe, kind):
        depends |= {"counterparts": recipe.forget.count, "sampling": recipe.sampling.model_dump(mode="json")}
    if data.images is not None:
        depends["aspect_buckets"] = data.images.aspect_buckets
    else:
        depends["sampling"] = recipe.sampling.model_dump(mode="json")
    return sha256(json.dumps(depends, sort_keys=True).encode())


def _read(file: Path, kind: Kind) -> EncodedSet | None:
    """The cached set, or None if there is none or it does not match its own hash."""
    if (found := checksummed.cached(file)) is None:
        return None
    tensors, header = found
    log.info("%s set: %d pictures from the cache %s", kind, len(tensors["latents"]), file)
    named: dict[str, Any] = {name: json.loads(header[name]) for name in ("prompts", "cut")}
    told = {name.removeprefix(TOLD): tensors.pop(name) for name in list(tensors) if name.startswith(TOLD)}
    return EncodedSet(embeddings=Condition(**told), **(named | tensors))


def _write(file: Path, encoded: EncodedSet) -> None:
    tensors = {name: value for name, value in vars(encoded).items() if isinstance(value, Tensor) and len(value)}
    tensors |= {TOLD + name: part.contiguous() for name, part in encoded.embeddings.parts.items()}
    checksummed.write(tensors, file, {"prompts": json.dumps(encoded.prompts), "cut": json.dumps(encoded.cut)})


def _check_disk(file: Path, samples: int, prompts: int) -> None:
    """Refuse before the long part, not after it: SD-sized entries are about 64 KiB a picture, 240 KiB a prompt."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(file.parent).free
    except OSError as error:
        raise UserError(
            Problem(
                "cache", str(file.parent), f"cannot be used: {error.strerror or error}", "Set cache to another folder."
            )
        ) from error
    needed = MEGABYTE + samples * 64 * 1024 + prompts * 240 * 1024
    if free < needed:
        raise UserError(
            Problem(
                "cache",
                str(file.parent),
                f"has {free // MEGABYTE} MiB free, the set takes up to {needed // MEGABYTE + 1}.",
                "Free space there, or set cache to another folder.",
            )
        )


def _write_sheet(path: Path, denoiser: Denoiser, encoded: EncodedSet) -> None:
    """Decode up to eight pictures of every caption, and their counterparts, so that a person can check the set."""

    def decoded(latents: Tensor, chosen: Tensor) -> list[Image.Image]:
        alike = [(shape, chosen[rows]) for shape, rows in by_shape(encoded.shapes[chosen])]
        return [picture for shape, rows in alike for picture in denoiser.decode(cut(latents[rows], shape))]

    rows = []
    for row in encoded.captions.unique().tolist()[:40]:
        chosen = (encoded.captions == row).nonzero().flatten()[:8]
        rows.append((encoded.prompts[row], decoded(encoded.latents, chosen)))
        if encoded.counterparts is not None:
            rows.append(("counterparts", decoded(encoded.counterparts, chosen)))
    with atomic(path) as temporary:
        contact_sheet(rows, label_width=240).save(temporary, format="PNG")
