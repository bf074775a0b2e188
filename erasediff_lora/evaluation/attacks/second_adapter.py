"""An attacker's own adapter, in a network that may have the eraser's already."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import nn

from erasediff_lora.adapter.modules import lora_layers
from erasediff_lora.evaluation.erasures import ADAPTER

NAME = "relearned"


class SecondAdapter:
    """A LoRA beside what is there; both add up.

    Args:
        network: The attacked one.
        modules: Paths of the adapted modules.
        rank: Of the adapter.
        seed: Of its As; the Bs are 0.
    """

    def __init__(self, network: nn.Module, modules: Sequence[str], rank: int, seed: int) -> None:
        self.network = network
        with _quiet(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            config = LoraConfig(r=rank, lora_alpha=rank, target_modules=list(modules))
            inject_adapter_in_model(config, network, NAME)
        self.parameters = [p for name, p in network.named_parameters() if f".{NAME}." in name]
        for parameter in self.parameters:
            parameter.data = parameter.data.float()

    def activate(self, *, with_erasure: bool) -> None:
        """Let it act and be trained, alone or beside the erasure's adapter."""
        wanted = {NAME, ADAPTER} if with_erasure else {NAME}
        with _quiet():
            for layer in lora_layers(self.network).values():
                layer.enable_adapters(True)
                layer.set_adapter([name for name in layer.lora_A if name in wanted])
        self.network.requires_grad_(False)
        for parameter in self.parameters:
            parameter.requires_grad_(True)

    def remove(self) -> None:
        """Leave the network as it was."""
        with _quiet():
            for layer in lora_layers(self.network).values():
                layer.delete_adapter(NAME)
        del self.network.peft_config[NAME]  # type: ignore[operator, union-attr]
        self.network.requires_grad_(False)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without peft's warnings: two adapters are meant to be there for a while."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="peft")
        yield


@contextmanager
def second_adapter(network: nn.Module, modules: Sequence[str], rank: int, seed: int) -> Iterator[SecondAdapter]:
    """A `SecondAdapter` for the time being."""
    adapter = SecondAdapter(network, modules, rank, seed)
    try:
        yield adapter
    finally:
        adapter.remove()
