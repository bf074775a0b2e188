"""A LoRA adapter in the network, through peft."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from erasediff_lora.adapter import formats, modules
from erasediff_lora.adapter.closed_form import low_rank
from erasediff_lora.adapter.formats.base import DOWN, MAGNITUDE, UP
from erasediff_lora.adapter.modules import lora_layers
from erasediff_lora.adapter.provenance import Provenance
from erasediff_lora.adapter.weights import LoraAdapter, LoraLayer
from erasediff_lora.recipe.tables import AdapterSettings
from erasediff_lora.training.trainables.group_gradients import GroupGradients

if TYPE_CHECKING:
    from erasediff_lora.denoisers import Denoiser

NAME = "default"

# peft takes seconds to import, and the settings are asked for wherever a recipe is read: so it is imported below.


class LoraSettings(AdapterSettings):
    """A LoRA adapter: the only thing that is trained."""

    kind: Literal["lora"] = Field("lora", description="lora, or none to train the base's own weights")
    rank: int = Field(4, ge=1, le=65_536, description="rank r")
    alpha: float | None = Field(None, gt=0, description="scale is alpha / rank; omit for alpha = rank")
    dropout: float = Field(0.0, ge=0, lt=1, description="LoRA dropout")
    rslora: bool = Field(False, description="scale by alpha / sqrt(rank)")
    dora: bool = Field(False, description="weight-decomposed LoRA")


class LowRank:
    """A fresh adapter of float32 at least: B = 0, so the network predicts as before. θ are the As and Bs.

    Args:
        settings: Rank, scale, and which modules are adapted.
        denoiser: The base.
        seed: Of the As.

    Raises:
        UserError: If the targets match nothing.
    """

    Settings: ClassVar[type[AdapterSettings]] = LoraSettings

    def __init__(self, settings: LoraSettings, denoiser: Denoiser, seed: int) -> None:
        from peft import LoraConfig, inject_adapter_in_model

        self.settings = settings
        self.network, self.component = denoiser.network, denoiser.component
        self.modules = modules.resolve(settings.targets, denoiser.target_presets, modules.adaptable(self.network))
        self.config = LoraConfig(
            r=settings.rank,
            lora_alpha=settings.rank if settings.alpha is None else settings.alpha,  # type: ignore[arg-type]
            target_modules=self.modules,
            lora_dropout=settings.dropout,
            use_rslora=settings.rslora,
            use_dora=settings.dora,
        )
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            inject_adapter_in_model(self.config, self.network, NAME)
        self.parameters = [parameter for parameter in self.network.parameters() if parameter.requires_grad]
        for parameter in self.parameters:
            parameter.data = parameter.data.to(torch.promote_types(parameter.dtype, torch.float32))
        self.group_gradients = None if settings.dora else self._group_gradients()

    def _group_gradients(self) -> GroupGradients:
        layers = lora_layers(self.network).values()
        of_weight = {id(part.weight): part for layer in layers for part in (layer.lora_A[NAME], layer.lora_B[NAME])}
        return GroupGradients([of_weight[id(parameter)] for parameter in self.parameters])

    @property
    def base_weights(self) -> list[Tensor]:
        return [layer.get_base_layer().weight for layer in lora_layers(self.network).values()]

    def weight_changes(self) -> list[Tensor]:
        layers = lora_layers(self.network).values()
        return [(_dora_change if self.config.use_dora else _change)(layer) for layer in layers]

    @torch.no_grad()
    def set_change(self, path: str, translation: Tensor) -> float:
        """By the nearest matrix of the adapter's rank."""
        from peft.utils.integrations import dequantize_module_weight

        layer = self.network.get_submodule(path)
        weight = dequantize_module_weight(layer.get_base_layer())
        part = low_rank(weight.detach().cpu().double() @ translation, layer.r[NAME])
        scale, count = layer.scaling[NAME], len(part.down)
        down, up = layer.lora_A[NAME].weight, layer.lora_B[NAME].weight
        down[:count] = part.down.to(down)
        up[:, :count] = (part.up / scale).to(up)
        if self.config.use_dora:  # the magnitude is the norm of the weight at the start
            magnitude = layer.lora_magnitude_vector[NAME].weight
            magnitude.copy_(torch.linalg.vector_norm(weight.to(down) + scale * up @ down, dim=1).view_as(magnitude))
        return part.kept

    @contextmanager
    def disabled(self) -> Iterator[None]:
        layers = lora_layers(self.network).values()
        for layer in layers:
            layer.enable_adapters(False)
        try:
            yield
        finally:
            for layer in layers:
                layer.enable_adapters(True)

    def state(self) -> dict[str, Tensor]:
        from peft import get_peft_model_state_dict

        return {
            name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
            for name, tensor in get_peft_model_state_dict(self.network, adapter_name=NAME).items()
        }

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        from peft import set_peft_model_state_dict

        set_peft_model_state_dict(self.network, dict(tensors), adapter_name=NAME)

    def save(self, folder: Path, provenance: Provenance) -> None:
        """Write the adapter in every format that has names for its weights."""
        adapter = self.collect(provenance)
        for name in formats.suited(adapter):
            formats.write(adapter, folder, name, overwrite=True)

    def collect(self, provenance: Provenance) -> LoraAdapter:
        """The adapter as it can be written to files."""
        state, alpha, rslora = self.state(), float(self.config.lora_alpha), bool(self.config.use_rslora)
        paths = sorted(key.removesuffix(DOWN) for key in state if key.endswith(DOWN))
        layers = {
            f"{self.component}.{path}": LoraLayer(
                state[path + DOWN], state[path + UP], alpha, rslora, state.get(path + MAGNITUDE)
            )
            for path in paths
        }
        return LoraAdapter(layers, provenance)

    @property
    def summary(self) -> str:
        size = sum(parameter.numel() for parameter in self.parameters)
        return f"adapter: rank {self.config.r} on {len(self.modules)} modules, {size:,} parameters"


def _change(layer: Any) -> Tensor:
    delta: Tensor = layer.get_delta_weight(NAME)
    return delta


def _dora_change(layer: Any) -> Tensor:
    """M (W + BA) / ‖W + BA‖ − W, the norm over all but the outputs (Liu et al.: DoRA, 2024)."""
    base: Tensor = layer.get_base_layer().weight
    whole = base + _change(layer)
    norm = torch.linalg.vector_norm(whole, dim=tuple(range(1, whole.ndim)), keepdim=True)
    magnitude: Tensor = layer.lora_magnitude_vector[NAME].weight
    return magnitude.reshape(norm.shape) * whole / norm - base
