"""Deciding which architecture an adapter is for: by what is there, by what its header says, by what the user says.

Nothing is taken for granted: what cannot be told stays open, and whoever needs to know asks.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace

from erasediff_lora.families import others
from erasediff_lora.families.base import Architecture, Family
from erasediff_lora.families.names import Modules, Shape, Size, of_any_size, shares, sizes
from erasediff_lora.registry import FAMILIES

OWN_HEADER = "erasediff.architecture"
_SEPARATORS = re.compile(r"[^a-z0-9]|(?<![a-z])v(?=\d)")
"""What versions are written with or without, and the v of a number."""
Names = Mapping[str, Shape | None]
"""Name of an adapted module, in any spelling, -> shape of its weight, None where it is not known."""


@dataclass(frozen=True)
class Recognised:
    """What names of modules were taken for.

    Attributes:
        architecture: Modelspec id; None: it cannot be told.
        candidates: All architectures that are left.
        modules: Name -> the modules that it means.
        contradicted: What the header says, where the modules say otherwise.
    """

    architecture: str | None
    candidates: tuple[str, ...]
    modules: Mapping[str, Modules]
    contradicted: str | None = None


@dataclass(frozen=True)
class Unfit(Exception):
    """No family has all the modules.

    Attributes:
        architecture: Of the family that has most of them, or that was asked for; None: no family has any.
        names: Those that it does not have, or not in that shape.
        expected: Name -> the shape there, of those that it has.
        like: The family of other programs that they look like; None: none known.
        fitting: The architectures that they fit instead of the one that was asked for.
    """

    architecture: str | None
    names: tuple[str, ...]
    expected: Mapping[str, Shape] = field(default_factory=dict)
    like: str | None = None
    fitting: tuple[str, ...] = ()


def asked() -> Iterator[Family]:
    """All families, in the order in which they are asked whether something is theirs: other packages' come first."""
    yield from reversed([FAMILIES[name] for name in FAMILIES])


def identifiers(text: str) -> tuple[str, ...]:
    """The architectures that a user means by an id, the version in kohya's files, or the family's name in recipes."""
    if text in FAMILIES:
        return tuple(one.id for one in FAMILIES[text].architectures)
    return tuple(one.id for family in asked() for one in family.architectures if text in (one.id, one.kohya))


def said_by(metadata: Mapping[str, str]) -> tuple[str, ...]:
    """The architectures that a header leaves, as we, the modelspec standard and kohya write it; (): unsaid."""
    known = [one for family in asked() for one in family.architectures]
    own = metadata.get(OWN_HEADER)
    spec = metadata.get("modelspec.architecture", "").partition("/")[0]
    for text in (own, spec):
        exact = [one.id for one in known if one.id == text]
        if text and (found := exact or [one.id for one in known if text.startswith(one.id)]):
            return tuple(found)
    return _said_by_kohya(metadata, known)


def _said_by_kohya(metadata: Mapping[str, str], known: Collection[Architecture]) -> tuple[str, ...]:
    version = metadata.get("ss_base_model_version", "").lower()
    if version.startswith("sd3"):
        return tuple(one.id for one in known if one.id.startswith("stable-diffusion-3"))
    if version.startswith("sdxl"):
        version = "sdxl_base_v1-0"
    predicts_v: bool | None = version.endswith("_v") or metadata.get("modelspec.prediction_type") == "v"
    plain = version.removesuffix("_v")
    if not plain and metadata.get("ss_v2", "").lower() == "true":
        plain = "sd_v2"
    found = [one.id for one in known if one.kohya == plain]
    if not found:
        found, predicts_v = _said_loosely(plain, known), predicts_v or None
    of_prediction = [name for name in found if predicts_v is not None and name.endswith("-v") == predicts_v]
    return tuple(of_prediction or found)


def _said_loosely(version: str, known: Collection[Architecture]) -> list[str]:
    """The same as trainers spell it that do not say what is predicted: 'sd_v1-5', 'sd_1.5', 'flux.1-dev', 'z-image'."""
    exact = [one.id for one in known if _SEPARATORS.sub("", one.id) == _SEPARATORS.sub("", version)]
    fitting = {one.kohya: _SEPARATORS.sub("", one.kohya) for one in known if one.kohya}
    fitting = {name: flat for name, flat in fitting.items() if _SEPARATORS.sub("", version).startswith(flat)}
    longest = max(fitting, key=lambda name: len(fitting[name]), default=None)
    return exact or [one.id for one in known if longest is not None and one.kohya == longest]


def recognise(names: Names, metadata: Mapping[str, str], wanted: Collection[str] = ()) -> Recognised:
    """Decide which architecture modules belong to, and what they are called here.

    Args:
        names: Of the adapted modules, in any program's spelling.
        metadata: The file's header.
        wanted: Ids of the architectures that the user says they are of; empty: the user does not say.

    Raises:
        Unfit: If no family has them all, or not the one that was asked for.
    """
    found = _by_size(names)
    exact = {size.architecture.id: modules for size, modules in found.items() if _fits(size, modules, names)}
    said = said_by(metadata)
    if exact and not (said and not wanted and _is_unsized(said)):
        left = [name for name in exact if name in wanted] if wanted else list(exact)
        if not left:
            raise Unfit(next(iter(wanted)), tuple(names), fitting=tuple(exact))
        _refuse_others_modules(exact, names, metadata, wanted)
        return _choose({name: exact[name] for name in left}, said, names)
    return _of_unpublished_size(names, found, said, metadata, wanted)


def _by_size(names: Names) -> dict[Size, dict[str, Modules]]:
    """Published model -> the modules of those names that it has."""
    found = {}
    for family in asked():
        for size in sizes(family):
            mine = ((name, size.find(name, shape)) for name, shape in names.items())
            found[size] = _spelled_one_way({name: modules for name, modules in mine if modules is not None})
    return found


def _spelled_one_way(found: dict[str, Modules]) -> dict[str, Modules]:
    """Without those of another family of kohya's: no file has both `lora_te_` and `lora_te1_`."""
    if not any(name.startswith("lora_te_") for name in found):
        return found
    return {name: modules for name, modules in found.items() if not name.startswith("lora_te1_")}


def _fits(size: Size, modules: Mapping[str, Modules], names: Names) -> bool:
    return len(modules) == len(names) and all(size.fits(modules[name], shape) for name, shape in names.items())


def _refuse_others_modules(
    exact: Mapping[str, Mapping[str, Modules]], names: Names, metadata: Mapping[str, str], wanted: Collection[str]
) -> None:
    """Text encoders, and all of some networks, are those of other families too, which only the header tells then.

    Raises:
        Unfit: If it does.
    """
    like = others.by_header(metadata)
    networks = {family.component for family in asked()}
    modules = [module for mine in exact.values() for several in mine.values() for module in several]
    is_text = not any(module.partition(".")[0] in networks for module in modules)
    if like is not None and not wanted and (is_text or like in others.SHARED):
        raise Unfit(None, tuple(names), like=like)


def _nearly_fits(size: Size, modules: Mapping[str, Modules], names: Names) -> bool:
    """Whether half of the modules have the shapes of a published model: the rest is of no other size then."""
    fitting = sum(size.fits(mine, names[name]) for name, mine in modules.items() if names[name] is not None)
    return fitting >= len(names) / 2


def _is_unsized(said: Collection[str]) -> bool:
    """Whether these architectures have no published sizes: each base has its own."""
    return all(not one.sizes for family in asked() for one in family.architectures if one.id in said)


def _choose(left: Mapping[str, Mapping[str, Modules]], said: Collection[str], names: Names) -> Recognised:
    """Of several architectures that fit, the one that the header or the trainer's spelling leaves."""
    agreed = [name for name in left if name in said]
    contradicted = next(iter(said)) if said and not agreed else None
    known = [one.id for name in FAMILIES for one in FAMILIES[name].architectures]
    candidates = sorted(agreed or [name for name in left if _writes(name, names)] or left, key=known.index)
    architecture = candidates[0] if len(candidates) == 1 else None
    return Recognised(architecture, tuple(candidates), left[candidates[0]], contradicted)


def _writes(architecture: str, names: Names) -> bool:
    """Whether kohya's trainer spells names of this architecture like these."""
    roots = [f.kohya.roots for f in asked() if f.kohya and any(one.id == architecture for one in f.architectures)]
    return bool(roots) and all(name.startswith(roots[0]) for name in names)


def _of_unpublished_size(
    names: Names,
    found: Mapping[Size, Mapping[str, Modules]],
    said: Collection[str],
    metadata: Mapping[str, str],
    wanted: Collection[str],
) -> Recognised:
    """Modules of a base that is smaller or larger than the published ones."""
    like = others.by_names(names, {n: s for n, s in names.items() if s is not None}) or others.by_header(metadata)
    is_own = OWN_HEADER in metadata
    if like is not None and not wanted and not is_own:
        raise _unfit(names, found, said, like)
    loosely = bool(wanted) or is_own
    if not loosely and (near := [size for size, mine in found.items() if _nearly_fits(size, mine, names)]):
        raise _unfit(names, {size: found[size] for size in near}, (), like)
    possible = _possible(names, None if loosely else found, said if is_own else ())
    contradicted = None
    for chosen in (wanted, said):
        left = [name for name in possible if name in chosen]
        if left:
            possible = {name: possible[name] for name in left}
        elif wanted and chosen is said:
            contradicted = next(iter(said), None)  # the user knows better
        elif chosen:
            raise _unfit(names, found, chosen, like)
    if not possible:
        raise _unfit(names, found, said, like)
    return replace(_by_widths(possible, names), contradicted=contradicted)


def _possible(
    names: Names, found: Mapping[Size, Mapping[str, Modules]] | None, own: Collection[str]
) -> dict[str, tuple[Family, Mapping[str, Modules]]]:
    """The architectures that have all modules, in some size; with `found`, in a published one if there is any.

    Those in `own` are what this package wrote down where it trained the adapter.
    """
    possible: dict[str, tuple[Family, Mapping[str, Modules]]] = {}
    for family in asked():
        trusted = any(one.id in own for one in family.architectures)
        every = {name: of_any_size(family, name, trusted=trusted) for name in names}
        modules = {name: mine for name, mine in every.items() if mine is not None and _divides(mine, names[name])}
        for one in family.architectures:
            published = (
                {} if found is None else {size: mine for size, mine in found.items() if size.architecture == one}
            )
            whole = [mine for mine in published.values() if len(mine) == len(names)]
            if len(modules) == len(names) and (whole or not published):
                possible[one.id] = (family, whole[0] if whole else modules)
    return possible


def _divides(modules: Modules, shape: Shape | None) -> bool:
    """Whether rows of this shape can be shared out among the modules."""
    return shape is None or len(modules) == 1 or shape[0] % sum(shares(modules)) == 0


def _by_widths(possible: Mapping[str, tuple[Family, Mapping[str, Modules]]], names: Names) -> Recognised:
    """What each family makes of the shapes of its own modules."""
    candidates = list(possible)
    if len(candidates) > 1:
        for family, modules in possible.values():
            shapes = {modules[name][0]: shape for name, shape in names.items() if shape is not None}
            if (told := family.recognise(shapes)) in possible:
                candidates = [name for name in possible if name == told]
                break
    return Recognised(
        candidates[0] if len(candidates) == 1 else None, tuple(candidates), dict(possible[candidates[0]][1])
    )


def _unfit(
    names: Names, found: Mapping[Size, Mapping[str, Modules]], among: Collection[str], like: str | None
) -> Unfit:
    """Told by the published model that has most of the names."""
    mine = {size: modules for size, modules in found.items() if not among or size.architecture.id in among}
    size = max(mine or found, key=lambda size: len(found[size]), default=None)
    if size is None or not found[size]:
        return Unfit(next(iter(among), None), tuple(names), like=like)
    modules = found[size]
    missing = tuple(name for name in names if name not in modules)
    misfits = tuple(name for name in modules if not size.fits(modules[name], names[name]))
    return Unfit(
        size.architecture.id, missing or misfits, {name: size.shapes[modules[name][0]] for name in misfits}, like
    )
