"""What a page looks like to a real headless browser."""

from __future__ import annotations

import html
import json
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
PROBE = """<script>
addEventListener("load", async () => {
  const found = window.axe ? await axe.run(document) : { violations: [], passes: [] };
  document.querySelectorAll("details").forEach((e) => (e.open = OPEN));
  const wide = [...document.querySelectorAll("body *")].filter(
    (e) => e.getBoundingClientRect().right > innerWidth + 1 && !e.closest(".table, pre"));
  const images = [...document.images];
  parent.document.documentElement.setAttribute("data-probe", JSON.stringify({
    inner: innerWidth,
    scroll: document.documentElement.scrollWidth,
    wide: wide.map((e) => e.tagName),
    images: images.length,
    broken: images.filter((e) => !e.complete || e.naturalWidth === 0).map((e) => e.alt),
    noAlt: images.filter((e) => !e.alt.trim()).length,
    violations: found.violations.flatMap((v) => v.nodes.map((n) => `${v.id}: ${n.html.slice(0, 200)}`)),
    checks: found.passes.length,
    scripts: document.scripts.length,
    text: document.body.innerText,
    ink: getComputedStyle(document.body).color,
    page: getComputedStyle(document.body).backgroundColor,
    blur: [...document.querySelectorAll(".picture")].map((e) => getComputedStyle(e).filter),
  }));
});
</script>"""


@dataclass
class Seen:
    """A page as the browser showed it.

    Attributes:
        facts: What the probe read off the page.
        console: What the browser's console said.
    """

    facts: dict[str, Any]
    console: list[str]


def axe() -> str:
    """The script of axe-core, which looks for what keeps people from using a page."""
    try:
        return files("axe_core_python").joinpath("axe.min.js").read_text(encoding="utf-8")
    except ModuleNotFoundError:
        if os.environ.get("CI"):
            pytest.fail("CI needs axe-core-python")
        pytest.skip("needs axe-core: pip install axe-core-python")


def visit(page: Path, width: int, scheme: str = "light", *, opened: bool = False, script: str = "") -> Seen:
    """Open the page, with a probe at its end, in a frame of that width (a window has a least width).

    Args:
        page: The file.
        width: Of the frame, in pixels.
        scheme: 'light' or 'dark'.
        opened: Unfold all that is folded.
        script: Runs before the probe, such as `axe()`.
    """
    if CHROMIUM is None:
        if os.environ.get("CI"):
            pytest.fail("CI needs chromium")
        pytest.skip("needs chromium")
    probe = PROBE.replace("OPEN", str(opened).lower())
    probe = f"<script>{script}</script>{probe}" if script else probe
    inner = html.escape(page.read_text(encoding="utf-8").replace("</body>", probe + "</body>"))
    outer = page.with_name("probe.html")
    outer.write_text(
        '<!doctype html><meta charset="utf-8"><meta name="color-scheme" content="light dark">'
        '<link rel="icon" href="data:,">'
        f'<body style="margin:0"><iframe style="border:0;width:{width}px;height:900px" srcdoc="{inner}"></iframe>',
        encoding="utf-8",
    )
    command = [
        CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr",
        "--window-size=1400,1000", "--virtual-time-budget=5000", f"--user-data-dir={page.parent / 'profile'}",
        f"--blink-settings=preferredColorScheme={'0' if scheme == 'dark' else '1'}", "--dump-dom", outer.as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    outer.unlink()
    (found,) = re.findall(r'data-probe="([^"]*)"', done.stdout)
    return Seen(json.loads(html.unescape(found)), [line for line in done.stderr.splitlines() if "CONSOLE" in line])
