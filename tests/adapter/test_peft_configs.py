"""What peft's configurations say of the tensors beside them, with files that peft writes."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from fixtures import Cli
from peft import LoraConfig, PeftModel, get_peft_model
from refusals import refused
from torch import nn

from erasediff_lora.adapter import formats


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
        ({"lora_bias": True}, "lora_bias = True"),
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
    begin = time.perf_counter()
    refused(cli("inspect", tmp_path), words)
    assert time.perf_counter() - begin < 3


def test_a_dora_by_peft(tmp_path: Path) -> None:
    model = saved(tmp_path, use_dora=True)
    found = formats.read(tmp_path).layers
    for path, module in model.named_modules():
        if hasattr(module, "lora_magnitude_vector") and len(module.lora_magnitude_vector):
            layer = found[f"unet.{path.removeprefix('base_model.model.')}"]
            magnitude = module.lora_magnitude_vector["default"].weight
            assert layer.magnitude is not None and not layer.by_input
            assert torch.equal(layer.magnitude, magnitude.reshape(layer.magnitude.shape))
