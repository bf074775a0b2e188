"""The playground in a real browser."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

import psutil
import pytest
import yaml
from browser import CHROMIUM, axe
from played import needs

from erasediff_lora.cli import main

needs("gradio")
playwright = needs("playwright.sync_api")
if CHROMIUM is None:
    pytest.skip("needs chromium", allow_module_level=True)
PORT = 7899


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded model without cats, in a moment, and never evaluated."""
    root = tmp_path_factory.mktemp("played")
    recipe = {
        "model": {"base": "demo"},
        "forget": {"concepts": [{"name": "cat", "anchor": "heart"}], "templates": ["a {concept}"], "count": 1},
        "retain": {"concepts": ["heart", "fish"], "templates": ["a {concept}"], "count": 2},
        "objective": {"name": "uce"},
        "sampling": {"steps": 8, "guidance": 4.0},
        "evaluation": {"judge": "demo", "metrics": ["accuracy"], "forget_samples": 1, "retain_samples": 1},
        "training": {"threads": 1},
        "output": str(root / "run"),
        "cache": str(root / "cache"),
    }
    (root / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    assert main(["train", str(root / "recipe.yaml")]) == 0
    return root / "run"


@pytest.fixture(scope="module")
def process(run: Path) -> Iterator[psutil.Process]:
    """The command, as a user types it. Its first page takes under four seconds of a core; more where others use it."""
    command = [sys.executable, "-m", "erasediff_lora", "play", str(run), "--port", str(PORT)]
    started = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=os.environ)
    found = psutil.Process(started.pid)
    for _ in range(600):
        try:
            urlopen(f"http://127.0.0.1:{PORT}/", timeout=5).read()
            break
        except (URLError, OSError):
            assert started.poll() is None
            time.sleep(0.1)
    spent = sum(found.cpu_times()[:2])
    assert spent < 8, f"{spent:.1f} s of processor time to the first page"
    yield found
    started.terminate()
    started.wait(30)


@pytest.fixture
def page(process: psutil.Process) -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser.new_page()
        browser.close()


def test_draw_judge_and_be_told(page: Any, run: Path) -> None:
    console: list[str] = []
    elsewhere: list[str] = []
    page.on("console", lambda message: console.append(message.text))
    own = f"http://127.0.0.1:{PORT}", "data:", "blob:"
    page.on("request", lambda request: elsewhere.extend(() if request.url.startswith(own) else (request.url,)))
    page.goto(f"http://127.0.0.1:{PORT}/")
    page.get_by_role("heading", name="Erasing cat: ").wait_for()
    page.click("#draw")
    page.wait_for_function("document.querySelector('#done')?.innerText.includes('Drawn')", timeout=120_000)
    assert page.locator("img[src*='/file=']").count() >= 2
    page.click("#judge")
    page.wait_for_function("document.querySelector('#answer')?.innerText.includes('with it')", timeout=60_000)
    page.fill("#prompt textarea", "x" * 10_000)
    page.click("#draw")
    message = page.get_by_test_id("toast-text")
    message.wait_for()
    assert "has 10,000 characters; 2,000 are the most" in message.inner_text()
    page.get_by_test_id("toast-close").click()
    message.wait_for(state="detached")
    page.fill("#prompt textarea", "<img src=x onerror=alert(1)>" * 100)
    page.click("#draw")
    message.wait_for()
    assert "<img" in message.inner_text(), "shown as text"
    assert console == [] and elsewhere == []


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_it_is_accessible(process: psutil.Process, width: int, scheme: str) -> None:
    """At first, with everything drawn and unfolded, and with a message over it."""
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        page.goto(f"http://127.0.0.1:{PORT}/")
        page.locator("#draw").wait_for()
        found = violations(page)
        page.click("#draw")
        page.wait_for_function("document.querySelector('#done')?.innerText.includes('Drawn')", timeout=120_000)
        for name in ("A found embedding", "Attack prompts"):
            page.get_by_role("button", name=name).click()
        page.fill("#prompts textarea", "a cat")
        page.click("#attack")
        page.locator(".thumbnail-item").nth(1).wait_for(timeout=120_000)
        found += violations(page)
        assert page.get_by_role("button", name="without: a cat").count() == 1, "a caption names its picture"
        page.fill("#prompt textarea", "x" * 10_000)
        page.click("#draw")
        page.get_by_test_id("toast-text").wait_for()
        found += violations(page)
        assert found == [] and page.evaluate("document.documentElement.scrollWidth") <= width
        browser.close()


def violations(page: Any) -> list[str]:
    page.wait_for_timeout(700)  # what moves in has come to rest
    page.evaluate(axe())
    result = page.evaluate("axe.run(document)")
    assert len(result["passes"]) > 20
    return [f"{found['id']}: {node['html'][:200]}" for found in result["violations"] for node in found["nodes"]]


def test_it_listens_on_this_machine_only(process: psutil.Process) -> None:
    listening = {c.laddr.ip for c in process.net_connections() if c.status == psutil.CONN_LISTEN}
    assert listening == {"127.0.0.1"}


def test_a_pair_takes_seconds(process: psutil.Process, page: Any, tmp_path: Path) -> None:
    client = needs("gradio_client").Client(f"http://127.0.0.1:{PORT}/", verbose=False, download_files=str(tmp_path))
    client.predict("a fish", 1, 8, None, 1, api_name="/draw")
    before = sum(process.cpu_times()[:2])
    client.predict("a fish", 2, 8, None, 1, api_name="/draw")
    assert sum(process.cpu_times()[:2]) - before < 10


def test_the_port_is_taken(process: psutil.Process, run: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["play", str(run), "--port", str(PORT)]) == 2
    assert f"--port = {PORT}: cannot be used" in capfd.readouterr().err


def test_what_is_saved_lies_in_the_run(process: psutil.Process, run: Path, tmp_path: Path) -> None:
    client = needs("gradio_client").Client(f"http://127.0.0.1:{PORT}/", verbose=False, download_files=str(tmp_path))
    client.predict("a cat", 3, api_name="/save")
    assert [entry["seed"] for entry in json.loads((run / "examples.json").read_text())] == [3]
