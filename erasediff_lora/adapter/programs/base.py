"""What a program that loads adapter files is: which files it reads, and what it does otherwise than they mean."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from erasediff_lora import families
from erasediff_lora.adapter.weights import BIAS, Adapter, Layer
from erasediff_lora.registry import FAMILIES, FORMATS

SD, XL, SD3 = "stable_diffusion", "stable_diffusion_xl", "stable_diffusion_3"
"""Names of families in the registry."""
KOHYA = "Give it the kohya file: convert --format kohya."
DIFFUSERS = "Give it the diffusers file: convert --format diffusers."
MERGE = "Merge the adapter into the base: merge BASE ADAPTER."
PLAIN = "Make it a LoRA (convert --as lora --rank RANK --base BASE), or merge it into the base."


@dataclass(frozen=True)
class Which:
    """Some layers of an adapter.

    Attributes:
        words: What they are, for people.
        of: Their names in an adapter.
    """

    words: str
    of: Callable[[Adapter[Any]], Collection[str]]


@dataclass(frozen=True)
class Limit:
    """Layers that a program leaves out, or reads otherwise than they are meant.

    Attributes:
        which: Which they are.
        are: What becomes of them: 'not read', or 'read otherwise'.
        why: A sentence without its full stop.
        remedy: What a user can do, in a sentence.
        source: Where the program's code does it: file, and function or class.
        formats: Of which formats' files; (): all that the program reads.
        families: Of which families; (): all.
        versions: In which versions, such as 'before 0.34'; '': all that were looked at.
    """

    which: Which
    are: str
    why: str
    remedy: str
    source: str
    formats: tuple[str, ...] = ()
    families: tuple[str, ...] = ()
    versions: str = ""


@dataclass(frozen=True)
class Program:
    """A program that loads adapter files; one file each here, registered in `registry.PROGRAMS`.

    Attributes:
        title: What people call it.
        version: The version whose code was read.
        repository: Where that code is, with the commit where the version has no tag.
        reads: Format -> families of which it reads files in it.
        limits: What it does otherwise.
        tolerates: How many tensors it can leave over before it refuses the whole file; None: any number.
    """

    title: str
    version: str
    repository: str
    reads: Mapping[str, tuple[str, ...]]
    limits: tuple[Limit, ...] = field(default=())
    tolerates: int | None = None


@dataclass(frozen=True)
class Loss:
    """What a program makes of some layers of a file.

    Attributes:
        program: Its name in the registry.
        version: Of the program.
        layers: How many they are, of how many.
        which: What they are.
        are: 'not read', 'read otherwise', or 'not known to be read'.
        why: A sentence without its full stop.
        remedy: A sentence.
    """

    program: str
    version: str
    layers: tuple[int, int]
    which: str
    are: str
    why: str
    remedy: str

    @property
    def is_whole(self) -> bool:
        """Whether nothing of the file is read."""
        return self.are != "read otherwise" and self.layers[0] == self.layers[1]

    def __str__(self) -> str:
        count, total = self.layers
        which = (
            f"{count} of {total} layers" if count < total else f"all {total} layers" if total > 1 else "the only layer"
        )
        which += f" ({self.which})" if self.which else ""
        return f"{self.program} {self.version}: {which} {self.are}: {self.why}. {self.remedy}"


def losses(name: str, program: Program, format: str, adapter: Adapter[Any]) -> list[Loss]:
    """What a program makes otherwise of a file.

    Args:
        name: The program's name in the registry.
        program: The program.
        format: The file's format.
        adapter: What is in it, as it stands there: alphas that the file keeps, not those that it could have.
    """
    total = len(adapter.layers)

    def all_lost(why: str, remedy: str, are: str = "not read") -> list[Loss]:
        return [Loss(name, program.version, (total, total), "", are, why, remedy)]

    reads = families_read(name, program)
    found = [families.of_architecture(one) for one in adapter.candidates]
    possible = {families.name_of(one[0]) for one in found if one is not None}
    family = next(iter(possible)) if len(possible) == 1 else None
    if format not in reads or (possible and not possible & set(reads[format])):
        others = [other for other, suited in reads.items() if family in suited and other != format]
        remedy = f"Give it the {others[0]} file: convert --format {others[0]}." if others else MERGE
        if format not in FORMATS:
            return all_lost("its readers of this spelling were not looked at", remedy, "not known to be read")
        of = "" if family is None or format not in reads else f" of {family}"
        return all_lost(f"it reads no {format} files{of}", remedy)
    limits = [
        limit
        for limit in program.limits
        if (not limit.formats or format in limit.formats) and (not limit.families or family in limit.families)
    ]
    counted = [(limit, len(limit.which.of(adapter))) for limit in limits]
    left = sum(count for limit, count in counted if limit.are == "not read" and not limit.versions)
    if program.tolerates is not None and 2 * left > program.tolerates:
        why = (
            f"it refuses files of which it would leave over more than {program.tolerates} tensors, and finds {2 * left}"
        )
        return all_lost(why, next(limit.remedy for limit, count in counted if count and limit.are == "not read"))
    return [
        Loss(name, x.versions or program.version, (count, total), x.which.words, x.are, x.why, x.remedy)
        for x, count in counted
        if count
    ]


def families_read(name: str, program: Program) -> dict[str, tuple[str, ...]]:
    """Format -> families of which a program reads files in it, as the program's entry or the family's says.

    Args:
        name: The program's name in the registry.
        program: The program.
    """
    return {
        format: (*program.reads.get(format, ()), *(f for f in FAMILIES if name in FAMILIES[f].read_by.get(format, ())))
        for format in {**program.reads, **dict.fromkeys(FORMATS)}
        if format in program.reads or any(name in FAMILIES[f].read_by.get(format, ()) for f in FAMILIES)
    }


def named(pattern: str, words: str) -> Which:
    """Layers whose names match from the beginning."""
    compiled = re.compile(pattern)
    return Which(words, lambda adapter: [name for name in adapter.layers if compiled.match(name)])


def _with_magnitudes(words: str, by_input: bool | None) -> Which:
    return Which(
        words,
        lambda adapter: [
            name
            for name, layer in adapter.layers.items()
            if layer.magnitude is not None and by_input in (None, layer.by_input)
        ],
    )


def _scaled(adapter: Adapter[Any]) -> list[str]:
    return [name for name, layer in adapter.layers.items() if isinstance(layer, Layer) and layer.scale != 1]


def _of_other_kinds(adapter: Adapter[Any]) -> list[str]:
    return [name for name, layer in adapter.layers.items() if not isinstance(layer, Layer) and not name.endswith(BIAS)]


def _of_biases(adapter: Adapter[Any]) -> list[str]:
    return [name for name in adapter.layers if name.endswith(BIAS)]


def _all_beside_other_kinds(adapter: Adapter[Any]) -> list[str]:
    return list(adapter.layers) if _of_other_kinds(adapter) or _of_biases(adapter) else []


def _of_other_ranks(adapter: Adapter[Any]) -> list[str]:
    first: dict[str, int] = {}
    found = []
    for name, layer in adapter.layers.items():
        component = name.partition(".")[0]
        if layer.rank is not None and layer.rank != first.setdefault(component, layer.rank):
            found.append(name)
    return found


def of_other_alphas(pattern: str, words: str) -> Which:
    """Layers of these names whose alpha is not the commonest one of their component."""

    def find(adapter: Adapter[Any]) -> list[str]:
        alphas = {name: layer.alpha for name, layer in adapter.layers.items() if isinstance(layer, Layer)}
        found = []
        for component in adapter.components:
            mine = {name: alpha for name, alpha in alphas.items() if name.startswith(component + ".")}
            common = Counter(mine.values()).most_common(1)[0][0] if mine else 0.0
            found += [name for name, alpha in mine.items() if alpha != common and re.match(pattern, name)]
        return found

    return Which(words, find)


UNET_ATTENTION = r"unet\..*\.attn\d\.to_(q|k|v|out\.0)$"
DORA = _with_magnitudes("DoRA", None)
DORA_OF_OUTPUTS = _with_magnitudes("DoRA, magnitudes of the outputs, as in peft", by_input=False)
SCALED = Which("an alpha that is not the rank", _scaled)
OTHER_KINDS = Which("LoHa, LoKr, whole differences and other kinds", _of_other_kinds)
ALL_BESIDE_OTHER_KINDS = Which("all, where some are LoHa, LoKr, whole differences or biases", _all_beside_other_kinds)
BIASES = Which("biases", _of_biases)
OTHER_RANKS = Which("a rank that is not the first layer's", _of_other_ranks)
ATTENTION = named(UNET_ATTENTION, "attention of a UNet")
OUTSIDE_BLOCKS = named(r"unet\.(?!down_blocks|mid_block|up_blocks)", "first and last convolution, embeddings of a UNet")
PROJECTION = named(r"text_encoder\w*\.text_projection$", "projection of a text encoder")
T5 = named(r"text_encoder_3\.", "T5")
