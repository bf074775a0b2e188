"""A model's weights with the erasure merged into them, as files are shared, and put back afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from erasediff_lora.adapter.modules import lora_layers
from erasediff_lora.errors import Problem, UserError
from erasediff_lora.evaluation.candidates import Candidate
from erasediff_lora.evaluation.erasures import ADAPTER

Weights = dict[str, nn.Parameter]


@contextmanager
def merged(candidate: Candidate) -> Iterator[tuple[Weights, dict[str, Tensor]]]:
    """The network's own weights by name, the active erasure merged into them; afterwards everything is as it was.

    Yields:
        The weights, which may be changed, and those of the base, which may not.

    Raises:
        UserError: If the weights are quantised already.
    """
    network = candidate.denoiser.network
    weights = own_weights(network)
    if any(not weight.is_floating_point() for weight in weights.values()):
        what = "leaves no whole weights to merge into, quantise or train."
        raise UserError(Problem("model.quantize", candidate.recipe.model.quantize, what, "Evaluate without."))
    base = kept = {name: weight.data for name, weight in weights.items()}
    if candidate.erasure is not None and candidate.strength:
        candidate.erasure.set_strength(0.0)
        base = {name: weight.data for name, weight in weights.items()}
        candidate.erasure.set_strength(candidate.strength)
        kept = {name: weight.data for name, weight in weights.items()}
    layers = list(lora_layers(network).values()) if candidate.strength else []
    try:
        for weight in weights.values():
            weight.data = weight.data.clone()
        for layer in layers:
            layer.merge(adapter_names=[ADAPTER])
        yield weights, base
    finally:
        for layer in layers:
            layer.merged_adapters.clear()
        for name, weight in weights.items():
            weight.data = kept[name]


def own_weights(network: nn.Module) -> Weights:
    """The base's parameters under their own names, without those of adapters."""
    return {
        name.replace(".base_layer.", "."): parameter
        for name, parameter in network.named_parameters()
        if ".lora_" not in name
    }


def matrices(weights: Weights) -> Weights:
    """Those of linear layers and convolutions."""
    return {name: weight for name, weight in weights.items() if weight.ndim > 1}


def to_float8(weight: Tensor) -> Tensor:
    """Rounded to float8_e4m3fn without a scale, as ComfyUI stores it."""
    most = torch.finfo(torch.float8_e4m3fn).max
    return weight.clamp(-most, most).to(torch.float8_e4m3fn).to(weight.dtype)


def to_int8(weight: Tensor) -> Tensor:
    """Rounded to 8 bits with a scale for each output, as LLM.int8 does (Dettmers et al. 2022)."""
    rows = weight.float().flatten(1)
    scale = rows.abs().amax(dim=1, keepdim=True).clamp_min(1e-12) / 127
    return ((rows / scale).round() * scale).view_as(weight).to(weight.dtype)


NF4 = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635),
    *(-0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725),
    *(0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941),
    *(0.7229568362236023, 1.0),
)
"""The 16 values of 4-bit NormalFloat (Dettmers et al., QLoRA, 2023)."""
BLOCK = 64


def to_nf4(weight: Tensor) -> Tensor:
    """Rounded to 4-bit NormalFloat in blocks of 64, as bitsandbytes does."""
    flat = weight.float().flatten()
    blocks = torch.cat([flat, flat.new_zeros(-len(flat) % BLOCK)]).view(-1, BLOCK)
    scale = blocks.abs().amax(dim=1, keepdim=True).clamp_min(1e-12)
    levels = torch.tensor(NF4, device=weight.device)
    nearest = torch.bucketize(blocks / scale, (levels[1:] + levels[:-1]) / 2)
    return (levels[nearest] * scale).flatten()[: len(flat)].view_as(weight).to(weight.dtype)
