"""Coverage-guided fuzzing of everything that reads foreign files; needs `pip install atheris`.

    python scripts/fuzzing/fuzz.py TARGET [-runs=1000000] [OPTIONS] [CORPUS]

TARGET is one of recipe, adapter, configuration, labelled, captions, table, picture. It fails on anything but a result
or a UserError, on a result that cannot be shown, and after 5 s.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import FunctionType

import hostile_files
import torch

from erasediff_lora.adapter import formats
from erasediff_lora.data import images, layouts
from erasediff_lora.data.pictures import open_picture
from erasediff_lora.errors import UserError
from erasediff_lora.recipe import ForgetSet, Images, Recipe

MEMORY = Path("/dev/shm")
WORK = Path(tempfile.mkdtemp(dir=MEMORY if MEMORY.is_dir() else None))
FRAGMENTS = [
    *("unet.", "lora_unet_", "base_model.model.", "text_encoder.", "transformer.", "down_blocks.0.attentions.0."),
    *("down_blocks_0_attentions_0_", "transformer_blocks.0.", "transformer_blocks_0_", "attn1.to_q", "attn1_to_q"),
    *("mid_block.resnets.0.conv1", ".lora_A.weight", ".lora_B.weight", ".lora_down.weight", ".lora_up.weight"),
    *(".alpha", ".lora_magnitude_vector", ".dora_scale", ".processor", "input_blocks_1_1_", "proj_in", ".", "_", ""),
    *(".hada_w1_a", ".hada_w1_b", ".hada_w2_a", ".hada_w2_b", ".hada_t1", ".hada_t2", ".lokr_w1", ".lokr_w1_a"),
    *(".lokr_w1_b", ".lokr_w2", ".lokr_w2_a", ".lokr_w2_b", ".lokr_t2", ".lora_mid.weight", ".diff", ".diff_b"),
    *(".w_norm", ".b_norm", ".lora_A.default.weight", ".lora_B", ".lora.down.weight", "_lora.up.weight"),
    *(".lora_linear_layer.up.weight", ".lora_B.bias", "joint_blocks.0.x_block.attn.qkv", "diffusion_model."),
    *("lora_te_text_model_", "lora_te1_text_model_", "encoder_layers_0_mlp_fc1", "bundle_emb.", "lycoris_"),
]
METADATA = [
    *("lora_adapter_metadata", "erasediff.concepts", "erasediff.resolution", "ss_network_alpha", "modelspec.title"),
    *("erasediff.history", "erasediff.architecture", "format"),
    *("ss_base_model_version", "ss_v2", "modelspec.architecture", "erasediff.alphas", "erasediff_component"),
]


def recipe(data: bytes) -> None:
    """A recipe file."""
    file = WORK / "recipe.yaml"
    file.write_bytes(data)
    Recipe.load(file).to_yaml()


def adapter(data: bytes) -> None:
    """An adapter file: any bytes, or a header put together from what adapters are made of."""
    file = WORK / "adapter.safetensors"
    file.write_bytes(data[1:] if data[:1] < b"\x40" else _assembled(data[1:]))
    read = formats.read_any(file)
    for layer in read.layers.values():
        if (layer.rank or 0) < 100 and max(layer.shape) < 100:
            layer.delta()


def _assembled(data: bytes) -> bytes:
    """Reads bytes as choices: fragments of a name, a shape; the last ones are metadata."""
    rest = list(data)

    def take(limit: int) -> int:
        return rest.pop(0) % limit if rest else 0

    header, position = {}, 0
    for _ in range(take(6)):
        key = "".join(FRAGMENTS[take(len(FRAGMENTS))] for _ in range(1 + take(5)))
        entry = hostile_files.tensor([take(5) for _ in range(take(5))], position)
        header[key] = entry
        position = entry["data_offsets"][1]
    notes = {METADATA[take(len(METADATA))]: bytes(rest[: take(60)]).decode("utf-8", "replace") for _ in range(take(3))}
    content = torch.full((position // 4,), float(take(3))).numpy().tobytes()
    return hostile_files.safetensors(header | ({"__metadata__": notes} if notes else {}), content)


def configuration(data: bytes) -> None:
    """The configuration beside an adapter that peft wrote."""
    folder = WORK / "peft"
    folder.mkdir(exist_ok=True)
    names = [f"base_model.model.mid_block.attentions.0.transformer_blocks.0.attn1.to_q.lora_{x}.weight" for x in "AB"]
    file = folder / "adapter_model.safetensors"
    if not file.exists():
        tensors = {names[0]: hostile_files.tensor([2, 8], 0), names[1]: hostile_files.tensor([8, 2], 64)}
        file.write_bytes(hostile_files.safetensors(tensors, bytes(128)))
    file.with_name("adapter_config.json").write_bytes(b'{"peft_type": "LORA", ' + data if data[:1] != b"{" else data)
    formats.describe(folder)


def labelled_set(data: bytes) -> None:
    """A labelled set in Fashion-MNIST's layout."""
    cut = int.from_bytes(data[:2], "little") % (len(data) + 1)
    for name, part in (("train-images-idx3-ubyte.gz", data[2:cut]), ("train-labels-idx1-ubyte.gz", data[cut:])):
        packed = part if part[:1] < b"\x10" else gzip.compress(part, 0)
        (WORK / name).write_bytes(packed)
    layouts.read(WORK)


def captions(data: bytes) -> None:
    """metadata.jsonl beside a picture."""
    _listing("metadata.jsonl", data)


def table(data: bytes) -> None:
    """metadata.csv beside a picture."""
    _listing("metadata.csv", data)


def picture(data: bytes) -> None:
    """A picture of any format; what it cannot be is an OSError."""
    with contextlib.suppress(OSError):
        open_picture(io.BytesIO(data))


def _listing(name: str, data: bytes) -> None:
    folder = WORK / "pictures"
    folder.mkdir(exist_ok=True)
    if not (folder / "a.png").exists():
        from PIL import Image

        Image.new("RGB", (1, 1)).save(folder / "a.png")
    for other in folder.glob("metadata.*"):
        other.unlink()
    (folder / name).write_bytes(data)
    source = Images(folder=folder, caption="a {concept}")
    asked = ForgetSet(concepts=["cat", "dog"], templates=["{concept}"], images=source)
    for picture in images.read("forget", asked):
        assert isinstance(picture.caption, str)


TARGETS: dict[str, Callable[[bytes], None]] = {
    "recipe": recipe,
    "adapter": adapter,
    "configuration": configuration,
    "labelled": labelled_set,
    "captions": captions,
    "table": table,
    "picture": picture,
}


def once(name: str, data: bytes) -> None:
    """Run a target; what a user would be told is no failure."""
    try:
        TARGETS[name](data)
    except UserError as error:
        assert str(error).replace("\n", "").isprintable()


def _functions(*packages: str) -> set[FunctionType]:
    """Those of a package's modules and of their classes, as far as they are imported."""
    modules = [module for name, module in sys.modules.items() if name.partition(".")[0] in packages]
    places = [*modules, *(value for module in modules for value in vars(module).values() if isinstance(value, type))]
    values = [value for place in places for value in vars(place).values() if isinstance(value, FunctionType)]
    return {value for value in values if (value.__module__ or "").partition(".")[0] in packages}


def main() -> None:
    """Fuzz a target until libFuzzer stops."""
    import atheris

    name = sys.argv.pop(1)
    for function in _functions("erasediff_lora", "yaml"):
        atheris.instrument_func(function)
    atheris.Setup([*sys.argv, "-timeout=5"], lambda data: once(name, data))
    atheris.Fuzz()


if __name__ == "__main__":
    main()
