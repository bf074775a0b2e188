"""Reading an adapter's file in whatever spelling: tensors to modules, modules to a family, and layers of them."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from erasediff_lora import families
from erasediff_lora.adapter.composite import StoredComposite
from erasediff_lora.adapter.formats import refusals
from erasediff_lora.adapter.formats.peft_config import LORA, LoraConfig, lora_config
from erasediff_lora.adapter.formats.tensor_names import Sorted, sort, weight_shape
from erasediff_lora.adapter.kinds import full
from erasediff_lora.adapter.parts import ALPHA, layers_of
from erasediff_lora.adapter.provenance import PREFIX, Provenance
from erasediff_lora.adapter.scaling import with_alphas
from erasediff_lora.adapter.weights import AnyStored, StoredAdapter, StoredLayer, checked, unusable
from erasediff_lora.errors import Problem, UserError, nearest
from erasediff_lora.families.layouts import Swapped
from erasediff_lora.registry import KINDS
from erasediff_lora.storage.tensors import StoredTensor, TensorFile

log = logging.getLogger(__name__)
COMPONENT = "erasediff_component"
"""Header of our own peft files: what of the pipeline they are for."""
OWN_HEADER = (
    "format",
    "lora_adapter_metadata",
    "modelspec.hash_sha256",
    "sshs_model_hash",
    "sshs_legacy_hash",
    COMPONENT,
)
_ARCHITECTURE = ("modelspec.architecture", "ss_base_model_version", "ss_v2")
_ENCODER = ("lora_te", "text_encoder", "base_model.model.text_model.", "lora_prior_te_", "clip_", "t5.")


@dataclass(frozen=True)
class Asked:
    """What the user says of a file.

    Attributes:
        family: Ids of the architectures that it may be of; empty: any.
        only: Components to read; empty: all.
    """

    family: tuple[str, ...] = ()
    only: tuple[str, ...] = ()

    @classmethod
    def parse(cls, family: str | None = None, only: Sequence[str] = ()) -> Asked:
        """Check what the command line says.

        Raises:
            UserError: If there is no such family or component.
        """
        known = families.identifiers(family) if family is not None else ()
        if family is not None and not known:
            names = {*families.architectures(), *families.FAMILIES}
            raise UserError(Problem("--family", family, "is unknown.", nearest(family, names)))
        for component in only:
            if component not in families.components():
                raise UserError(
                    Problem("--only", component, "is no part of a pipeline.", nearest(component, families.components()))
                )
        return cls(known, tuple(only))


NOTHING = Asked()


@dataclass(frozen=True)
class Part:
    """A file of an adapter.

    Attributes:
        stored: The file.
        component: What of the pipeline it is for; None: its names say it.
        config: LoraConfigs by component, '' for all; fields as peft writes them.
        prefix: What stands before all names, and says nothing.
        config_path: Where the configuration stands; None: in the file itself.
    """

    stored: TensorFile
    component: str | None = None
    config: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    prefix: str = ""
    config_path: Path | None = None

    def whole(self, name: str) -> str:
        """The name of a module with its component, if that is known."""
        bare = name.removeprefix(self.prefix)
        return bare if self.component is None else f"{self.component}.{bare}"


def read(parts: Sequence[Part], asked: Asked = NOTHING) -> StoredAdapter:
    """The adapter that files make up.

    Args:
        parts: The files, the one with the header first.
        asked: What the user says of them.

    Raises:
        UserError: If a tensor is of no known kind, or of no module of the family, or the family is not the one that
            was asked for.
    """
    main = parts[0].stored
    configs = {
        component: lora_config(fields, part.config_path or part.stored.path)
        for part in parts
        for component, fields in part.config.items()
    }
    found = sort({part.whole(key): tensor for part in parts for key, tensor in part.stored.tensors.items()})
    try:
        recognised = _recognise(found, parts, main, asked)
    except UserError:
        found = _without_text(found, asked)  # what is wrong may be of what the user does not want
        recognised = _recognise(found, parts, main, asked)
    if found.skipped:
        shown = sorted({key.split(".")[1] for key in found.skipped})
        log.warning("warning: %s holds embeddings too, which are left out: %s", main.path, ", ".join(shown))
    if recognised.contradicted is not None:
        log.warning(
            "warning: %s says in its header that it is for %s, but its layers are those of %s",
            main.path,
            recognised.contradicted,
            " or ".join(recognised.candidates),
        )
    layers = _layers(found, recognised.modules, configs, main.path)
    plain = {name: layer for name, layer in layers.items() if isinstance(layer, StoredLayer)}
    layers |= with_alphas(plain, main.metadata)
    if asked.only:
        layers = _of_components(layers, asked.only, main.path)
    provenance = Provenance.from_header(main.metadata)
    if recognised.architecture is not None:
        provenance = replace(provenance, architecture=recognised.architecture)
    elif provenance.architecture not in recognised.candidates:
        provenance = replace(provenance, architecture=None)
    header = other_header(main.metadata)
    if recognised.contradicted is not None:
        header = {key: value for key, value in header.items() if key not in _ARCHITECTURE}
    return StoredAdapter(checked(layers, main.path), provenance, header, recognised.candidates)


def other_header(metadata: Mapping[str, str]) -> dict[str, str]:
    """What a header holds beside what every writer makes anew."""
    return {key: value for key, value in metadata.items() if not key.startswith(PREFIX) and key not in OWN_HEADER}


def _recognise(found: Sorted, parts: Sequence[Part], main: TensorFile, asked: Asked) -> families.Recognised:
    """What the modules are taken for.

    Raises:
        UserError: If tensors are left over, or the modules are of no family.
    """
    real = {part.whole(key): key for part in parts for key in part.stored.tensors}
    shown = {key: tensor for part in parts for key, tensor in part.stored.tensors.items()}
    if found.again:
        raise refusals.repeated([real[key] for key in found.again], main)
    if found.unknown:
        raise refusals.unknown_tensors([real[key] for key in found.unknown], shown, main)
    shapes = {name: weight_shape(parts) for name, parts in found.modules.items()}
    if not shapes:
        raise unusable(main.path, "holds no LoRA layer.", "Give an adapter file, not a checkpoint.")
    try:
        return families.recognise(shapes, main.metadata, asked.family)
    except families.Unfit as unfit:
        keys = {name: [real[key] for key in mine] for name, mine in found.keys.items()}
        raise refusals.unfit_modules(unfit, keys, shown, main, asked.family) from None


def _without_text(found: Sorted, asked: Asked) -> Sorted:
    """The same without text encoders, where the user wants none."""
    if not asked.only or not set(asked.only) <= set(families.networks()):
        return found

    def is_text(name: str) -> bool:
        return name.startswith(_ENCODER)

    if left := [name for name in (*found.modules, *found.unknown, *found.again) if is_text(name)]:
        log.warning("warning: %d layers of text encoders are left out, the first %s", len(left), left[0])
    modules = {name: parts for name, parts in found.modules.items() if not is_text(name)}
    unknown, again = ([name for name in names if not is_text(name)] for names in (found.unknown, found.again))
    return Sorted(modules, found.keys, unknown, again, found.skipped)


def _of_components(layers: Mapping[str, AnyStored], only: Collection[str], source: Path) -> dict[str, AnyStored]:
    kept = {name: layer for name, layer in layers.items() if name.partition(".")[0] in only}
    there = sorted({name.partition(".")[0] for name in layers})
    if not kept:
        raise UserError(
            Problem("--only", ", ".join(only), f"has no layer in {source}.", f"It has layers of {', '.join(there)}.")
        )
    if left := [component for component in there if component not in only]:
        log.warning("warning: the layers of %s are left out", ", ".join(left))
    return kept


def _layers(
    found: Sorted, modules: Mapping[str, tuple[str, ...]], configs: Mapping[str, LoraConfig], source: Path
) -> dict[str, AnyStored]:
    layers: dict[str, AnyStored] = {}
    for name, tensors in found.modules.items():
        component = modules[name][0].partition(".")[0]
        config = configs.get(component) or configs.get("") or LoraConfig(source=source)
        path = name.removeprefix(f"{component}.")
        rslora = config.rslora and ALPHA not in tensors  # a tensor's alpha has taken it up
        alpha, rank = config.alpha_of(path), config.rank_of(path)
        mine = layers_of(modules[name][0], tensors, source, name, alpha=alpha, rank=rank, rslora=rslora)
        if config.kind != LORA and (plain := [one for one in mine.values() if isinstance(one, StoredLayer)]):
            raise unusable(config.source, f"has peft_type = {config.kind!r}, but a {plain[0].title} at {name}.")
        mine = _shared_out(mine, modules[name], name, source)
        if twice := next((module for module in mine if module in layers), None):
            raise unusable(source, f"has the layer {twice} twice, once as {name}.")
        layers |= mine
    for component, config in configs.items():
        mine = {name: layer for name, layer in layers.items() if not component or name.startswith(f"{component}.")}
        if config.dora and mine and all(layer.magnitude is None for layer in mine.values()):
            raise unusable(config.source, "has use_dora = True, but the file has no magnitudes.", "Save it again.")
    return layers


def _shared_out(
    layers: Mapping[str, AnyStored], modules: Sequence[str], name: str, source: Path
) -> dict[str, AnyStored]:
    """The layers of the modules whose rows lie in this one's weight, all of A and a part of B each.

    They lie one below the other, or those of one module with their halves the other way round.

    Raises:
        UserError: If the rows cannot be shared out: they are of another kind, or a DoRA by input, whose magnitudes are
            those of all of them together.
    """
    if len(modules) == 1 and not isinstance(modules, Swapped):
        return dict(layers)
    found: dict[str, AnyStored] = {}
    for key, layer in layers.items():
        rows = _rows(layer, modules)
        if rows is None:
            raise unusable(source, f"has a layer {name} of {len(modules)} modules, which cannot be taken apart.")
        end = key.removeprefix(modules[0])  # that of a bias, or none
        found |= {module + end: part for module, part in zip(modules, rows, strict=True)}
    return found


def _rows(layer: AnyStored, modules: Sequence[str]) -> list[AnyStored] | None:
    count, shares = len(modules), families.shares(tuple(modules))
    if layer.shape[0] % (2 if isinstance(modules, Swapped) else sum(shares)):
        return None

    def share(tensor: StoredTensor) -> list[StoredTensor]:
        return [replace(tensor, is_swapped=True)] if isinstance(modules, Swapped) else tensor.shared(shares)

    if isinstance(layer, StoredComposite):
        if layer.kind is not KINDS["full"]:
            return None
        parts = share(layer.parts[full.WEIGHT])
        return [replace(layer, parts={full.WEIGHT: part}, shape=part.shape) for part in parts]
    if layer.by_input and count > 1:
        return None
    magnitudes: Sequence[StoredTensor | None] = [layer.magnitude] * count
    if layer.magnitude is not None and not layer.by_input:
        magnitudes = share(layer.magnitude)
    return [
        replace(layer, up=up, magnitude=magnitude) for up, magnitude in zip(share(layer.up), magnitudes, strict=True)
    ]
