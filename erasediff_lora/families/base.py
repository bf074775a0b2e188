"""What a family of base models is: everything that tells it from others, in one place and without importing torch."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from erasediff_lora.families.kohya import KohyaNames
from erasediff_lora.families.layouts import Layout, Shapes
from erasediff_lora.families.native import NativeNames
from erasediff_lora.families.slot import Slot


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
        sizes: The published models: component of the pipeline -> its modules. Empty: each base has its own.
    """

    id: str
    resolution: int
    license: License | None = None
    kohya: str | None = None
    sizes: tuple[Mapping[str, Layout], ...] = ()


def _nothing(shapes: Shapes) -> str | None:
    return None


@dataclass(frozen=True, eq=False)
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
        recognise: The id of the architecture that layers of these shapes fit, asked where they are of no published
            size; None: not this family's, or it cannot be told.
        kohya: How kohya's files name its modules; None: they do not.
        native: How the authors' own code names its modules, where single files and kohya's go by that; None: as
            diffusers does, or in a way of its own.
        prefixes: Component -> what programs write before its module paths, underscores for dots.
        paths: Component -> its module paths, '#' for every number, where no size is published.
        single_file: Adapter name -> slot, for all weights of a single-file checkpoint with these keys that it knows;
            None: there are no single files of it.
        read_by: Format -> programs that read its files of this family, besides those that say so themselves
            (`adapter.programs`).
        in_diffusers: Whether diffusers has the pipeline, and so loads adapters into it.
        text_to_image: Whether prompts are text.
        has_autoencoder: Whether pictures are drawn in latents of an autoencoder.
        flow_matching: Whether it was trained by flow matching instead of on a schedule of noise.
        searched_in: Where conditions that bring a concept back are searched for unless a recipe says: 'tokens', or
            'outputs' where the text encoders are too large to stay in memory while the network is trained.
    """

    denoiser: str | type[Any]
    pipeline: str
    component: str
    encoders: tuple[str, ...]
    modules: tuple[str, ...]
    architectures: tuple[Architecture, ...]
    recognise: Callable[[Shapes], str | None] = _nothing
    kohya: KohyaNames | None = None
    native: NativeNames | None = None
    prefixes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    paths: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    single_file: Callable[[Collection[str]], dict[str, Slot]] | None = None
    read_by: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    in_diffusers: bool = True
    text_to_image: bool = True
    has_autoencoder: bool = True
    flow_matching: bool = False
    searched_in: Literal["tokens", "outputs"] = "tokens"
