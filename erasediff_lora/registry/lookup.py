"""A registry: names of one kind of part, each imported when it is first asked for."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Iterator, Mapping
from functools import cached_property
from importlib.metadata import EntryPoint, entry_points
from typing import Any

log = logging.getLogger(__name__)
GROUP = "erasediff_lora"


class Registry(Mapping[str, Any]):
    """The parts of one kind by name: those of this package, and those of others.

    Another package adds a part by an entry point in the group `erasediff_lora.KIND`; its name is the part's. A name of
    this package's own cannot be taken. A part that cannot be imported is named once and left out.

    Args:
        kind: What the parts are, in the plural, such as 'objectives'.
        builtin: Name -> 'package.module' or 'package.module:attribute'.
    """

    def __init__(self, kind: str, builtin: Mapping[str, str]) -> None:
        self.kind = kind
        self._builtin = dict(builtin)
        self._loaded: dict[str, Any] = {}
        self._broken: set[str] = set()

    @cached_property
    def _plugins(self) -> dict[str, EntryPoint]:
        found: dict[str, EntryPoint] = {}
        for point in entry_points(group=f"{GROUP}.{self.kind}"):
            if point.name in self._builtin or point.name in found:
                log.warning("the plug-in %s is left out: there is one of that name", _described(self.kind, point))
            else:
                found[point.name] = point
        return found

    def __getitem__(self, name: str) -> Any:
        if name in self._loaded:
            return self._loaded[name]
        if name in self._builtin:
            part = _import(self._builtin[name])
        elif isinstance(name, str) and name in self._plugins and name not in self._broken:
            point = self._plugins[name]
            try:
                part = point.load()
            except Exception as error:
                self._broken.add(name)
                reason = f"{type(error).__name__}: {error}"
                log.warning("the plug-in %s is left out: %s", _described(self.kind, point), reason)
                raise KeyError(name) from error
        else:
            raise KeyError(name)
        self._loaded[name] = part
        return part

    def __iter__(self) -> Iterator[str]:
        """This package's names in the order of their listing, then those of others."""
        yield from self._builtin
        for name in self._plugins:
            if name in self:
                yield name

    def __contains__(self, name: object) -> bool:
        """Whether there is such a part; a plug-in is imported to see."""
        if not isinstance(name, str):
            return False
        if name in self._builtin:
            return True
        try:
            self[name]
        except KeyError:
            return False
        return True

    def __len__(self) -> int:
        return sum(1 for _ in self)


def _import(target: str) -> Any:
    module, _, attribute = target.partition(":")
    found = importlib.import_module(module)
    return getattr(found, attribute) if attribute else found


def _described(kind: str, point: EntryPoint) -> str:
    package = f" of the package {point.dist.name}" if point.dist else ""
    return f"{point.name!r} ({kind}, {point.value}){package}"
