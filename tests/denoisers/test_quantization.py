"""`model.quantize`: what it hands to diffusers, and where it is refused; no GPU is needed for either."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from fixtures import Cli, RecipeFile
from refusals import refused

from erasediff_lora.denoisers import loading
from erasediff_lora.errors import UserError
from erasediff_lora.recipe import Model


def test_a_cpu_is_refused_before_anything_is_loaded(recipe_file: RecipeFile, tiny_base: Path, cli: Cli) -> None:
    file = recipe_file(model={"base": str(tiny_base), "quantize": "nf4"})
    refused(cli("train", file), "model.quantize = 'nf4': needs a GPU", "model.dtype: bfloat16")


@pytest.mark.parametrize(("kind", "bits"), [("nf4", "load_in_4bit"), ("int8", "load_in_8bit")])
def test_diffusers_own_configuration_is_used(kind: str, bits: str) -> None:
    given = loading.quantization(Model(base="demo", quantize=kind), torch.device("cuda"), torch.bfloat16, is_file=False)
    config = given["quantization_config"].to_dict()
    assert config[bits] is True
    if kind == "nf4":
        assert (config["bnb_4bit_quant_type"], config["bnb_4bit_compute_dtype"]) == ("nf4", "bfloat16")


def test_what_needs_the_weights_is_refused(recipe_file: RecipeFile, tiny_base: Path, cli: Cli) -> None:
    model = {"base": str(tiny_base), "quantize": "int8"}
    refused(
        cli("train", recipe_file(model=model, objective={"name": "selective_amnesia"})),
        "model.quantize = 'int8': leaves no whole weights to train: selective_amnesia differentiates by them",
    )
    refused(
        cli("train", recipe_file(model=model), "--adapter", "none"),
        "model.quantize = 'int8': leaves no whole weights to train: adapter: none",
    )
    refused(
        cli("train", recipe_file(model=model | {"quantize": "fp4"})), "model.quantize = 'fp4': must be 'nf4' or 'int8'"
    )


def test_encoders_are_quantised_by_transformers_own_configuration() -> None:
    model = Model(base="demo", quantize_encoders="nf4")
    names = ("text_encoder", "text_encoder_2")
    given = loading.quantized_encoders(model, names, torch.device("cuda"), torch.bfloat16, is_file=False)
    mapping = given["quantization_config"].quant_mapping
    assert mapping.keys() == set(names)
    for config in mapping.values():
        assert type(config).__module__.startswith("transformers.")
        assert config.load_in_4bit and config.bnb_4bit_quant_type == "nf4"


def test_encoders_on_a_cpu_are_refused(recipe_file: RecipeFile, tiny_base: Path, cli: Cli) -> None:
    file = recipe_file(model={"base": str(tiny_base), "quantize_encoders": "int8"})
    refused(cli("prepare", file), "model.quantize_encoders = 'int8': needs a GPU")
    family = {"base": str(tiny_base), "family": "class_conditional", "quantize_encoders": "int8"}
    refused(cli("prepare", recipe_file(model=family)), "model.quantize_encoders = 'int8': needs text encoders")


def test_files_of_their_own_are_not_quantised(recipe_file: RecipeFile, tiny_base: Path, cli: Cli) -> None:
    """What cannot be held in 4 bits is never silently held in 16."""
    flux = {"base": str(tiny_base), "family": "flux"}
    refused(
        cli("train", recipe_file(model=flux | {"network": "flux1-dev.safetensors", "quantize": "nf4"})),
        "model.quantize = 'nf4': is not of flux1-dev.safetensors: only the base's own network is quantised",
        "Omit it, or model.network.",
    )
    refused(
        cli(
            "train",
            recipe_file(model=flux | {"parts": {"text_encoder_2": "t5.safetensors"}, "quantize_encoders": "int8"}),
        ),
        "model.quantize_encoders = 'int8': is not of t5.safetensors: only the base's own text encoders are quantised",
        "Omit it, or model.parts.text_encoder_2.",
    )
    with pytest.raises(UserError, match="needs a diffusers folder or a hub id, not a single file"):
        loading.quantization(
            Model(base="a.safetensors", quantize="nf4"), torch.device("cuda"), torch.float16, is_file=True
        )
