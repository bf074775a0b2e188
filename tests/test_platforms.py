"""Windows and macOS as far as Linux can show them: modules hidden, other encodings, other paths, other cards."""

from __future__ import annotations

import importlib
import io
import os
import signal
import subprocess
import sys
from pathlib import Path, PureWindowsPath
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from adapters import random_adapter
from fixtures import Cli, RecipeFile
from refusals import refused

from erasediff_lora.adapter import formats
from erasediff_lora.denoisers import loading
from erasediff_lora.errors import UserError
from erasediff_lora.machine import devices
from erasediff_lora.recipe import Model, Recipe
from erasediff_lora.recipe.evaluation import without_folders
from erasediff_lora.storage import files
from erasediff_lora.storage.inside import inside
from erasediff_lora.training import loop, stop_signal

ROOT = Path(__file__).parent.parent
WINDOWS = """
import builtins, os, signal, sys
import accelerate, diffusers, peft, psutil, torch, transformers  # which know themselves what to do on Windows

imported = builtins.__import__

def importing(name, globals=None, *rest, **more):
    ours = (globals or {}).get("__name__", "").startswith("erasediff_lora")
    if ours and name in {"fcntl", "resource", "pwd", "grp", "termios"}:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)
    return imported(name, globals, *rest, **more)

builtins.__import__ = importing
for name in ("SIGHUP", "SIGPIPE", "SIGKILL", "SIGUSR1", "SIGUSR2", "SIGALRM", "SIGQUIT"):
    delattr(signal, name)
for name in ("fork", "getuid", "mkfifo", "getpgid", "killpg", "chown"):
    delattr(os, name)
sys.stdout.reconfigure(encoding="cp1252", newline="\\r\\n")
sys.stderr.reconfigure(encoding="cp1252", newline="\\r\\n")
from erasediff_lora.cli import main
for line in sys.stdin.read().splitlines():
    words = line.split("|")
    print(">", *words, flush=True)
    try:
        status = main(words)
    except SystemExit as stop:
        status = stop.code
    print("<", status, flush=True)
"""


def test_every_program_without_what_windows_lacks(tiny_base: Path, recipe_file: RecipeFile, tmp_path: Path) -> None:
    """Files, recipes, merge, convert, inspect, stack, extract, publish, evaluate, train: in one process, on cp1252."""
    formats.write(random_adapter(tiny_base), tmp_path / "a.safetensors", "diffusers")
    file = recipe_file(training={"steps": 2, "checkpoint_every": 1})
    run, other = tmp_path / "run", tmp_path / "other"
    commands: list[tuple[Any, ...]] = [
        ("--help",),
        ("recipes",),
        ("recipes", "copy", "sd15_object", tmp_path / "copy.yaml"),
        ("plan", file),
        ("prepare", file),
        ("train", file),
        ("train", file, "--overwrite"),
        ("train", file, "--resume"),
        ("evaluate", run, "--quick"),
        ("compare", run, "--output", tmp_path / "page.html"),
        ("publish", run, "--repo", "me/x", "--dry_run"),
        ("inspect", tmp_path / "a.safetensors", "--for", "all"),
        ("convert", tmp_path / "a.safetensors", tmp_path / "k.safetensors", "--format", "kohya"),
        ("stack", tmp_path / "a.safetensors", tmp_path / "k.safetensors", "--output", tmp_path / "s.safetensors"),
        ("merge", tiny_base, tmp_path / "a.safetensors", "--output", other),
        ("extract", tiny_base, other, "--output", tmp_path / "x.safetensors", "--rank", 4),
    ]
    done = subprocess.run(
        [sys.executable, "-c", WINDOWS],
        input="\n".join("|".join(map(str, command)) for command in commands).encode(),
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        timeout=300,
    )
    out, err = done.stdout.decode("cp1252"), done.stderr.decode("cp1252")
    assert done.returncode == 0 and "Traceback" not in err, err
    statuses = [line for line in out.splitlines() if line.startswith("< ")]
    assert statuses == ["< 0"] * len(commands), (out, err)


def test_windows_syncs_no_folders_and_waits_for_files_that_are_open(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    opened = os.open

    def opens_files_only(path: Any, *given: Any, **options: Any) -> int:
        if Path(path).is_dir():
            raise PermissionError(13, "folders cannot be opened")
        return opened(path, *given, **options)

    monkeypatch.setattr(os, "open", opens_files_only)
    replace, refusals = Path.replace, [PermissionError("a virus scanner has it")] * 3

    def replaced(self: Path, target: Path) -> Path:
        if refusals:
            raise refusals.pop()
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", replaced)
    files.save_safetensors({"a": torch.ones(1)}, tmp_path / "a.safetensors")
    assert not refusals and [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]
    monkeypatch.setattr(files, "PATIENCE", 0)
    refusals.append(PermissionError(13, "it stays open"))
    with pytest.raises(UserError, match="no program has it open"):
        files.save_safetensors({"a": torch.ones(1)}, tmp_path / "a.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]


def test_texts_are_the_same_files_everywhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(os, "linesep", "\r\n")
    files.write_text(tmp_path / "a", "λ\nb\n")
    assert (tmp_path / "a").read_bytes() == "λ\nb\n".encode()


@pytest.mark.parametrize("encoding", ["cp1252", "cp437", "cp932", "ascii", "latin-1"])
def test_output_in_the_encodings_of_consoles(
    encoding: str, monkeypatch: pytest.MonkeyPatch, tiny_base: Path, tmp_path: Path
) -> None:
    from erasediff_lora.cli import main

    formats.write(random_adapter(tiny_base), tmp_path / "a.safetensors", "diffusers")
    console = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr(sys, "stdout", console)
    assert main(["inspect", str(tmp_path / "a.safetensors")]) == 0
    console.flush()
    assert "norm of all" in console.buffer.getvalue().decode(encoding)


@pytest.mark.parametrize(
    "name", ["C:secret.png", "C:/secret.png", "C:\\secret.png", "\\secret.png", "..\\secret.png", "\\\\host\\share\\x",
             "a\\..\\..\\x", "pictures/a.png:stream"],
)  # fmt: skip
def test_names_that_lead_out_on_windows(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="leads out of the run"):
        inside(tmp_path, name)


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("classifier:C:\\Users\\me\\judge.safetensors", "classifier:judge.safetensors"),
        ("clip:C:/Users/me/clip", "clip:clip"),
        ("D:\\models\\sd15", "sd15"),
        ("\\\\server\\share\\judge.safetensors", "judge.safetensors"),
        ("clip:openai/clip-vit-base-patch32", "clip:openai/clip-vit-base-patch32"),
        ("C: a drive", "C: a drive"),
    ],
)
def test_what_others_see_names_no_folder_of_windows(given: str, shown: str) -> None:
    assert without_folders(given) == shown


def test_a_strength_behind_a_drive(monkeypatch: pytest.MonkeyPatch, tiny_base: Path, tmp_path: Path) -> None:
    from erasediff_lora.adapter import Weighted

    monkeypatch.chdir(tmp_path)
    name = "C:\\loras\\a.safetensors"  # a name like any other here
    formats.write(random_adapter(tiny_base), tmp_path / "a.safetensors", "diffusers")
    (tmp_path / "a.safetensors").rename(tmp_path / name)
    assert (Weighted.parse(f"{name}:0.5").strength, Weighted.parse(f"{name}:0.5").source) == (0.5, name)
    assert Weighted.parse(name).strength == 1
    for gone in ("C:\\nothing\\a.safetensors", "D:\\nothing\\a.safetensors:0.5"):
        with pytest.raises(UserError, match="there is no such file"):
            Weighted.parse(gone)


def test_a_base_on_a_drive_is_a_path_and_no_hub_id() -> None:
    for base in ("C:\\models\\sd15", "C:/models/sd15", "models\\sd15", "..\\sd15"):
        assert not Model(base=base).is_hub_id
    assert Model(base="stable-diffusion-v1-5/stable-diffusion-v1-5").is_hub_id
    assert PureWindowsPath("C:\\models\\sd15").name == "sd15"


def test_fingerprints_are_the_same_on_windows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet/a").write_bytes(b"1")
    here = files.fingerprint([tmp_path / "unet/a"], tmp_path)
    relative = Path.relative_to
    monkeypatch.setattr(Path, "relative_to", lambda self, *other: PureWindowsPath(relative(self, *other)))
    assert files.fingerprint([tmp_path / "unet/a"], tmp_path) == here


def test_a_closed_terminal_saves_a_checkpoint(
    recipe_file: RecipeFile, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = loop.take_step

    def close(*given: Any) -> Any:
        signal.raise_signal(signal.SIGHUP)
        return step(*given)

    monkeypatch.setattr(loop, "take_step", close)
    result = cli("train", recipe_file())
    assert result.status == 128 + signal.SIGHUP and "stopped by SIGHUP after step 1" in result.err
    assert (tmp_path / "run/checkpoints/step-000001").is_dir()
    previous = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        assert cli("train", recipe_file(), "--overwrite").status == 0
    finally:
        signal.signal(signal.SIGHUP, previous)


def test_signals_that_a_system_has_not(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        patched.delattr(signal, "SIGHUP")
        patched.setattr(signal, "SIGBREAK", signal.SIGUSR1, raising=False)
        assert importlib.reload(stop_signal).STOPPING == [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1]
    importlib.reload(stop_signal)


@pytest.fixture(params=["cuda", "mps", "xpu"])
def card(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """A machine with such a card, as torch tells of it."""
    kind: str = request.param
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device(kind))
    return kind


@pytest.mark.parametrize("has_bfloat16", [True, False])
def test_the_card_that_is_there_is_used(has_bfloat16: bool, card: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "has_bfloat16", lambda kind: has_bfloat16)
    found = loading.device(Model(device="auto"))
    assert found.type == card == loading.device(Model(device=card)).type
    assert loading.device(Model(device="cpu")).type == "cpu"
    assert loading.dtype(Model(), found) == (torch.bfloat16 if has_bfloat16 else torch.float16)
    assert loading.dtype(Model(), torch.device("cpu")) == torch.float32
    if not has_bfloat16:
        with pytest.raises(UserError, match=r"model\.dtype = 'bfloat16': is nothing that this GPU has. Use float16"):
            loading.dtype(Model(dtype="bfloat16"), found)
    if card == "mps":
        with pytest.raises(UserError, match=r"model\.dtype = 'float64': is nothing that Apple's GPUs have"):
            loading.dtype(Model(dtype="float64"), found)


def test_a_card_that_is_not_there_is_named(card: str) -> None:
    for kind in {"cuda", "mps", "xpu"} - {card}:
        with pytest.raises(UserError, match=f"'{kind}': this machine has no usable GPU of this kind. Set it to {card}"):
            loading.device(Model(device=kind))


@pytest.mark.parametrize("kind", ["cuda", "mps", "xpu"])
def test_no_card(kind: str, recipe_file: RecipeFile, cli: Cli) -> None:
    assert Recipe.load(recipe_file(model={"device": kind})).model.device == kind
    refused(
        cli("train", recipe_file(model={"device": kind})), f"model.device = '{kind}': this machine has no usable GPU"
    )


def test_memory_of_cards_by_torchs_own_interface(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    cuda = SimpleNamespace(
        max_memory_allocated=lambda: 7, mem_get_info=lambda: (3, 9), empty_cache=lambda: calls.append("cuda")
    )
    mps = SimpleNamespace(driver_allocated_memory=lambda: 5, empty_cache=lambda: calls.append("mps"))
    for name, module in (("cuda", cuda), ("xpu", cuda), ("mps", mps)):
        monkeypatch.setattr(torch, name, module)
    kinds = {name: SimpleNamespace(type=name) for name in ("cuda", "mps", "xpu")}
    assert [devices.peak_memory(kinds[name]) for name in kinds] == [7, 5, 7]  # type: ignore[arg-type]
    assert [devices.capacity(name) for name in ("cuda", "mps", "xpu", "cpu")] == [9, None, 9, None]
    for device in kinds.values():
        devices.give_back(device)  # type: ignore[arg-type]
    assert calls == ["cuda", "mps", "cuda"]
    assert devices.peak_memory(torch.device("cpu")) > 10**8
