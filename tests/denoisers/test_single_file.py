"""A single-file checkpoint with the original (LDM) keys is the same base as its diffusers folder."""

from __future__ import annotations

from pathlib import Path

import torch
from fixtures import Cli, RecipeFile
from safetensors.torch import load_file
from single_file import pack


def test_single_file_trains_the_same_adapter_as_the_folder(
    tiny_base: Path, recipe_file: RecipeFile, cli: Cli, tmp_path: Path
) -> None:
    file = pack(tiny_base, tmp_path / "model.safetensors")
    result = cli("train", recipe_file(), "--model.base", file, "--model.config", tiny_base)
    assert result.status == 0, result.err
    from_file = load_file(tmp_path / "run/pytorch_lora_weights.safetensors")
    assert cli("train", recipe_file(), "--overwrite").status == 0
    from_folder = load_file(tmp_path / "run/pytorch_lora_weights.safetensors")
    assert from_file.keys() == from_folder.keys()
    for key, tensor in from_folder.items():
        assert torch.equal(from_file[key], tensor), key
