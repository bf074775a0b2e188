"""What peft's configurations say of the tensors beside them, with files that peft writes."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from adapters import pipeline
from fixtures import Cli
from peft import LoraConfig, PeftModel, get_peft_model
from refusals import refused
from safetensors.torch import load_file, save_file
from torch import nn

from erasediff_lora.adapter import formats

FAMILY = ("--family", "stable-diffusion-v1")  # which a tiny model does not tell


def network() -> nn.Module:
    """Three modules of a UNet, by their names, and nothing else."""
    torch.manual_seed(0)
    attention = nn.ModuleDict({"to_q": nn.Linear(8, 8), "to_k": nn.Linear(8, 8)})
    block = nn.ModuleDict({"attn1": attention})
    inner = nn.ModuleDict({"transformer_blocks": nn.ModuleList([block])})
    mid = nn.ModuleDict({"attentions": nn.ModuleList([inner]), "resnets": nn.ModuleList()})
    return nn.ModuleDict({"mid_block": mid, "conv_in": nn.Conv2d(4, 8, 3, bias=False)})


def saved(folder: Path, **options: Any) -> PeftModel:
    config = {"r": 4, "lora_alpha": 6, "target_modules": ["to_q", "to_k", "conv_in"], "init_lora_weights": False}
    model = get_peft_model(network(), LoraConfig(**(config | options)))  # type: ignore[arg-type]
    model.save_pretrained(str(folder))
    return model


def changes(model: PeftModel) -> dict[str, torch.Tensor]:
    return {
        f"unet.{path.removeprefix('base_model.model.')}": module.get_delta_weight("default")
        for path, module in model.named_modules()
        if hasattr(module, "get_delta_weight")
    }


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"use_rslora": True},
        {"alpha_pattern": {"to_q": 2}},
        {"alpha_pattern": {"to_[qv]": 3, "conv_(in|out)": 1}, "rank_pattern": {"to_k": 2}},
        {"alpha_pattern": {r"transformer_blocks\.\d+\.attn1\.to_k$": 9, "to_k": 1}},
        {"alpha_pattern": {"^mid_block.*to_q": 5}, "use_rslora": True},
        {"exclude_modules": ["to_k"], "lora_dropout": 0.3, "fan_in_fan_out": False, "bias": "none"},
        {"init_lora_weights": "gaussian"},
        {"target_modules": r".*to_(q|k)", "layers_to_transform": None},
    ],
    ids=str,
)
def test_what_is_honoured(options: Any, tmp_path: Path, cli: Cli) -> None:
    """The updates are those that peft would add."""
    saved(tmp_path, **options)
    expected = changes(PeftModel.from_pretrained(network(), tmp_path))  # the file has patterns in another order
    found = formats.read(tmp_path).layers
    assert found.keys() == expected.keys()
    for name, delta in expected.items():
        assert torch.allclose(found[name].delta(), delta, rtol=1e-5, atol=1e-6), name
    assert cli("inspect", tmp_path).status == 0


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"bias": "lora_only"}, "bias = 'lora_only'"),
        ({"bias": "all"}, "bias = 'all'"),
        ({"init_lora_weights": "pissa", "target_modules": ["to_q"]}, "init_lora_weights = 'pissa'"),
        ({"init_lora_weights": "pissa_niter_4", "target_modules": ["to_q"]}, "init_lora_weights = 'pissa_niter_4'"),
        ({"init_lora_weights": "olora", "target_modules": ["to_q"]}, "init_lora_weights = 'olora'"),
        ({"modules_to_save": ["conv_in"], "target_modules": ["to_q"]}, "modules_to_save = ['conv_in']"),
    ],
    ids=str,
)
def test_what_makes_more_of_it_than_lora_is_refused_by_name(options: Any, named: str, tmp_path: Path, cli: Cli) -> None:
    saved(tmp_path / "a", **options)
    for verb in (["inspect"], ["convert", tmp_path / "out", "--format", "diffusers"]):
        refused(cli(verb[0], tmp_path / "a", *verb[1:]), f"has {named}", "adapter_config.json")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "fields",
    [
        {"layer_replication": [[0, 4], [2, 5]]},
        {"alora_invocation_tokens": [1, 2]},
        {"use_qalora": True},
        {"megatron_config": {"hidden_size": 8}},
        {"trainable_token_indices": [3]},
        {"target_parameters": ["experts.down_proj"]},
        {"kasa_config": {"beta": 1}},
        {"use_bdlora": {"nblocks": 2}},
        {"a_field_of_next_year": 0.5},
        {"init_lora_weights": "corda"},
        {"init_lora_weights": "loftq"},
        {"init_lora_weights": ["pissa"]},
        {"use_dora": True},
    ],
    ids=str,
)
def test_fields_that_only_other_set_ups_write(fields: Any, tmp_path: Path, cli: Cli) -> None:
    saved(tmp_path)
    file = tmp_path / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))
    refused(cli("inspect", tmp_path), f"has {next(iter(fields))} = ")


@pytest.mark.parametrize("value", [None, False, [], {}, ""])
def test_unknown_fields_that_are_off_do_no_harm(value: Any, tmp_path: Path, cli: Cli) -> None:
    saved(tmp_path)
    file = tmp_path / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"a_field_of_next_year": value}))
    assert cli("inspect", tmp_path).status == 0


@pytest.mark.parametrize(
    ("patterns", "words"),
    [
        ({r"((\w|[a-z])+\.?)+[A-Z]": 1}, "takes too long to match"),
        ({"to_(q": 1}, "is no regex for names"),
        ({"x" * 2000: 1}, "is no regex for names"),
        ({"to_q": "much"}, "is no number"),
        ({"to_q": 1e300}, "is no number"),
        (["to_q"], "which is no table"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_patterns_are_bounded(patterns: Any, words: str, tmp_path: Path, cli: Cli) -> None:
    saved(tmp_path)
    file = tmp_path / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"alpha_pattern": patterns}))
    begin = time.process_time()
    refused(cli("inspect", tmp_path), words)
    assert time.process_time() - begin < 3


BIASED: dict[str, Any] = {"lora_bias": True, "target_modules": ["to_out.0", "conv1", "proj_in"], "use_rslora": True}


def test_biases_of_b(tmp_path: Path, tiny_base: Path, cli: Cli) -> None:
    """peft's `lora_bias`, merged by peft and by us, and through every format and back."""
    model = get_peft_model(pipeline(tiny_base).unet, LoraConfig(r=2, lora_alpha=3, **BIASED))
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = torch.randn_like(parameter) * 0.1
    model.save_pretrained(str(tmp_path / "a"))
    merged = {key: tensor for key, tensor in model.merge_and_unload().state_dict().items() if "lora" not in key}
    files, result_of = {"a": tmp_path / "a"}, dict[str, str]()
    for format in ("diffusers", "kohya", "peft"):
        result = cli("convert", tmp_path / "a", tmp_path / format, "--format", format, *FAMILY)
        assert result.status == 0, result.err
        files[format], result_of[format] = tmp_path / format, result.out
    assert "(biases) not read: only lora_up, lora_down and alpha are looked at" in result_of["kohya"]
    assert cli("convert", files["kohya"], tmp_path / "again", "--format", "peft", *FAMILY).status == 0
    for name, file in (files | {"again": tmp_path / "again"}).items():
        result = cli("merge", tiny_base, file, "--output", tmp_path / "out", "--overwrite", *FAMILY)
        assert result.status == 0, result.err
        found = load_file(tmp_path / "out/unet/diffusion_pytorch_model.safetensors")
        for key, tensor in merged.items():
            torch.testing.assert_close(found[key], tensor, rtol=1e-5, atol=1e-6, msg=f"{name}: {key}")
    assert any(key.endswith(".diff_b") for key in load_file(next(files["kohya"].glob("*.safetensors"))))
    loaded = PeftModel.from_pretrained(pipeline(tiny_base).unet, files["peft"]).merge_and_unload().state_dict()
    for key, tensor in merged.items():
        torch.testing.assert_close(loaded[key], tensor, rtol=1e-5, atol=1e-6, msg=key)
    pipe = pipeline(tiny_base)
    pipe.load_lora_weights(files["diffusers"])
    pipe.fuse_lora()
    path = "mid_block.attentions.0.proj_in"
    bias = pipe.unet.get_submodule(path).get_base_layer().bias
    torch.testing.assert_close(bias, merged[f"{path}.bias"], rtol=1e-5, atol=1e-6)
    result = cli("stack", files["a"], f"{files['kohya']}:0.5", "--output", tmp_path / "s", "--rank", "3", *FAMILY)
    assert result.status == 0, result.err
    one, stacked = formats.read(files["a"]).biases, formats.read(tmp_path / "s").biases
    assert stacked.keys() >= one.keys()
    for name, bias in one.items():
        torch.testing.assert_close(stacked[name], 1.5 * bias)

    plain = cli("convert", files["a"], tmp_path / "plain", "--format", "kohya", "--as", "lora", "--rank", "2", *FAMILY)
    assert plain.status == 0 and "changed biases, norms or embeddings are left out" in plain.err
    assert not formats.read(tmp_path / "plain").biases


def test_biases_that_the_base_has_no_place_for(tmp_path: Path, tiny_base: Path, cli: Cli) -> None:
    config = LoraConfig(lora_bias=True, target_modules=["to_q"])
    get_peft_model(pipeline(tiny_base).unet, config).save_pretrained(str(tmp_path / "a"))
    assert cli("inspect", tmp_path / "a").status == 0
    zero = cli("merge", tiny_base, tmp_path / "a", "--output", tmp_path / "zero", *FAMILY)
    assert zero.status == 0, zero.err  # as they start: they change nothing
    file = tmp_path / "a/adapter_model.safetensors"
    save_file({k: t + 1 if k.endswith("bias") else t for k, t in load_file(file).items()}, file)
    result = cli("merge", tiny_base, tmp_path / "a", "--output", tmp_path / "out", *FAMILY)
    refused(result, "has biases for", "layers that have none in", "Load it beside the model with peft or diffusers")
    assert not (tmp_path / "out").exists()


def test_a_dora_by_peft(tmp_path: Path) -> None:
    model = saved(tmp_path, use_dora=True)
    found = formats.read(tmp_path).layers
    for path, module in model.named_modules():
        if hasattr(module, "lora_magnitude_vector") and len(module.lora_magnitude_vector):
            layer = found[f"unet.{path.removeprefix('base_model.model.')}"]
            magnitude = module.lora_magnitude_vector["default"].weight
            assert layer.magnitude is not None and not layer.by_input
            assert torch.equal(layer.magnitude, magnitude.reshape(layer.magnitude.shape))
