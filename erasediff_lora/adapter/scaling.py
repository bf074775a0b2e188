"""Where a layer's scale is written: in alpha, beside the factors, or in B, where every reader finds it.

Some formats keep alpha where only some programs look. There the scale goes into B, and the alpha that the layer had is
kept in a header of ours, so that it comes back on the way to a format that all programs read alpha from.
"""

from __future__ import annotations

import json
import logging
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from erasediff_lora.adapter.provenance import PREFIX
from erasediff_lora.adapter.weights import L, Layer, LoraAdapter, LoraLayer, unusable

if TYPE_CHECKING:
    from torch import Tensor

log = logging.getLogger(__name__)
ALPHAS = PREFIX + "alphas"
"""Header: alpha of most layers, whether they are rsLoRA, and the alpha of the layers that have another one."""


def in_factors(adapter: LoraAdapter) -> LoraAdapter:
    """The same updates with scale 1 everywhere: alpha is the rank, and B takes up the rest.

    B is rounded once, to the dtype that it has, and not at all where the scale is a power of two. A layer whose B
    leaves the range of that dtype is written in float32.

    Raises:
        UserError: If it leaves the range of float32 too.
    """
    return replace(adapter, layers={name: _in_factors(name, layer) for name, layer in adapter.layers.items()})


def beside_factors(adapter: LoraAdapter) -> LoraAdapter:
    """The inverse: each layer with the alpha that it goes by, which is `nominal` where it has one."""
    return replace(adapter, layers={name: _beside_factors(name, layer) for name, layer in adapter.layers.items()})


def with_one_alpha(layers: dict[str, LoraLayer]) -> dict[str, LoraLayer]:
    """Layers of scale 1 that go by one alpha, the commonest rank.

    diffusers gets the scale of some layers wrong where the alphas of a kohya file differ.
    """
    alpha = float(Counter(layer.rank for layer in layers.values()).most_common(1)[0][0])
    return {name: replace(layer, nominal=(alpha, False)) for name, layer in layers.items()}


def alphas_header(adapter: LoraAdapter) -> dict[str, str]:
    """What `with_alphas` needs to give the layers of a file in which all scales are 1 their alphas back."""
    if all(layer.nominal is None for layer in adapter.layers.values()):
        return {}
    named = {name: layer.nominal or (layer.alpha, layer.rslora) for name, layer in adapter.layers.items()}
    rslora = all(by_root for _, by_root in named.values())
    alphas = {
        name: alpha * math.sqrt(adapter.layers[name].rank) if by_root and not rslora else alpha
        for name, (alpha, by_root) in named.items()
    }
    common = Counter(alphas.values()).most_common(1)[0][0]
    others = {name: alpha for name, alpha in alphas.items() if alpha != common}
    return {ALPHAS: json.dumps({"alpha": common, "rslora": rslora, "others": others}, sort_keys=True)}


def with_alphas(layers: Mapping[str, L], header: Mapping[str, str]) -> dict[str, L]:
    """The layers of a file that `alphas_header` belongs to; without it, or if it is damaged, as they are."""
    text = header.get(ALPHAS)
    if text is None:
        return dict(layers)
    try:
        found = json.loads(text)
        alphas = {name: float(found["others"].get(name, found["alpha"])) for name in layers}
        rslora = bool(found["rslora"])
        if not all(map(math.isfinite, alphas.values())):
            raise ValueError
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
        log.warning("the adapter's header field %s is unreadable: %r", ALPHAS, text[:80])
        return dict(layers)
    return {
        name: replace(layer, nominal=(alphas[name], rslora)) if isinstance(layer, Layer) else layer
        for name, layer in layers.items()
    }


def _in_factors(name: str, layer: LoraLayer) -> LoraLayer:
    alpha = float(layer.rank)
    if (layer.alpha, layer.rslora) == (alpha, False):
        return layer
    down, up = _scaled(name, layer, layer.scale)
    nominal = layer.nominal or (layer.alpha, layer.rslora)
    return replace(layer, down=down, up=up, alpha=alpha, rslora=False, nominal=nominal)


def _beside_factors(name: str, layer: LoraLayer) -> LoraLayer:
    if layer.nominal is None:
        return layer
    alpha, rslora = layer.nominal
    named = replace(layer, alpha=alpha, rslora=rslora, nominal=None)
    if named.scale == 0:  # nothing of B is left that could come back
        return replace(layer, nominal=None)
    down, up = _scaled(name, layer, layer.scale / named.scale)
    return replace(named, down=down, up=up)


def _scaled(name: str, layer: LoraLayer, factor: float) -> tuple[Tensor, Tensor]:
    """A, and B times a factor, rounded once; both in float32 where that is more than a rounding in B's own dtype.

    Raises:
        UserError: If B is out of range.
    """
    import torch

    exact = layer.up.double() * factor
    up = exact.to(layer.up.dtype)
    if not bool(((up.double() - exact).abs() > torch.finfo(up.dtype).eps / 2 * exact.abs()).any()):
        return layer.down, up
    up = exact.float()
    if bool((up.isinf() & exact.isfinite()).any()):
        raise unusable(name, f"has the scale {layer.scale:g}, with which B leaves the range of float32.")
    return layer.down.float(), up
