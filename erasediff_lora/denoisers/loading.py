"""Where a base is put, in which arithmetic, from which seeds it draws, and what is said when it cannot be loaded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch

from erasediff_lora.errors import Problem, UserError
from erasediff_lora.recipe import Model


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
    if model.device == "cuda" and not torch.cuda.is_available():
        raise UserError(Problem("model.device", "cuda", "this machine has no usable GPU.", "Set it to cpu or auto."))
    name = model.device if model.device != "auto" else ("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(name)


def dtype(model: Model, device: torch.device) -> torch.dtype:
    """The recipe's dtype; auto: bfloat16 on a GPU, float32 on a CPU."""
    if model.dtype == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    if model.dtype == "float16" and device.type == "cpu":
        raise UserError(
            Problem("model.dtype", "float16", "is a hundred times slower than bfloat16 on a CPU.", "Use bfloat16.")
        )
    return getattr(torch, model.dtype)


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
    problem = partial(Problem, "model.quantize", model.quantize)
    if device.type != "cuda":
        raise UserError(
            problem("needs a GPU: diffusers refuses to quantise on a CPU.", "Omit it, or set model.dtype: bfloat16.")
        )
    if is_file:
        raise UserError(problem("needs a diffusers folder or a hub id, not a single file.", "Convert the checkpoint."))
    if find_spec("bitsandbytes") is None:
        raise UserError(problem("needs bitsandbytes.", "Run: pip install 'erasediff-lora[8bit]'."))
    from diffusers import BitsAndBytesConfig

    if model.quantize == "int8":
        return {"quantization_config": BitsAndBytesConfig(load_in_8bit=True)}
    return {
        "quantization_config": BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype
        )
    }
