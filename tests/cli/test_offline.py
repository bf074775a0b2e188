"""--offline: nothing reaches for another machine, whatever library tries; what is on this one works."""

from __future__ import annotations

import os
import socket
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from fixtures import Cli, RecipeFile
from refusals import refused

from erasediff_lora.machine.network import VARIABLES, offline

asked: list[object] = []
sys.addaudithook(lambda event, given: asked.append(given[0]) if event == "socket.getaddrinfo" else None)


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    before = {name: os.environ.get(name) for name in VARIABLES}
    yield
    assert {name: os.environ.get(name) for name in VARIABLES} == before


@pytest.mark.parametrize("place", ["before", "behind"])
def test_training_by_what_is_here(place: str, recipe_file: RecipeFile, cli: Cli, tmp_path: Path) -> None:
    words = ["train", recipe_file(training={"steps": 1})]
    words = ["--offline", *words] if place == "before" else [*words, "--offline"]
    result = cli(*words)
    assert result.status == 0, result.err
    assert (tmp_path / "run/pytorch_lora_weights.safetensors").is_file()


@pytest.mark.parametrize(
    "changes",
    [
        {"model": {"base": "somebody/some-model"}},
        {"evaluation": {"judge": "clip:somebody/some-clip", "metrics": ["accuracy"]}},
        {"evaluation": {"judge": "transformers:somebody/some-vit", "metrics": ["accuracy"]}},
        {"forget": {"images": {"dataset": "somebody/some-pictures"}}},
    ],
)
def test_what_is_elsewhere_is_refused(changes: dict[str, object], recipe_file: RecipeFile, cli: Cli) -> None:
    asked.clear()
    refused(cli("train", recipe_file(**changes), "--offline"), "somebody/some-")
    assert [host for host in asked if host != "localhost"] == []


def test_an_upload_is_refused_and_a_dry_run_is_not(run: Path, cli: Cli) -> None:
    refused(cli("publish", run, "--repo", "me/x", "--offline"), "--offline = True: cannot go with an upload")
    assert cli("publish", run, "--repo", "me/x", "--dry_run", "--offline").status == 0


def test_the_guard_stops_what_asks_no_variable() -> None:
    with offline():
        with pytest.raises(OSError, match=r"--offline: huggingface\.co was not asked"):
            socket.getaddrinfo("huggingface.co", 443)
        with pytest.raises(OSError, match=r"--offline: 192\.0\.2\.1 was not asked"):
            socket.create_connection(("192.0.2.1", 80), timeout=1)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams, pytest.raises(OSError, match="--offline"):
            datagrams.sendto(b"", ("192.0.2.1", 53))
        for alike in ("127.example.com", "127.0.0.1.example.com", "2130706433"):
            with pytest.raises(OSError, match="--offline"):
                socket.getaddrinfo(alike, 80)
        with pytest.raises(urllib.error.URLError, match="--offline"):
            urllib.request.urlopen("https://huggingface.co")


def test_a_proxy_on_this_machine_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as proxy:
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{proxy.getsockname()[1]}")
        with offline(), pytest.raises(urllib.error.URLError, match=r"--offline: example\.com was not asked"):
            urllib.request.urlopen("http://example.com", timeout=5)


def test_this_machine_is_still_reached() -> None:
    with offline(), socket.create_server(("127.0.0.1", 0)) as server:
        answer = threading.Thread(target=lambda: server.accept()[0].sendall(b"here"))
        answer.start()
        with socket.create_connection(("localhost", server.getsockname()[1]), timeout=5) as here:
            assert here.recv(4) == b"here"
        answer.join()


def test_afterwards_everything_is_as_before() -> None:
    with offline(), pytest.raises(OSError, match="--offline"):
        socket.gethostbyname("example.invalid")
    try:
        socket.gethostbyname("example.invalid")
    except OSError as error:
        assert "--offline" not in str(error)
