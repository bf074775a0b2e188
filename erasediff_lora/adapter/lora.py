"""Injecting, saving and loading a LoRA adapter, through peft and diffusers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model_state_dict, set_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from erasediff_lora.files import save_safetensors, write_text
from erasediff_lora.recipe import Adapter

NAME = "default"
DIFFUSERS_FILE = "pytorch_lora_weights.safetensors"
PEFT_FILE = "adapter_model.safetensors"
PEFT_CONFIG = "adapter_config.json"


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


@contextmanager
def disabled(network: nn.Module) -> Iterator[None]:
    """The base network, for the time being."""
    layers = [module for module in network.modules() if isinstance(module, BaseTunerLayer)]
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


def save(folder: Path, component: str, tensors: dict[str, Tensor], config: LoraConfig, base: str) -> None:
    """Write the adapter as a diffusers and as a peft file set.

    Args:
        folder: Where to.
        component: Pipeline component that the adapter belongs to, such as 'unet'.
        tensors: As `state` gives them.
        config: The adapter's configuration.
        base: Name of the base model, for peft.
    """
    # The least that restores the adapter: diffusers refuses fields that its peft does not know.
    minimal = {
        "r": config.r,
        "lora_alpha": config.lora_alpha,
        "target_modules": sorted(config.target_modules or []),
        "use_rslora": config.use_rslora,
        "use_dora": config.use_dora,
    }
    prefixed = {f"{component}.{name}": value for name, value in minimal.items()}
    save_safetensors(
        {f"{component}.{name}": tensor for name, tensor in tensors.items()},
        folder / DIFFUSERS_FILE,
        {"format": "pt", "lora_adapter_metadata": json.dumps(prefixed, sort_keys=True)},
    )
    save_safetensors(
        {f"base_model.model.{name}": tensor for name, tensor in tensors.items()}, folder / PEFT_FILE, {"format": "pt"}
    )
    peft_config = {"peft_type": "LORA", "task_type": None, "base_model_name_or_path": base, "bias": "none"} | minimal
    write_text(folder / PEFT_CONFIG, json.dumps(peft_config, indent=2, sort_keys=True) + "\n")
