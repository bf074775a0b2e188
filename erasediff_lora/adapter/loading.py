"""Putting an adapter on a diffusers pipeline."""

from __future__ import annotations

import contextlib
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from erasediff_lora import families
from erasediff_lora.adapter import formats
from erasediff_lora.adapter.checkpoint import fingerprint_of, fingerprint_of_network
from erasediff_lora.adapter.formats import Asked
from erasediff_lora.adapter.pointwise import like
from erasediff_lora.adapter.weights import LoraAdapter
from erasediff_lora.errors import Problem, UserError
from erasediff_lora.storage.paths import existing


def load(
    pipeline: Any,
    path: Path | str,
    *,
    name: str = "erasure",
    base: Path | None = None,
    strict: bool = False,
    family: str | None = None,
) -> None:
    """Load an adapter of any format with diffusers' own loader, and compare the base with the one it was trained on.

    Afterwards it is diffusers' adapter `name`: `set_adapters` sets its strength and combines it with others.

    Args:
        pipeline: A diffusers pipeline that loads LoRA, such as StableDiffusionPipeline.
        path: Adapter file, or the folder of a run.
        name: The adapter's name in the pipeline.
        base: Where the pipeline's weights come from, if the pipeline does not know.
        strict: Refuse an adapter that was trained on another base, instead of warning.
        family: What base the adapter is for, such as 'stable-diffusion-v1'; where the file does not tell, the
            pipeline's.

    Raises:
        UserError: If the file cannot be used or does not fit the pipeline, or `strict` and the bases differ.
    """
    form, adapter = _read(path, family or families.of_pipeline(type(pipeline).__name__), is_asked=family is not None)
    where = base or Path(str(getattr(pipeline, "name_or_path", None) or "."))
    network = _network(pipeline)
    if network.dtype in (torch.float32, torch.float16):
        mark: str | None = fingerprint_of_network(network)
    else:  # rounded in memory; the files are not
        mark = fingerprint_of(where)
    fitted = _fitted(pipeline, adapter, path, where)
    adapter.provenance.require_base(mark, where.name or "the pipeline", strict=strict)
    file = formats.locate(existing(path, "adapter"))
    with tempfile.TemporaryDirectory() as folder:
        if form != "diffusers" or fitted is not adapter:
            (file,) = formats.write(fitted, folder, "diffusers")
        pipeline.load_lora_weights(file.parent, weight_name=file.name, adapter_name=name)


def _read(path: Path | str, family: str | None, *, is_asked: bool) -> tuple[str, LoraAdapter]:
    """The format and the adapter: by what the user says, or else by what the file tells, or else by the pipeline."""
    asked = Asked.parse(family)
    if is_asked:
        return formats.read_as(path, asked)
    try:
        return formats.read_as(path)
    except UserError:
        with contextlib.suppress(UserError):
            return formats.read_as(path, asked)
        raise


def _network(pipeline: Any) -> Any:
    """The network that predicts.

    Raises:
        UserError: If the pipeline is of no known family.
    """
    for name in families.networks():
        if (network := getattr(pipeline, name, None)) is not None:
            return network
    known = ", ".join(families.networks())
    raise UserError(Problem("pipeline", type(pipeline).__name__, f"has no network of a known name: {known}."))


def _fitted(pipeline: Any, adapter: LoraAdapter, path: Path | str, base: Path) -> LoraAdapter:
    """The adapter as the pipeline's modules take it; it itself if nothing has to be changed.

    Raises:
        UserError: If a weight is missing or of another shape; diffusers says so in a hundred lines, or not at all.
    """
    layers = {}
    for component in adapter.components:
        network = getattr(pipeline, component, None)
        modules = dict(network.named_modules()) if isinstance(network, torch.nn.Module) else {}
        for name, layer in adapter.component(component).items():
            module = modules.get(name)
            weight = getattr(getattr(module, "base_layer", module), "weight", None)
            there = None if weight is None else tuple(weight.shape)
            fitted = None if there is None else like(layer, there)
            if fitted is None:
                trained_on = adapter.provenance.base_model or f"a base of architecture {adapter.architecture}"
                raise UserError(
                    Problem(
                        "adapter",
                        str(path),
                        f"does not fit {base}: {component}.{name} is {list(layer.shape)} in the adapter and "
                        f"{'missing' if there is None else list(there)} in the base.",
                        f"It was made for {trained_on}.",
                    )
                )
            layers[f"{component}.{name}"] = fitted
    is_same = all(layers[name] is layer for name, layer in adapter.layers.items())
    return adapter if is_same else replace(adapter, layers=layers)
