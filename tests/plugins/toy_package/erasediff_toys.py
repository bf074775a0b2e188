"""One part of each kind, as another package brings them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image
from pydantic import Field
from torch import Tensor

from erasediff_lora.adapter.formats.base import Published, as_file
from erasediff_lora.adapter.formats.reading import Asked
from erasediff_lora.adapter.kinds.base import Kind, require
from erasediff_lora.adapter.kinds.base import Table as Shaped
from erasediff_lora.adapter.programs.base import SCALED, Limit, Program
from erasediff_lora.adapter.provenance import Provenance
from erasediff_lora.adapter.weights import LoraAdapter, StoredAdapter, StoredLayer, checked
from erasediff_lora.data.extras import Drawn, Extra
from erasediff_lora.data.layouts import Labelled
from erasediff_lora.denoisers.stable_diffusion import StableDiffusion
from erasediff_lora.errors import Problem
from erasediff_lora.evaluation.attacks import Attack, Outcome
from erasediff_lora.evaluation.charts import Chart, draw
from erasediff_lora.evaluation.features.base import Extract, Features, of_tensors
from erasediff_lora.evaluation.judges import Judge, Names
from erasediff_lora.evaluation.metrics import Metric
from erasediff_lora.evaluation.parts import Table
from erasediff_lora.families import Architecture, Family, License
from erasediff_lora.families.stable_diffusion import UNET_MODULES
from erasediff_lora.objectives import Batch, ObjectiveSettings
from erasediff_lora.objectives.base import WeightedSum
from erasediff_lora.recipe.schema import Section
from erasediff_lora.storage.files import save_safetensors
from erasediff_lora.storage.tensors import TensorFile
from erasediff_lora.training.trainables.lora import LoraSettings, LowRank


class TowardsGreySettings(ObjectiveSettings):
    name: Literal["towards_grey"] = Field("towards_grey", description="the method")
    retain_weight: float = Field(1.0, ge=0, description="weight of the retain loss")

    @property
    def needs(self) -> tuple[str, ...]:
        return ("grey",)


class Grey(Extra):
    """`grey`: what a prediction of nothing is."""

    def __call__(self, drawn: Drawn) -> dict[str, Tensor]:
        return {"grey": torch.zeros_like(drawn.latents)}


class TowardsGrey(WeightedSum):
    """The prediction on forgotten pictures goes to zero."""

    Settings = TowardsGreySettings
    curves: ClassVar[dict[str, str]] = {"forget_loss": "distance to grey"}

    def forget_target(self, batch: Batch) -> Tensor | None:
        return batch.extras["grey"].to(batch.target)


class TimidSettings(LoraSettings):
    kind: Literal["timid"] = Field("timid", description="the kind")  # type: ignore[assignment]
    rank: int = Field(2, ge=1, le=2, description="rank r, which is small")


class Timid(LowRank):
    """LoRA of few directions."""

    Settings = TimidSettings


class ToyDiffusion(StableDiffusion):
    """Stable Diffusion by another name."""

    @property
    def architecture(self) -> str:
        return "toy-diffusion"


FAMILY = Family(
    denoiser=ToyDiffusion,
    pipeline="ToyPipeline",
    component="unet",
    encoders=("text_encoder",),
    modules=UNET_MODULES,
    architectures=(Architecture("toy-diffusion", 32, License("mit")),),
    in_diffusers=False,
)


class Plain:
    """A safetensors file with the names of the weights as they are."""

    FILE = "plain.safetensors"
    FOLDER = "plain"

    @staticmethod
    def owns(keys: Collection[str]) -> bool:
        return all(key.startswith("plain/") for key in keys)

    @staticmethod
    def read(stored: TensorFile, asked: Asked) -> StoredAdapter:
        names = sorted({key.split("/")[1] for key in stored.tensors})
        layers = {
            name: StoredLayer(
                stored.tensors[f"plain/{name}/a"],
                stored.tensors[f"plain/{name}/b"],
                float(stored.metadata[f"alpha/{name}"]),
                False,
                None,
            )
            for name in names
        }
        return StoredAdapter(checked(layers, stored.path), Provenance.from_header(stored.metadata), {})

    @staticmethod
    def suits(adapter: LoraAdapter) -> bool:
        return not adapter.uses_dora

    @staticmethod
    def target(adapter: LoraAdapter, output: Path) -> Path:
        return as_file(output, Plain.FILE)

    @staticmethod
    def write(adapter: LoraAdapter, file: Path) -> list[Path]:
        tensors, alphas = {}, {}
        for name, layer in adapter.layers.items():
            tensors[f"plain/{name}/a"], tensors[f"plain/{name}/b"] = layer.down, layer.up
            alphas[f"alpha/{name}"] = str(layer.alpha)
        save_safetensors(tensors, file, alphas | adapter.provenance.header())
        return [file]

    @staticmethod
    def usage(published: Published) -> str:
        return f"**toys**: open `{published.file}`."


class _Halves(Kind):
    """ΔW as the sum of two matrices."""

    title = "halves"
    parts = marks = frozenset(("half_one", "half_two"))

    def shape(self, parts: Mapping[str, Shaped]) -> tuple[int, ...]:
        require(parts, "half_one", "half_two")
        return tuple(parts["half_one"].shape)

    def rank(self, parts: Mapping[str, Shaped]) -> None:
        return None

    def rows(self, parts: Mapping[str, Any], first: int, last: int) -> Any:
        return parts["half_one"][first:last] + parts["half_two"][first:last]


HALVES = _Halves()
VIEWER = Program(
    title="Toy viewer",
    version="1.0",
    repository="https://example.org/viewer",
    reads={"plain": ("toy_diffusion",)},
    limits=(Limit(SCALED, "read otherwise", "alphas are not read", "Give all of them the rank.", "viewer.py: view"),),
)


class BrightnessSettings(Section):
    scale: float = Field(1.0, description="of the numbers")

    def check(self, sections: Any) -> list[Problem]:
        return [] if self.scale > 0 else [Problem("evaluation.brightness.scale", self.scale, "is not positive.")]


class Brightness(Metric):
    Settings = BrightnessSettings

    def measure(self, evidence: Any) -> dict[str, Any]:
        scale = evidence.settings(BrightnessSettings).scale
        models = evidence.candidates.base, evidence.candidates.erased
        return {model.name: scale * _mean(evidence.retain(model)[0].image) for model in models}

    def tables(self, found: Any) -> list[Table]:
        return [Table("How bright:", ("model", "brightness"), [(name, f"{v:.0f}") for name, v in found.items()])]

    def charts(self, found: Any) -> list[Chart]:
        def paint(figure: Figure) -> None:
            figure.add_subplot().bar(list(found), list(found.values()))

        return [draw("Brightness of the models", "bars", paint, 2)]

    def rows(self, found: Any) -> dict[str, str | None]:
        return {"brightness": f"{found['erased']:.0f}"}


class ShoutSettings(Section):
    suffix: str = Field("!", description="put after the prompt")


class Shout(Attack):
    Settings = ShoutSettings
    title = "Shouting: the prompt, louder"

    def budget(self, evidence: Any) -> str:
        return f"one picture with {evidence.settings(ShoutSettings).suffix!r}"

    def run(self, evidence: Any, candidate: Any) -> Outcome:
        drawn = candidate.generate(evidence.forget_prompts[:1], evidence.spare_seed, "shouting")
        (seen,) = evidence.require_judge(self.name).recognise([item.image for item in drawn])
        success = float(drawn[0].prompt.concept in seen)
        return Outcome(success, {"once": success}, drawn, {"volume": 11})

    def notes(self, found: Any) -> list[str]:
        return [f"At volume {found['volume']}."]


class Brightest(Judge):
    """Sees the first forgotten concept in bright pictures, and the first retained one in dark ones."""

    names: Names

    @classmethod
    def load(cls, weights: str, names: Names) -> Brightest:
        judge = cls()
        judge.names = names
        return judge

    @property
    def labels(self) -> set[str]:
        return {*self.names.retain, *self.names.forget}

    def recognise(self, images: list[Image.Image]) -> list[set[str]]:
        return [{self.names.forget[0] if _mean(image) > 127 else self.names.retain[0]} for image in images]


class MeanColour(Features):
    """Three features: how red, green and blue a picture is."""

    alone = True

    @classmethod
    def load(cls, weights: str) -> Extract:
        return of_tensors(lambda pixels: pixels.mean((2, 3)), 32)


class Arrays:
    """Two arrays of numpy."""

    marker = "pictures.npy"

    @staticmethod
    def read(folder: Path, split: str) -> Labelled:
        return Labelled(np.load(folder / "pictures.npy"), np.load(folder / "labels.npy"), ["cat", "dog"])


def _mean(image: Image.Image) -> float:
    return float(np.asarray(image.convert("L")).mean())
