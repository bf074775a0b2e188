"""Where a base is put, in which arithmetic, from which seeds it draws, and what is said when it cannot be loaded."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

from erasediff_lora import demo, families
from erasediff_lora.errors import Problem, UserError
from erasediff_lora.machine import devices
from erasediff_lora.recipe import Model
from erasediff_lora.storage.files import PICKLE_SUFFIXES, fingerprint
from erasediff_lora.storage.inside import read_plain
from erasediff_lora.storage.paths import existing

CONFIGURATIONS = ("*.json", "*.txt", "*.model")
"""Files of a hub model that are no weights."""


@contextmanager
def readable(model: Model) -> Iterator[None]:
    """Turn whatever a loader raises into an error that names the base."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        remedy = "Check that the folder or file is complete"
        if not model.allow_pickle:
            remedy += "; pickled weights (.bin, .ckpt) are opened with model.allow_pickle: true only"
        raise UserError(
            Problem("model.base", model.base, f"cannot be loaded: {type(error).__name__}: {reason}", remedy + ".")
        ) from error


def device(model: Model) -> torch.device:
    """The recipe's device; auto: a GPU if there is one."""
    there = devices.accelerator()
    if model.device in devices.GPUS and model.device != there:
        what = f"this machine has no usable GPU{' of this kind' * bool(there)}."
        raise UserError(Problem("model.device", model.device, what, f"Set it to {there or 'cpu'} or auto."))
    return torch.device((there or "cpu") if model.device == "auto" else model.device)


def dtype(model: Model, device: torch.device) -> torch.dtype:
    """The recipe's dtype; auto: bfloat16 on a GPU, float16 on one that has none, float32 on a CPU.

    Raises:
        UserError: If the device cannot compute in it, or far too slowly.
    """
    if model.dtype == "auto" and device.type == "cpu":
        return torch.float32
    if model.dtype == "auto":
        return torch.bfloat16 if devices.has_bfloat16(device.type) else torch.float16
    if model.dtype == "float64" and device.type == "mps":
        raise UserError(Problem("model.dtype", "float64", "is nothing that Apple's GPUs have.", "Use float32."))
    if model.dtype == "bfloat16" and device.type != "cpu" and not devices.has_bfloat16(device.type):
        raise UserError(Problem("model.dtype", "bfloat16", "is nothing that this GPU has.", "Use float16."))
    if model.dtype == "float16" and device.type == "cpu":
        raise UserError(
            Problem("model.dtype", "float16", "is a hundred times slower than bfloat16 on a CPU.", "Use bfloat16.")
        )
    return getattr(torch, model.dtype)


def mark(model: Model) -> str:
    """What else decides which weights are read of the base, and how: for its fingerprint, empty by default."""
    found = "".join(
        f"-{name}:{value}" for name in ("variant", "quantize", "quantize_encoders") if (value := getattr(model, name))
    )
    if model.allow_pickle:
        found += "-pickle"
    if model.config is not None and model.config.is_dir():  # of a single file
        files = sorted(file for file in model.config.rglob("*") if file.suffix in {".json", ".txt", ".model"})
        found += f"-config:{fingerprint(files, model.config)}"
    return found


def generators(seeds: Sequence[int]) -> list[torch.Generator]:
    """One each, on the CPU: the same noise on every device."""
    return [torch.Generator("cpu").manual_seed(seed) for seed in seeds]


def quantization(model: Model, device: torch.device, dtype: torch.dtype, *, is_file: bool) -> dict[str, Any]:
    """What `from_pretrained` of a network is given to hold it as `model.quantize` says.

    Raises:
        UserError: Without a GPU, without bitsandbytes, or for a single file.
    """
    if model.quantize is None:
        return {}
    _require_quantizable("quantize", model.quantize, device, is_file=is_file)
    from diffusers import BitsAndBytesConfig

    return {"quantization_config": BitsAndBytesConfig(**_in_bits(model.quantize, dtype))}


def quantized_encoders(
    model: Model, names: Sequence[str], device: torch.device, dtype: torch.dtype, *, is_file: bool
) -> dict[str, Any]:
    """What `from_pretrained` of a pipeline is given to hold text encoders as `model.quantize_encoders` says.

    Raises:
        UserError: As for `quantization`.
    """
    if model.quantize_encoders is None:
        return {}
    _require_quantizable("quantize_encoders", model.quantize_encoders, device, is_file=is_file)
    from diffusers import PipelineQuantizationConfig
    from transformers import BitsAndBytesConfig

    each = BitsAndBytesConfig(**_in_bits(model.quantize_encoders, dtype))
    return {"quantization_config": PipelineQuantizationConfig(quant_mapping=dict.fromkeys(names, each))}


def _in_bits(kind: str, dtype: torch.dtype) -> dict[str, Any]:
    if kind == "int8":
        return {"load_in_8bit": True}
    return {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": dtype}


def _require_quantizable(field: str, kind: str, device: torch.device, *, is_file: bool) -> None:
    problem = partial(Problem, f"model.{field}", kind)
    if device.type not in ("cuda", "xpu"):
        raise UserError(
            problem("needs a GPU: diffusers refuses to quantise on a CPU.", "Omit it, or set model.dtype: bfloat16.")
        )
    if is_file:
        raise UserError(problem("needs a diffusers folder or a hub id, not a single file.", "Convert the checkpoint."))
    if find_spec("bitsandbytes") is None:
        raise UserError(problem("needs bitsandbytes.", "Run: pip install 'erasediff-lora[8bit]'."))


def locate(model: Model, pipeline_class: Any) -> Path:
    """The local folder or file of the base; hub models are downloaded."""
    if model.base == "demo":
        return demo.MODEL_DIR
    path = existing(model.base, "model.base")
    if path.is_file():
        return path
    if path.is_dir():
        if not (path / "model_index.json").is_file():
            raise UserError(
                Problem(
                    "model.base",
                    model.base,
                    "is not a diffusers folder: it has no model_index.json.",
                    "Give the folder that save_pretrained wrote, or a single-file checkpoint.",
                )
            )
        _require_family(model, path, pipeline_class)
        return path
    if (
        path.is_absolute()
        or path.suffix in {".safetensors", *PICKLE_SUFFIXES}
        or len(path.parts) != 2
        or model.base[0] in ".~"
    ):
        raise UserError(
            Problem(
                "model.base",
                model.base,
                "there is no such folder or file.",
                "Give 'demo', a diffusers folder, a hub id such as owner/name, or a checkpoint file.",
            )
        )
    _require_family(model, _configurations(model, ["model_index.json"]), pipeline_class)  # before gigabytes of weights
    with _within_reach(model):
        return Path(
            pipeline_class.download(
                model.base,
                revision=model.revision,
                variant=model.variant,
                use_safetensors=None if model.allow_pickle else True,
            )
        )


def undescribed(source: Path) -> UserError:
    """The complaint about a single file of no model whose configurations are at hand."""
    what = f"is needed: {source.name} is of no published model whose configurations are at hand."
    return UserError(Problem("model.config", None, what, "Give the diffusers folder that describes it."))


@contextmanager
def configurations_within_reach(source: Path) -> Iterator[None]:
    """Say what to give where the hub has configurations of a single file and is out of reach, in one line."""
    from diffusers.utils import logging as diffusers_logging

    before = diffusers_logging.get_verbosity()
    diffusers_logging.set_verbosity_error()  # it says at length that it will ask the hub
    try:
        yield
    except (LocalEntryNotFoundError, HfHubHTTPError) as error:
        raise undescribed(source) from error
    finally:
        diffusers_logging.set_verbosity(before)


def own_files(model: Model) -> dict[str, Path]:
    """The files that take the place of parts of the base: 'network', and names of the pipeline's components.

    Those of a tokenizer lie in a folder.

    Raises:
        UserError: If one is not there.
    """
    network = {} if model.network is None else {"network": model.network}
    found = {}
    for name, path in (network | model.parts).items():
        field = "model.network" if name in network else f"model.parts.{name}"
        found[name] = existing(path, field)
        if name.startswith("tokenizer") and not found[name].is_dir():
            raise UserError(
                Problem(field, str(path), "there is no such folder.", "Give the folder with tokenizer.json.")
            )
        if not name.startswith("tokenizer") and not found[name].is_file():
            raise UserError(Problem(field, str(path), "there is no such file.", "Give a safetensors file."))
    return found


def described(model: Model) -> Model:
    """The base by its configuration files alone: of a hub model no weights are fetched.

    Raises:
        UserError: If the hub is out of reach, or has no such model.
    """
    if not model.is_hub_id or model.base == "demo":
        return model
    return model.model_copy(update={"base": str(_configurations(model, CONFIGURATIONS)), "revision": None})


def _configurations(model: Model, names: Sequence[str]) -> Path:
    """The local folder with these files of a hub model."""
    from huggingface_hub import snapshot_download

    with _within_reach(model):
        return Path(snapshot_download(model.base, revision=model.revision, allow_patterns=list(names)))


@contextmanager
def _within_reach(model: Model) -> Iterator[None]:
    """Turn whatever stands between here and the hub into an error that names the base."""
    try:
        yield
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(
            Problem(
                "model.base",
                model.base,
                f"is neither a local path nor a hub model within reach: {reason}",
                "Check the name, the connection and the access rights.",
            )
        ) from error


def _require_family(model: Model, folder: Path, pipeline_class: Any) -> None:
    """The folder holds a pipeline of the family that the recipe names, as far as it says."""
    try:
        named = json.loads(read_plain(folder / "model_index.json"))["_class_name"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return  # the loader says what is wrong with it
    family = families.of_pipeline(named) or model.family
    if family != model.family:
        raise UserError(
            Problem("model.family", model.family, f"{model.base} is a {named}.", f"Set model.family: {family}.")
        )
