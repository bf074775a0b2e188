"""Making a set: its pictures and prompts, encoded shard by shard into a folder of the cache.

What is whole stays when the program is stopped, and the next one goes on behind it.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from erasediff_lora.data.latents import Plan, picture_sizes, plan_counterparts, plan_pictures
from erasediff_lora.data.prompts import is_named, substitute
from erasediff_lora.data.rows import Kind
from erasediff_lora.data.samples import Sample
from erasediff_lora.data.shards import ROWS, Conditions, Layout, Rows, Shards, StoredConditions
from erasediff_lora.denoisers import Denoiser
from erasediff_lora.denoisers.noise_schedule import cannot_draw
from erasediff_lora.denoisers.side_by_side import drawing_threads, in_order
from erasediff_lora.errors import Problem, UserError
from erasediff_lora.machine.progress import tqdm, whole
from erasediff_lora.recipe import Recipe
from erasediff_lora.storage.files import sha256, write_text
from erasediff_lora.storage.inside import parse_json, read_plain

log = logging.getLogger(__name__)
MEGABYTE = 2**20
PROMPTS_A_SHARD = 128
SMALL = 64 * MEGABYTE
"""Bytes up to which rows are held in memory; more of them stay on the disk."""
INDEX = "set.json"
"""Is written last: a set that has it is whole."""
LARGEST_INDEX = 2**30
"""Bytes."""


@dataclass(frozen=True)
class Encoded:
    """What is encoded of a set.

    Attributes:
        latents: (N, C, H, W).
        shapes: (N, 2), heights and widths.
        embeddings: What the network is told of P prompts.
        counterparts: As latents, or None.
        cut: The prompts that are longer than the model reads.
    """

    latents: Rows
    shapes: Tensor
    embeddings: Conditions
    counterparts: Rows | None
    cut: list[str]


class Entry:
    """A set in the cache, whole or in the making.

    Args:
        folder: Where it lies.
        recipe: The recipe.
        denoiser: The base.
        kind: 'forget' or 'retain'.
        samples: Its pictures, in order.
    """

    def __init__(self, folder: Path, recipe: Recipe, denoiser: Denoiser, kind: Kind, samples: Sequence[Sample]) -> None:
        self.folder, self.denoiser, self.kind, self.samples = folder, denoiser, kind, samples
        self.prompts = list(dict.fromkeys([""] + [text for s in samples for text in (s.caption, *s.anchors)]))
        self.passes = recipe.sampling.steps * denoiser.rows_drawn(
            recipe.sampling.guidance
        )  # of a picture that is drawn
        sizes = picture_sizes(recipe, denoiser, kind, samples)
        self.plans = {"latents": plan_pictures(recipe, denoiser, kind, samples, sizes)}
        self.counterparts: Tensor | None = None
        if kind == "forget" and recipe.objective.counterparts:
            self.plans["counterparts"], self.counterparts = plan_counterparts(recipe, denoiser, samples, sizes)
        each, count = PROMPTS_A_SHARD, len(self.prompts)
        chunks = [range(start, min(start + each, count)) for start in range(0, count, each)]
        self.layouts = {name: Layout(name, folder, plan.shards) for name, plan in self.plans.items()}
        self.layouts["embeddings"] = Layout("embeddings", folder, chunks)

    def read(self, *, say: bool = True) -> Encoded | None:
        """The set, if it is whole; what is not as it was written is looked at in full.

        Args:
            say: Whether to say that it is damaged.
        """
        wrong: object = None
        try:
            stored = parse_json(read_plain(self.folder / INDEX, LARGEST_INDEX))
            if stored["content"] != sha256(stored["set"].encode()):
                raise ValueError("its content does not match its hash")
            notes = parse_json(stored["set"])
            for layout in self.layouts.values():
                for number, file in enumerate(layout.files):
                    if _stamp(file) != notes["files"][file.name] and not layout.is_whole(number):
                        raise ValueError(f"{file.name} is not as it was written")
            (self.folder / INDEX).touch()  # used now
            return self._opened(notes["cut"])
        except FileNotFoundError as error:
            if Path(error.filename or "").name != INDEX:
                wrong = f"{error.filename} is gone"
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            wrong = error
        if wrong is not None and say:
            log.warning("the cache entry %s is damaged (%s) and is made anew", self.folder, wrong)
        return None

    def make(self, show: Callable[[Encoded], object]) -> Encoded:
        """Draw or read what is not there yet, and encode it.

        Args:
            show: Is called with the set before it counts as whole.

        Raises:
            UserError: For what cannot be encoded, or when the cache cannot be written.
        """
        cut = cut_prompts(self.denoiser, self.kind, self.samples, self.prompts)
        for name, plan in self.plans.items():
            label = f"{self.kind} set" if name == "latents" else name
            threads = drawing_threads(self.denoiser) if plan.drawn else 1
            made = in_order(partial(self._shard, name), range(len(plan.shards)), threads)
            shown = tqdm(made, total=len(plan.shards), desc=label, unit="shard", leave=False)
            for rows, _ in zip(plan.shards, shown, strict=True):
                whole.add(len(rows) * (self.passes if plan.drawn else 1))
        for number in range(len(self.layouts["embeddings"].rows)):
            self.layouts["embeddings"].make(number, partial(self._embeddings, number))
        encoded = self._opened(cut)
        show(encoded)
        files = {file.name: _stamp(file) for layout in self.layouts.values() for file in layout.files}
        text = json.dumps({"cut": cut, "files": files})
        write_text(self.folder / INDEX, json.dumps({"set": text, "content": sha256(text.encode())}), field="cache")
        return encoded

    def require_disk(self) -> None:
        """Refuse before the long part, not after it: SD-sized entries are about 64 KiB a picture, 240 KiB a prompt.

        Raises:
            UserError: If there is too little room, or the folder cannot be made.
        """
        pictures = sum(len(rows) for plan in self.plans.values() for rows in plan.shards)
        require_disk(self.folder.parent, MEGABYTE + pictures * 64 * 1024 + len(self.prompts) * 240 * 1024)

    def _opened(self, cut: list[str]) -> Encoded:
        latents = self.layouts["latents"].open()
        counterparts: Rows | None = None
        if self.counterparts is not None:
            counterparts = _at_hand(self.layouts["counterparts"].open().select(self.counterparts))
        embeddings = self.layouts["embeddings"].open()
        told: Conditions = StoredConditions.of(embeddings)
        if embeddings.size <= SMALL:
            told = told[:]
        return Encoded(_at_hand(latents), latents.shapes(), told, counterparts, cut)

    def _shard(self, name: str, number: int) -> None:
        self.layouts[name].make(number, partial(self._latents, self.plans[name], number))

    def _latents(self, plan: Plan, number: int) -> dict[str, Tensor]:
        latents, rows = plan.latents(number), plan.shards[number]
        self._require_finite(latents, rows, [plan.captions[row] for row in rows], plan.what, drawn=plan.drawn)
        return {ROWS: latents}

    def _embeddings(self, number: int) -> dict[str, Tensor]:
        rows = self.layouts["embeddings"].rows[number]
        texts = [self.prompts[row] for row in rows]
        told = self.denoiser.encode_prompts(texts).to(self.denoiser.dtype).to(torch.device("cpu"))
        for part in told.parts.values():
            self._require_finite(part, rows, texts, "prompt")
        return told.parts

    def _require_finite(
        self, values: Tensor, rows: Sequence[int], captions: Sequence[str], what: str, *, drawn: bool = False
    ) -> None:
        """No NaN reaches the cache."""
        denoiser = self.denoiser
        broken = (~torch.isfinite(values.flatten(1)).all(dim=1)).nonzero().flatten().tolist()
        if not broken:
            return
        more = len(broken) - 1
        problem = f"{what} {rows[broken[0]]} is encoded as NaN or Inf in {denoiser.dtype}, with {more} more"
        if drawn and cannot_draw(denoiser.noise_scheduler):
            problem += ": the schedule ends in noise alone (zero SNR), where a prediction of the noise says nothing"
            remedy = f"Set model.prediction_type: v_prediction if the base was trained so, or give {self.kind}.images."
        elif denoiser.dtype in (torch.float32, torch.float64):
            problem += ": the base's own weights or configuration make it"
            remedy = "Draw with the base alone; download or convert it again."
        else:  # half precision overflows in some networks
            remedy = "Use model.dtype: float32" + " or bfloat16." * (denoiser.dtype == torch.float16)
        raise UserError(Problem(self.kind, captions[broken[0]], problem + ".", remedy.removesuffix(".") + "."))


def cut_prompts(denoiser: Denoiser, kind: Kind, samples: Sequence[Sample], prompts: Sequence[str]) -> list[str]:
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


def require_disk(folder: Path, needed: int) -> None:
    """See that a folder of the cache has so many bytes left.

    Raises:
        UserError: If not, or it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder).free
    except OSError as error:
        what = f"cannot be used: {error.strerror or error}."
        raise UserError(Problem("cache", str(folder), what, "Set cache to another folder.")) from error
    if free < needed:
        what = f"has {free // MEGABYTE} MiB free, the set takes up to {needed // MEGABYTE + 1}."
        raise UserError(Problem("cache", str(folder), what, "Free space there, or set cache to another folder."))


def _at_hand(shards: Shards) -> Rows:
    """Few rows in memory, many where they are."""
    return shards[:] if shards.size <= SMALL else shards


def _stamp(file: Path) -> list[int]:
    """What changes when a file does: its size, and when it was written."""
    found = file.stat()
    return [found.st_size, found.st_mtime_ns]
