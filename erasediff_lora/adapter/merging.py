"""Merging adapters into a base's weights, and taking them out again."""

from __future__ import annotations

import logging
import shutil
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import torch

from erasediff_lora.adapter import updates
from erasediff_lora.adapter.checkpoint import Checkpoint, fingerprint
from erasediff_lora.adapter.fp8 import Rounding
from erasediff_lora.adapter.merged_card import Merged, is_merged_card, tells_of_base
from erasediff_lora.adapter.placing import columns_of, require_places
from erasediff_lora.adapter.updates import Update
from erasediff_lora.adapter.weight_file import EMA, WeightFile
from erasediff_lora.adapter.weighted import Weighted
from erasediff_lora.errors import Problem, UserError
from erasediff_lora.machine.progress import tqdm
from erasediff_lora.storage.files import PICKLE_SUFFIXES, atomic, atomic_folder
from erasediff_lora.storage.paths import dangling, expanded

log = logging.getLogger(__name__)
UNERASED = {*PICKLE_SUFFIXES, ".safetensors", ".msgpack", ".onnx", ".onnx_data", ".h5", ".gguf"}


def merge(
    model: Path | str,
    adapters: Sequence[Weighted],
    output: Path | str,
    *,
    unmerge: bool = False,
    strict: bool = False,
    overwrite: bool = False,
    drop_ema: bool = False,
) -> Path:
    """Write a copy of a base with adapters merged into it: W' = W + Σ s · ΔW, where ΔW = scale · B A for LoRA.

    The sum is taken in float32 and cast once to the tensor's dtype; weights in 8 bits are widened by their scales for
    it. Running averages (EMA) of the weights are changed too. Every other tensor and every other file stay as they are,
    byte for byte, but for what says how the base was: a folder gets a card of its own, and the header of a single file
    an entry. A few blocks of the file are in memory at a time.

    Args:
        model: Diffusers folder, single-file checkpoint (LDM or SD 3 keys), or file of the network alone.
        adapters: What to merge: LoRA, DoRA, LoHa, LoKr, whole differences.
        output: The new file or folder; never the model itself.
        unmerge: Subtract instead, which gives the base back up to rounding.
        strict: Refuse an adapter of another base instead of warning.
        overwrite: Replace what stands at `output`.
        drop_ema: Leave the running averages out.

    Returns:
        The output.

    Raises:
        UserError: If something given cannot be used, or the result would not be finite. Nothing is written then.
    """
    checkpoint = Checkpoint(model)
    output = expanded(output, "output")
    _check_output(checkpoint, output, overwrite=overwrite)
    for weighted in adapters:
        weighted.warn_of_strength()
    mark = fingerprint(checkpoint)
    if unmerge:
        _require_no_dora(adapters)
    for weighted in adapters if not unmerge else ():
        weighted.adapter.provenance.require_base(mark, str(model), strict=strict)
    sign = -1.0 if unmerge else 1.0
    drops = _averages(checkpoint.files[0]) if drop_ema and not checkpoint.is_folder else []
    for weighted in adapters:
        require_places(weighted, checkpoint)
    plan = {file.path: _updates(file, adapters, sign, drop_ema) for file in checkpoint.files}
    _tell_of_averages(checkpoint, plan, drop_ema)

    merged = Merged(checkpoint, adapters, unmerge, mark)
    total = sum(file.path.stat().st_size for file in checkpoint.files)
    with tqdm(total=total, desc="unmerge" if unmerge else "merge", unit="B", unit_scale=True) as bar:
        if checkpoint.is_folder:
            _write_folder(merged, output, plan, bar.update)
        else:
            file = checkpoint.files[0]
            with atomic(output) as temporary:
                _rewrite(file, temporary, plan[checkpoint.path], bar.update, drops, merged.header(file.metadata))
    _tell_of_rounding(checkpoint)
    return output


def _write_folder(
    merged: Merged,
    output: Path,
    plan: Mapping[Path, Mapping[str, Sequence[Update]]],
    progress: Callable[[int], object],
) -> None:
    checkpoint = merged.checkpoint
    touched = {component for weighted in merged.adapters for component in weighted.adapter.components}
    with atomic_folder(output) as folder:
        merged.write_card(folder, _copy_others(checkpoint, folder, touched))
        for file in checkpoint.files:
            with atomic(folder / file.path.relative_to(checkpoint.path)) as temporary:
                _rewrite(file, temporary, plan[file.path], progress)


def _require_no_dora(adapters: Sequence[Weighted]) -> None:
    for weighted in adapters:
        if weighted.adapter.uses_dora:
            raise UserError(
                Problem(
                    "adapter",
                    weighted.source,
                    "is a DoRA: merging divides by norms that the merged model no longer has, so it cannot be undone.",
                    "Take the base that it was merged into.",
                )
            )


def _updates(file: WeightFile, adapters: Sequence[Weighted], sign: float, drop_ema: bool) -> dict[str, list[Update]]:
    """What happens to each tensor of a file."""
    found: dict[str, list[Update]] = defaultdict(list)
    for weighted in adapters:
        for name, layer in weighted.adapter.layers.items():
            if (slot := file.slot(name)) is None:
                continue
            columns = columns_of(name, layer, file.shape(slot))
            if columns is None:  # of a second set of weights beside those that were checked
                raise UserError(
                    Problem("model", str(file.path), f"has another {name} than the files beside it.", "Remove it.")
                )
            for place in (slot, None if drop_ema else file.averaged(slot)):
                if place is not None:
                    found[place.key].append(Update(layer, place, sign * weighted.strength, columns))
    return dict(found)


def _rewrite(
    file: WeightFile,
    target: Path,
    plan: Mapping[str, Sequence[Update]],
    progress: Callable[[int], object],
    drop: Sequence[str] = (),
    metadata: Mapping[str, str] | None = None,
) -> None:
    adders = {
        key: partial(updates.apply, rows=file.tensors[key].shape[0], updates=[update.prepared(file) for update in mine])
        for key, mine in plan.items()
    }
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the blocks are shared out among threads already
    try:
        file.rewrite(target, adders, progress, drop, metadata)
    finally:
        torch.set_num_threads(threads)


def _averages(file: WeightFile) -> list[str]:
    return [key for key in file.tensors if key.startswith(EMA)]


def _tell_of_averages(checkpoint: Checkpoint, plan: Mapping[Path, Mapping[str, object]], drop_ema: bool) -> None:
    """Say what becomes of the running averages: they hold what is to be erased as much as the weights do."""
    kept = sum(len(_averages(file)) for file in checkpoint.files)
    changed = sum(key.startswith(EMA) for tensors in plan.values() for key in tensors)
    if drop_ema and not kept:
        log.info("note: the model has no running averages (%s*)", EMA)
    elif drop_ema:
        log.info("note: %d running averages (%s*) are left out", kept, EMA)
    elif kept:
        log.info("note: %d running averages (%s*) are changed too; --drop_ema leaves all %d out", changed, EMA, kept)
        if not changed:
            log.warning("warning: none of the running averages (%s*) has a name that fits: --drop_ema", EMA)


def _tell_of_rounding(checkpoint: Checkpoint) -> None:
    rounding = sum((file.rounding for file in checkpoint.files), Rounding())
    if rounding.values:
        log.warning(
            "warning: %d changed weights are kept in 8 bits: rounding to them adds %.3g %% of what the adapters change"
            " (r.m.s.)%s",
            rounding.values,
            100 * rounding.relative,
            "; merge into the model in 16 bits and quantise that, if there is one" if rounding.relative > 0.1 else "",
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
        added = [path for path in _all_in(output) if not (checkpoint.path / path).exists()]
        if strangers := [path for path in added if not is_merged_card(output / path)]:
            what = f"holds {strangers[0]}, which the model does not have: it is no merged copy of it."
            raise UserError(Problem("output", str(output), what, "Give another place, or move that away."))
    elif checkpoint.is_folder and checkpoint.path.resolve() in output.resolve().parents:
        raise UserError(Problem("output", str(output), "lies inside the model's folder.", "Give another place."))


def _all_in(folder: Path) -> list[Path]:
    """Paths of what would go with a folder, relative to it; none of a file."""
    return sorted(path.relative_to(folder) for path in folder.rglob("*")) if folder.is_dir() else []


def _holds_base(file: Path) -> bool:
    """Whether a file beside model_index.json is the whole model once more, which hub repositories often have."""
    if file.suffix != ".safetensors":
        return file.suffix in UNERASED
    try:
        return bool(Checkpoint(file).files)
    except UserError:
        return False


def _copy_others(checkpoint: Checkpoint, folder: Path, touched: set[str]) -> list[str]:
    """Copy all other files, but no second set of the touched weights: it would be the model as it was.

    diffusers' trainers keep running averages in a folder of their own, such as unet_ema.

    Returns:
        Files that tell of the base, and were not copied.
    """
    merged = {file.path for file in checkpoint.files}
    touched = touched | {f"{component}_ema" for component in touched}
    left, told = [], []
    for source in sorted(checkpoint.path.rglob("*")):
        inside = source.relative_to(checkpoint.path)
        if source.is_dir() or source in merged:
            continue
        if source.is_symlink() and not source.exists():
            raise dangling(source, "model")
        if (inside.parts[0] in touched and source.suffix in UNERASED) or (
            len(inside.parts) == 1 and _holds_base(source)
        ):
            left.append(str(inside))
            continue
        if tells_of_base(inside):
            told.append(str(inside))
            continue
        (folder / inside).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(source, folder / inside)
    if left:
        log.warning("warning: not copied, as they hold the model before merging: %s", ", ".join(left))
    if told:
        log.info("note: not copied, as they tell of the model before merging: %s", ", ".join(told))
    return told
