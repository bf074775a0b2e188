"""A base model's weights on disk, read and rewritten tensor by tensor."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO

import torch
from torch import Tensor, nn

from erasediff_lora.adapter import ldm
from erasediff_lora.adapter.ldm import Slot
from erasediff_lora.errors import Problem, UserError
from erasediff_lora.files import open_safetensors

COMPONENTS = ("unet", "text_encoder", "text_encoder_2")
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}
BLOCK = 16 * 2**20
SAMPLE = 64


@dataclass(frozen=True)
class Entry:
    """A tensor in a safetensors file; `start` and `end` are offsets from the beginning of the file."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


class WeightFile:
    """One safetensors file of a base, whose tensors are looked up by the adapter's names.

    Raises:
        UserError: If it is damaged or a pickle.
    """

    def __init__(self, path: Path, component: str | None = None) -> None:
        self.path = path
        self.component = component
        open_safetensors(path, "model")  # checks the header against the file's size
        with path.open("rb") as stream:
            self.start = 8 + int.from_bytes(stream.read(8), "little")
            header = json.loads(stream.read(self.start - 8))
        header.pop("__metadata__", None)
        self.entries = {
            key: Entry(e["dtype"], tuple(e["shape"]), *(self.start + offset for offset in e["data_offsets"]))
            for key, e in sorted(header.items(), key=lambda item: item[1]["data_offsets"])
        }

    @cached_property
    def slots(self) -> dict[str, Slot]:
        """Adapter name, such as 'unet.conv_in', -> where that weight lies."""
        if self.component is None:
            return ldm.slots(self.entries)
        weights = [key for key in self.entries if key.endswith(".weight")]
        return {
            f"{self.component}.{key.removesuffix('.weight').removeprefix('text_model.')}": Slot(key) for key in weights
        }

    def shape(self, slot: Slot) -> tuple[int, ...]:
        """Shape of the weight in a slot."""
        rows, *rest = self.entries[slot.key].shape
        return (rows // slot.parts, *rest)

    def read(self, key: str, stream: IO[bytes] | None = None) -> Tensor:
        """A tensor in its own dtype, not memory-mapped.

        Raises:
            UserError: If the dtype is no plain float.
        """
        entry = self.entries[key]
        if entry.dtype not in DTYPES:
            raise UserError(
                Problem(
                    "model",
                    str(self.path),
                    f"keeps {key} as {entry.dtype}.",
                    f"Only {', '.join(DTYPES)} can be changed: take the model before it was quantised.",
                )
            )
        if stream is None:
            with self.path.open("rb") as opened:
                return self.read(key, opened)
        stream.seek(entry.start)
        data = bytearray(entry.end - entry.start)
        stream.readinto(data)  # type: ignore[attr-defined]
        tensor = (
            torch.frombuffer(data, dtype=DTYPES[entry.dtype]) if data else torch.empty(0, dtype=DTYPES[entry.dtype])
        )
        return tensor.reshape(entry.shape)

    def ends(self, key: str, count: int) -> list[Tensor]:
        """The first and the last `count` values of a tensor; none of a quantised one."""
        entry = self.entries[key]
        if entry.dtype not in DTYPES:
            return []
        length = min(count * DTYPES[entry.dtype].itemsize, entry.end - entry.start)
        values = []
        with self.path.open("rb") as stream:
            for offset in (entry.start, entry.end - length):
                stream.seek(offset)
                values.append(torch.frombuffer(bytearray(stream.read(length)), dtype=DTYPES[entry.dtype]))
        return values

    def weight(self, slot: Slot) -> Tensor:
        """The weight in a slot, in its own dtype."""
        return self.read(slot.key).chunk(slot.parts)[slot.part]

    def rewrite(
        self, target: Path, change: Mapping[str, Callable[[Tensor], Tensor]], progress: Callable[[int], object]
    ) -> None:
        """Write a copy in which some tensors are changed and every other byte is the same.

        Args:
            target: Where to; not this file.
            change: Tensor name -> its new value from its old, of the same dtype and shape.
            progress: Called with the number of bytes just written.
        """
        with self.path.open("rb") as source, target.open("wb") as sink:
            position = 0
            for key in (key for key in self.entries if key in change):
                entry = self.entries[key]
                _copy(source, sink, position, entry.start, progress)
                changed = change[key](self.read(key, source))
                sink.write(changed.contiguous().view(torch.uint8).numpy().data)
                progress(entry.end - entry.start)
                position = entry.end
            _copy(source, sink, position, self.path.stat().st_size, progress)


class Checkpoint:
    """A base: a diffusers folder, an LDM single file, or a bare UNet file with diffusers' names.

    Raises:
        UserError: If the path is none of these, or its weights are pickled.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path).expanduser()
        if self.path.is_dir():
            self.files = [
                WeightFile(file, component)
                for component in COMPONENTS
                for file in sorted((self.path / component).glob("*.safetensors"))
            ]
            if not any(file.component == "unet" for file in self.files):
                raise UserError(
                    Problem(
                        "model",
                        str(path),
                        "is no diffusers folder with safetensors weights: it has no unet/*.safetensors.",
                        "Give the folder that save_pretrained wrote, or a single-file checkpoint.",
                    )
                )
        else:
            file = WeightFile(self.path)
            if any(key.startswith(("down_blocks.", "mid_block.")) for key in file.entries):
                file.component = "unet"
            elif not any(name.startswith("unet.") for name in file.slots):
                shown = ", ".join(list(file.entries)[:5])
                raise UserError(
                    Problem(
                        "model",
                        str(path),
                        f"has an unknown layout; its first tensors are {shown}.",
                        "Known are Stable Diffusion 1.x, 2.x and XL: single files, diffusers folders, bare UNets.",
                    )
                )
            self.files = [file]

    @property
    def is_folder(self) -> bool:
        return self.path.is_dir()

    @cached_property
    def unet_files(self) -> list[WeightFile]:
        """The files that make up one UNet: the whole-precision ones where variants lie beside them."""
        files = [file for file in self.files if file.component in (None, "unet")]
        if not self.is_folder:
            return files
        variants = sorted({_variant(file.path) for file in files})  # '' sorts first
        return [file for file in files if _variant(file.path) == variants[0]]

    def find(self, name: str) -> tuple[WeightFile, Slot] | None:
        """Where a weight lies, by the adapter's name."""
        files = self.unet_files if name.startswith("unet.") else self.files
        return next(((file, file.slots[name]) for file in files if name in file.slots), None)


def fingerprint(checkpoint: Checkpoint) -> str:
    """Identify a base by its UNet, whatever file it lies in.

    SHA-256, in hexadecimal, over the name, the shape and the first and last 64 values, as float16, of every UNet
    weight. It is the same for a diffusers folder and a single file, in float32 and in float16. Rounding to bfloat16
    changes it, and so do fine-tuning and merging.
    """
    weights = {}
    for file in checkpoint.unet_files:
        for name, slot in file.slots.items():
            if name.startswith("unet."):
                weights[name.removeprefix("unet.")] = (file.shape(slot), file.ends(slot.key, SAMPLE))
    return _digest(weights)


def fingerprint_of_network(unet: nn.Module) -> str:
    """The same of a UNet in memory, in float32 or float16; adapters in it are left out."""
    weights = {}
    for key, tensor in unet.state_dict().items():
        if key.endswith(".weight") and ".lora_" not in key:
            name = key.removesuffix(".weight").removesuffix(".base_layer")
            flat = tensor.detach().flatten()
            weights[name] = (tuple(tensor.shape), [flat[:SAMPLE].cpu(), flat[-SAMPLE:].cpu()])
    return _digest(weights)


def fingerprint_of(path: Path) -> str | None:
    """The fingerprint of a base on disk; None where it can't be read, as with pickled weights."""
    try:
        return fingerprint(Checkpoint(path))
    except UserError:
        return None


def _digest(weights: Mapping[str, tuple[tuple[int, ...], list[Tensor]]]) -> str:
    digest = hashlib.sha256()
    for name, (shape, ends) in sorted(weights.items()):
        digest.update(f"{name} {list(shape)}".encode())
        for values in ends:
            digest.update(values.to(torch.float16).numpy().tobytes())
    return digest.hexdigest()


def _variant(path: Path) -> str:
    """'fp16' of diffusion_pytorch_model.fp16-00001-of-00002.safetensors, '' without one."""
    return path.stem.split("-")[0].partition(".")[2]


def _copy(source: IO[bytes], sink: IO[bytes], start: int, end: int, progress: Callable[[int], object]) -> None:
    source.seek(start)
    while start < end:
        block = source.read(min(BLOCK, end - start))
        if not block:
            raise OSError(f"{source.name} became shorter while it was read")
        sink.write(block)
        start += len(block)
        progress(len(block))
