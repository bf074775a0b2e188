"""Whoever reads what we write applies the same strength, whether or not it reads headers, and alphas come back."""

from __future__ import annotations

import json
import math
import os
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from adapters import pipeline, random_adapter
from diffusers import DiffusionPipeline
from fixtures import Cli
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny import tiny_sd3_pipeline, tiny_xl_pipeline
from torch import Tensor

from erasediff_lora import families
from erasediff_lora.adapter import LoraAdapter, LoraLayer, Provenance, formats
from erasediff_lora.cli import main
from erasediff_lora.families.names import sizes
from erasediff_lora.registry import FAMILIES

HEADER = "lora_adapter_metadata"
XL_KEYS = (  # kohya's names, ranks, alphas
    ("lora_te1_text_model_encoder_layers_0_self_attn_q_proj", 4, 2.0),
    ("lora_te2_text_model_encoder_layers_1_mlp_fc1", 3, 4.0),
    ("lora_te2_text_model_encoder_layers_0_self_attn_out_proj", 4, 4.0),
)


def metadata(file: Path) -> dict[str, str]:
    with safe_open(file, "pt") as stored:
        return dict(stored.metadata())


def without_header(file: Path, folder: Path) -> Path:
    """As programs see it that read tensors alone."""
    folder.mkdir()
    save_file(load_file(file), folder / file.name, {"format": "pt"})
    return folder / file.name


def deltas(pipe: DiffusionPipeline, file: Path, components: tuple[str, ...]) -> dict[str, Tensor]:
    """ΔW of every layer, by diffusers' loader."""
    pipe.load_lora_weights(file.parent, weight_name=file.name, adapter_name="a")
    found = {
        f"{component}.{name.removeprefix('text_model.')}": module.get_delta_weight("a").detach().clone()
        for component in components
        for name, module in getattr(pipe, component).named_modules()
        if hasattr(module, "lora_A") and "a" in module.lora_A
    }
    pipe.unload_lora_weights()
    return found


def kohya_file(file: Path, pipe: DiffusionPipeline) -> dict[str, Tensor]:
    """A file of two text encoders, as sd-scripts writes it; returns ΔW by our names."""
    tensors: dict[str, Tensor] = {}
    expected: dict[str, Tensor] = {}
    torch.manual_seed(0)
    for key, rank, alpha in XL_KEYS:
        component = "text_encoder" if "_te1_" in key else "text_encoder_2"
        modules = {n.removeprefix("text_model."): m for n, m in getattr(pipe, component).named_modules()}
        path = next(n for n in modules if n.replace(".", "_") == key.partition("_text_model_")[2])
        rows, columns = modules[path].weight.shape
        down, up = torch.randn(rank, columns), torch.randn(rows, rank)
        tensors |= {f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up, f"{key}.alpha": torch.tensor(alpha)}
        expected[f"{component}.{path}"] = up @ down * (alpha / rank)
    save_file(tensors, file)
    return expected


def test_both_text_encoders_of_a_kohya_file(tmp_path: Path, cli: Cli) -> None:
    """Ranks and alphas that differ, with and without the header; older programs ask for `text_model.` in the keys."""
    pipe = tiny_xl_pipeline()
    expected = kohya_file(tmp_path / "a.safetensors", pipe)
    result = cli("convert", tmp_path / "a.safetensors", tmp_path / "d", "--format", "diffusers")
    assert result.status == 0, result.err
    file = tmp_path / "d/pytorch_lora_weights.safetensors"
    assert all(".text_model.encoder.layers." in key for key in load_file(file))
    for read in (file, without_header(file, tmp_path / "bare")):
        found = deltas(pipe, read, ("text_encoder", "text_encoder_2"))
        assert found.keys() == expected.keys()
        for name, delta in expected.items():
            torch.testing.assert_close(found[name], delta, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("rslora", [False, True])
def test_peft_file_with_patterns(rslora: bool, tmp_path: Path, cli: Cli) -> None:
    """peft's own file for Stable Diffusion 3: diffusers with and without the header, and peft's ΔW."""
    pipe = tiny_sd3_pipeline()
    block = "transformer_blocks.0.attn"
    config = LoraConfig(
        r=4,
        lora_alpha=2,
        target_modules=[f"{block}.to_q", f"{block}.to_k", f"{block}.add_k_proj"],
        rank_pattern={f"{block}.to_k": 3},
        alpha_pattern={f"{block}.add_k_proj": 7},
        use_rslora=rslora,
        init_lora_weights=False,
    )
    model = get_peft_model(pipe.transformer, config)
    expected = {
        f"transformer.{name.removeprefix('base_model.model.')}": module.get_delta_weight("default").detach().clone()
        for name, module in model.named_modules()
        if hasattr(module, "lora_A")
    }
    model.save_pretrained(str(tmp_path / "peft"))
    assert cli("convert", tmp_path / "peft", tmp_path / "d", "--format", "diffusers").status == 0
    file = tmp_path / "d/pytorch_lora_weights.safetensors"
    fields = json.loads(metadata(file)[HEADER])
    assert fields["transformer.lora_alpha"] == fields["transformer.r"] == 4
    assert fields["transformer.alpha_pattern"] == fields["transformer.rank_pattern"] == {f"{block}.to_k": 3}
    for read in (file, without_header(file, tmp_path / "bare")):
        found = deltas(tiny_sd3_pipeline(), read, ("transformer",))
        assert found.keys() == expected.keys()
        for name, delta in expected.items():
            torch.testing.assert_close(found[name], delta, rtol=1e-6, atol=1e-6)
    assert cli("convert", file, tmp_path / "back", "--format", "peft").status == 0
    back = json.loads((tmp_path / "back/adapter_config.json").read_text())
    assert (back["lora_alpha"], back["use_rslora"], back["alpha_pattern"]) == (2, rslora, {f"{block}.add_k_proj": 7})


@pytest.mark.parametrize("verb", ["extract", "stack"])
def test_what_other_verbs_write(verb: str, tiny_base: Path, tmp_path: Path, cli: Cli) -> None:
    """Ranks that differ by layer: `extract --energy`, and a stack of adapters on different layers."""
    one = random_adapter(tiny_base, "attention_feed_forward", 2.5)
    two = random_adapter(tiny_base, "attention", 3.0, rank=2, seed=5)
    a, *_ = formats.write(one, tmp_path / "a.safetensors", "kohya")
    b, *_ = formats.write(two, tmp_path / "b.safetensors", "kohya")
    assert cli("merge", tiny_base, a, b, "--output", tmp_path / "tuned").status == 0
    given = (a, b) if verb == "stack" else (tiny_base, tmp_path / "tuned", "--energy", 0.999)
    result = cli(verb, *given, "--output", tmp_path / "d")
    assert result.status == 0, result.err
    file = tmp_path / "d/pytorch_lora_weights.safetensors"
    assert len({tensor.shape[0] for key, tensor in load_file(file).items() if "lora_A" in key}) > 1
    pipe = pipeline(tiny_base)
    with_header = deltas(pipe, file, ("unet",))
    bare = deltas(pipe, without_header(file, tmp_path / "bare"), ("unet",))
    assert with_header.keys() == bare.keys() == one.layers.keys()
    for name, layer in one.layers.items():
        exact = layer.delta() + (two.layers[name].delta() if name in two.layers else 0)
        error = 0.1 if verb == "extract" else 1e-5
        assert torch.equal(with_header[name], bare[name])
        assert float((bare[name].reshape(exact.shape) - exact).norm()) <= error * float(exact.norm()), name
    # For diffusers' sake a kohya file has one alpha.
    assert cli("convert", file, tmp_path / "k.safetensors", "--format", "kohya", "--family", "sd_v1").status == 0
    alphas = {float(tensor) for key, tensor in load_file(tmp_path / "k.safetensors").items() if key.endswith("alpha")}
    assert len(alphas) == 1


def test_a_float16_that_is_too_small_or_too_large(tmp_path: Path, cli: Cli) -> None:
    """float16 ends at 6e-8 and 65504: a layer whose B would leave that is written in float32, the others are not."""
    key = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_"
    tensors = {}
    for letter, alpha, size in (("q", 2**-6, 1e-4), ("k", 2.0**12, 100.0), ("v", 2.0, 1.0)):
        tensors[f"{key}{letter}.lora_down.weight"] = torch.ones(4, 8, dtype=torch.float16)
        tensors[f"{key}{letter}.lora_up.weight"] = torch.full((8, 4), size, dtype=torch.float16)
        tensors[f"{key}{letter}.alpha"] = torch.tensor(alpha)
    save_file(tensors, tmp_path / "a.safetensors", {"ss_base_model_version": "sd_v1"})
    assert cli("convert", tmp_path / "a.safetensors", tmp_path / "d", "--format", "diffusers").status == 0
    written = load_file(tmp_path / "d/pytorch_lora_weights.safetensors")
    path = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_"
    for letter, dtype in (("q", torch.float32), ("k", torch.float32), ("v", torch.float16)):
        down, up = (written[f"{path}{letter}.lora_{factor}.weight"] for factor in "AB")
        assert down.dtype == up.dtype == dtype
        old = tensors[f"{key}{letter}.lora_up.weight"].double()
        assert torch.equal(up.double(), old * float(tensors[f"{key}{letter}.alpha"]) / 4)


@pytest.mark.parametrize("text", ["[", "{}", '{"alpha": 1e999, "others": {}, "rslora": false}', '{"others": 3}', "9"])
def test_a_damaged_header_of_ours_costs_the_alphas_only(text: str, tmp_path: Path, cli: Cli) -> None:
    tensors = {f"unet.conv_in.lora_{n}.weight": torch.ones(*s, 1, 1) for n, s in (("A", (2, 4)), ("B", (8, 2)))}
    save_file(tensors, tmp_path / "a.safetensors", {"erasediff.alphas": text})
    result = cli("convert", tmp_path / "a.safetensors", tmp_path / "b", "--format", "peft")
    assert result.status == 0 and "erasediff.alphas is unreadable" in result.err
    assert json.loads((tmp_path / "b/adapter_config.json").read_text())["lora_alpha"] == 2


MODULES = {
    architecture.id: {
        name: shape
        for name, shape in size.shapes.items()
        if len(shape) in (2, 4) and not re.search(r"embeddings|shared|relative_attention", name)
    }
    for size in (size for name in FAMILIES for size in reversed(sizes(FAMILIES[name])))
    for architecture in [size.architecture]
}
"""All modules that a LoRA can be for, and the shapes of their weights."""
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@st.composite
def adapters(draw: Any) -> LoraAdapter:
    """Any family, targets, ranks, alphas, dtypes, DoRA, text encoders."""
    architecture = draw(st.sampled_from(sorted(MODULES)))
    alphas = st.floats(2**-10, 2**10, width=32) | st.sampled_from([1.0, 2.0, 4.0])
    dtype, is_dora, rslora = draw(st.sampled_from(DTYPES)), draw(st.booleans()), draw(st.booleans())
    generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    common = draw(st.none() | alphas)
    layers = {}
    modules = MODULES[architecture]
    for name in draw(st.lists(st.sampled_from(list(modules)), min_size=1, max_size=6, unique=True)):
        rank, out, columns = draw(st.integers(1, 5)), draw(st.integers(1, 6)), draw(st.integers(1, 6))
        kernel = modules[name][2:]
        layers[name] = LoraLayer(
            down=torch.randn(rank, columns, *kernel, generator=generator).to(dtype),
            up=torch.randn(out, rank, *[1] * len(kernel), generator=generator).to(dtype),
            alpha=float(rank if draw(st.booleans()) else draw(alphas) if common is None else common),
            rslora=rslora,
            magnitude=torch.rand(1, out, *[1] * len(kernel)).reshape((1, out, 1, 1) if kernel else out)
            if is_dora
            else None,
        )
    return LoraAdapter(dict(sorted(layers.items())), Provenance(architecture=architecture))


@settings(derandomize=True, deadline=None, max_examples=int(os.environ.get("EXAMPLES", "100")))
@given(adapter=adapters(), way=st.lists(st.sampled_from(["diffusers", "kohya", "peft"]), min_size=2, max_size=4))
def test_any_way_through_the_formats(
    adapter: LoraAdapter, way: list[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """B · A · scale is the same to the last bit where scales are powers of two, else to a rounding of B each step."""
    folder = tmp_path_factory.mktemp("way")
    suited = set(formats.suited(adapter))
    family, _ = families.of_architecture(adapter.provenance.architecture)
    if family.native:
        suited -= {"kohya"}  # holds several modules in one weight, which `test_every_transformer` goes through
    way = [name for name in way if name in suited] or ["peft"]
    file, *_ = formats.write(adapter, folder / "0", way[0])
    for step, name in enumerate(way[1:], 1):
        assert main(["convert", str(file.parent), str(folder / str(step)), "--format", name]) == 0
        file = next((folder / str(step)).glob("*.safetensors"))
    found = formats.read(file.parent)
    assert found.layers.keys() == adapter.layers.keys()
    for name, layer in adapter.layers.items():
        other = found.layers[name]
        exact, got = (one.up.double().flatten(1) * one.scale for one in (layer, other))  # 1×1 kernels may be matrices
        assert torch.equal(other.down.double().flatten(1), layer.down.double().flatten(1))
        assert layer.magnitude is None or torch.equal(other.magnitude.flatten(), layer.magnitude.flatten())
        if math.log2(layer.scale).is_integer() and not layer.rslora:
            assert torch.equal(got, exact)
        else:
            rounding = torch.finfo(layer.up.dtype).eps / 2 + 2**-24  # alpha is float32 in kohya's files
            assert bool(((got - exact).abs() <= len(way) * rounding * exact.abs() * 1.001).all())
