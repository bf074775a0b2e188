"""What the weights of a base take, in bytes."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from erasediff_lora.denoisers import Denoiser
from erasediff_lora.recipe import Recipe
from erasediff_lora.registry import FAMILIES

KERNEL_COPIES = 2
"""Copies of the largest weight that kernels make for the time of a call, in the layout that they work on."""
QUANTIZED_BYTES = {"nf4": 0.5 + 4 / 64, "int8": 1.0}
"""A weight of a linear layer, with its share of a block's scale."""


def pipeline_bytes(recipe: Recipe, denoiser: Denoiser, networks: Mapping[str, nn.Module]) -> int:
    """Weights of all networks, or of the largest if they take turns."""
    own = denoiser.network
    sizes = other_bytes(recipe, networks, own)
    if any(part is own for part in networks.values()):
        sizes.append(frozen_bytes(recipe, own))
    return max(sizes, default=0) if recipe.model.offload else sum(sizes)


def weight_bytes(network: nn.Module) -> int:
    """Of parameters and buffers."""
    return sum(tensor.nbytes for tensor in [*network.parameters(), *network.buffers()])


def kernel_bytes(network: nn.Module) -> int:
    """Of the copies that kernels make of its largest weight."""
    modules = (module for module in network.modules() if not isinstance(module, nn.Embedding))  # rows are taken of it
    own = (parameter.nbytes for module in modules for parameter in module.parameters(recurse=False))
    return KERNEL_COPIES * max(own, default=0)


def other_bytes(recipe: Recipe, networks: Mapping[str, nn.Module], network: nn.Module) -> list[int]:
    """Of the text encoders, which may be quantised, and of the autoencoder."""
    model = recipe.model
    return [
        _bytes_in(part, model.quantize_encoders if name in FAMILIES[model.family].encoders else None)
        for name, part in networks.items()
        if part is not network
    ]


def frozen_bytes(recipe: Recipe, network: nn.Module) -> int:
    """Of the network that predicts."""
    return _bytes_in(network, recipe.model.quantize)


def _bytes_in(network: nn.Module, kind: str | None) -> int:
    """Quantised, linear layers take 4 or 8 bits a weight, the rest stays as it is."""
    whole = weight_bytes(network)
    if kind is None:
        return whole
    linear = sum(m.weight.numel() for m in network.modules() if isinstance(m, nn.Linear))
    element = next(network.parameters()).element_size()
    return int(whole - linear * (element - QUANTIZED_BYTES[kind]))
