"""The forget and the retain set, encoded once and cached."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from erasediff_lora import sealed
from erasediff_lora.data import images as disk
from erasediff_lora.data.buckets import bucket, by_shape, cut, padded
from erasediff_lora.data.prompts import balanced, expand, substitute
from erasediff_lora.denoisers import Denoiser
from erasediff_lora.errors import Problem, UserError
from erasediff_lora.files import atomic, sha256
from erasediff_lora.imaging import contact_sheet, to_unit_tensor
from erasediff_lora.locks import making
from erasediff_lora.recipe import ForgetSet, Images, Recipe, RetainSet

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


@dataclass(frozen=True)
class Sample:
    """One picture of a set, before it is encoded."""

    caption: str
    anchors: list[str]
    image: Image.Image | None = None


Kind = Literal["forget", "retain"]


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
    samples = _samples(recipe, kind)
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
    sizes = _sizes(recipe, denoiser, kind, samples)
    latents, shapes = padded(_latents(recipe, denoiser, kind, samples, sizes))
    _require_finite(latents, [sample.caption for sample in samples], kind, "picture", denoiser)
    counterparts: Tensor | None = None
    if _with_counterparts(recipe, kind):
        counterparts, _ = padded(_counterparts(recipe, denoiser, samples, sizes))
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


def _samples(recipe: Recipe, kind: Kind) -> list[Sample]:
    if kind == "forget":
        return _forget_samples(recipe)
    data = recipe.retain
    if data.images:
        return [Sample(p.caption, [], p.image) for p in disk.read(kind, data.images, [], data.templates, data.concepts)]
    prompts = balanced(expand(data.templates, data.concepts, data.placeholders), data.count, recipe.sampling.seed)
    return [Sample(prompt.text, []) for prompt in prompts]


def _forget_samples(recipe: Recipe) -> list[Sample]:
    data = recipe.forget
    names = [concept.name for concept in data.concepts]
    fixed = {concept.name: concept.anchor for concept in data.concepts}

    def anchors(caption: str, concept: str) -> list[str]:
        match recipe.objective.anchors:
            case "named":
                chosen = [fixed[concept] or ""]
            case "any":
                chosen = [fixed[concept]] if fixed[concept] else list(recipe.retain.concepts)  # type: ignore[list-item]
            case _:
                return []
        return [substitute(caption, concept, anchor) for anchor in chosen]

    if data.images:
        pictures = disk.read("forget", data.images, names, data.templates, names)
        samples = [Sample(p.caption, anchors(p.caption, p.concept or names[0]), p.image) for p in pictures]
    else:
        prompts = balanced(expand(data.templates, names, data.placeholders), data.count, recipe.sampling.seed)
        samples = [Sample(prompt.text, anchors(prompt.text, prompt.concept or names[0])) for prompt in prompts]
    if recipe.objective.counterparts:  # the one anchor that the counterpart shows
        samples = [replace(s, anchors=[s.anchors[row % len(s.anchors)]]) for row, s in enumerate(samples)]
    return samples


def _sizes(recipe: Recipe, denoiser: Denoiser, kind: Kind, samples: Sequence[Sample]) -> list[tuple[int, int]]:
    """Width and height of every picture, in pixels."""
    side = recipe.sampling.resolution or denoiser.resolution
    images: Images | None = getattr(recipe, kind).images
    keeps = images is not None and images.aspect_buckets
    sizes = [bucket(*s.image.size, side) if keeps and s.image else (side, side) for s in samples]
    if len(set(sizes)) > 1:
        log.info("%s set: %d aspect ratios", kind, len(set(sizes)))
    return sizes


def _alike(sizes: Sequence[tuple[int, int]], recipe: Recipe, what: str) -> Iterator[tuple[tuple[int, int], list[int]]]:
    """Batches of rows of one size, with the size."""
    count = recipe.sampling.batch_size
    chunks = [(size, chunk) for size, rows in by_shape(torch.tensor(sizes)) for chunk in rows.split(count)]
    for size, chunk in tqdm(chunks, desc=what, unit="batch", leave=False):
        width, height = size.tolist()
        yield (width, height), chunk.tolist()


def _first_seed(recipe: Recipe, kind: Kind) -> int:
    """Forget and retain pictures come from disjoint seeds."""
    return recipe.sampling.seed + (0 if kind == "forget" else 500_000)


def _latents(
    recipe: Recipe, denoiser: Denoiser, kind: Kind, samples: Sequence[Sample], sizes: Sequence[tuple[int, int]]
) -> list[Tensor]:
    """Of every picture (C, h, w); float32, on the CPU."""
    latents: dict[int, Tensor] = {}
    for size, rows in _alike(sizes, recipe, f"{kind} set"):
        drawn = [samples[row] for row in rows]
        if getattr(recipe, kind).images is not None:
            pixels = torch.stack([to_unit_tensor(sample.image, size) for sample in drawn if sample.image])
            encoded = denoiser.encode_images(pixels)
        else:
            captions, seeds = [sample.caption for sample in drawn], [_first_seed(recipe, kind) + row for row in rows]
            encoded = denoiser.draw(captions, seeds, recipe.sampling, output="latent")
        latents |= zip(rows, encoded.float().cpu(), strict=True)
    return [latents[row] for row in range(len(samples))]


def _counterparts(
    recipe: Recipe, denoiser: Denoiser, samples: Sequence[Sample], sizes: Sequence[tuple[int, int]]
) -> list[Tensor]:
    """What the base draws of every picture's anchor from the picture's seed, (C, h, w); float32, on the CPU.

    Pictures that were read have no seed: they share `forget.count` counterparts of an anchor.
    """
    first, count = _first_seed(recipe, "forget"), recipe.forget.count
    wanted = [
        (s.anchors[0], first + row % count, size) for row, (s, size) in enumerate(zip(samples, sizes, strict=True))
    ]
    distinct = list(dict.fromkeys(wanted))
    latents: dict[tuple[str, int, tuple[int, int]], Tensor] = {}
    for size, rows in _alike([size for *_, size in distinct], recipe, "counterparts"):
        chosen = [distinct[row] for row in rows]
        anchors, seeds = [anchor for anchor, _, _ in chosen], [seed for _, seed, _ in chosen]
        drawn = denoiser.draw(anchors, seeds, recipe.sampling, output="latent", size=size)
        latents |= zip(chosen, drawn.float().cpu(), strict=True)
    return [latents[one] for one in wanted]


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
    if (found := sealed.cached(file)) is None:
        return None
    tensors, header = found
    log.info("%s set: %d pictures from the cache %s", kind, len(tensors["latents"]), file)
    return EncodedSet(prompts=json.loads(header["prompts"]), **tensors)


def _write(file: Path, encoded: EncodedSet) -> None:
    tensors = {name: value for name, value in vars(encoded).items() if isinstance(value, Tensor)}
    sealed.write(tensors, file, {"prompts": json.dumps(encoded.prompts)})


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
