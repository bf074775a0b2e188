"""Safetensors files that hold the hash of their content: damage does not go unnoticed."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from erasediff_lora.storage.files import save_safetensors

SEAL = "content"
log = logging.getLogger(__name__)


class Damaged(Exception):
    """The file is not what was written."""


def write(
    tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str] | None = None, field: str = "cache"
) -> None:
    """Write tensors and metadata atomically, with their hash.

    Raises:
        UserError: If the place cannot be written.
    """
    notes = dict(metadata or {})
    save_safetensors(dict(tensors), path, notes | {SEAL: _hash(tensors, notes)}, field)


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """What `write` wrote.

    Raises:
        Damaged: If it is not readable, or not as it was written.
        FileNotFoundError: If it is not there.
    """
    try:
        with safe_open(path, framework="pt") as stored:
            notes = stored.metadata() or {}
            tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
    except FileNotFoundError:
        raise
    except (SafetensorError, OSError, ValueError) as error:
        raise Damaged(" ".join(str(error).split())) from error
    if notes.pop(SEAL, None) != _hash(tensors, notes):
        raise Damaged("its content does not match its hash")
    return tensors, notes


def cached(path: Path) -> tuple[dict[str, Tensor], dict[str, str]] | None:
    """What `write` wrote; None if it is not there, or damaged and so to be made anew."""
    try:
        return read(path)
    except FileNotFoundError:
        return None
    except Damaged as error:
        log.warning("the cache entry %s is damaged (%s) and is made anew", path, error)
        return None


def _hash(tensors: Mapping[str, Tensor], notes: Mapping[str, str]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        digest.update(repr((name, str(tensor.dtype), tuple(tensor.shape))).encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    digest.update(repr(sorted(notes.items())).encode())
    return digest.hexdigest()
