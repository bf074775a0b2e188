"""The networks of a base as its configuration files describe them, without reading a weight."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from torch import nn


def networks(folder: Path, dtype: torch.dtype) -> dict[str, Any]:
    """Name in the pipeline -> network with random weights, of a diffusers folder, on the default device.

    Args:
        folder: A diffusers pipeline.
        dtype: Of the weights.
    """
    index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    found = {}
    for name, entry in index.items():
        if not isinstance(entry, list) or entry[1] is None:
            continue
        kind: Any = getattr({"diffusers": diffusers, "transformers": transformers}.get(entry[0]), entry[1], None)
        is_network = isinstance(kind, type) and issubclass(kind, nn.Module)
        if not is_network or not (folder / name).is_dir():
            continue
        if entry[0] == "diffusers":
            network = kind.from_config(kind.load_config(folder, subfolder=name))
        else:
            network = kind(kind.config_class.from_pretrained(folder / name))
        found[name] = nn.Module.to(network, dtype).requires_grad_(False)  # diffusers' own warns of values
    return found
