"""Files of kinds that strangers brought: odd mixtures, headers that say otherwise, and what is no adapter at all."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from adapters import pipeline
from fixtures import Cli
from refusals import refused
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from erasediff_lora.adapter import formats
from erasediff_lora.adapter.formats import Asked

FAMILY = ("--family", "stable-diffusion-v1")  # which a tiny model does not tell
QUERY = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
XL_KEY = "lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k"


def pair(name: str, rows: int, columns: int, *, peft: bool = False) -> dict[str, Tensor]:
    down, up = ("lora_A", "lora_B") if peft else ("lora_down", "lora_up")
    return {f"{name}.{down}.weight": torch.randn(2, columns), f"{name}.{up}.weight": torch.randn(rows, 2)}


def test_dylora_as_lycoris_writes_it(tiny_base: Path, tmp_path: Path, cli: Cli) -> None:
    """A of a convolution as a kernel, B as a matrix; kohya's own kernels of 1 × 1 have either, too."""
    modules = pytest.importorskip("lycoris.modules")
    unet, saved, expected = pipeline(tiny_base).unet, dict[str, Tensor](), dict[str, Tensor]()
    torch.manual_seed(0)
    for path in ("mid_block.attentions.0.proj_in", "mid_block.resnets.0.conv1", QUERY):
        module = unet.get_submodule(path)
        key = f"lora_unet_{path.replace('.', '_')}"
        made = modules.DyLoraModule(key, module, 1.0, lora_dim=4, alpha=2.0, block_size=1, bypass_mode=False)
        for parameter in made.parameters():
            parameter.data = torch.randn_like(parameter) * 0.1
        saved |= {f"{key}.{part}": tensor.contiguous() for part, tensor in made.state_dict().items()}
        up, down = saved[f"{key}.lora_up.weight"], saved[f"{key}.lora_down.weight"]
        delta = 2.0 / 4 * (up.flatten(1) @ down.flatten(1))
        expected[f"{path}.weight"] = module.weight + delta.reshape(module.weight.shape)
    assert any(t.ndim == 2 and saved[k.replace("up", "down")].ndim == 4 for k, t in saved.items() if "lora_up" in k)
    save_file(saved, tmp_path / "a.safetensors")
    result = cli("merge", tiny_base, tmp_path / "a.safetensors", "--output", tmp_path / "out")
    assert result.status == 0, result.err
    merged = load_file(tmp_path / "out/unet/diffusion_pytorch_model.safetensors")
    for name, tensor in expected.items():
        torch.testing.assert_close(merged[name], tensor, rtol=1e-5, atol=1e-6, msg=name)
    assert cli("convert", tmp_path / "a.safetensors", tmp_path / "d", "--format", "diffusers", *FAMILY).status == 0
    pipe = pipeline(tiny_base)
    pipe.load_lora_weights(tmp_path / "d")
    pipe.fuse_lora()
    for name, tensor in expected.items():
        layer: Any = pipe.unet.get_submodule(name.removesuffix(".weight"))
        torch.testing.assert_close(layer.get_base_layer().weight, tensor, rtol=1e-5, atol=1e-6, msg=name)


def test_the_user_is_believed_against_the_header(tiny_base: Path, tmp_path: Path, cli: Cli) -> None:
    """A tiny model of Stable Diffusion 1, whose file was made with the header of XL."""
    name = f"lora_unet_{QUERY.replace('.', '_')}"
    width = pipeline(tiny_base).unet.get_submodule(QUERY).in_features
    header = {"ss_base_model_version": "sdxl_base_v1-0", "modelspec.architecture": "stable-diffusion-xl-v1-base/lora"}
    save_file(pair(name, width, width), tmp_path / "a.safetensors", header)
    result = cli("merge", tiny_base, tmp_path / "a.safetensors", "--output", tmp_path / "out", *FAMILY)
    assert result.status == 0, result.err
    assert "says in its header that it is for stable-diffusion-xl-v1-base, but" in result.err
    read = formats.read(tmp_path / "a.safetensors", Asked.parse("stable-diffusion-v1"))
    assert read.architecture == "stable-diffusion-v1"


@pytest.mark.parametrize(
    ("version", "shown"),
    [
        ("sd_1.5", "stable-diffusion-v1"),  # ai-toolkit
        ("sd_v1-5", "stable-diffusion-v1"),
        ("sd_2.1", "stable-diffusion-v2-512 or stable-diffusion-v2-768-v: say which"),
        ("sd_v2", "stable-diffusion-v2-512"),  # kohya, who would have said _v
        ("unheard of", "stable-diffusion-v1 or stable-diffusion-v2-512 or stable-diffusion-v2-768-v: say which"),
    ],
)
def test_versions_as_other_trainers_spell_them(version: str, shown: str, tmp_path: Path, cli: Cli) -> None:
    """Of a layer that Stable Diffusion 1 and 2 have alike."""
    key = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
    save_file(pair(key, 320, 320), tmp_path / "a.safetensors", {"ss_base_model_version": version})
    result = cli("inspect", tmp_path / "a.safetensors")
    assert result.status == 0, result.err
    assert re.search(rf"architecture +{shown}( with --family)?$", result.out, re.MULTILINE), result.out


@pytest.mark.parametrize(
    "said", [{"ss_base_model_version": "kolors"}, {"modelspec.architecture": "playground-v2.5/lora"}]
)
def test_families_with_the_network_of_xl_are_told_by_the_header(said: Any, tmp_path: Path, cli: Cli) -> None:
    file = tmp_path / "a.safetensors"
    save_file(pair(XL_KEY, 640, 2048), file, said)
    refused(cli("inspect", file), f"It looks like a file for {'Kolors' if 'ss_base_model_version' in said else 'Play'}")
    assert cli("inspect", file, "--family", "stable-diffusion-xl-v1-base").status == 0


@pytest.mark.parametrize(
    ("name", "rows", "columns", "family"),
    [
        (XL_KEY, 768, 1280, "the refiner of Stable Diffusion XL"),
        ("transformer.transformer_blocks.0.attn.to_gate", 6144, 6144, "Krea 2"),
        ("base_model.model.blocks.0.attn.wq", 6144, 6144, "Krea 2"),
        ("diffusion_model.layers.0.attention.o", 4608, 4608, "Ideogram 4"),
        ("diffusion_model.blocks.0.cross_attn.q_proj", 2048, 2048, "Cosmos or Anima"),
    ],
)
def test_more_families_that_are_known_by_name_only(
    name: str, rows: int, columns: int, family: str, tmp_path: Path, cli: Cli
) -> None:
    more = {XL_KEY: pair(XL_KEY.replace("transformer_blocks_0", "transformer_blocks_3"), 768, 1280)}.get(name, {})
    save_file(pair(name, rows, columns) | more, tmp_path / "a.safetensors")
    refused(cli("inspect", tmp_path / "a.safetensors"), f"It looks like a file for {family}")


def test_a_network_that_peft_has_wrapped(tiny_base: Path, tmp_path: Path) -> None:
    """`unet.base_model.model.`, of trainers that save a wrapped network behind the name of the component."""
    save_file(pair(f"unet.base_model.model.{QUERY}", 16, 16, peft=True), tmp_path / "a.safetensors")
    assert list(formats.read(tmp_path / "a.safetensors").layers) == [f"unet.{QUERY}"]


@pytest.mark.parametrize(
    "name",
    [
        f"unet._orig_mod.{QUERY}",
        f"lora_unet__orig_mod_{QUERY.replace('.', '_')}",
        "unet._fsdp_wrapped_module." + QUERY.replace("attn1", "_checkpoint_wrapped_module.attn1"),
    ],
)
def test_what_torch_wraps_around_modules_is_no_part_of_their_names(name: str, tmp_path: Path) -> None:
    save_file(pair(name, 16, 16), tmp_path / "a.safetensors")
    assert list(formats.read(tmp_path / "a.safetensors").layers) == [f"unet.{QUERY}"]


@pytest.mark.parametrize(
    ("part", "value", "kind"),
    [
        ("on_input", torch.tensor(1.0), "(IA)³"),
        ("reshape_weight", torch.tensor([16, 16]), "a weight of another shape"),
        ("rescale", torch.tensor(1), "OFT"),
    ],
)
def test_numbers_beside_kinds_that_are_not_read_are_named(
    part: str, value: Tensor, kind: str, tmp_path: Path, cli: Cli
) -> None:
    save_file({f"lora_unet_mid_block_attentions_0_proj_in.{part}": value}, tmp_path / "a.safetensors")
    refused(cli("inspect", tmp_path / "a.safetensors"), f", which is {kind}. Known are LoRA, DoRA")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n",
            "is a pointer of Git LFS, not the file.",
        ),
        ("<!DOCTYPE html><html>404</html>", "is a web page"),
        ("<HTML lang=en>Sign in</HTML>", "is a web page"),
        ("GGUF" + 60 * "\0", "is a GGUF file, whose weights are quantised."),
    ],
)
def test_what_a_download_left_instead_of_the_file(text: str, words: str, tmp_path: Path, cli: Cli) -> None:
    (tmp_path / "a.safetensors").write_text(text)
    refused(cli("inspect", tmp_path / "a.safetensors"), words)
    refused(cli("merge", tmp_path / "a.safetensors", tmp_path / "a.safetensors", "--output", tmp_path / "o"), words)


def test_folders_whose_adapter_is_a_pickle_or_lies_deeper(tmp_path: Path, cli: Cli) -> None:
    (tmp_path / "old").mkdir()
    torch.save({"base_model.model.x.lora_A.weight": torch.zeros(1, 1)}, tmp_path / "old/adapter_model.bin")
    refused(cli("inspect", tmp_path / "old"), "adapter_model.bin': is a pickle, which can run code when opened.")
    for name in ("cat", "dog"):
        (tmp_path / "several" / name).mkdir(parents=True)
        save_file(pair(QUERY, 8, 8), tmp_path / "several" / name / "adapter_model.safetensors")
    refused(cli("inspect", tmp_path / "several"), "holds no adapter file. Give the file, or one of: cat, dog.")


def test_several_adapters_in_one_place(tmp_path: Path, cli: Cli) -> None:
    key = f"unet.{QUERY}.lora_"
    tensors = {f"{key}{letter}.{name}.weight": torch.randn(16, 16) for name in ("cat", "dog") for letter in "AB"}
    save_file(tensors, tmp_path / "cat.safetensors")
    words = f"has 2 tensors of layers that it has already, the first {key}A.dog.weight. Export one adapter at a time."
    refused(cli("inspect", tmp_path / "cat.safetensors"), words)
    save_file(pair(QUERY, 8, 8), tmp_path / "dog.safetensors")
    refused(cli("inspect", tmp_path), "holds 2 safetensors files. Give one of: cat.safetensors, dog.safetensors.")


def test_kinds_of_peft_that_are_not_read_are_named(tmp_path: Path, cli: Cli) -> None:
    peft = pytest.importorskip("peft")
    network = nn.ModuleDict({"mid_block": nn.ModuleDict({"to_q": nn.Linear(8, 8)})})
    config = peft.OFTConfig(target_modules=["to_q"], oft_block_size=4)
    peft.get_peft_model(network, config).save_pretrained(str(tmp_path / "a"))
    refused(cli("inspect", tmp_path / "a"), "has peft_type = 'OFT', which is none of LORA, LOHA, LOKR", "with extract")


def test_the_remedy_for_norms_beside_dora_names_the_base(tiny_base: Path, tmp_path: Path, cli: Cli) -> None:
    unet = pipeline(tiny_base).unet
    width, channels = unet.get_submodule(QUERY).in_features, unet.get_submodule("conv_norm_out").num_channels
    name = f"lora_unet_{QUERY.replace('.', '_')}"
    tensors = pair(name, width, width) | {f"{name}.dora_scale": torch.rand(width, 1) + 0.5}
    save_file(tensors | {"lora_unet_conv_norm_out.w_norm": torch.randn(channels)}, tmp_path / "a.safetensors")
    command = ("convert", tmp_path / "a.safetensors", tmp_path / "out", "--format", "kohya", *FAMILY)
    refused(cli(*command), "has full differences at 1 of 2 weights", "convert --as lora --rank RANK --base BASE")
    assert cli(*command, "--as", "lora", "--rank", 8, "--base", tiny_base).status == 0


def test_a_family_that_was_asked_for_is_not_advised_again(tmp_path: Path, cli: Cli) -> None:
    save_file(pair("unet.mid_block.no_such_thing", 16, 16, peft=True), tmp_path / "a.safetensors")
    refused(cli("inspect", tmp_path / "a.safetensors", *FAMILY), "or leave --family out")


@pytest.mark.parametrize("is_tiny", [False, True])
def test_biases_and_last_layers_of_flux_through_kohyas_names(is_tiny: bool, tmp_path: Path, cli: Cli) -> None:
    """The authors' code holds q, k and v in one weight, and shifts first in the last layer: both come back."""
    width, family = 64 if is_tiny else 3072, ("--family", "flux-1-schnell")
    shapes = {
        "norm_out.linear": 2 * width,
        "transformer_blocks.0.attn.to_q": width,
        "transformer_blocks.0.attn.to_k": width,
        "transformer_blocks.0.attn.to_v": width,
    }
    tensors: dict[str, Tensor] = {}
    for path, rows in shapes.items():
        tensors |= pair(f"transformer.{path}", rows, width, peft=True)
        if not path.endswith("to_v"):
            tensors[f"transformer.{path}.lora_B.bias"] = torch.randn(rows)
    save_file(tensors, tmp_path / "a.safetensors")
    kohya, again = tmp_path / "k.safetensors", tmp_path / "d.safetensors"
    for source, target, format in ((tmp_path / "a.safetensors", kohya, "kohya"), (kohya, again, "diffusers")):
        result = cli("convert", source, target, "--format", format, *family)
        assert result.status == 0, result.err
    last = "lora_unet_final_layer_adaLN_modulation_1"
    up = tensors["transformer.norm_out.linear.lora_B.weight"]
    assert torch.equal(load_file(kohya)[f"{last}.lora_up.weight"], torch.cat(up.chunk(2)[::-1]))
    one, other = (formats.read(file, Asked.parse("flux-1-schnell")) for file in (tmp_path / "a.safetensors", again))
    assert one.layers.keys() == other.layers.keys()
    for name, layer in one.layers.items():
        torch.testing.assert_close(other.layers[name].delta(), layer.delta(), rtol=1e-4, atol=1e-5)
        expected = one.biases.get(name, torch.zeros(layer.shape[0]))
        torch.testing.assert_close(other.biases[name], expected, msg=name)
