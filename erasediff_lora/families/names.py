"""The table of names: which modules a family's networks have, and how formats and programs spell them.

Programs differ in what they write before a path (`lora_unet_`, `unet.`, `diffusion_model.`, `base_model.model.`,
nothing), in dots or underscores, and in whose path it is: diffusers' or that of the authors' own code. All of them are
read by one rule: dots are underscores, prefixes are taken off, and what is left is looked up.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache, cached_property

from erasediff_lora.families.base import Architecture, Family
from erasediff_lora.families.layouts import Layout
from erasediff_lora.registry import FAMILIES

Modules = tuple[str, ...]
"""Names of the modules, such as 'unet.conv_in', whose rows a tensor holds, from top to bottom: nearly always one.

`layouts.Swapped` where the halves of its rows lie the other way round.
"""
Shape = tuple[int, ...]
_NETWORK = ("lora_unet_", "lycoris_", "diffusion_model_", "model_diffusion_model_", "base_model_model_", "")
_ENCODER = ("base_model_model_", "")
_WRAPPERS = re.compile(r"(?<![a-z])_(?:orig_mod|fsdp_wrapped_module|checkpoint_wrapped_module)[._]")
"""What torch puts around modules that are compiled, split, or computed again, and trainers forget to take off."""
_NUMBER = re.compile(r"(?<=_)\d+(?=_|$)")
_COUNTED = re.compile(r"(?<=s\.|k\.)\d+(?=\.|$)")
"""Of blocks, layers and the like; the numbers in to_out.0 and net.2 are names."""


def spelled(name: str) -> str:
    """A name as it is looked up: 'mid_block.attentions.0.attn1.processor.to_q' with underscores, no processor."""
    return _WRAPPERS.sub("", name).replace(".", "_").replace("_processor_", "_")


def squeezed(shape: Shape) -> Shape:
    """A 1×1 convolution is a linear layer: (out, in, 1, 1) as (out, in)."""
    return shape[:2] if shape[2:] == (1, 1) else shape


@cache
def prefixes(family: Family, component: str) -> tuple[str, ...]:
    """What can stand before the paths of a component, the longest first."""
    found = {
        f"{component}_",
        f"lora_{component}_",
        f"base_model_model_{component}_",
        f"{component}_base_model_model_",
        *family.prefixes.get(component, ()),
    }
    if family.kohya is not None and component in family.kohya.prefixes:
        found.add(family.kohya.prefixes[component].removesuffix("text_model_"))
    return tuple(sorted(found.union(_NETWORK if component == family.component else _ENCODER), key=len, reverse=True))


@dataclass(frozen=True, eq=False)
class Size:
    """One published model of an architecture.

    Attributes:
        family: Whose.
        architecture: Which of the family's.
        layouts: Component of the pipeline -> its modules.
    """

    family: Family
    architecture: Architecture
    layouts: Mapping[str, Layout]

    @cached_property
    def shapes(self) -> dict[str, Shape]:
        """Every module with a weight, such as 'unet.conv_in', and the weight's shape."""
        return {
            f"{component}.{path}": shape
            for component, layout in self.layouts.items()
            for path, shape in layout.weights()
        }

    @cached_property
    def _paths(self) -> dict[str, dict[str, Modules]]:
        """Component -> spelled path -> modules."""
        return {component: dict(self._spelled(component, layout)) for component, layout in self.layouts.items()}

    def _spelled(self, component: str, layout: Layout) -> Iterator[tuple[str, Modules]]:
        """What adapters alone have comes first, then the authors' names, then diffusers'."""
        ours, theirs = [path for path, _ in layout.weights()], list(layout.native())
        parts = ((f"{name}.{n}", (path,)) for name, paths in theirs for n, path in enumerate(paths) if len(paths) > 1)
        native = self.family.native
        aliases = native.aliased(ours) if native is not None and native.component == component else ()
        for name, paths in itertools.chain(parts, aliases, theirs, ((path, (path,)) for path in ours)):
            yield spelled(name), type(paths)(f"{component}.{path}" for path in paths)

    def find(self, name: str, shape: Shape | None) -> Modules | None:
        """The modules of a name, if it is one of this model's; of several, those of that shape.

        Args:
            name: In any spelling, such as 'lora_unet_mid_block_attentions_0_proj_in'.
            shape: Of the weight that is called so; None: unknown.
        """
        found = list(self._all(spelled(name)))
        return next((modules for modules in found if self.fits(modules, shape)), found[0] if found else None)

    def _all(self, name: str) -> Iterator[Modules]:
        for component, paths in self._paths.items():
            for prefix in prefixes(self.family, component):
                if name.startswith(prefix):
                    path = name[len(prefix) :].removeprefix("text_model_")
                    modules = paths.get(path) or paths.get(f"{path}_0")  # to_out is to_out.0
                    if modules is not None:
                        yield modules

    def fits(self, modules: Modules, shape: Shape | None) -> bool:
        """Whether the modules' weights, one below the other, have that shape, kernels also that of their matrices."""
        if shape is None:
            return True
        _, *rest = self.shapes[modules[0]]
        there = (sum(self.shapes[module][0] for module in modules), *rest)
        return squeezed(shape) == squeezed(there) or shape == (there[0], math.prod(rest))


@cache
def sizes(family: Family) -> tuple[Size, ...]:
    """All published models of a family."""
    return tuple(Size(family, one, layouts) for one in family.architectures for layouts in one.sizes)


def of_any_size(family: Family, name: str, *, trusted: bool = False) -> Modules | None:
    """The module of a name, if a network of this family could have it, whatever its size; None if not.

    Args:
        family: The family.
        name: In any spelling.
        trusted: Whether the file says that it is of this family: one that lists no paths has any then.
    """
    kohya = family.kohya.module(name) if family.kohya is not None else None
    if not family.paths and not sizes(family):
        found = _unlisted(family, kohya or name, trusted)
        return None if found is None else (found,)
    if kohya is not None:
        component, _, path = kohya.partition(".")
        if (found := _path(family, component, spelled(path))) is not None:
            return (f"{component}.{found}",)
    flat = spelled(name)
    for component in (family.component, *family.encoders):
        for prefix in prefixes(family, component):
            if flat.startswith(prefix):
                path = flat.removeprefix(prefix).removeprefix("text_model_")
                if (found := _path(family, component, path)) is not None:
                    return (f"{component}.{found}",)
                if component == family.component and family.native and (held := family.native.spelled(path)):
                    return type(held)(f"{component}.{ours}" for ours in held)
    return None


def shares(modules: Modules) -> tuple[int, ...]:
    """How the rows of a tensor that holds several modules are shared out among them, in units."""
    component, _, path = modules[0].partition(".")
    for name in FAMILIES if len(modules) > 1 else ():
        native = FAMILIES[name].native
        held = native.holding(path) if native is not None and native.component == component else None
        if held is not None and tuple(f"{component}.{ours}" for ours in held.modules) == modules:
            return held.shares
    return (1,) * len(modules)


def _unlisted(family: Family, name: str, trusted: bool) -> str | None:
    """The module of a family that lists no paths, but how they begin."""
    component, _, path = name.partition(".")
    if component in family.encoders or (component == family.component and (trusted or path.startswith(family.modules))):
        return name
    return f"{family.component}.{name}" if name.startswith(family.modules) else None


def _path(family: Family, component: str, flat: str) -> str | None:
    """The path that is spelled so."""
    templates = _templates(family).get(component, {})
    for whole in (flat, f"{flat}_0"):  # to_out is to_out.0
        for pattern, template in templates.get(_NUMBER.sub("#", whole), ()):
            if match := pattern.fullmatch(whole):
                pieces = template.split("#")
                return "".join(itertools.chain(*zip(pieces, (*match.groups(), ""), strict=True)))
    return None


@cache
def _templates(family: Family) -> dict[str, dict[str, list[tuple[re.Pattern[str], str]]]]:
    """Component -> spelled path with '#' for numbers -> what it matches, and the path with '#' for what counts."""
    paths = {component: set(given) for component, given in family.paths.items()}
    for size in sizes(family):
        for module in size.shapes:
            component, _, path = module.partition(".")
            paths.setdefault(component, set()).add(_COUNTED.sub("#", path))
    found: dict[str, dict[str, list[tuple[re.Pattern[str], str]]]] = {}
    for component, templates in paths.items():
        mine = found.setdefault(component, {})
        for template in sorted(templates):
            flat = spelled(template)
            pattern = re.compile(flat.replace("#", r"(\d{1,4})"))
            mine.setdefault(_NUMBER.sub("#", flat), []).append((pattern, template))
    return found
