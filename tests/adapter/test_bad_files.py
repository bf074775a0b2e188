"""Bad files: one message, exit status 2, no output."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from adapters import random_adapter
from fixtures import Cli
from refusals import refused
from safetensors.torch import load_file, save_file
from single_file import pack
from tqdm import tqdm

from erasediff_lora.adapter import LoraAdapter, LoraLayer, formats, merging

KEY = "unet.mid_block.attentions.0.proj_in"


@pytest.fixture
def good(tiny_base: Path, tmp_path: Path) -> Path:
    (file,) = formats.write(random_adapter(tiny_base), tmp_path / "good.safetensors", "diffusers")
    return file


def damaged(good: Path) -> dict[str, tuple[Callable[[Path], object], tuple[str, ...]]]:
    """Name -> (makes the file, words of the message)."""
    whole, tensors = good.read_bytes(), load_file(good)
    first = next(iter(tensors))
    with_nan = tensors | {first: torch.full_like(tensors[first], torch.nan)}
    some = {key: tensors[key] for key in list(tensors)[1:]}
    misfit = {key: t[:, :1].contiguous() if "lora_B" in key else t for key, t in tensors.items()}
    kernel = {
        "unet.conv_in.lora_A.weight": torch.ones(1, 4, 3, 3),
        "unet.conv_in.lora_B.weight": torch.ones(4, 1, 3, 3),
    }
    legacy = {"unet.mid_block.attentions.0.processor.to_q_lora.down.weight": torch.ones(1, 1), "b": torch.ones(1)}
    return {
        "truncated": (lambda f: f.write_bytes(whole[:-100]), ("is no intact safetensors file",)),
        "headless": (lambda f: f.write_bytes(whole[:5]), ("is no intact safetensors file",)),
        "empty": (lambda f: f.write_bytes(b""), ("is no intact safetensors file",)),
        "text": (lambda f: f.write_text("404: not found" * 9), ("is no intact safetensors file",)),
        "pickle": (lambda f: torch.save(tensors, f), ("is a pickle, which can run code", "weights_only=True")),
        "nan": (lambda f: save_file(with_nan, f), ("has NaN or Inf in A of unet.",)),
        "unpaired": (lambda f: save_file(some, f), ("lacks the tensor unet.", ".lora_down.weight")),
        "misfit": (lambda f: save_file(misfit, f), ("has factors that do not fit at unet.",)),
        "kernel in B": (lambda f: save_file(kernel, f), ("has factors that do not fit at unet.conv_in: A",)),
        "layout": (lambda f: save_file(legacy, f), ("1 tensor of an unknown layout, the first b [1].",)),
        "no tensors": (lambda f: save_file({}, f), ("holds no LoRA layer",)),
    }


NAMES = (
    "truncated",
    "headless",
    "empty",
    "text",
    "pickle",
    "nan",
    "unpaired",
    "misfit",
    "kernel in B",
    "layout",
    "no tensors",
)


@pytest.mark.parametrize("name", NAMES)
def test_damaged_adapters(name: str, good: Path, tiny_base: Path, tmp_path: Path, cli: Cli) -> None:
    cases = damaged(good)
    assert set(cases) == set(NAMES)
    make, words = cases[name]
    bad = tmp_path / "bad.safetensors"
    make(bad)
    out = tmp_path / "out"
    refused(cli("convert", bad, out, "--format", "peft"), f"adapter = '{bad}': ", *words)
    refused(cli("merge", tiny_base, bad, "--output", out), f"adapter = '{bad}': ", *words)
    refused(cli("stack", good, bad, "--output", out), f"adapter = '{bad}': ", *words)
    assert not out.exists()


def test_every_bad_adapter_is_named_at_once(good: Path, tiny_base: Path, tmp_path: Path, cli: Cli) -> None:
    result = cli("merge", tiny_base, tmp_path / "x", good, tmp_path / "y:0.5", "--output", tmp_path / "out")
    refused(result, "2 problems", f"'{tmp_path / 'x'}': there is no such file", f"'{tmp_path / 'y'}': there is no")


@pytest.mark.parametrize("name", ["truncated", "text", "pickle", "layout"])
def test_damaged_models(name: str, good: Path, tiny_base: Path, tmp_path: Path, cli: Cli) -> None:
    file = pack(tiny_base, tmp_path / "model.safetensors")
    whole = file.read_bytes()
    bad, out = tmp_path / "bad.safetensors", tmp_path / "out.safetensors"
    make: dict[str, Callable[[], object]] = {
        "truncated": lambda: bad.write_bytes(whole[: len(whole) // 2]),
        "text": lambda: bad.write_text("not a model" * 9),
        "pickle": lambda: torch.save(load_file(file), bad),
        "layout": lambda: save_file({"a.weight": torch.ones(2)}, bad),
    }
    make[name]()
    unknown = "none of its 1 tensors is of a network that is known here, the first a.weight [2]"
    words = unknown if name == "layout" else "is "
    refused(cli("merge", bad, good, "--output", out), f"model = '{bad}': ", words)
    refused(cli("merge", tmp_path / "none", good, "--output", out), "there is no such file")
    (tmp_path / "empty").mkdir()
    refused(cli("merge", tmp_path / "empty", good, "--output", out), "has no unet/*.safetensors")
    assert not out.exists()


def test_models_that_are_none(good: Path, tiny_base: Path, tmp_path: Path, cli: Cli) -> None:
    chroma = tmp_path / "chroma.safetensors"
    save_file({"distilled_guidance_layer.in_proj.weight": torch.ones(9, 3), "img_in.weight": torch.ones(3, 3)}, chroma)
    out = tmp_path / "out.safetensors"
    refused(cli("merge", good, good, "--output", out), f"model = '{good}'", "It looks like an adapter: give the model")
    refused(cli("merge", chroma, good, "--output", out), "none of its 2 tensors", "[9, 3]", "It looks like Chroma")
    refused(cli("extract", chroma, chroma, "--rank", 1, "--output", out), "It looks like Chroma")
    assert not out.exists()


def test_adapter_for_another_base_or_family(tiny_base: Path, tmp_path: Path, cli: Cli) -> None:
    out = tmp_path / "out"
    wide = LoraLayer(torch.ones(1, 2048), torch.ones(32, 1), 1.0)
    name = "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_k"
    formats.write(LoraAdapter({name: wide}), tmp_path / "a.safetensors", "diffusers")
    refused(
        cli("merge", tiny_base, tmp_path / "a.safetensors", "--output", out),
        f"does not fit {tiny_base}: {name} is [32, 2048] here and [32, 32] there.",
        "It is an adapter for a stable-diffusion-xl-v1-base base.",
    )
    formats.write(
        LoraAdapter({"unet.down_blocks.9.attentions.0.proj_in": wide}), tmp_path / "b.safetensors", "diffusers"
    )
    refused(
        cli("merge", tiny_base, tmp_path / "b.safetensors", "--output", out),
        "has 2 tensors of modules that no known family has",
        "the first unet.down_blocks.9.attentions.0.proj_in.lora_A.weight [1, 2048]",
    )
    refused(
        cli("merge", tiny_base, tmp_path / "b.safetensors", "--output", out, "--family", "stable_diffusion"),
        "adapts 1 weights that",
        "such as unet.down_blocks.9.attentions.0.proj_in",
    )
    assert not out.exists()


def test_overflow_and_quantised_weights(tiny_base: Path, tmp_path: Path, cli: Cli) -> None:
    file, out = pack(tiny_base, tmp_path / "half.safetensors", torch.float16), tmp_path / "out.safetensors"
    shape = load_file(tiny_base / "unet/diffusion_pytorch_model.safetensors")[
        "mid_block.attentions.0.proj_in.weight"
    ].shape
    huge = LoraLayer(torch.full((1, *shape[1:]), 300.0), torch.full((shape[0], 1, *[1] * (len(shape) - 2)), 300.0), 1.0)
    formats.write(LoraAdapter({KEY: huge}), tmp_path / "huge.safetensors", "diffusers")
    result = cli("merge", file, tmp_path / "huge.safetensors", "--output", out)
    refused(result, "would hold NaN or Inf in model.diffusion_model.middle_block.1.proj_in.weight as F16", "Lower the")
    key = "model.diffusion_model.middle_block.1.proj_in.weight"
    tensors = load_file(file)
    for dtype, words in ((torch.float8_e4m3fn, f"NaN or Inf in {key} as F8_E4M3"), (torch.uint8, f"keeps {key} as U8")):
        save_file(tensors | {key: tensors[key].to(dtype)}, file)
        refused(cli("merge", file, tmp_path / "huge.safetensors", "--output", out), words)
    tiles = {key: tensors[key].to(torch.float8_e4m3fn), f"{key}_scale_inv": torch.ones(2, 2)}
    save_file(tensors | tiles, file)
    refused(cli("merge", file, tmp_path / "huge.safetensors", "--output", out), "in tiles", "before it was quantised")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["half.safetensors", "huge.safetensors"]


def test_finite_weights_whose_sum_is_not(tiny_base: Path, tmp_path: Path, cli: Cli) -> None:
    file, out = pack(tiny_base, tmp_path / "half.safetensors", torch.float16), tmp_path / "out.safetensors"
    key, tensors = "model.diffusion_model.middle_block.1.proj_in.weight", load_file(file)
    save_file(tensors | {key: torch.full_like(tensors[key], 60000)}, file)
    rows, columns = tensors[key].shape[:2]
    small = LoraLayer(torch.full((1, columns, 1, 1), 10.0), torch.full((rows, 1, 1, 1), 100.0), 1.0)
    formats.write(LoraAdapter({KEY: small}), tmp_path / "a.safetensors", "diffusers")
    assert cli("merge", file, tmp_path / "a.safetensors", "--output", out).status == 0
    assert torch.equal(load_file(out)[key], torch.full_like(tensors[key], 60992))  # 61000, as float16 has it


def test_outputs_that_must_not_be_touched(good: Path, tiny_base: Path, tmp_path: Path, cli: Cli) -> None:
    model = tmp_path / "model"
    shutil.copytree(tiny_base, model)
    file = pack(tiny_base, tmp_path / "model.safetensors")
    kept = file.read_bytes()
    for target, output, words in (
        (file, file, "is or holds the model itself"),
        (model, model, "is or holds the model itself"),
        (model, model / "unet", "is or holds the model itself"),
        (model, model / "new", "lies inside the model's folder"),
        (model, tmp_path, "is or holds the model itself"),
        (file, tmp_path / "out.ckpt", "must end in .safetensors"),
        (file, good, "exists already. Give another name, or replace it with --overwrite"),
    ):
        refused(cli("merge", target, good, "--output", output), f"output = '{output}': ", words)
    refused(cli("convert", good, good, "--format", "kohya"), "exists already")
    refused(cli("convert", good, tmp_path / "x.safetensors", "--format", "peft"), "Give a folder")
    refused(cli("convert", good, tmp_path / "x", "--format", "kohja"), "--format = 'kohja'", "Did you mean 'kohya'?")
    refused(cli("convert", good, tmp_path / "x", "--format", "kohya", "--fast"), "--fast", "is not expected here")
    assert file.read_bytes() == kept
    before = good.read_bytes()
    assert cli("convert", good, tmp_path / "y.safetensors", "--format", "kohya").status == 0
    assert cli("convert", tmp_path / "y.safetensors", good, "--format", "diffusers", "--overwrite").status == 0
    assert load_file(good).keys() == load_file(tmp_path / "y.safetensors").keys() or good.read_bytes() != before
    assert cli("merge", model, good, "--output", tmp_path / "out").status == 0
    refused(cli("merge", model, good, "--output", tmp_path / "out"), "exists already")
    assert cli("merge", model, good, "--output", tmp_path / "out", "--overwrite").status == 0


def test_peft_folder_without_its_configuration(tiny_base: Path, tmp_path: Path, cli: Cli) -> None:
    formats.write(random_adapter(tiny_base), tmp_path / "p", "peft")
    config = tmp_path / "p/adapter_config.json"
    good = json.loads(config.read_text())
    for text, words in (
        (None, "is missing; it holds alpha"),
        ("{", "is no LoRA configuration of peft"),
        (json.dumps(good | {"peft_type": "LOHA"}), "has peft_type = 'LOHA', but a LoRA at "),
        (json.dumps(good | {"peft_type": "OFT"}), "has peft_type = 'OFT', which is none of LORA, LOHA, LOKR"),
    ):
        config.unlink(missing_ok=True)
        if text is not None:
            config.write_text(text)
        refused(cli("convert", tmp_path / "p", tmp_path / "out", "--format", "diffusers"), f"'{config}'", words)
    (tmp_path / "none").mkdir()
    refused(cli("inspect", tmp_path / "none"), "holds no adapter file")
    assert not (tmp_path / "out").exists()


@contextmanager
def small_files() -> Iterator[None]:
    """Any file above 8 KiB is refused by the system, as by a quota; not longer than needed, as pytest writes too."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8 * 1024, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_quota_in_mid_write(tiny_base: Path, good: Path, tmp_path: Path, cli: Cli) -> None:
    file = pack(tiny_base, tmp_path / "model.safetensors")
    before = sorted(tmp_path.rglob("*"))
    with small_files():
        to_file = cli("merge", file, good, "--output", tmp_path / "out.safetensors")
        to_folder = cli("merge", tiny_base, good, "--output", tmp_path / "out")
        converted = cli("convert", good, tmp_path / "c.safetensors", "--format", "kohya")
    refused(
        to_file,
        f"output = '{tmp_path / 'out.safetensors'}': cannot be written: File too large.",
        "Free space there, or choose another place.",
    )
    refused(to_folder, "cannot be written: File too large.")
    refused(converted, "cannot be written: File too large.")
    assert sorted(tmp_path.rglob("*")) == before


@pytest.fixture
def interruptible() -> Iterator[Any]:
    """Ctrl-C raises, even where the tests run in the background, with SIGINT ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_merge_leaves_nothing(
    signum: Any, tiny_base: Path, good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cli: Cli
) -> None:
    class Stopping(tqdm):  # type: ignore[type-arg]
        def __init__(self, **options: Any) -> None:
            super().__init__(**options)
            self.first = threading.Lock()

        def update(self, n: float | None = 1) -> None:
            if self.first.acquire(blocking=False):  # once, though several threads report
                os.kill(os.getpid(), signum)

    monkeypatch.setattr(merging, "tqdm", Stopping)
    file = pack(tiny_base, tmp_path / "model.safetensors")
    before = sorted(tmp_path.rglob("*"))
    for model, output in ((file, "out.safetensors"), (tiny_base, "out")):
        result = cli("merge", model, good, "--output", tmp_path / output)
        assert result.status == 128 + signum
        assert "stopped; nothing half-written is left" in result.err and "Traceback" not in result.err
        assert sorted(tmp_path.rglob("*")) == before


def test_a_reader_that_has_seen_enough_is_no_error(good: Path) -> None:
    program = [sys.executable, "-m", "erasediff_lora.cli", "inspect", str(good)]
    running = subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert running.stdout is not None and running.stderr is not None
    running.stdout.close()
    said = running.stderr.read()
    assert running.wait() == 128 + signal.SIGPIPE
    assert "BrokenPipe" not in said and "Traceback" not in said


FULL_DISK = """
set -e
mount -t tmpfs -o size=200k tmpfs "$1"
"$2" -m erasediff_lora.cli merge "$3" "$4" --output "$1/out.safetensors" && exit 9
test "$?" = 2
test -z "$(ls -A "$1")"
"""


def test_full_disk_in_mid_write(tiny_base: Path, good: Path, tmp_path: Path) -> None:
    """On a tmpfs of 200 KiB, in a mount namespace of its own."""
    if shutil.which("unshare") is None or subprocess.run(["unshare", "-rm", "true"], capture_output=True).returncode:
        pytest.skip("no user namespaces here")
    file = pack(tiny_base, tmp_path / "model.safetensors")
    (tmp_path / "disk").mkdir()
    done = subprocess.run(
        ["unshare", "-rm", "bash", "-c", FULL_DISK, "bash", tmp_path / "disk", sys.executable, file, good],
        capture_output=True,
        text=True,
        env=os.environ,
    )
    assert done.returncode == 0, done.stderr
    assert "cannot be written: No space left on device." in done.stderr
    assert "Traceback" not in done.stderr
