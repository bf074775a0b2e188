"""Merging adapters into a base's weights, and taking them out again."""

from __future__ import annotations

import logging
import shutil
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from erasediff_lora.adapter.checkpoint import Checkpoint, fingerprint
from erasediff_lora.adapter.weight_file import WeightFile
from erasediff_lora.adapter.weighted import Weighted
from erasediff_lora.adapter.weights import LoraAdapter, LoraLayer, squeezed
from erasediff_lora.errors import Problem, UserError
from erasediff_lora.families import Slot
from erasediff_lora.storage.files import PICKLE_SUFFIXES, atomic, atomic_folder

log = logging.getLogger(__name__)
UNERASED = {*PICKLE_SUFFIXES, ".safetensors", ".msgpack", ".onnx", ".onnx_data", ".h5", ".gguf"}


@dataclass(frozen=True)
class Update:
    """One adapter's part in one tensor."""

    layer: LoraLayer
    slot: Slot
    strength: float


def merge(
    model: Path | str,
    adapters: Sequence[Weighted],
    output: Path | str,
    *,
    unmerge: bool = False,
    strict: bool = False,
    overwrite: bool = False,
) -> Path:
    """Write a copy of a base with adapters merged into it: W' = W + Σ s · scale · B A.

    The sum is taken in float32 and cast once to the tensor's dtype. Every other tensor, the header and every other
    file stay as they are, byte for byte. A few blocks of the file are in memory at a time.

    Args:
        model: Diffusers folder, single-file checkpoint (LDM keys), or bare UNet file.
        adapters: What to merge.
        output: The new file or folder; never the model itself.
        unmerge: Subtract instead, which gives the base back up to rounding.
        strict: Refuse an adapter of another base instead of warning.
        overwrite: Replace what stands at `output`.

    Returns:
        The output.

    Raises:
        UserError: If something given cannot be used, or the result would not be finite. Nothing is written then.
    """
    checkpoint = Checkpoint(model)
    output = Path(output).expanduser()
    _check_output(checkpoint, output, overwrite=overwrite)
    for weighted in adapters:
        weighted.adapter.refuse_dora("merge", weighted.source)
        weighted.warn_of_strength()
    if not unmerge:
        mark = fingerprint(checkpoint)
        for weighted in adapters:
            weighted.adapter.provenance.require_base(mark, str(model), strict=strict)
    sign = -1.0 if unmerge else 1.0
    plan = {file.path: _updates(file, checkpoint, adapters, sign) for file in checkpoint.files}
    _require_all_placed(checkpoint, adapters)

    total = sum(file.path.stat().st_size for file in checkpoint.files)
    label = "unmerge" if unmerge else "merge"
    with tqdm(total=total, desc=label, unit="B", unit_scale=True) as bar:
        if not checkpoint.is_folder:
            with atomic(output) as temporary:
                _rewrite(checkpoint.files[0], temporary, plan[checkpoint.path], bar.update)
            return output
        with atomic_folder(output) as folder:
            touched = {component for weighted in adapters for component in weighted.adapter.components}
            _copy_others(checkpoint, folder, touched)
            for file in checkpoint.files:
                target = folder / file.path.relative_to(checkpoint.path)
                with atomic(target) as temporary:
                    _rewrite(file, temporary, plan[file.path], bar.update)
    return output


def max_difference(one: Path | str, other: Path | str) -> tuple[float, float]:
    """How far two checkpoints of the same layout are apart.

    Returns:
        The greatest difference of two weights, and the same in rounding steps (eps of the dtype · max |weight|).

    Raises:
        UserError: If they have no weight in common.
    """
    left, right = Checkpoint(one), Checkpoint(other)
    greatest = steps = 0.0
    compared = False
    for file in left.main_files:
        for name, slot in file.slots.items():
            if (match := right.find(name)) is None or match[0].shape(match[1]) != file.shape(slot):
                continue
            compared = True
            a, b = file.weight(slot), match[0].weight(match[1])
            scale = torch.maximum(a.abs(), b.abs()).double() * torch.finfo(a.dtype).eps
            difference = (a.double() - b.double()).abs()
            greatest = max(greatest, float(difference.max()))
            steps = max(steps, float((difference / scale.clamp(min=torch.finfo(a.dtype).tiny)).max()))
    if not compared:
        raise UserError(Problem("--compare", str(other), f"has no weight in common with {one}.", "Give the base."))
    return greatest, steps


def _updates(
    file: WeightFile, checkpoint: Checkpoint, adapters: Sequence[Weighted], sign: float
) -> dict[str, list[Update]]:
    """What happens to each tensor of a file."""
    updates: dict[str, list[Update]] = defaultdict(list)
    for weighted in adapters:
        for name, layer in weighted.adapter.layers.items():
            if (slot := file.slots.get(name)) is None:
                continue
            shape = file.shape(slot)
            if squeezed(shape) != squeezed(layer.shape):
                raise UserError(
                    Problem(
                        "adapter",
                        weighted.source,
                        f"does not fit {checkpoint.path}: {name} is {list(layer.shape)} here and {list(shape)} there.",
                        _other_base(weighted.adapter),
                    )
                )
            updates[slot.key].append(Update(layer, slot, sign * weighted.strength))
    return dict(updates)


def _require_all_placed(checkpoint: Checkpoint, adapters: Sequence[Weighted]) -> None:
    for weighted in adapters:
        missing = [name for name in weighted.adapter.layers if checkpoint.find(name) is None]
        if missing:
            raise UserError(
                Problem(
                    "adapter",
                    weighted.source,
                    f"adapts {len(missing)} weights that {checkpoint.path} does not have, such as {missing[0]}.",
                    _other_base(weighted.adapter),
                )
            )


def _other_base(adapter: LoraAdapter) -> str:
    named = f", {adapter.provenance.base_model!r}" if adapter.provenance.base_model else ""
    return f"It is an adapter for a {adapter.architecture} base{named}."


def _rewrite(
    file: WeightFile, target: Path, updates: dict[str, list[Update]], progress: Callable[[int], object]
) -> None:
    adders = {key: partial(_add, rows=file.tensors[key].shape[0], updates=mine) for key, mine in updates.items()}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the blocks are shared out among threads already
    try:
        file.rewrite(target, adders, progress)
    finally:
        torch.set_num_threads(threads)


@torch.no_grad()
def _add(block: Tensor, first: int, *, rows: int, updates: Sequence[Update]) -> None:
    """Add the updates of rows `first` and following to a block of a tensor with that many rows."""
    for update in updates:
        height = rows // update.slot.parts
        offset = update.slot.part * height
        begin, end = max(first, offset), min(first + len(block), offset + height)
        if begin < end:
            layer = update.layer
            block[begin - first : end - first].addmm_(
                layer.up[begin - offset : end - offset].flatten(1).to(block.dtype),
                layer.down.flatten(1).to(block.dtype),
                alpha=update.strength * layer.scale,
            )


def _check_output(checkpoint: Checkpoint, output: Path, *, overwrite: bool) -> None:
    if not checkpoint.is_folder and output.suffix != ".safetensors":
        raise UserError(
            Problem("output", str(output), "must end in .safetensors, as the model does.", "Give a file name.")
        )
    if output.exists():
        here, there = output.resolve(), checkpoint.path.resolve()
        if here == there or there in here.parents or here in there.parents:
            raise UserError(Problem("output", str(output), "is or holds the model itself.", "Give another place."))
        if not overwrite:
            raise UserError(
                Problem("output", str(output), "exists already.", "Give another name, or replace it with --overwrite.")
            )
    elif checkpoint.is_folder and checkpoint.path.resolve() in output.resolve().parents:
        raise UserError(Problem("output", str(output), "lies inside the model's folder.", "Give another place."))


def _holds_base(file: Path) -> bool:
    """Whether a file beside model_index.json is the whole model once more, which hub repositories often have."""
    if file.suffix != ".safetensors":
        return file.suffix in UNERASED
    try:
        return bool(Checkpoint(file).files)
    except UserError:
        return False


def _copy_others(checkpoint: Checkpoint, folder: Path, touched: set[str]) -> None:
    """Copy all other files, but no second set of the touched weights: it would be the model as it was."""
    merged = {file.path for file in checkpoint.files}
    left = []
    for source in sorted(checkpoint.path.rglob("*")):
        inside = source.relative_to(checkpoint.path)
        if source.is_dir() or source in merged:
            continue
        if (inside.parts[0] in touched and source.suffix in UNERASED) or (
            len(inside.parts) == 1 and _holds_base(source)
        ):
            left.append(str(inside))
            continue
        (folder / inside).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(source, folder / inside)
    if left:
        log.warning("warning: not copied, as they hold the model before merging: %s", ", ".join(left))
