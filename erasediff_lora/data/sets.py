"""The forget and the retain set, encoded once and cached."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from erasediff_lora.data.buckets import by_shape, cut, padded
from erasediff_lora.data.imaging import contact_sheet
from erasediff_lora.data.latents import counterpart_latents, picture_latents, picture_sizes
from erasediff_lora.data.samples import Kind, Sample, list_samples
from erasediff_lora.denoisers import Denoiser
from erasediff_lora.errors import Problem, UserError
from erasediff_lora.recipe import ForgetSet, Recipe, RetainSet
from erasediff_lora.storage import checksummed
from erasediff_lora.storage.files import atomic, sha256
from erasediff_lora.storage.locks import making

log = logging.getLogger(__name__)
FORMAT = 3
MEGABYTE = 2**20


@dataclass(frozen=True)
class EncodedSet:
    """Latents and prompt embeddings of one set, on the CPU.

    Attributes:
        latents: (N, C, H, W), scaled as the network takes them; of several shapes as `buckets.padded` puts them.
        shapes: (N, 2), heights and widths.
        embeddings: (P, L, D), one a distinct prompt; row 0 is the empty prompt.
        captions: (N,) rows of `embeddings`.
        anchors: (N, A) rows of `embeddings`: what may take the caption's place. A = 0 in a retain set.
        prompts: The P distinct prompts.
        counterparts: Of every picture its anchor, drawn by the base from the same seed; as `latents`, on request.
    """

    latents: Tensor
    shapes: Tensor
    embeddings: Tensor
    captions: Tensor
    anchors: Tensor
    prompts: list[str]
    counterparts: Tensor | None = None


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
    samples = list_samples(recipe, kind)
    file = recipe.cache.expanduser() / f"{kind}-{_key(recipe, denoiser, kind, samples)[:32]}.safetensors"
    if (cached := _read(file, kind)) is not None:
        return cached
    prompts = list(dict.fromkeys([""] + [text for s in samples for text in (s.caption, *s.anchors)]))
    _check_disk(file, len(samples) * (2 if _with_counterparts(recipe, kind) else 1), len(prompts))
    with making(file, f"the {kind} set"):
        if (cached := _read(file, kind)) is not None:  # made by the one that was waited for
            return cached
        encoded = _encode(recipe, denoiser, kind, samples, prompts)
        _write(file, encoded)
    if sheet is not None:
        _write_sheet(sheet, denoiser, encoded)
    return encoded


def _with_counterparts(recipe: Recipe, kind: Kind) -> bool:
    return kind == "forget" and recipe.objective.counterparts


def _encode(
    recipe: Recipe, denoiser: Denoiser, kind: Kind, samples: Sequence[Sample], prompts: list[str]
) -> EncodedSet:
    row = {prompt: index for index, prompt in enumerate(prompts)}
    sizes = picture_sizes(recipe, denoiser, kind, samples)
    latents, shapes = padded(picture_latents(recipe, denoiser, kind, samples, sizes))
    _require_finite(latents, [sample.caption for sample in samples], kind, "picture", denoiser)
    counterparts: Tensor | None = None
    if _with_counterparts(recipe, kind):
        counterparts, _ = padded(counterpart_latents(recipe, denoiser, samples, sizes))
        _require_finite(counterparts, [sample.anchors[0] for sample in samples], kind, "counterpart", denoiser)
    embeddings = denoiser.encode_prompts(prompts).to(denoiser.dtype).cpu().contiguous()
    _require_finite(embeddings, prompts, kind, "prompt", denoiser)
    return EncodedSet(
        latents=latents,
        shapes=shapes,
        embeddings=embeddings,
        captions=torch.tensor([row[s.caption] for s in samples]),
        anchors=torch.tensor([[row[a] for a in s.anchors] for s in samples]).reshape(len(samples), -1).long(),
        prompts=prompts,
        counterparts=counterparts,
    )


def _require_finite(values: Tensor, captions: Sequence[str], kind: Kind, what: str, denoiser: Denoiser) -> None:
    """No NaN reaches the cache: half precision overflows in some autoencoders."""
    broken = (~torch.isfinite(values.flatten(1)).all(dim=1)).nonzero().flatten().tolist()
    if broken:
        raise UserError(
            Problem(
                kind,
                captions[broken[0]],
                f"{what} {broken[0]} is encoded as NaN or Inf in {denoiser.dtype}, with {len(broken) - 1} more.",
                "Use model.dtype: float32 or bfloat16.",
            )
        )


def _key(recipe: Recipe, denoiser: Denoiser, kind: Kind, samples: Sequence[Sample]) -> str:
    """SHA-256 of all that the encoded set depends on."""
    depends: dict[str, Any] = {
        "format": FORMAT,
        "kind": kind,
        "base": denoiser.fingerprint,
        "dtype": str(denoiser.dtype),
        "device": denoiser.device.type,
        "resolution": recipe.sampling.resolution,
        "samples": [
            [s.caption, s.anchors, None if s.image is None else sha256(repr(s.image.size).encode() + s.image.tobytes())]
            for s in samples
        ],
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
    return EncodedSet(prompts=json.loads(header["prompts"]), **tensors)


def _write(file: Path, encoded: EncodedSet) -> None:
    tensors = {name: value for name, value in vars(encoded).items() if isinstance(value, Tensor)}
    checksummed.write(tensors, file, {"prompts": json.dumps(encoded.prompts)})


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
