"""Pictures drawn before, so that an evaluation goes on where it stopped and the base is drawn once for all adapters."""

from __future__ import annotations

import json
import logging
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import torch
from PIL import Image

from erasediff_lora.denoisers import Denoiser
from erasediff_lora.errors import Problem, UserError
from erasediff_lora.recipe import Recipe
from erasediff_lora.storage.files import atomic_folder, sha256, write_text
from erasediff_lora.storage.inside import parse_json, read_plain
from erasediff_lora.storage.locks import making

log = logging.getLogger(__name__)
FORMAT = 1
PIXEL_BYTES = 4
"""Of a picture in RGB, as pillow holds it."""
LARGEST_STATE = 2**30
"""Bytes of what an attack found."""
MOST_HELD = 256 * 2**20
"""Bytes of pictures that are held in memory; the rest is read from the store when it is asked for."""


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
        entry = self._entry(prompts, seeds)
        if (found := _read(entry, len(prompts))) is not None:
            return found, True
        with making(entry, "pictures that are needed here too"):
            if (found := _read(entry, len(prompts))) is not None:
                return found, True
            images = draw()
            _write(entry, images)
        return images, False

    def keep(self, prompts: Sequence[str], seeds: Sequence[int], images: Sequence[Image.Image]) -> list[Path]:
        """Where the pictures of a batch lie that `get` has given: `read_kept` reads them, those of late from memory."""
        entry = self._entry(prompts, seeds)
        files = [_file(entry, index) for index in range(len(images))]
        for file, image in zip(files, images, strict=True):
            _LATE.put(file, image)
        return files

    def _entry(self, prompts: Sequence[str], seeds: Sequence[int]) -> Path:
        key = sha256(json.dumps(self.depends | {"prompts": prompts, "seeds": seeds}, sort_keys=True).encode())
        return self.folder / key[:32]

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


class OneByOne(Sequence[Image.Image]):
    """Pictures of which each is read when it is asked for, so that a set of any size takes no memory.

    Args:
        count: How many there are.
        read: Reads one.
    """

    def __init__(self, count: int, read: Callable[[int], Image.Image]) -> None:
        self._count, self._read = count, read

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> Image.Image: ...
    @overload
    def __getitem__(self, index: slice) -> list[Image.Image]: ...
    def __getitem__(self, index: int | slice) -> Image.Image | list[Image.Image]:
        found = range(self._count)[index]
        return self._read(found) if isinstance(found, int) else [self._read(row) for row in found]


class Late:
    """The pictures that were asked for of late, so many that they take no more than MOST_HELD bytes."""

    def __init__(self) -> None:
        self._held, self._bytes = OrderedDict[Path, Image.Image](), 0

    def put(self, file: Path, image: Image.Image) -> None:
        """Hold a picture, and let go of those that were not asked for for longest."""
        self.take(file)
        self._held[file] = image
        self._bytes += _size(image)
        while self._bytes > MOST_HELD:
            self._bytes -= _size(self._held.popitem(last=False)[1])

    def take(self, file: Path) -> Image.Image | None:
        """Let go of a picture; None if it is not held."""
        if (image := self._held.pop(file, None)) is not None:
            self._bytes -= _size(image)
        return image


def _size(image: Image.Image) -> int:
    return PIXEL_BYTES * image.width * image.height


_LATE = Late()


def read_kept(file: Path) -> Image.Image:
    """A picture that the store has given before.

    Raises:
        UserError: If it is not there any more.
    """
    try:
        if (image := _LATE.take(file)) is None:
            with Image.open(file) as opened:
                opened.load()
                image = opened
        _LATE.put(file, image)
        return image
    except (OSError, SyntaxError, ValueError) as error:
        what = f"has lost a picture that is in use: {error}."
        raise UserError(Problem("cache", str(file.parent), what, "Run the same command again.")) from None


def _file(entry: Path, index: int) -> Path:
    return entry / f"{index:03}.png"


def _read_state(name: str, file: Path) -> dict[str, Any] | None:
    try:
        stored = parse_json(read_plain(file, LARGEST_STATE))
        if stored["content"] != sha256(stored["state"].encode()):
            raise ValueError("its content does not match its hash")
        log.info("%s: from the cache %s", name, file)
        return dict(parse_json(stored["state"]))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        log.warning("%s is damaged (%s) and is made anew", file, error)
        return None


def _read(entry: Path, count: int) -> list[Image.Image] | None:
    if not entry.is_dir():
        return None
    try:
        images: list[Image.Image] = [Image.open(_file(entry, index)) for index in range(count)]
        for image in images:
            image.load()
    except (OSError, SyntaxError, ValueError) as error:
        log.warning("the pictures in %s are damaged (%s) and are drawn anew", entry, error)
        return None
    return images


def _write(entry: Path, images: Sequence[Image.Image]) -> None:
    with atomic_folder(entry, "cache") as partial:
        for index, image in enumerate(images):
            image.save(_file(partial, index))
