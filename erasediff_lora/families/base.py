"""What a family of base models is: everything that tells it from others, in one place and without importing torch."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from erasediff_lora.families.kohya import KohyaNames

Shapes = Mapping[str, tuple[int, ...]]
"""Name of an adapted weight, such as 'unet.mid_block.attentions.0.proj_in', -> its shape."""


@dataclass(frozen=True)
class Slot:
    """Where a weight lies in a file: a tensor, or one of `parts` equal slices of its rows.

    Attributes:
        key: The tensor.
        part: Number of the slice.
        parts: How many there are.
        swapped: Whether the two halves of the rows lie the other way round.
    """

    key: str
    part: int = 0
    parts: int = 1
    swapped: bool = False

    def stretches(self, rows: int) -> Iterator[tuple[int, int, int]]:
        """First row in a tensor of so many rows, first row in the weight, and number, of each unbroken stretch."""
        height = rows // self.parts
        offset = self.part * height
        if not self.swapped:
            yield offset, 0, height
        else:
            yield offset, height // 2, height // 2
            yield offset + height // 2, 0, height // 2


@dataclass(frozen=True)
class License:
    """Of a base's weights, as model cards name it: an id, or 'other' with a name and a link."""

    id: str
    name: str | None = None
    link: str | None = None


@dataclass(frozen=True)
class Architecture:
    """One of the architectures of a family.

    Attributes:
        id: In the modelspec standard, such as 'stable-diffusion-v1'.
        resolution: Side of its pictures in pixels.
        license: Of the published weights; None: there is none to speak of, each base has its own.
        kohya: `ss_base_model_version` of kohya's files; None where the family has no kohya names.
    """

    id: str
    resolution: int
    license: License | None = None
    kohya: str | None = None


def _nothing(shapes: Shapes) -> str | None:
    return None


@dataclass(frozen=True)
class Family:
    """A family of base models; registered in `registry.FAMILIES` under the name that recipes use.

    Attributes:
        denoiser: The class that runs it (`denoisers.Denoiser`), or 'package.module:Class', which is imported when a
            base is loaded: adapter files are read without it.
        pipeline: What the `model_index.json` of its folders names.
        component: Name of the adapted network in the pipeline; first part of the names of its weights.
        encoders: Names of the text encoders in the pipeline.
        modules: Beginnings of the module paths in the network, such as 'down_blocks.'.
        architectures: All that there are.
        recognise: The id of the architecture that layers of these shapes fit; None: not this family's, or it cannot
            be told.
        kohya: How kohya's files name its modules; None: they do not.
        single_file: Adapter name -> slot, for all weights of a single-file checkpoint with these keys that it knows;
            None: there are no single files of it.
        in_diffusers: Whether diffusers has the pipeline, and so loads adapters into it.
        text_to_image: Whether prompts are text.
        has_autoencoder: Whether pictures are drawn in latents of an autoencoder.
        flow_matching: Whether it was trained by flow matching instead of on a schedule of noise.
    """

    denoiser: str | type[Any]
    pipeline: str
    component: str
    encoders: tuple[str, ...]
    modules: tuple[str, ...]
    architectures: tuple[Architecture, ...]
    recognise: Callable[[Shapes], str | None] = _nothing
    kohya: KohyaNames | None = None
    single_file: Callable[[Collection[str]], dict[str, Slot]] | None = None
    in_diffusers: bool = True
    text_to_image: bool = True
    has_autoencoder: bool = True
    flow_matching: bool = False
