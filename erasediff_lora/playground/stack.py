"""Several adapters on one base, each at a strength of its own."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from erasediff_lora.adapter.loading import load
from erasediff_lora.denoisers import Denoiser
from erasediff_lora.errors import Problem, UserError
from erasediff_lora.evaluation.erasures import Erasure, load_erasure, locate
from erasediff_lora.registry import FAMILIES
from erasediff_lora.storage.run_folder import WEIGHTS_FILE


class Layer(Erasure):
    """One of several adapters that diffusers adds up.

    Args:
        pipeline: With all of them loaded.
        name: Of this one.
        strengths: Of all of them, which they share.
    """

    is_adapter = True
    modules: list[str]

    def __init__(self, pipeline: Any, name: str, strengths: dict[str, float]) -> None:
        self.pipeline, self.name, self.strengths = pipeline, name, strengths
        self.modules = []

    def set_strength(self, strength: float) -> None:
        self.strengths[self.name] = strength
        on = {name: value for name, value in self.strengths.items() if value}
        if on:
            self.pipeline.enable_lora()
            self.pipeline.set_adapters(list(on), list(on.values()))
        else:
            self.pipeline.disable_lora()


def stacked(denoiser: Denoiser, adapters: Sequence[Path], family: str) -> list[Erasure]:
    """Put adapters on the base.

    Args:
        denoiser: The base.
        adapters: Runs' folders or adapter files.
        family: The base's.

    Raises:
        UserError: If one cannot be used, does not fit the base, or cannot be combined with others.
    """
    files = [locate(path, FAMILIES[family].component) for path in adapters]
    plain = [file for file in files if file.name == WEIGHTS_FILE]
    if plain or not hasattr(denoiser.pipeline, "load_lora_weights"):
        if len(files) > 1:
            what = "holds weights that are no LoRA, and cannot be tried together with others."
            raise UserError(Problem("run", str((plain or files)[0]), what, "Give it alone."))
        return [load_erasure(denoiser, files[0])]
    strengths: dict[str, float] = {}
    layers: list[Erasure] = []
    for number, file in enumerate(files, 1):
        name = f"adapter{number}"
        with warnings.catch_warnings():  # peft's: several adapters are what is asked for
            warnings.filterwarnings("ignore", message="Already found a `peft_config`")
            load(denoiser.pipeline, file, name=name, base=denoiser.weights)
        layers.append(Layer(denoiser.pipeline, name, strengths))
    return layers
