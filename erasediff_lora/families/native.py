"""How the authors' own code names a network's modules, where it holds several of diffusers' in one weight.

Single files, ComfyUI and kohya's files go by these names. Of two halves that lie the other way round here and there,
shift and scale of the last layer, the order is part of it.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

from erasediff_lora.families.layouts import Swapped
from erasediff_lora.families.slot import Slot

NETWORK = "model.diffusion_model."
LEAVES = (".weight", ".scale")
"""What a weight's tensor ends in; norms of FLUX have the second."""
_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")


class Stacked(NamedTuple):
    """A weight of theirs.

    Attributes:
        name: Its path.
        modules: Our paths, from top to bottom.
        shares: How the rows are shared out among them, in units.
        swapped: Whether the two halves of the rows lie the other way round.
    """

    name: str
    modules: tuple[str, ...]
    shares: tuple[int, ...]
    swapped: bool


@dataclass(frozen=True)
class NativeNames:
    """The names of one family, with '#' for a block's number.

    Attributes:
        component: Name of the network in the pipeline.
        table: Their path -> ours: several where they lie one below the other in one weight.
        shares: Their path -> how the rows are shared out, in units; omitted where they are alike.
        swapped: Their paths of weights whose two halves lie the other way round.
        encoders: What stands before the names of a text encoder's weights in single files -> its name here.
        telling: Our paths, of which a single file has one; omitted where any path of a first block will do.
        aliases: Paths that only adapters have -> ours.
    """

    component: str
    table: Mapping[str, tuple[str, ...]]
    shares: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    swapped: frozenset[str] = frozenset()
    encoders: Mapping[str, str] = field(default_factory=dict)
    telling: tuple[str, ...] = ()
    aliases: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def slots(self, keys: Collection[str]) -> dict[str, Slot]:
        """Adapter name -> slot, for every weight of a single file that is of this family."""
        found: dict[str, Slot] = {}
        for key in keys:
            path, leaf = _parted(key)
            if leaf and key.startswith(NETWORK) and (stacked := self.stacked(path.removeprefix(NETWORK))):
                found |= dict(zip(self._named(stacked), _slots(key, stacked), strict=True))
        if not any(f"{self.component}.{ours}" in found for ours in self._telling):
            return {}
        for key in keys:
            for prefix, encoder in self.encoders.items():
                path, leaf = _parted(key)
                if leaf and key.startswith(prefix):
                    found[f"{encoder}.{path.removeprefix(prefix).removeprefix('text_model.')}"] = Slot(key)
        return found

    def stacked(self, path: str) -> Stacked | None:
        """The weight of theirs that has this path; None: none has."""
        numbers = _NUMBER.findall(path)
        for count in range(len(numbers), -1, -1):  # numbers behind the block's are names, as in img_mlp.0
            template = _NUMBER.sub("#", path, count=count) if count else path
            if template in self.table:
                return self._stacked(template, numbers[:count])
        return None

    def holding(self, module: str) -> Stacked | None:
        """The weight of theirs that holds one of our paths."""
        numbers = _NUMBER.findall(module)
        for count in range(len(numbers), -1, -1):
            template = self._by_ours.get(_NUMBER.sub("#", module, count=count) if count else module)
            if template is not None:
                return self._stacked(template, numbers[:count])
        return None

    def spelled(self, flat: str) -> tuple[str, ...] | None:
        """Our paths of one of theirs that is written with underscores for dots."""
        for pattern, template in self._patterns:
            if match := pattern.fullmatch(flat):
                if template in self.table:
                    return self._stacked(template, match.groups()).modules
                return tuple(_filled(path, match.groups()) for path in self._of_adapters[template])
        return None

    def names(self, ours: Collection[str]) -> Iterator[tuple[str, tuple[str, ...]]]:
        """All of their paths, and ours, of a network with these paths."""
        seen = set()
        for path in ours:
            held = self.holding(path)
            if held is not None and held.name not in seen:
                seen.add(held.name)
                yield held.name, held.modules

    def aliased(self, ours: Collection[str]) -> Iterator[tuple[str, tuple[str, ...]]]:
        """All paths that only adapters have, and ours, of a network with these paths."""
        there = set(ours)
        blocks = {number for path in there for number in _NUMBER.findall(path)[:1]}
        for (template, paths), number in itertools.product(self.aliases.items(), sorted(blocks)):
            modules = tuple(_filled(path, (number,)) for path in paths)
            if modules[0] in there:
                yield _filled(template, (number,)), modules

    def _stacked(self, template: str, numbers: Collection[str]) -> Stacked:
        ours = self.table[template]
        shares = self.shares.get(template, (1,) * len(ours))
        swapped = template in self.swapped
        filled = (Swapped if swapped else tuple)(_filled(path, numbers) for path in ours)
        return Stacked(_filled(template, numbers), filled, shares, swapped)

    def _named(self, stacked: Stacked) -> list[str]:
        return [f"{self.component}.{path}" for path in stacked.modules]

    @cached_property
    def _by_ours(self) -> dict[str, str]:
        return {path: theirs for theirs, ours in self.table.items() for path in ours}

    @cached_property
    def _of_adapters(self) -> dict[str, tuple[str, ...]]:
        """What no single file has: the aliases, and parts of a weight by their numbers, as in img_attn.qkv.0 (OMI)."""
        parts = {
            f"{theirs}.{number}": (path,)
            for theirs, ours in self.table.items()
            for number, path in enumerate(ours if len(ours) > 1 else ())
        }
        return parts | dict(self.aliases)

    @cached_property
    def _patterns(self) -> list[tuple[re.Pattern[str], str]]:
        paths = (*self.table, *self._of_adapters)
        return [(re.compile(theirs.replace(".", "_").replace("#", r"(\d{1,4})")), theirs) for theirs in paths]

    @cached_property
    def _telling(self) -> list[str]:
        """Paths in the first block: a file without any of them is no network of this family."""
        first = [_filled(path, ("0",)) for theirs, ours in self.table.items() if "#" in theirs for path in ours]
        return list(self.telling) or first


def _slots(key: str, stacked: Stacked) -> Iterator[Slot]:
    first, parts = 0, sum(stacked.shares)
    for share in stacked.shares:
        yield Slot(key, first, parts, stacked.swapped, share)
        first += share


def _parted(key: str) -> tuple[str, str]:
    """Path and leaf of a weight's key; no leaf: it is no weight."""
    leaf = next((leaf for leaf in LEAVES if key.endswith(leaf)), "")
    return key.removesuffix(leaf), leaf


def _filled(template: str, numbers: Collection[str]) -> str:
    for number in numbers:
        template = template.replace("#", number, 1)
    return template
