"""The base's own weights, all of them or a subset: what the papers train, and what an adapter is compared with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from erasediff_lora.adapter import modules
from erasediff_lora.adapter.provenance import Provenance
from erasediff_lora.errors import Problem, UserError
from erasediff_lora.objectives.base import GroupGradients
from erasediff_lora.recipe.checks import Sections, no_whole_weights
from erasediff_lora.recipe.tables import AdapterSettings
from erasediff_lora.storage.files import atomic_folder, open_to_umask

if TYPE_CHECKING:
    from erasediff_lora.denoisers import Denoiser

PRESETS = {
    "all": [".*"],
    # `noxattn` of the authors' codes, ESD's first: what knows nothing of the prompt, but for time and output.
    "no_cross_attention": [r"(?!time_embedding|conv_out|.*\battn2\b).*"],
}


class FullWeightsSettings(AdapterSettings):
    """The base's own weights, as the papers train them: all, or those of some modules."""

    trains_base: ClassVar[bool] = True

    kind: Literal["none"] = Field("none", description="lora, or none to train the base's own weights")
    targets: str | list[str] = Field(
        "all", description="all, no_cross_attention, preset of the model family, or regexes of module paths"
    )

    def check(self, sections: Sections) -> list[Problem]:
        return no_whole_weights(sections, "adapter: none trains the weights themselves")


class FullWeights:
    """θ are weights of the network itself; the base's are kept beside them.

    Args:
        settings: Names the modules whose weights are trained.
        denoiser: The base.
        seed: Not used: training starts at the base.

    Raises:
        UserError: If the base is not in float32, or the targets match nothing.
    """

    Settings: ClassVar[type[AdapterSettings]] = FullWeightsSettings
    group_gradients: GroupGradients | None = None

    def __init__(self, settings: FullWeightsSettings, denoiser: Denoiser, seed: int) -> None:
        if denoiser.dtype != torch.float32:
            raise UserError(
                Problem(
                    "model.dtype",
                    str(denoiser.dtype).removeprefix("torch."),
                    "is too coarse for weights that are trained, as adapter: none does.",
                    "Set model.dtype: float32, or train an adapter.",
                )
            )
        self.settings = settings
        self.network, self.component = denoiser.network, denoiser.component
        paths = [path for path, module in self.network.named_modules() if path and _own_parameters(module)]
        self.modules = modules.resolve(settings.targets, denoiser.target_presets | PRESETS, paths)
        named = {
            f"{path}.{name}": parameter
            for path in self.modules
            for name, parameter in _own_parameters(self.network.get_submodule(path)).items()
        }
        self.names, self.parameters = list(named), list(named.values())
        for parameter in self.parameters:
            parameter.requires_grad_(True)
        self.base = [parameter.detach().clone() for parameter in self.parameters]

    @property
    def base_weights(self) -> list[Tensor]:
        """The parameters themselves: right at the start, when they are the base's, and for gradients."""
        return list(self.parameters)

    def weight_changes(self) -> list[Tensor]:
        return [parameter - base for parameter, base in zip(self.parameters, self.base, strict=True)]

    @torch.no_grad()
    def set_change(self, path: str, translation: Tensor) -> float:
        """To the last bit."""
        weight = self.parameters[self.names.index(f"{path}.weight")]
        weight.add_((weight.cpu().double() @ translation).to(weight))
        return 1.0

    @contextmanager
    def disabled(self) -> Iterator[None]:
        trained = [parameter.data for parameter in self.parameters]
        self._point_at(self.base)
        try:
            yield
        finally:
            self._point_at(trained)

    def _point_at(self, tensors: list[Tensor]) -> None:
        for parameter, tensor in zip(self.parameters, tensors, strict=True):
            parameter.data = tensor

    def state(self) -> dict[str, Tensor]:
        return {name: p.detach().cpu().clone() for name, p in zip(self.names, self.parameters, strict=True)}

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        with torch.no_grad():
            for name, parameter in zip(self.names, self.parameters, strict=True):
                parameter.copy_(tensors[name])

    def save(self, folder: Path, provenance: Provenance) -> None:
        """Write the whole network as diffusers reads it; its recipe lies beside it."""
        with atomic_folder(folder / self.component) as temporary:
            self.network.save_pretrained(temporary)
            for file in temporary.iterdir():
                open_to_umask(file)

    @property
    def summary(self) -> str:
        size = sum(parameter.numel() for parameter in self.parameters)
        return f"no adapter: {size:,} weights of {len(self.modules)} modules"


def _own_parameters(module: nn.Module) -> dict[str, nn.Parameter]:
    return dict(module.named_parameters(recurse=False))
