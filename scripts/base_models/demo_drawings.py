"""The demo base's training pictures: emoji drawings, fetched with npm and rendered with random placements."""

from __future__ import annotations

import io
import json
import random
import subprocess
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing import Pool
from pathlib import Path

import numpy as np
from PIL import Image

PACKAGES = {
    "noto": "@iconify-json/noto@1.2.9",  # Apache-2.0
    "fluent-flat": "@iconify-json/fluent-emoji-flat@1.2.6",  # MIT
    "fluent-ink": "@iconify-json/fluent-emoji-high-contrast@1.2.6",  # MIT
    # For the judge alone:
    "noto-v1": "@iconify-json/noto-v1@1.2.5",  # Apache-2.0
    "twemoji": "@iconify-json/twemoji@1.2.5",  # CC-BY-4.0
    "emojione-ink": "@iconify-json/emojione-monotone@1.2.1",  # CC-BY-4.0
}

# How each style is drawn: icon set, ink (what `currentColor` becomes), paper.
STYLES = {
    "color": ("noto", "#000000", "#ffffff"),
    "line": ("fluent-ink", "#000000", "#ffffff"),
    "blueprint": ("fluent-ink", "#ffffff", "#2456a6"),
}

# Other hands' drawings, for the judge: icon set -> (style, the artist whose outlines it shares).
EXTRA = {
    "fluent-flat": ("color", "fluent-ink"),
    "noto-v1": ("color", "noto"),
    "twemoji": ("color", None),
    "emojione-ink": ("line", None),
}

_HOURS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]
ICONS = {
    "cat": "cat-face cat-with-tears-of-joy cat-with-wry-smile crying-cat grinning-cat"
    " grinning-cat-with-smiling-eyes kissing-cat pouting-cat smiling-cat-with-heart-eyes weary-cat",
    "heart": "beating-heart black-heart blue-heart brown-heart green-heart grey-heart growing-heart heart-suit"
    " heart-with-ribbon light-blue-heart orange-heart pink-heart purple-heart red-heart sparkling-heart"
    " white-heart yellow-heart",
    "flower": "blossom cherry-blossom hibiscus rose rosette sunflower tulip bouquet lotus wilted-flower",
    "car": "automobile oncoming-automobile oncoming-police-car oncoming-taxi police-car sport-utility-vehicle"
    " taxi pickup-truck ambulance minibus delivery-truck",
    "fish": "blowfish dolphin fish shark spouting-whale tropical-fish whale",
    "house": "house house-with-garden derelict-house bank hotel hospital school post-office japanese-post-office"
    " office-building convenience-store department-store factory church castle",
    "book": "blue-book green-book orange-book closed-book notebook notebook-with-decorative-cover ledger open-book"
    " books",
    "cloud": "cloud cloud-with-lightning cloud-with-lightning-and-rain cloud-with-rain cloud-with-snow"
    " sun-behind-cloud sun-behind-large-cloud sun-behind-rain-cloud sun-behind-small-cloud",
    "face": "grinning-face crying-face angry-face smiling-face-with-sunglasses winking-face thinking-face"
    " sleeping-face flushed-face slightly-smiling-face slightly-frowning-face neutral-face confused-face"
    " astonished-face disappointed-face expressionless-face face-with-tears-of-joy grinning-squinting-face"
    " hushed-face kissing-face nerd-face relieved-face smirking-face smiling-face-with-heart-eyes star-struck"
    " unamused-face weary-face worried-face zany-face",
    "clock": " ".join([f"{hour}-oclock {hour}-thirty" for hour in _HOURS] + ["mantelpiece-clock"]),
}


@dataclass(frozen=True)
class Drawing:
    """One icon in one style, as SVG."""

    concept: str
    style: str
    icon: str
    body: str
    side: int
    paper: str

    def render(self, rng: random.Random, smallest: float, tilt: float, size: int = 64) -> np.ndarray:
        """Draw it with a random flip, scale, rotation (degrees) and offset: (size, size, 3) uint8."""
        flip = rng.choice((-1, 1))
        scale = rng.uniform(smallest, 1.0)
        turn = rng.uniform(-tilt, tilt)
        right, down = (rng.uniform(-0.04, 0.04) * self.side for _ in range(2))
        half = self.side / 2
        body = (
            f'<rect width="{self.side}" height="{self.side}" fill="{self.paper}"/>'
            f'<g transform="translate({half + right} {half + down}) rotate({turn})'
            f' scale({flip * scale} {scale}) translate({-half} {-half})">{self.body}</g>'
        )
        return rasterise(to_svg(body, self.side, size))[..., :3]


def to_svg(body: str, side: int, size: int) -> str:
    """An icon's body, `side` units wide, as a document of `size` pixels."""
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
        f' viewBox="0 0 {side} {side}" width="{size}" height="{size}">{body}</svg>'
    )


def rasterise(svg: str) -> np.ndarray:
    """Its pixels: (size, size, 4) uint8, transparent where nothing is drawn."""
    import resvg_py  # needed where drawings are made, not where they are read

    png = resvg_py.svg_to_bytes(svg_string=svg)
    return np.array(Image.open(io.BytesIO(bytes(png))).convert("RGBA"))


def fetch(folder: Path, packages: dict[str, str] = PACKAGES) -> None:
    """Download the icon packages (name -> package and version) into `folder` with `npm pack`, once."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, package in packages.items():
        target = folder / f"{name}.json"
        if target.exists():
            continue
        archive = subprocess.run(
            ["npm", "pack", package, "--silent"], cwd=folder, check=True, capture_output=True, text=True
        ).stdout.strip()
        with tarfile.open(folder / archive) as tar:
            icons = tar.extractfile("package/icons.json")
            assert icons is not None
            target.write_bytes(icons.read())
        (folder / archive).unlink()


def load(folder: Path) -> tuple[list[Drawing], list[Drawing], list[Drawing]]:
    """Return (training, held-out, extra) drawings.

    A drawing is one artist's picture of one icon: every fifth is held out, a different fifth for each artist,
    and nothing is ever trained on it in any colouring. The extra drawings, by other hands, teach the judge alone;
    those that share the outlines of a held-out drawing are left out.
    """
    sets = {name: json.loads((folder / f"{name}.json").read_text()) for name in PACKAGES}

    def drawing(concept: str, style: str, icon: str, package: str, ink: str, paper: str) -> Drawing:
        body = sets[package]["icons"][icon]["body"].replace("currentColor", ink)
        return Drawing(concept, style, icon, body, sets[package].get("height", 16), paper)

    training: list[Drawing] = []
    held_out: list[Drawing] = []
    extra: list[Drawing] = []
    for concept, names in ICONS.items():
        for position, icon in enumerate(sorted(names.split())):
            out = {"noto": position % 5 == 0, "fluent-ink": position % 5 == 2}
            for style, (package, ink, paper) in STYLES.items():
                (held_out if out[package] else training).append(drawing(concept, style, icon, package, ink, paper))
            for package, (style, relative) in EXTRA.items():
                if icon in sets[package]["icons"] and not (relative and out.get(relative, False)):
                    extra.append(drawing(concept, style, icon, package, "#000000", "#ffffff"))
    return training, held_out, extra


def _render_job(job: tuple[Drawing, int, float, float]) -> np.ndarray:
    drawing, seed, smallest, tilt = job
    return drawing.render(random.Random(seed), smallest, tilt)


def render_balanced(
    drawings: list[Drawing], count: int, seed: int, *, smallest: float = 0.82, tilt: float = 8
) -> tuple[np.ndarray, list[Drawing]]:
    """Render `count` pictures, concepts and styles in equal shares.

    Args:
        drawings: What to choose from.
        count: Number of pictures.
        seed: Decides the choice and the placements.
        smallest: Smallest scale.
        tilt: Largest rotation in degrees, either way.

    Returns:
        (count, 64, 64, 3) uint8 and the drawing behind each.
    """
    rng = random.Random(seed)
    groups: dict[tuple[str, str], list[Drawing]] = {}
    for drawing in drawings:
        groups.setdefault((drawing.concept, drawing.style), []).append(drawing)

    def picks() -> Iterator[Drawing]:
        keys = list(groups)
        for index in range(count):
            yield rng.choice(groups[keys[index % len(keys)]])

    chosen = list(picks())
    with Pool() as pool:
        jobs = [(drawing, seed * 1_000_003 + index, smallest, tilt) for index, drawing in enumerate(chosen)]
        pictures = pool.map(_render_job, jobs, chunksize=64)
    return np.stack(pictures), chosen
