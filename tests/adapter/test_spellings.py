"""Files as other programs spell them: each is the same adapter, whatever it is called there."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from adapters import pipeline
from fixtures import Cli
from peft import LoraConfig, get_peft_model
from refusals import refused
from safetensors.torch import load_file, save_file
from single_file import unet_blocks, unet_key
from torch import Tensor

from erasediff_lora.adapter import formats
from erasediff_lora.adapter.formats import Asked
from erasediff_lora.errors import UserError
from erasediff_lora.families.names import sizes
from erasediff_lora.registry import FAMILIES

Factors = dict[str, tuple[Tensor, Tensor]]
Spell = Callable[[str], tuple[str, str]]
RANK = 2
BLOCK = "unet.down_blocks.2.attentions.1.transformer_blocks.0"
TEXT = "text_encoder.encoder.layers.3"
VERSION_1 = (
    *("unet.conv_in", "unet.time_embedding.linear_1", "unet.down_blocks.1.resnets.0.conv1"),
    *("unet.down_blocks.0.downsamplers.0.conv", "unet.up_blocks.0.upsamplers.0.conv", "unet.mid_block.resnets.1.conv2"),
    *("unet.up_blocks.1.resnets.2.conv_shortcut", "unet.up_blocks.3.attentions.2.proj_out", f"{BLOCK}.attn1.to_q"),
    *(f"{BLOCK}.attn1.to_out.0", f"{BLOCK}.attn2.to_k", f"{BLOCK}.ff.net.0.proj", f"{BLOCK}.ff.net.2"),
    *(f"{TEXT}.self_attn.q_proj", f"{TEXT}.self_attn.out_proj", f"{TEXT}.mlp.fc1"),
)
DEEP = "unet.down_blocks.2.attentions.1.transformer_blocks.9"
XL = (
    *("unet.conv_in", "unet.add_embedding.linear_2", "unet.up_blocks.1.upsamplers.0.conv", f"{DEEP}.attn2.to_v"),
    *(f"{DEEP}.ff.net.2", "unet.mid_block.attentions.0.proj_in", "unet.up_blocks.0.resnets.2.time_emb_proj"),
    *("text_encoder.encoder.layers.0.mlp.fc2", "text_encoder_2.encoder.layers.31.self_attn.v_proj"),
    "text_encoder_2.text_projection",
)
JOINT = "transformer.transformer_blocks.7"
VERSION_3 = (
    *("transformer.context_embedder", "transformer.proj_out", "transformer.pos_embed.proj"),
    *(f"{JOINT}.attn.{name}" for name in ("to_q", "to_k", "to_v", "add_q_proj", "add_k_proj", "add_v_proj")),
    *(f"{JOINT}.attn.to_out.0", f"{JOINT}.attn.to_add_out", f"{JOINT}.ff.net.0.proj", f"{JOINT}.ff_context.net.2"),
    f"{JOINT}.norm1.linear",
)
MODULES = {"stable_diffusion": VERSION_1, "stable_diffusion_xl": XL, "stable_diffusion_3": VERSION_3}
ARCHITECTURE = {
    "stable_diffusion": "stable-diffusion-v1",
    "stable_diffusion_xl": "stable-diffusion-xl-v1-base",
    "stable_diffusion_3": "stable-diffusion-3",
}
KOHYA = {"unet": "lora_unet_", "text_encoder": "lora_te_"}
KOHYA_XL = {"unet": "lora_unet_", "text_encoder": "lora_te1_", "text_encoder_2": "lora_te2_"}


def factors(family: str) -> Factors:
    """A and B of each module, with the shapes of the published model."""
    generator = torch.Generator().manual_seed(0)
    shapes, found = sizes(FAMILIES[family])[0].shapes, dict[str, tuple[Tensor, Tensor]]()
    for module in MODULES[family]:
        rows, *rest = shapes[module]
        ones = [1] * (len(rest) - 1)
        down = torch.randn(RANK, *rest, generator=generator)
        found[module] = down, torch.randn(rows, RANK, *ones, generator=generator)
    return found


def halves(module: str) -> tuple[str, str]:
    component, _, path = module.partition(".")
    return component, path


def with_text_model(module: str) -> str:
    component, path = halves(module)
    inner = component.startswith("text_encoder") and path != "text_projection"
    return f"{component}.text_model.{path}" if inner else module


def peft_names(module: str) -> tuple[str, str]:
    name = with_text_model(module)
    return f"{name}.lora_A.weight", f"{name}.lora_B.weight"


def default_names(module: str) -> tuple[str, str]:
    name = with_text_model(module)
    return f"{name}.lora_A.default.weight", f"{name}.lora_B.default.weight"


def bare_names(module: str) -> tuple[str, str]:
    _, path = halves(module)
    return f"{path}.lora_A.weight", f"{path}.lora_B.weight"


def lora_down_up(module: str) -> tuple[str, str]:
    """Diffusers before peft: `.lora.down`, and in text encoders `.lora_linear_layer.down`."""
    name = with_text_model(module)
    middle = ".lora_linear_layer" if ".text_model." in name else ".lora"
    return f"{name}{middle}.down.weight", f"{name}{middle}.up.weight"


def processors(module: str) -> tuple[str, str]:
    """Diffusers' first attention processors."""
    name = re.sub(r"\.(attn[12])\.to_(q|k|v|out)(\.0)?$", r".\1.processor.to_\2_lora", module)
    if name == module:
        return lora_down_up(module)
    return f"{name}.down.weight", f"{name}.up.weight"


def behind(prefix: str) -> Spell:
    """peft's names of one component behind another prefix."""

    def spell(module: str) -> tuple[str, str]:
        down, up = bare_names(module)
        return prefix + down, prefix + up

    return spell


def dotted(module: str) -> tuple[str, str]:
    name = with_text_model(module)
    return f"{name}.lora_down.weight", f"{name}.lora_up.weight"


def underscored(prefixes: dict[str, str], translate: Callable[[str], str] = str) -> Spell:
    def spell(module: str) -> tuple[str, str]:
        component, path = halves(with_text_model(module))
        path = translate(path) if component in ("unet", "transformer") else path
        name = prefixes[component] + path.replace(".", "_")
        return f"{name}.lora_down.weight", f"{name}.lora_up.weight"

    return spell


def ldm(config: dict[str, Any]) -> Callable[[str], str]:
    blocks = unet_blocks(config)
    return lambda path: (
        unet_key(f"{path}.weight", blocks).removeprefix("model.diffusion_model.").removesuffix(".weight")
    )


def ldm_dotted(translate: Callable[[str], str], prefix: str) -> Spell:
    def spell(module: str) -> tuple[str, str]:
        component, path = halves(module)
        if component != "unet":
            return dotted(module)
        return f"{prefix}{translate(path)}.lora_down.weight", f"{prefix}{translate(path)}.lora_up.weight"

    return spell


def omi(translate: Callable[[str], str]) -> Spell:
    """OneTrainer's newer files: LDM names behind the component's, and CLIP by the size of its tower."""

    def spell(module: str) -> tuple[str, str]:
        down, up = ldm_dotted(translate, "unet.")(module)
        towers = ("text_encoder_2.", "clip_g."), ("text_encoder.", "clip_l.")
        for ours, theirs in towers:
            down, up = down.replace(ours, theirs), up.replace(ours, theirs)
        return down, up

    return spell


V1_BLOCKS = {
    "layers_per_block": 2,
    "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
    "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
}
XL_BLOCKS = {
    "layers_per_block": 2,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
}
SPELLINGS: dict[str, tuple[str, Spell]] = {
    "diffusers": ("stable_diffusion", peft_names),
    "an adapter's name": ("stable_diffusion", default_names),
    "lora.down": ("stable_diffusion", lora_down_up),
    "processor.to_q_lora": ("stable_diffusion", processors),
    "dotted": ("stable_diffusion", dotted),
    "kohya": ("stable_diffusion", underscored(KOHYA)),
    "LDM names": ("stable_diffusion", underscored(KOHYA, ldm(V1_BLOCKS))),
    "diffusion_model.": ("stable_diffusion", ldm_dotted(ldm(V1_BLOCKS), "diffusion_model.")),
    "model.diffusion_model.": ("stable_diffusion", ldm_dotted(ldm(V1_BLOCKS), "model.diffusion_model.")),
    "XL, kohya": ("stable_diffusion_xl", underscored(KOHYA_XL, ldm(XL_BLOCKS))),
    "XL, diffusers' names": ("stable_diffusion_xl", underscored(KOHYA_XL)),
    "XL, diffusers": ("stable_diffusion_xl", peft_names),
    "XL, diffusion_model.": ("stable_diffusion_xl", ldm_dotted(ldm(XL_BLOCKS), "diffusion_model.")),
    "XL, OMI": ("stable_diffusion_xl", omi(ldm(XL_BLOCKS))),
    "3, diffusers": ("stable_diffusion_3", peft_names),
    "3, dotted": ("stable_diffusion_3", dotted),
    "3, bare": ("stable_diffusion_3", bare_names),
    "3, base_model.model.": ("stable_diffusion_3", behind("base_model.model.")),
    "3, OneTrainer": ("stable_diffusion_3", underscored({"transformer": "lora_transformer_"})),
    "3, lycoris": ("stable_diffusion_3", underscored({"transformer": "lycoris_"})),
}


def same(file: Path, family: str, expected: Factors, alphas: dict[str, float] | None = None) -> None:
    """Every module is there with the update that the factors make, and the family is told."""
    adapter = formats.read(file)
    assert adapter.architecture == ARCHITECTURE[family]
    assert adapter.layers.keys() == expected.keys()
    for module, (down, up) in expected.items():
        layer = adapter.layers[module]
        assert torch.equal(layer.down, down) and torch.equal(layer.up, up), module
        assert layer.scale == (alphas or {}).get(module, RANK) / RANK, module


@pytest.mark.parametrize("name", SPELLINGS)
def test_every_spelling_is_the_same_adapter(name: str, tmp_path: Path, cli: Cli) -> None:
    family, spell = SPELLINGS[name]
    expected = factors(family)
    tensors: dict[str, Tensor] = {}
    for module, pair in expected.items():
        tensors |= dict(zip(spell(module), pair, strict=True))
    file = tmp_path / "theirs.safetensors"
    save_file(tensors, file)
    same(file, family, expected)
    shown = cli("inspect", file)
    assert shown.status == 0 and ARCHITECTURE[family] in shown.out
    assert cli("convert", file, tmp_path / "ours", "--format", "diffusers").status == 0
    same(tmp_path / "ours", family, expected)


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.int32, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("shape", [(), (1,), (1, 1)], ids=str)
@pytest.mark.parametrize("name", ["kohya", "diffusers", "processor.to_q_lora", "3, bare"])
def test_alpha_is_one_number_of_any_type(name: str, shape: Any, dtype: torch.dtype, tmp_path: Path) -> None:
    family, spell = SPELLINGS[name]
    expected, tensors, alphas = factors(family), dict[str, Tensor](), dict[str, float]()
    for number, (module, pair) in enumerate(expected.items()):
        down, up = spell(module)
        stem = re.sub(r"(\.lora_(A|down)|[._]lora\.down|\.lora_linear_layer\.down)\.weight$", "", down)
        alphas[module] = float(1 + number % 5)
        tensors |= {down: pair[0], up: pair[1], f"{stem}.alpha": torch.full(shape, alphas[module]).to(dtype)}
    save_file(tensors, tmp_path / "a.safetensors")
    same(tmp_path / "a.safetensors", family, expected, alphas)


@pytest.mark.parametrize("prefix", ["lora_unet_", "diffusion_model.", "transformer."])
def test_fused_projections_of_sd3_are_taken_apart(prefix: str, tmp_path: Path, cli: Cli) -> None:
    """One A for queries, keys and values; the rows of B are theirs in this order."""
    name = prefix + ("joint_blocks_3_x_block_attn_qkv" if prefix[-1] == "_" else "joint_blocks.3.x_block.attn.qkv")
    down, up = torch.randn(RANK, 1536), torch.randn(3 * 1536, RANK)
    save_file({f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up}, tmp_path / "a.safetensors")
    expected = {
        f"transformer.transformer_blocks.3.attn.to_{letter}": (down, part)
        for letter, part in zip("qkv", up.chunk(3), strict=True)
    }
    same(tmp_path / "a.safetensors", "stable_diffusion_3", expected)
    scale = torch.rand(3 * 1536, 1)
    factors = {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up}
    save_file(factors | {f"{name}.dora_scale": scale}, tmp_path / "a.safetensors")
    layers = formats.read(tmp_path / "a.safetensors").layers
    for module, part in zip(expected, scale.chunk(3), strict=True):
        magnitude = layers[module].magnitude
        assert magnitude is not None and torch.equal(magnitude, part.flatten())
    save_file(factors | {f"{name}.dora_scale": torch.rand(1, 1536)}, tmp_path / "a.safetensors")
    refused(cli("inspect", tmp_path / "a.safetensors"), "of 3 modules, which cannot be taken apart.")


LAST_OF_SD3 = {
    "joint_blocks_23_context_block_adaLN_modulation_1": "transformer_blocks.23.norm1_context.linear",
    "final_layer_adaLN_modulation_1": "norm_out.linear",
}


@pytest.mark.parametrize(("theirs", "ours"), LAST_OF_SD3.items())
def test_layers_of_sd3_that_shift_first_elsewhere(theirs: str, ours: str, tmp_path: Path) -> None:
    """kohya trains the authors' code, whose last layers give shift and scale in the other order than diffusers'."""
    down, up, bias = torch.randn(RANK, 1536), torch.randn(2 * 1536, RANK), torch.randn(2 * 1536)
    scale, name = torch.rand(2 * 1536, 1), f"lora_unet_{theirs}"

    def turned(tensor: Tensor) -> Tensor:
        return torch.cat(tensor.chunk(2)[::-1])

    tensors = {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up}
    save_file(tensors, tmp_path / "a.safetensors")
    same(tmp_path / "a.safetensors", "stable_diffusion_3", {f"transformer.{ours}": (down, turned(up))})
    save_file(tensors | {f"{name}.dora_scale": scale, f"{name}.diff_b": bias}, tmp_path / "a.safetensors")
    adapter = formats.read(tmp_path / "a.safetensors")
    magnitude = adapter.layers[f"transformer.{ours}"].magnitude
    assert magnitude is not None and torch.equal(magnitude, turned(scale).flatten())
    assert torch.equal(adapter.biases[f"transformer.{ours}"], turned(bias))
    by_input = {f"{name}.dora_scale": torch.rand(1, 1536)}  # one for each input: the order of the outputs is all one
    save_file(tensors | by_input, tmp_path / "a.safetensors")
    layer = formats.read(tmp_path / "a.safetensors").layers[f"transformer.{ours}"]
    assert layer.by_input and torch.equal(layer.up, turned(up))
    save_file({f"{name}.diff": up @ down}, tmp_path / "a.safetensors")
    whole = formats.read_any(tmp_path / "a.safetensors").layers[f"transformer.{ours}"]
    torch.testing.assert_close(whole.delta(), turned(up @ down))
    loha = {f"{name}.hada_w{side}_{half}": (up if half == "a" else down).clone() for side in (1, 2) for half in "ab"}
    save_file(loha, tmp_path / "a.safetensors")
    with pytest.raises(UserError, match="cannot be taken apart"):
        formats.read_any(tmp_path / "a.safetensors")


def test_the_projection_of_a_text_encoder_has_no_text_model_before_it(tmp_path: Path) -> None:
    """ComfyUI, Forge and diffusers look for lora_te2_text_projection; bases of any size have it."""
    name = "text_encoder_2.text_projection"
    for width in (1280, 8):
        tensors = {f"{name}.lora_A.weight": torch.randn(RANK, width), f"{name}.lora_B.weight": torch.randn(width, RANK)}
        save_file(tensors, tmp_path / "a.safetensors")
        adapter = formats.read(tmp_path / "a.safetensors", Asked.parse("stable-diffusion-xl-v1-base"))
        (file,) = formats.write(adapter, tmp_path / "kohya.safetensors", "kohya", overwrite=True)
        keys = {f"lora_te2_text_projection.{part}" for part in ("lora_down.weight", "lora_up.weight", "alpha")}
        assert load_file(file).keys() == keys
        old = {key.replace("te2_", "te2_text_model_"): tensor for key, tensor in load_file(file).items()}
        save_file(old, tmp_path / "old.safetensors")
        for read in (file, tmp_path / "old.safetensors"):
            assert list(formats.read(read, Asked.parse("stable-diffusion-xl-v1-base")).layers) == [name]


def test_a_folder_for_each_part_of_the_pipeline(tiny_base: Path, tmp_path: Path, cli: Cli) -> None:
    """peft's own files of a UNet and a text encoder, merged as peft merges them."""
    pipe = pipeline(tiny_base)
    torch.manual_seed(0)
    configs = {
        "unet": LoraConfig(r=2, lora_alpha=6, target_modules=["to_q", "conv1"], init_lora_weights=False),
        "text_encoder": LoraConfig(
            r=3, lora_alpha=4, use_rslora=True, target_modules=["q_proj"], init_lora_weights=False
        ),
    }
    for name, config in configs.items():
        get_peft_model(getattr(pipe, name), config).save_pretrained(str(tmp_path / "a" / name))
    result = cli("merge", tiny_base, tmp_path / "a", "--output", tmp_path / "merged")
    assert result.status == 0, result.err
    merged = pipeline(tmp_path / "merged")
    for name in configs:
        network = getattr(pipe, name)
        for path, module in network.named_modules():
            if hasattr(module, "merge") and hasattr(module, "base_layer"):
                module.merge()
                own = getattr(merged, name).get_submodule(path).weight
                assert torch.allclose(own, module.base_layer.weight, atol=1e-6), path
    result = cli("merge", tiny_base, tmp_path / "a", "--output", tmp_path / "unet", "--only", "unet")
    assert result.status == 0 and "the layers of text_encoder are left out" in result.err
    before, after = (load_file(folder / "text_encoder/model.safetensors") for folder in (tiny_base, tmp_path / "unet"))
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_what_save_lora_adapter_writes(tiny_base: Path, tmp_path: Path, cli: Cli) -> None:
    """No component before the names, and the configuration in the header without one either."""
    pipe = pipeline(tiny_base)
    torch.manual_seed(0)
    pipe.unet.add_adapter(LoraConfig(r=2, lora_alpha=5, target_modules=["to_k"], init_lora_weights=False))
    pipe.unet.save_lora_adapter(tmp_path / "a", safe_serialization=True)
    result = cli("merge", tiny_base, tmp_path / "a", "--output", tmp_path / "merged")
    assert result.status == 0, result.err
    pipe.unet.fuse_lora()
    merged = pipeline(tmp_path / "merged").unet
    for path, module in pipe.unet.named_modules():
        if hasattr(module, "base_layer"):
            assert torch.allclose(merged.get_submodule(path).weight, module.base_layer.weight, atol=1e-6), path


def test_what_is_left_over_is_counted_and_named(tmp_path: Path, cli: Cli) -> None:
    tensors: dict[str, Tensor] = {}
    for module, pair in factors("stable_diffusion").items():
        tensors |= dict(zip(peft_names(module), pair, strict=True))
    file = tmp_path / "a.safetensors"
    save_file(tensors | {"step": torch.ones(1)}, file)
    refused(cli("inspect", file), "has 1 tensor of an unknown layout, the first step [1].")
    save_file(tensors | {"bundle_emb.zz.clip_l": torch.ones(2, 768)}, file)
    result = cli("inspect", file)
    assert result.status == 0 and "holds embeddings too, which are left out: zz" in result.err
    for part in ("oft_blocks", "a1.weight", "boft_R"):
        save_file(tensors | {f"unet.mid_block.resnets.0.conv1.{part}": torch.ones(2, 2)}, file)
        refused(
            cli("inspect", file), f"has 1 tensor of an unknown layout, the first unet.mid_block.resnets.0.conv1.{part}"
        )
    strange = {"lora_te_text_model_encoder_layers_99_mlp_fc1.lora_down.weight": torch.ones(1, 768)}
    strange |= {"lora_te_text_model_encoder_layers_99_mlp_fc1.lora_up.weight": torch.ones(3072, 1)}
    save_file(tensors | strange, file)
    refused(cli("inspect", file), "has 2 tensors of modules that stable-diffusion-v1 does not have", "--only unet")
    result = cli("convert", file, tmp_path / "unet", "--format", "diffusers", "--only", "unet")
    assert result.status == 0 and "4 layers of text encoders are left out" in result.err
    assert formats.read(tmp_path / "unet").components == ["unet"]
    refused(cli("inspect", file, "--only", "transformer"), "--only = 'transformer': has no layer in")
    refused(cli("inspect", file, "--only", "vae"), "--only = 'vae': is no part of a pipeline.")
    save_file(tensors | {"unet.conv_in.lora_down.weight": torch.ones(RANK, 4, 3, 3)}, file)
    refused(cli("inspect", file), "has 1 tensor of layers that it has already, the first unet.conv_in.lora_")


def test_a_header_without_components_is_read(tmp_path: Path) -> None:
    expected = factors("stable_diffusion_3")
    tensors: dict[str, Tensor] = {}
    for module, pair in expected.items():
        tensors |= dict(zip(bare_names(module), pair, strict=True))
    config = {"r": RANK, "lora_alpha": 6, "alpha_pattern": {"context_embedder": 1}}
    save_file(tensors, tmp_path / "a.safetensors", {"lora_adapter_metadata": json.dumps(config)})
    alphas = dict.fromkeys(expected, 6.0) | {"transformer.context_embedder": 1.0}
    same(tmp_path / "a.safetensors", "stable_diffusion_3", expected, alphas)
