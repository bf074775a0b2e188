"""A LoRA adapter in a network: injecting, switching off, taking out; through peft."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model_state_dict, set_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from erasediff_lora.adapter.formats.base import peft_layers
from erasediff_lora.adapter.provenance import Provenance
from erasediff_lora.adapter.weights import LoraAdapter
from erasediff_lora.recipe import Adapter

NAME = "default"


def inject(network: Any, adapter: Adapter, modules: list[str], seed: int) -> LoraConfig:
    """Add a fresh float32 adapter to the modules: B = 0, so the network predicts as before."""
    config = LoraConfig(
        r=adapter.rank,
        lora_alpha=adapter.rank if adapter.alpha is None else adapter.alpha,  # type: ignore[arg-type]
        target_modules=modules,
        lora_dropout=adapter.dropout,
        use_rslora=adapter.rslora,
        use_dora=adapter.dora,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network.add_adapter(config, adapter_name=NAME)
    for parameter in parameters(network):
        parameter.data = parameter.data.float()
    return config


def parameters(network: nn.Module) -> list[nn.Parameter]:
    """The adapter's tensors: all that is trainable."""
    return [parameter for parameter in network.parameters() if parameter.requires_grad]


def base_weights(network: nn.Module) -> list[Tensor]:
    """W of every adapted module, frozen."""
    return [layer.get_base_layer().weight for layer in _layers(network)]


def weight_changes(network: nn.Module) -> list[Tensor]:
    """ΔW of every adapted module, differentiable in the adapter; in the order of `base_weights`."""
    return [layer.get_delta_weight(NAME) for layer in _layers(network)]


def _layers(network: nn.Module) -> list[Any]:
    return [module for module in network.modules() if isinstance(module, BaseTunerLayer)]


@contextmanager
def disabled(network: nn.Module) -> Iterator[None]:
    """The base network, for the time being."""
    layers = _layers(network)
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)


def state(network: nn.Module) -> dict[str, Tensor]:
    """The adapter's tensors by peft key, without prefix."""
    return {
        name: tensor.detach().cpu().contiguous()
        for name, tensor in get_peft_model_state_dict(network, adapter_name=NAME).items()
    }


def load_state(network: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Put tensors written by `state` back."""
    set_peft_model_state_dict(network, tensors, adapter_name=NAME)


def collect(network: nn.Module, component: str, config: LoraConfig, provenance: Provenance) -> LoraAdapter:
    """The adapter as it can be written to files.

    Args:
        network: The network that it is injected into.
        component: Pipeline component that the network is, such as 'unet'.
        config: The adapter's configuration.
        provenance: Where it comes from.
    """
    fields = {"lora_alpha": config.lora_alpha, "use_rslora": config.use_rslora}
    layers = peft_layers(state(network), fields, Path(component))
    return LoraAdapter({f"{component}.{path}": layer for path, layer in layers.items()}, provenance)
