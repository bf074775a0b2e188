"""What leaves the machine, and what is written down: no telemetry, no network when offline, no token anywhere."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from fixtures import RecipeFile

ROOT = Path(__file__).parent.parent.parent
TOKEN = "hf_abcdefghijklmnopqrstuvwxyz0123"
NO_NETWORK = """
import socket, sys
def refuse(self, address, *rest):
    if self.family != socket.AF_UNIX:
        print("CONNECTED", address, file=sys.stderr)
    raise OSError("no network")
socket.socket.connect = refuse
socket.getaddrinfo = lambda host, *rest, **more: print("LOOKED UP", host, file=sys.stderr) or []
from erasediff_lora.cli import main
sys.exit(main(sys.argv[1:]))
"""


def run(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", NO_NETWORK, *map(str, arguments)], capture_output=True, text=True, timeout=180,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | environment,
    )  # fmt: skip


def test_a_run_on_local_files_asks_nobody_and_writes_no_token_down(recipe_file: RecipeFile, tmp_path: Path) -> None:
    done = run("train", recipe_file(), HF_TOKEN=TOKEN)
    assert done.returncode == 0, done.stderr
    assert "CONNECTED" not in done.stderr and "LOOKED UP" not in done.stderr
    texts = [done.stdout.encode(), done.stderr.encode()]
    texts += [file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()]
    assert len(texts) > 10 and not any(TOKEN.encode() in text for text in texts)


def test_offline_is_honoured(recipe_file: RecipeFile, tmp_path: Path) -> None:
    offline = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hub")}
    done = run("train", recipe_file(model={"base": "somebody/some-model"}), **offline)
    assert done.returncode == 2
    assert "CONNECTED" not in done.stderr and "LOOKED UP" not in done.stderr
    assert "model.base = 'somebody/some-model': " in done.stderr and "Traceback" not in done.stderr


def test_telemetry_is_off_unless_asked_for() -> None:
    code = "import erasediff_lora.cli, huggingface_hub.constants as hub; print(hub.HF_HUB_DISABLE_TELEMETRY)"
    for given, expected in ({}, "True"), ({"HF_HUB_DISABLE_TELEMETRY": "0"}, "False"):
        environment = {k: v for k, v in os.environ.items() if k != "HF_HUB_DISABLE_TELEMETRY"} | given
        shown = subprocess.run(
            [sys.executable, "-c", code], env=environment | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True
        )
        assert shown.stdout.strip() == expected, shown.stderr


DETECT = (
    "import time, numpy; from nudenet import NudeDetector; NudeDetector().detect(numpy.zeros((64, 64, 3), 'uint8'))"
)


def traced(code: str, home: Path) -> tuple[set[str], list[str]]:
    """Run Python code; return the files that it left at home, and its system calls that reach for the network.

    Native code opens sockets and files that no patch of Python's modules sees, so the process is watched from outside.
    """
    home.mkdir()
    environment = {k: v for k, v in os.environ.items() if k != "ORT_DISABLE_TELEMETRY"}
    environment |= {"HOME": str(home), "XDG_CACHE_HOME": str(home / ".cache"), "PYTHONPATH": str(ROOT)}
    watcher = ["strace", "-f", "-e", "trace=connect,sendto,sendmsg", "-o", str(home.parent / f"{home.name}.calls")]
    command = [*(watcher if shutil.which("strace") else []), sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr
    calls = home.parent / f"{home.name}.calls"
    lines = calls.read_text().splitlines() if calls.is_file() else []
    return {file.name for file in home.rglob("*") if file.is_file()}, [line for line in lines if "AF_INET" in line]


def test_no_native_library_reports_home(tmp_path: Path) -> None:
    """onnxruntime writes a device id and looks hosts up as soon as it is imported, unless it is told not to."""
    left, _ = traced(f"{DETECT}; time.sleep(3)", tmp_path / "without_us")
    if "deviceid" not in left:
        pytest.skip("this onnxruntime has no telemetry")
    for number, first in enumerate(("import erasediff_lora", "import erasediff_lora.cli")):
        left, calls = traced(f"{first}; {DETECT}; time.sleep(3)", tmp_path / f"with_us_{number}")
        assert "deviceid" not in left and not calls
