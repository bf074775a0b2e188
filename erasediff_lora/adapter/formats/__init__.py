"""Adapter file formats. A new one is a module here and a line in the registry."""

from __future__ import annotations

from pathlib import Path

from erasediff_lora.adapter.formats import diffusers, peft
from erasediff_lora.adapter.formats.base import COMPONENTS, Format, refuse_unknown, require_shapes
from erasediff_lora.adapter.weights import LoraAdapter
from erasediff_lora.errors import Problem, UserError, nearest
from erasediff_lora.registry import FORMATS
from erasediff_lora.storage.files import open_safetensors


def read(path: Path | str) -> LoraAdapter:
    """Read an adapter file of any format, or the one in a folder.

    Raises:
        UserError: If there is none, or it is damaged, unsafe, of an unknown layout, or holds NaN.
    """
    return read_as(path)[1]


def read_as(path: Path | str) -> tuple[str, LoraAdapter]:
    """The format's name, and the adapter."""
    file = locate(Path(path).expanduser())
    with open_safetensors(file, "adapter") as stored:
        keys = set(stored.keys())
        name = next((name for name, format in FORMATS.items() if keys and format.owns(keys)), None)
        if name is None:
            refuse_unknown(keys or {"(none)"}, file)
            raise AssertionError
        tensors = {key: stored.get_tensor(key) for key in keys}
        metadata = dict(stored.metadata() or {})
    require_shapes(tensors, file)
    adapter: LoraAdapter = FORMATS[name].read(file, tensors, metadata)
    if name == "peft":  # the text encoders' files lie in folders beside the UNet's
        for other in sorted(file.parent.glob(f"*/{peft.FILE}")):
            if other.parent.name in COMPONENTS:
                layers = dict(sorted((adapter.layers | read(other).layers).items()))
                adapter = LoraAdapter(layers, adapter.provenance, adapter.header)
    return name, adapter


def locate(path: Path) -> Path:
    """The adapter file that a path means: itself, or the one in the folder, diffusers' first.

    Raises:
        UserError: If the folder holds none, or several of which none has a standard name.
    """
    if not path.is_dir():
        return path
    for standard in (diffusers.FILE, peft.FILE):
        if (path / standard).is_file():
            return path / standard
    files = sorted(path.glob("*.safetensors"))
    if len(files) != 1:
        what = f"holds {len(files)} safetensors files" if files else "holds no adapter file"
        raise UserError(Problem("adapter", str(path), what + ".", "Give the adapter's file."))
    return files[0]


def suited(adapter: LoraAdapter) -> list[str]:
    """The formats that the adapter can be written in."""
    return [name for name, form in FORMATS.items() if form.suits(adapter)]


def write(adapter: LoraAdapter, output: Path | str, format: str, *, overwrite: bool = False) -> list[Path]:
    """Write an adapter in a format.

    Args:
        adapter: The adapter.
        output: A folder, or for diffusers and kohya also the name of a `.safetensors` file.
        format: One of FORMATS.
        overwrite: Replace a file of that name.

    Returns:
        The files written, the weights first.

    Raises:
        UserError: If the format is unknown or does not suit the adapter, or the file exists or cannot be written.
    """
    if format not in FORMATS:
        raise UserError(Problem("--format", format, "is unknown.", nearest(format, FORMATS)))
    if format not in suited(adapter):
        raise UserError(
            Problem(
                "--format",
                format,
                f"has no names for the weights of {adapter.architecture}.",
                f"Choose one of: {', '.join(suited(adapter))}.",
            )
        )
    file: Path = FORMATS[format].target(adapter, Path(output).expanduser())
    if file.exists() and not overwrite:
        raise UserError(
            Problem("output", str(file), "exists already.", "Choose another name, or replace it with --overwrite.")
        )
    written: list[Path] = FORMATS[format].write(adapter, file)
    return written


__all__ = ["FORMATS", "Format", "locate", "read", "read_as", "suited", "write"]
