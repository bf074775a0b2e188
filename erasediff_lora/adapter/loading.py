"""Putting an adapter on a diffusers pipeline."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch

from erasediff_lora.adapter import formats
from erasediff_lora.adapter.checkpoint import fingerprint_of, fingerprint_of_network


def load(
    pipeline: Any, path: Path | str, *, name: str = "erasure", base: Path | None = None, strict: bool = False
) -> None:
    """Load an adapter of any format with diffusers' own loader, and compare the base with the one it was trained on.

    Afterwards it is diffusers' adapter `name`: `set_adapters` sets its strength and combines it with others.

    Args:
        pipeline: A StableDiffusionPipeline or StableDiffusionXLPipeline.
        path: Adapter file, or the folder of a run.
        name: The adapter's name in the pipeline.
        base: Where the pipeline's weights come from, if the pipeline does not know.
        strict: Refuse an adapter that was trained on another base, instead of warning.

    Raises:
        UserError: If the file cannot be used, or `strict` and the bases differ.
    """
    form, adapter = formats.read_as(path)
    where = base or Path(str(getattr(pipeline, "name_or_path", None) or "."))
    if pipeline.unet.dtype in (torch.float32, torch.float16):
        mark: str | None = fingerprint_of_network(pipeline.unet)
    else:  # rounded in memory; the files are not
        mark = fingerprint_of(where)
    adapter.provenance.require_base(mark, where.name or "the pipeline", strict=strict)
    file = formats.locate(Path(path).expanduser())
    with tempfile.TemporaryDirectory() as folder:
        if form != "diffusers":
            (file,) = formats.write(adapter, folder, "diffusers")
        pipeline.load_lora_weights(file.parent, weight_name=file.name, adapter_name=name)
