"""Adapter file formats. A new one is a module here and a line in the registry."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from erasediff_lora import families
from erasediff_lora.adapter.formats import other
from erasediff_lora.adapter.formats.base import Format, Published, open_adapter, require_folder_or_safetensors
from erasediff_lora.adapter.formats.reading import NOTHING, Asked
from erasediff_lora.adapter.formats.tensor_names import SKIPPED
from erasediff_lora.adapter.pointwise import canonical
from erasediff_lora.adapter.weights import LoraAdapter, MixedAdapter, StoredAdapter
from erasediff_lora.errors import Problem, UserError, nearest
from erasediff_lora.registry import FORMATS
from erasediff_lora.storage.files import require_free
from erasediff_lora.storage.paths import existing, expanded

_PICKLED = ("adapter_model.bin", "pytorch_lora_weights.bin")
"""What programs wrote before there was safetensors, and some still do: named, and refused."""
OTHER = "other"
"""What files are called that are in no format's spelling throughout."""


def read(path: Path | str, asked: Asked = NOTHING) -> LoraAdapter:
    """Read an adapter file of any format, or the one in a folder.

    Raises:
        UserError: If there is none, or it is damaged, unsafe, of an unknown layout or family, not LoRA or DoRA, or
            holds NaN.
    """
    return read_as(path, asked)[1]


def read_as(path: Path | str, asked: Asked = NOTHING) -> tuple[str, LoraAdapter]:
    """The format's name, and the adapter."""
    name, stored = describe(path, asked)
    return name, _loaded(stored).plain("this", str(path))


def read_any(path: Path | str, asked: Asked = NOTHING) -> MixedAdapter:
    """The same of any kind: LoHa, LoKr, whole differences and so on too."""
    return _loaded(describe(path, asked)[1])


def _loaded(stored: StoredAdapter) -> MixedAdapter:
    """In memory, with factors as its base's modules have them: convolutions of 1×1 may be stored as linear layers."""
    adapter = stored.load()
    return replace(adapter, layers=canonical(adapter.layers, adapter.candidates))


def describe(path: Path | str, asked: Asked = NOTHING) -> tuple[str, StoredAdapter]:
    """The format's name, and what the file says of the adapter; the weights stay in the file, and torch is not needed.

    Args:
        path: The file, or a folder with one, or with one for each part of a pipeline.
        asked: What the user says of it.

    Raises:
        UserError: If there is none, or it is damaged, unsafe, or of an unknown layout or family.
    """
    path = existing(path, "adapter")
    if folders := _by_component(path):
        return OTHER, other.read_all({name: open_adapter(file) for name, file in folders.items()}, asked)
    file = open_adapter(locate(path))
    keys = {key for key in file.tensors if not key.startswith(SKIPPED)}
    name = next((name for name in FORMATS if keys and FORMATS[name].owns(keys)), OTHER)
    adapter: StoredAdapter = (other if name == OTHER else FORMATS[name]).read(file, asked)
    return name, adapter


def locate(path: Path) -> Path:
    """The adapter file that a path means: itself, or the one in the folder, by the formats' names in their order.

    Raises:
        UserError: If the folder holds none, or several of which none has a standard name.
    """
    if not path.is_dir():
        return path
    if (standard := _standard(path)) is not None:
        return standard
    if folders := _by_component(path):
        return next(iter(folders.values()))
    files = sorted(path.glob("*.safetensors")) or [path / name for name in _PICKLED if (path / name).is_file()]
    if len(files) != 1:
        what = f"holds {len(files)} safetensors files" if files else "holds no adapter file"
        deeper = sorted({file.parent.name for file in path.glob("*/*.safetensors")} if not files else ())
        inside = deeper or [file.name for file in files]
        remedy = f"Give {'one of' if files else 'the file, or one of'}: {', '.join(inside[:5])}."
        remedy = remedy if inside else "Give the adapter's file."
        raise UserError(Problem("adapter", str(path), what + ".", remedy))
    return files[0]


def _standard(folder: Path) -> Path | None:
    """The file that has the name of a format."""
    names = [name for name in (FORMATS[name].FILE for name in FORMATS) if name is not None]
    return next((folder / name for name in names if (folder / name).is_file()), None)


def _by_component(path: Path) -> dict[str, Path]:
    """Component -> its file, of a folder with a folder for each part of a pipeline, as trainers save one by one."""
    if not path.is_dir() or _standard(path) is not None or any(path.glob("*.safetensors")):
        return {}
    found = {name: _standard(path / name) for name in families.components()}
    return {name: file for name, file in found.items() if file is not None}


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
    output = expanded(output, "output")
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
    if adapter.architecture is None and not FORMATS[format].suits(adapter):
        adapter.require_architecture()
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
    for name in (file.name, *getattr(FORMATS[format], "BESIDE", ())):
        require_free(file.with_name(name), overwrite=overwrite)
    written: list[Path] = FORMATS[format].write(adapter, file)
    return written


__all__ = [
    "FORMATS",
    "NOTHING",
    "Asked",
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
