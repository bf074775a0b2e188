"""Pictures drawn before, so that an evaluation goes on where it stopped and the base is drawn once for all adapters."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from erasediff_lora.denoisers import Denoiser
from erasediff_lora.recipe import Recipe
from erasediff_lora.storage.files import atomic_folder, sha256, write_text
from erasediff_lora.storage.locks import making

log = logging.getLogger(__name__)
FORMAT = 1


@dataclass(frozen=True)
class PictureStore:
    """Keeps batches of pictures as PNG files, under a hash of all that they depend on.

    A batch is kept whole, since the pictures of a batch depend on each other in the last bits.

    Attributes:
        folder: Where the entries lie.
        depends: What all pictures of this store depend on: base, adapter, sampling, arithmetic.
    """

    folder: Path
    depends: dict[str, Any]

    @classmethod
    def of(cls, recipe: Recipe, denoiser: Denoiser, adapter: str | None) -> PictureStore:
        """The store of a base, with an adapter file or without.

        Args:
            recipe: For the cache folder and the sampling.
            denoiser: The base.
            adapter: The SHA-256 of the adapter's file; None for the base's own pictures.
        """
        return cls(
            recipe.cache.expanduser() / "pictures",
            {
                "format": FORMAT,
                "base": denoiser.fingerprint,
                "adapter": adapter,
                "dtype": str(denoiser.dtype),
                "device": denoiser.device.type,
                "threads": torch.get_num_threads(),
                "sampling": recipe.sampling.model_dump(mode="json"),
            },
        )

    def get(
        self, prompts: Sequence[str], seeds: Sequence[int], draw: Callable[[], list[Image.Image]]
    ) -> tuple[list[Image.Image], bool]:
        """The batch's pictures, and whether they were there already.

        Raises:
            UserError: If the store cannot be written.
        """
        key = sha256(json.dumps(self.depends | {"prompts": prompts, "seeds": seeds}, sort_keys=True).encode())
        entry = self.folder / key[:32]
        if (found := _read(entry, len(prompts))) is not None:
            return found, True
        with making(entry, "pictures that are needed here too"):
            if (found := _read(entry, len(prompts))) is not None:
                return found, True
            images = draw()
            _write(entry, images)
        return images, False

    def state(self, name: str, settings: dict[str, Any], compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """What an optimisation on this model found, from an earlier evaluation where there was one.

        Args:
            name: Of the optimisation.
            settings: All that it depends on besides the model.
            compute: Runs it; what it returns is kept as JSON.

        Raises:
            UserError: If the store cannot be written.
        """
        key = sha256(json.dumps([self.depends, name, settings], sort_keys=True).encode())
        file = self.folder.parent / "attacks" / f"{name}-{key[:32]}.json"
        if (found := _read_state(name, file)) is not None:
            return found
        with making(file, f"what {name} finds"):
            if (found := _read_state(name, file)) is not None:
                return found
            text = json.dumps(compute())
            write_text(file, json.dumps({"state": text, "content": sha256(text.encode())}), field="cache")
        return dict(json.loads(text))


def _read_state(name: str, file: Path) -> dict[str, Any] | None:
    try:
        stored = json.loads(file.read_text(encoding="utf-8"))
        if stored["content"] != sha256(stored["state"].encode()):
            raise ValueError("its content does not match its hash")
        log.info("%s: from the cache %s", name, file)
        return dict(json.loads(stored["state"]))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        log.warning("%s is damaged (%s) and is made anew", file, error)
        return None


def _read(entry: Path, count: int) -> list[Image.Image] | None:
    if not entry.is_dir():
        return None
    try:
        images: list[Image.Image] = [Image.open(entry / f"{index:03}.png") for index in range(count)]
        for image in images:
            image.load()
    except (OSError, SyntaxError, ValueError) as error:
        log.warning("the pictures in %s are damaged (%s) and are drawn anew", entry, error)
        return None
    return images


def _write(entry: Path, images: Sequence[Image.Image]) -> None:
    with atomic_folder(entry, "cache") as partial:
        for index, image in enumerate(images):
            image.save(partial / f"{index:03}.png")
