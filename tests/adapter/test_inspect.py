"""What `inspect` says, and that it needs no torch to say it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fixtures import Cli
from peft.utils.other import get_pattern_key
from safetensors.torch import save_file

from erasediff_lora.adapter import LoraAdapter, LoraLayer, Provenance, formats
from erasediff_lora.adapter.formats.peft_config import Patterns
from erasediff_lora.registry import FORMATS
from erasediff_lora.storage.tensors import FLOATS, open_tensors

SCRIPT = """
import sys
from erasediff_lora.cli import main

for file in sys.argv[1:]:
    assert main(["inspect", file]) == 0
print(sorted({"torch", "peft", "diffusers", "transformers", "bitsandbytes", "accelerate"} & set(sys.modules)))
"""


def adapter(dtype: torch.dtype) -> LoraAdapter:
    generator = torch.Generator().manual_seed(0)

    def layer(*shape: int) -> LoraLayer:
        ones = [1] * (len(shape) - 2)
        down = torch.randn(3, *shape[1:], generator=generator)
        up = torch.randn(shape[0], 3, *ones, generator=generator)
        return LoraLayer(down.to(dtype), up.to(dtype), 1.5)

    block = "unet.down_blocks.1.attentions.0.transformer_blocks.0"
    return LoraAdapter({f"{block}.attn2.to_k": layer(32, 768), "unet.down_blocks.0.resnets.0.conv1": layer(8, 4, 3, 3)})


def norm(one: LoraAdapter) -> float:
    return sum(float(layer.delta().double().square().sum()) for layer in one.layers.values()) ** 0.5


def test_no_torch_is_needed(tmp_path: Path) -> None:
    files, expected = [], []
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        for format in FORMATS:
            made = adapter(dtype)
            files += formats.write(made, tmp_path / f"{format}-{dtype}", format)[:1]
            expected.append(
                {"format": format, "dtype": str(dtype)[6:], "rank": "3", "norm of all ΔW": f"{norm(made):.4g}"}
            )
    run = subprocess.run([sys.executable, "-c", SCRIPT, *files], capture_output=True, text=True, check=True)
    *shown, modules = run.stdout.splitlines()
    assert modules == "[]"
    for rows in expected:
        for label, value in rows.items():
            line = next(index for index, text in enumerate(shown) if text.startswith(label))
            assert shown.pop(line).removeprefix(label).strip() == value


@pytest.mark.parametrize("dtype", FLOATS.values())
def test_numpy_reads_what_torch_reads(dtype: Any, tmp_path: Path) -> None:
    """Every value that a dtype of 8 or 16 bits has; some of the others."""
    kind = getattr(torch, dtype)
    if kind.itemsize <= 2:
        unsigned = torch.uint8 if kind.itemsize == 1 else torch.int16
        values = torch.arange(256**kind.itemsize).to(unsigned).view(kind)
    else:
        values = torch.randn(1000, dtype=kind)
    save_file({"a": values.reshape(8, -1)}, tmp_path / "a.safetensors")
    stored = open_tensors(tmp_path / "a.safetensors", "file").tensors["a"]
    assert torch.equal(stored.tensor().view(torch.uint8), values.reshape(8, -1).view(torch.uint8))
    with np.errstate(invalid="ignore"):  # signalling NaN
        np.testing.assert_array_equal(stored.array().astype(np.float64), values.reshape(8, -1).double().numpy())


@pytest.mark.parametrize("rank", [1, 3, 200])
def test_norms_of_narrow_and_wide_factors(rank: int, tmp_path: Path) -> None:
    layer = LoraLayer(torch.randn(rank, 9), torch.randn(7, rank), 2.0)
    made = LoraAdapter({"unet.mid_block.attentions.0.proj_in": layer}, Provenance(architecture="stable-diffusion-v1"))
    formats.write(made, tmp_path, "kohya")
    assert formats.describe(tmp_path)[1].norm() == pytest.approx(norm(made), rel=1e-5)


def test_nan_is_refused_as_by_the_other_verbs(tmp_path: Path, cli: Cli) -> None:
    made = adapter(torch.bfloat16)
    next(iter(made.layers.values())).up[0, 0] = torch.nan
    formats.write(made, tmp_path / "a", "diffusers")
    for verb in (("inspect", tmp_path / "a"), ("convert", tmp_path / "a", tmp_path / "b", "--format", "kohya")):
        result = cli(*verb)
        assert result.status == 2 and "has NaN or Inf in B of unet." in result.err


@pytest.mark.parametrize("path", ["a.to_q", "b.a.to_q", "aa.to_q", "to_q", "a.to_q.x", "to_k", "blocks.1.to_q"])
@pytest.mark.parametrize(
    "patterns",
    [
        ["to_q"],
        ["a.to_q", "to_q"],
        [r"blocks\.\d.to_q"],
        ["^a.to_q"],
        ["a"],
        [],
        ["(a|b).to_q"],
        ["[ab].to_[qk]"],
        ["a.to_q$"],
        ["a.to.q"],
    ],
)
def test_patterns_match_as_in_peft(path: str, patterns: Any) -> None:
    assert (Patterns(patterns, "a file").first(path) or path) == get_pattern_key(patterns, path)


def test_folders_of_a_peft_adapter_are_gathered_by_the_format(tmp_path: Path) -> None:
    text = LoraLayer(torch.ones(2, 4), torch.ones(4, 2), 2.0)
    both = LoraAdapter({**adapter(torch.float32).layers, "text_encoder.encoder.layers.0.mlp.fc1": text})
    formats.write(both, tmp_path, "peft")
    assert Path(tmp_path / "text_encoder/adapter_model.safetensors").is_file()
    assert list(formats.describe(tmp_path)[1].layers) == sorted(both.layers)
