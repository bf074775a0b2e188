"""Adapter file formats. A new one is a module here and a line in the registry."""

from __future__ import annotations

from pathlib import Path

from erasediff_lora.adapter.formats.base import (
    Format,
    Published,
    open_adapter,
    refuse_unknown,
    require_folder_or_safetensors,
)
from erasediff_lora.adapter.weights import LoraAdapter, MixedAdapter, StoredAdapter
from erasediff_lora.errors import Problem, UserError, nearest
from erasediff_lora.registry import FORMATS


def read(path: Path | str) -> LoraAdapter:
    """Read an adapter file of any format, or the one in a folder.

    Raises:
        UserError: If there is none, or it is damaged, unsafe, of an unknown layout, not LoRA or DoRA, or holds NaN.
    """
    return read_as(path)[1]


def read_as(path: Path | str) -> tuple[str, LoraAdapter]:
    """The format's name, and the adapter."""
    name, stored = describe(path)
    return name, stored.load().plain("this", str(path))


def read_any(path: Path | str) -> MixedAdapter:
    """The same of any kind: LoHa, LoKr, whole differences and so on too."""
    return describe(path)[1].load()


def describe(path: Path | str) -> tuple[str, StoredAdapter]:
    """The format's name, and what the file says of the adapter; the weights stay in the file, and torch is not needed.

    Raises:
        UserError: If there is none, or it is damaged, unsafe, or of an unknown layout.
    """
    file = open_adapter(locate(Path(path).expanduser()))
    keys = set(file.tensors)
    name = next((name for name in FORMATS if keys and FORMATS[name].owns(keys)), None)
    if name is None:
        refuse_unknown(keys or {"(none)"}, file.path)
        raise AssertionError
    adapter: StoredAdapter = FORMATS[name].read(file)
    return name, adapter


def locate(path: Path) -> Path:
    """The adapter file that a path means: itself, or the one in the folder, by the formats' names in their order.

    Raises:
        UserError: If the folder holds none, or several of which none has a standard name.
    """
    if not path.is_dir():
        return path
    for standard in [FORMATS[name].FILE for name in FORMATS]:
        if standard is not None and (path / standard).is_file():
            return path / standard
    files = sorted(path.glob("*.safetensors"))
    if len(files) != 1:
        what = f"holds {len(files)} safetensors files" if files else "holds no adapter file"
        raise UserError(Problem("adapter", str(path), what + ".", "Give the adapter's file."))
    return files[0]


def suited(adapter: LoraAdapter) -> list[str]:
    """The formats that the adapter can be written in."""
    return [name for name in FORMATS if FORMATS[name].suits(adapter)]


def require_output(output: Path | str, format: str) -> Path:
    """Where an adapter can be written to in a format, as far as that can be told without the adapter.

    Raises:
        UserError: If the format is unknown, or the output names a file of another kind.
    """
    if format not in FORMATS:
        raise UserError(Problem("--format", format, "is unknown.", nearest(format, FORMATS)))
    output = Path(output).expanduser()
    require_folder_or_safetensors(output)
    return output


def write(adapter: LoraAdapter, output: Path | str, format: str, *, overwrite: bool = False) -> list[Path]:
    """Write an adapter in a format.

    Args:
        adapter: The adapter.
        output: A folder, or where the format is a single file also the name of a `.safetensors` file.
        format: One of FORMATS.
        overwrite: Replace a file of that name.

    Returns:
        The files written, the weights first.

    Raises:
        UserError: If the format is unknown or does not suit the adapter, or the file exists or cannot be written.
    """
    output = require_output(output, format)
    if format not in suited(adapter):
        raise UserError(
            Problem(
                "--format",
                format,
                f"has no names for the weights of {adapter.architecture}.",
                f"Choose one of: {', '.join(suited(adapter))}.",
            )
        )
    file: Path = FORMATS[format].target(adapter, output)
    if file.exists() and not overwrite:
        raise UserError(
            Problem("output", str(file), "exists already.", "Choose another name, or replace it with --overwrite.")
        )
    written: list[Path] = FORMATS[format].write(adapter, file)
    return written


__all__ = [
    "FORMATS",
    "Format",
    "Published",
    "describe",
    "locate",
    "read",
    "read_any",
    "read_as",
    "require_output",
    "suited",
    "write",
]
