"""Coverage-guided fuzzing of everything that reads foreign files; needs `pip install atheris`.

    python scripts/fuzzing/fuzz.py TARGET [-runs=1000000] [OPTIONS] [CORPUS]

TARGET is one of recipe, adapter, update, configuration, checkpoint, labelled, captions, table, picture. It fails on
anything but a result or a UserError, on a result that cannot be shown, after 1 s of processor time, and past 500 MB.
What took longest stands in $FUZZ_LOG, if that is set, one JSON a line.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import FunctionType

import hostile_files
import torch

from erasediff_lora.adapter import Checkpoint, Weighted, block_copy, fingerprint, formats, merge
from erasediff_lora.adapter.parts import part_names
from erasediff_lora.adapter.reduction import as_lora
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
NAMES = [
    *("unet.mid_block.attentions.0.proj_in", "lora_unet_mid_block_attentions_0_proj_in", "mid_block.resnets.0.conv1"),
    *("lora_unet_input_blocks_4_1_proj_in", "lora_te1_text_model_encoder_layers_0_mlp_fc1", "lora_unet_conv_in"),
    *("lora_te_text_model_encoder_layers_0_mlp_fc1", "text_encoder_2.text_projection", "transformer.proj_out"),
    *("diffusion_model.joint_blocks.3.x_block.attn.qkv", "transformer.transformer_blocks.3.norm1.linear"),
    *("base_model.model.down_blocks.0.resnets.1.conv2", "lora_unet_mid_block_attentions_0_norm", "unet.conv_norm_out"),
]
"""Modules, as programs spell them."""
PARTS = sorted(
    {*part_names(), "lora_A.weight", "lora_B.weight", "lora_B.bias", "lora_magnitude_vector", "lora.down.weight"}
)
WEIGHTS = [
    *("model.diffusion_model.input_blocks.0.0.weight", "model.diffusion_model.middle_block.1.proj_in.weight"),
    *("model.diffusion_model.middle_block.1.proj_in.bias", "model_ema.diffusion_modelmiddle_block1proj_inweight"),
    *("cond_stage_model.transformer.text_model.encoder.layers.0.mlp.fc1.weight", "middle_block.1.proj_in.weight"),
    *(
        "conditioner.embedders.1.model.transformer.resblocks.0.attn.in_proj_weight",
        "mid_block.attentions.0.proj_in.weight",
    ),
    *(
        "model.diffusion_model.joint_blocks.0.x_block.attn.qkv.weight",
        "model.diffusion_model.final_layer.linear.weight",
    ),
    *("model.diffusion_model.middle_block.1.proj_in.scale_weight", "scaled_fp8", "logvar", "first_stage_model.x"),
]
CONFIG_FIELDS = [
    *("r", "alpha", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "use_dora", "lora_bias", "bias"),
    *("init_lora_weights", "target_modules", "modules_to_save", "fan_in_fan_out", "layer_replication", "arrow_config"),
    *("trainable_token_indices", "layers_to_transform", "use_effective_conv2d", "decompose_both", "use_bdlora"),
]
DTYPES = {"F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1, "F64": 8, "I64": 8, "BOOL": 1}
SECONDS, BYTES = 1.0, 500e6
"""What no input may take."""


class Choices:
    """Bytes read as choices, 0 where there are none left."""

    def __init__(self, data: bytes) -> None:
        self._rest = list(data)

    def take(self, limit: int) -> int:
        """A number below the limit."""
        return self._rest.pop(0) % limit if self._rest else 0

    def text(self) -> str:
        """Some of the bytes as text."""
        text, self._rest = self._rest[:60], self._rest[60:]
        return bytes(text).decode("utf-8", "replace")

    def notes(self) -> dict[str, str]:
        """A header's metadata."""
        return {METADATA[self.take(len(METADATA))]: self.text() for _ in range(self.take(3))}

    def write(self, file: Path, names: list[str], *, alike: bool) -> None:
        """A safetensors file of tensors with these names, of any dtypes, or mostly of one."""
        header, position, dtypes = dict[str, object](), 0, list(DTYPES)
        common = dtypes[self.take(len(dtypes))]
        for name in names:
            dtype = common if alike or self.take(4) else dtypes[self.take(len(dtypes))]
            shape = [1 + self.take(4) for _ in range((0, 1, 2, 2, 2, 4, 4, 3)[self.take(8)])]
            size = DTYPES[dtype] * int(torch.tensor(shape).prod()) if shape else DTYPES[dtype]
            header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [position, position + size]}
            position += size
        values = (bytes(1), b"\x38\x3c\x00\x3f", b"\xff")[self.take(3)]
        notes = self.notes()
        content = (values * (position // len(values) + 1))[:position]
        file.write_bytes(hostile_files.safetensors(header | ({"__metadata__": notes} if notes else {}), content))


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
    """Names put together from fragments, shapes, and metadata."""
    choices, header, position = Choices(data), {}, 0
    take = choices.take
    for _ in range(take(6)):
        key = "".join(FRAGMENTS[take(len(FRAGMENTS))] for _ in range(1 + take(5)))
        entry = hostile_files.tensor([take(5) for _ in range(take(5))], position)
        header[key] = entry
        position = entry["data_offsets"][1]
    notes = choices.notes()
    content = torch.full((position // 4,), float(take(3))).numpy().tobytes()
    return hostile_files.safetensors(header | ({"__metadata__": notes} if notes else {}), content)


def update(data: bytes) -> None:
    """Real modules with parts of any kinds: read, measured, made a LoRA, written in every format and read again."""
    choices, file = Choices(data), WORK / "update.safetensors"
    modules = [NAMES[choices.take(len(NAMES))] for _ in range(1 + choices.take(2))]
    names = [f"{module}.{PARTS[choices.take(len(PARTS))]}" for module in modules for _ in range(1 + choices.take(5))]
    choices.write(file, list(dict.fromkeys(names)), alike=bool(choices.take(8)))
    formats.describe(file)[1].norm()
    made = as_lora(formats.read_any(file), "this", rank=1 + choices.take(4)).adapter
    for name in formats.suited(made):
        folder = WORK / name
        written = formats.write(made, folder, name, overwrite=True)
        again = formats.read(folder if name == "peft" else written[0])
        assert again.layers.keys() == made.layers.keys()
        for path in written:
            path.unlink()


def checkpoint(data: bytes) -> None:
    """The file of a base: what it is, its fingerprint, and into every fourth an adapter merged, which takes longer."""
    choices, file, out = Choices(data), WORK / "base.safetensors", WORK / "merged.safetensors"
    names = [WEIGHTS[choices.take(len(WEIGHTS))] for _ in range(1 + choices.take(6))]
    choices.write(file, list(dict.fromkeys(names)), alike=bool(choices.take(2)))
    base = Checkpoint(file)
    fingerprint(base)
    assert isinstance(base.architectures, tuple)
    if not choices.take(4):
        merge(base.path, [_middle()], out, overwrite=True, drop_ema=bool(choices.take(2)))


@cache
def _middle() -> Weighted:
    """An adapter of one module that the bases may have."""
    file = WORK / "middle.safetensors"
    down, up = hostile_files.tensor([1, 2]), hostile_files.tensor([2, 1], 8)
    pair = {f"{NAMES[0]}.lora_A.weight": down, f"{NAMES[0]}.lora_B.weight": up}
    file.write_bytes(hostile_files.safetensors(pair, bytes(16)))
    return Weighted.read(file)


def configuration(data: bytes) -> None:
    """The configuration beside an adapter that peft wrote."""
    folder = WORK / "peft"
    folder.mkdir(exist_ok=True)
    names = [f"base_model.model.mid_block.attentions.0.transformer_blocks.0.attn1.to_q.lora_{x}.weight" for x in "AB"]
    file = folder / "adapter_model.safetensors"
    if not file.exists():
        tensors = {names[0]: hostile_files.tensor([2, 8], 0), names[1]: hostile_files.tensor([8, 2], 64)}
        file.write_bytes(hostile_files.safetensors(tensors, bytes(128)))
    text = _fields(data[1:]) if data[:1] < b"\x80" else b'{"peft_type": "LORA", ' + data
    file.with_name("adapter_config.json").write_bytes(data if data[:1] == b"{" else text)
    formats.describe(folder)[1].norm()


def _fields(data: bytes) -> bytes:
    """A configuration with some of the fields that there are, and values that may stand there or not."""
    choices, fields = Choices(data), dict[str, object]()
    types = ("LORA", "LOHA", "LOKR", "IA3", None)
    fields["peft_type"] = types[choices.take(len(types))]
    for _ in range(choices.take(6)):
        name = CONFIG_FIELDS[choices.take(len(CONFIG_FIELDS))]
        kind = choices.take(9)
        values: tuple[object, ...] = (
            True,
            None,
            choices.take(256) - 128,
            10.0 ** (choices.take(80) - 20),
            "gaussian",
            [],
        )
        fields[name] = values[kind] if kind < len(values) else {choices.text(): choices.take(256)}
    return json.dumps(fields).encode()


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
    "update": update,
    "configuration": configuration,
    "checkpoint": checkpoint,
    "labelled": labelled_set,
    "captions": captions,
    "table": table,
    "picture": picture,
}


def once(name: str, data: bytes) -> None:
    """Run a target; what a user would be told is no failure.

    Raises:
        AssertionError: If it cannot be shown, or took too long or too much memory.
    """
    begin, before = time.process_time(), _peak()
    try:
        TARGETS[name](data)
    except UserError as error:
        assert str(error).replace("\n", "").isprintable()
    _charge(name, data, time.process_time() - begin, _peak() - before)


WORST = [0.0, 0.0]
"""Seconds and bytes of the worst inputs so far."""


def _charge(name: str, data: bytes, seconds: float, size: float) -> None:
    if seconds > WORST[0] or size > WORST[1]:
        WORST[:] = [max(pair) for pair in zip(WORST, (seconds, size), strict=True)]
        if log := os.environ.get("FUZZ_LOG"):
            entry = {"target": name, "seconds": round(seconds, 4), "bytes": size, "input": data.hex()[:400]}
            with Path(log).open("a") as stream:
                stream.write(json.dumps(entry) + "\n")
    assert seconds < SECONDS and size < BYTES, f"{seconds:.2f} s, {size / 1e6:.0f} MB"


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


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
    block_copy.MAX_WORKERS = 1  # the bases are tiny
    for empty in (bytes(8), bytes([2] * 40)):  # what is imported late is
        with contextlib.suppress(AssertionError):
            once(name, empty)
    WORST[:] = [0.0, 0.0]
    for function in _functions("erasediff_lora", "yaml"):
        atheris.instrument_func(function)
    atheris.Setup([sys.argv[0], "-timeout=60", *sys.argv[1:]], lambda data: once(name, data))
    atheris.Fuzz()


if __name__ == "__main__":
    main()
