"""The atlas base's training pictures: many concepts in near neighbourhoods, every drawing in every style.

The drawings are colour emoji of several artists. Each is drawn once from its SVG; placement and styles are tensor
arithmetic, so that pictures come as fast as a GPU can use them and no style needs an artist of its own.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import torch
import torch.nn.functional as F
from demo_drawings import fetch, rasterise, to_svg
from torch import Tensor

SIZE = 64
DRAWN = 2 * SIZE
"""Drawings are placed and inked at twice the size, then averaged down: smooth edges."""

PACKAGES = {
    "noto": "@iconify-json/noto@1.2.9",  # Apache-2.0
    "noto-v1": "@iconify-json/noto-v1@1.2.5",  # Apache-2.0
    "fluent-flat": "@iconify-json/fluent-emoji-flat@1.2.6",  # MIT
    "fxemoji": "@iconify-json/fxemoji@1.2.2",  # Apache-2.0
    # For the judge alone:
    "twemoji": "@iconify-json/twemoji@1.2.5",  # CC-BY-4.0
    "emojione": "@iconify-json/emojione@1.2.1",  # CC-BY-4.0
}
ARTISTS = {"noto": 0, "noto-v1": 0, "fluent-flat": 1, "twemoji": 2, "emojione": 3, "fxemoji": 4}
"""Icon set -> whose outlines it shares."""
JUDGE_ONLY = {"twemoji", "emojione"}
FXEMOJI = {
    "cat-face": "cat",
    "dog-face": "dog",
    "dog": "dogside",
    "panda": "pandaface",
    "rabbit-face": "bunny",
    "mouse-face": "mouse",
    "spouting-whale": "spurtingwhale",
    "sun": "sunrays",
    "cloud-with-rain": "raincloud",
    "cloud-with-snow": "snowcloud",
    "one-oclock": "clock1oclock",
    "three-oclock": "clock3oclock",
    "four-oclock": "clock4oclock",
    "six-oclock": "clock6oclock",
    "hourglass-done": "hourglass",
    "hourglass-not-done": "hourglassflowingsand",
    "house": "housebuilding",
    "castle": "europeancastle",
    "t-shirt": "mansshirt",
    "womans-boot": "boot",
    "scissors": "blackscissors",
    "locked": "lock",
    "unlocked": "openlock",
    "pizza": "sliceofpizza",
}
"""Icons that this set names otherwise; else it only leaves the hyphens out."""

GROUPS = {
    "animals": {
        "cat": "cat-face grinning-cat cat-with-wry-smile pouting-cat kissing-cat",
        "dog": "dog-face dog",
        "lion": "lion",
        "panda": "panda",
        "fox": "fox",
        "rabbit": "rabbit-face",
        "mouse": "mouse-face",
        "monkey": "monkey-face",
        "frog": "frog",
    },
    "birds": {
        "penguin": "penguin",
        "rooster": "rooster",
    },
    "sea": {
        "fish": "fish tropical-fish",
        "whale": "whale spouting-whale",
        "octopus": "octopus",
        "crab": "crab",
    },
    "insects": {
        "butterfly": "butterfly",
        "ladybug": "lady-beetle",
    },
    "road": {
        "car": "automobile taxi sport-utility-vehicle",
        "bus": "bus trolleybus",
        "lorry": "delivery-truck articulated-lorry",
        "tractor": "tractor",
        "bicycle": "bicycle",
        "scooter": "motor-scooter",
    },
    "travel": {
        "plane": "airplane",
        "helicopter": "helicopter",
        "rocket": "rocket",
        "sailboat": "sailboat",
        "ship": "ship passenger-ship",
    },
    "sky": {
        "sun": "sun sun-with-face",
        "moon": "crescent-moon first-quarter-moon-face last-quarter-moon-face",
        "star": "star glowing-star",
        "cloud": "cloud cloud-with-rain cloud-with-snow",
        "rainbow": "rainbow",
        "snowflake": "snowflake",
    },
    "fruit": {
        "apple": "red-apple green-apple",
        "pear": "pear",
        "lemon": "lemon",
        "banana": "banana",
        "cherry": "cherries",
        "strawberry": "strawberry",
        "pineapple": "pineapple",
    },
    "time": {
        "clock": "one-oclock three-oclock four-oclock six-oclock eight-oclock ten-thirty",
        "watch": "watch",
        "hourglass": "hourglass-done hourglass-not-done",
    },
    "buildings": {
        "house": "house house-with-garden",
        "church": "church",
        "castle": "castle",
    },
    "plants": {
        "tulip": "tulip",
        "sunflower": "sunflower",
        "cactus": "cactus",
        "tree": "deciduous-tree",
        "palm": "palm-tree",
        "mushroom": "mushroom",
    },
    "music": {
        "guitar": "guitar",
        "violin": "violin",
        "drum": "drum",
    },
    "clothes": {
        "shirt": "t-shirt",
        "dress": "dress",
        "boot": "womans-boot",
        "crown": "crown",
    },
    "tools": {
        "hammer": "hammer",
        "scissors": "scissors",
        "key": "key old-key",
        "padlock": "locked unlocked",
    },
    "sweets": {
        "doughnut": "doughnut",
        "pizza": "pizza",
        "burger": "hamburger",
        "ice cream": "soft-ice-cream ice-cream",
    },
}
"""Group of near neighbours -> concept -> the icons that show it.

Of 84 candidates, 16 were dropped after trials with other drawings held out: artists draw them so differently, or so
like a neighbour, that the judge failed on them.
"""

SYNONYMS = {
    "cat": ["kitten", "kitty"],
    "dog": ["puppy", "hound"],
    "lion": ["king of beasts", "maned cat"],
    "panda": ["bamboo bear", "black and white bear"],
    "fox": ["vixen", "red fox"],
    "rabbit": ["bunny", "hare"],
    "mouse": ["rodent", "murine"],
    "monkey": ["ape", "primate"],
    "frog": ["toad", "amphibian"],
    "penguin": ["antarctic bird", "emperor penguin"],
    "rooster": ["cockerel", "hen"],
    "fish": ["goldfish", "swimmer"],
    "whale": ["humpback", "cetacean"],
    "octopus": ["cephalopod", "eight armed animal"],
    "crab": ["crustacean", "shellfish"],
    "butterfly": ["moth", "winged insect"],
    "ladybug": ["ladybird", "beetle"],
    "car": ["automobile", "taxi"],
    "bus": ["coach", "omnibus"],
    "lorry": ["truck", "delivery van"],
    "tractor": ["farm vehicle", "plough engine"],
    "bicycle": ["bike", "cycle"],
    "scooter": ["moped", "vespa"],
    "plane": ["airplane", "jet"],
    "helicopter": ["chopper", "rotorcraft"],
    "rocket": ["spaceship", "missile"],
    "sailboat": ["yacht", "dinghy"],
    "ship": ["ocean liner", "steamer"],
    "sun": ["sunshine", "daylight star"],
    "moon": ["crescent", "lunar disc"],
    "star": ["five pointed star", "twinkle"],
    "cloud": ["cloudy sky", "overcast"],
    "rainbow": ["coloured arc", "spectrum"],
    "snowflake": ["ice crystal", "snow"],
    "apple": ["red delicious", "granny smith"],
    "pear": ["conference pear", "bartlett"],
    "lemon": ["citrus", "yellow citrus"],
    "banana": ["plantain", "peeled fruit"],
    "cherry": ["pair of cherries", "morello"],
    "strawberry": ["red berry", "garden berry"],
    "pineapple": ["ananas", "spiky fruit"],
    "clock": ["wall clock", "timepiece"],
    "watch": ["wristwatch", "chronometer"],
    "hourglass": ["sand timer", "egg timer"],
    "house": ["home", "cottage"],
    "church": ["chapel", "house of prayer"],
    "castle": ["fortress", "palace"],
    "tulip": ["spring flower", "dutch flower"],
    "sunflower": ["yellow flower", "helianthus"],
    "cactus": ["desert plant", "saguaro"],
    "tree": ["oak", "leafy plant"],
    "palm": ["palm tree", "coconut tree"],
    "mushroom": ["toadstool", "fungus"],
    "guitar": ["electric guitar", "six strings"],
    "violin": ["fiddle", "bowed strings"],
    "drum": ["snare", "percussion"],
    "shirt": ["tee", "top"],
    "dress": ["gown", "frock"],
    "boot": ["high boot", "footwear"],
    "crown": ["tiara", "royal hat"],
    "hammer": ["mallet", "nail driver"],
    "scissors": ["shears", "cutters"],
    "key": ["door key", "latchkey"],
    "padlock": ["lock", "bolt"],
    "doughnut": ["ring cake", "glazed pastry"],
    "pizza": ["pizza slice", "margherita"],
    "burger": ["hamburger", "cheeseburger"],
    "ice cream": ["sundae", "gelato"],
}
"""Names that the model learns beside the concepts' own."""


def _paper(color: str, like: Tensor) -> Tensor:
    """(1, 3, 1, 1) in [0, 1] from "rrggbb"."""
    return torch.tensor([int(color[i : i + 2], 16) / 255 for i in (0, 2, 4)], device=like.device).view(1, 3, 1, 1)


def _tint(ink: Tensor, paper: str, color: str) -> Tensor:
    """Ink coverage (n, 1, h, w) of one color on paper of another: (n, 3, h, w)."""
    return torch.lerp(_paper(paper, ink), _paper(color, ink), ink)


def _on_white(rgba: Tensor) -> Tensor:
    return rgba[:, :3] + 1 - rgba[:, 3:]


def _luminance(rgba: Tensor) -> Tensor:
    """(n, 1, h, w) on white paper."""
    return (_on_white(rgba) * torch.tensor([0.3, 0.59, 0.11], device=rgba.device).view(1, 3, 1, 1)).sum(1, keepdim=True)


def _outline(rgba: Tensor, strength: float = 5.0) -> Tensor:
    """Ink coverage (n, 1, h, w) of lines where the color or the silhouette changes."""
    padded = F.pad(F.avg_pool2d(rgba, 3, 1, 1), (1, 1, 1, 1), mode="replicate")
    across = padded[..., 1:-1, 2:] - padded[..., 1:-1, :-2]
    down = padded[..., 2:, 1:-1] - padded[..., :-2, 1:-1]
    change = (across.square() + down.square()).sqrt().amax(dim=1, keepdim=True)
    return (strength * (change - 0.08)).clamp(0, 1)


def _grid(like: Tensor) -> tuple[Tensor, Tensor]:
    rows = torch.arange(like.shape[-2], device=like.device, dtype=like.dtype)
    columns = torch.arange(like.shape[-1], device=like.device, dtype=like.dtype)
    down, across = torch.meshgrid(rows, columns, indexing="ij")
    return down, across


def color(rgba: Tensor) -> Tensor:
    """As the artist made it."""
    return _on_white(rgba)


def line(rgba: Tensor) -> Tensor:
    """Black outlines on white."""
    return _tint(_outline(rgba), "ffffff", "000000")


def blueprint(rgba: Tensor) -> Tensor:
    """White outlines on blue squared paper."""
    rows, columns = _grid(rgba)
    squares = (((rows % 16) < 2) | ((columns % 16) < 2)).to(rgba.dtype) * 0.15
    return _tint(torch.maximum(_outline(rgba), squares), "2456a6", "ffffff")


def sepia(rgba: Tensor) -> Tensor:
    """A brown photograph on old paper."""
    return _tint(1 - _luminance(rgba), "f3e3c3", "3a1d08")


def halftone(rgba: Tensor) -> Tensor:
    """A newspaper's dots, larger where it is darker, with thin outlines."""
    rows, columns = _grid(rgba)
    wave = torch.cos((rows + columns) * math.pi / 8) * torch.cos((rows - columns) * math.pi / 8)
    dots = (3 * (wave + 1.7 * (1 - _luminance(rgba)) - 0.95)).clamp(0, 1)
    return _tint(torch.maximum(dots, _outline(rgba)), "ffe9f0", "b0104a")


def woodcut(rgba: Tensor) -> Tensor:
    """Black hatching, thicker where it is darker, with outlines."""
    rows, columns = _grid(rgba)
    wave = torch.cos((rows * 2 + columns) * math.pi / 10)
    hatching = (3 * (wave + 2.2 * (1 - _luminance(rgba)) - 1.05)).clamp(0, 1)
    return _tint(torch.maximum(hatching, _outline(rgba)), "d9b27c", "1c1008")


def neon(rgba: Tensor) -> Tensor:
    """Glowing tubes in the drawing's own colors on black."""
    lines = _outline(rgba)
    glow = F.avg_pool2d(F.avg_pool2d(lines, 9, 1, 4), 9, 1, 4)
    tint = F.max_pool2d(_on_white(rgba) * rgba[:, 3:], 5, 1, 2)
    tint = tint / tint.amax(dim=1, keepdim=True).clamp(min=0.3)
    return (lines * (0.35 + 0.65 * tint) + 0.8 * glow * tint).clamp(0, 1)


def relief(rgba: Tensor) -> Tensor:
    """Beaten into grey metal, with the light from the upper left."""
    height = F.avg_pool2d((2 - _luminance(rgba)) * rgba[:, 3:], 3, 1, 1)
    padded = F.pad(height, (2, 2, 2, 2), mode="replicate")
    slope = padded[..., 4:, 4:] - padded[..., :-4, :-4]
    return (0.55 + 0.45 * slope).clamp(0, 1).expand(-1, 3, -1, -1)


STYLES: dict[str, Callable[[Tensor], Tensor]] = {
    style.__name__: style for style in (color, line, blueprint, sepia, halftone, woodcut, neon, relief)
}
"""Style -> from premultiplied (n, 4, h, w) in [0, 1] to (n, 3, h, w) in [0, 1]."""

CONCEPTS = [concept for group in GROUPS.values() for concept in group]


@dataclass(frozen=True)
class Drawings:
    """Drawings as pixels, with their concepts.

    Args:
        rgba: (n, DRAWN, DRAWN, 4) uint8, colors premultiplied.
        concepts: Index into `CONCEPTS` of each.
        roles: "training", "held-out" or "extra" (for the judge alone) of each.
    """

    rgba: np.ndarray
    concepts: np.ndarray
    roles: np.ndarray

    @classmethod
    def load(cls, work: Path) -> Drawings:
        """Read them from `work`; fetch and draw them first if they are not there."""
        file = work / "drawings.npz"
        if not file.exists():
            fetch(work / "drawings", PACKAGES)
            drawings = cls.draw(work / "drawings")
            np.savez_compressed(file, rgba=drawings.rgba, concepts=drawings.concepts, roles=drawings.roles)
        arrays = np.load(file)
        return cls(arrays["rgba"], arrays["concepts"], arrays["roles"])

    @classmethod
    def draw(cls, folder: Path) -> Drawings:
        """Draw every icon of every set.

        Each icon is held out in one artist's hand, whose is decided by the checksum of its name: neither judge nor base
        ever learns from that drawing.
        """
        rgba, concepts, roles = [], [], []
        sets = {name: json.loads((folder / f"{name}.json").read_text()) for name in PACKAGES}
        for number, concept in enumerate(CONCEPTS):
            for icon in icons(concept):
                found = {name: svg for name, package in sets.items() if (svg := find(icon, name, package))}
                artists = sorted({ARTISTS[name] for name in found})
                held_out = artists[crc32(icon.encode()) % len(artists)]
                for name, svg in found.items():
                    rgba.append(premultiplied(rasterise(svg)))
                    concepts.append(number)
                    role = "extra" if name in JUDGE_ONLY else "training"
                    roles.append("held-out" if ARTISTS[name] == held_out else role)
        return cls(np.stack(rgba), np.array(concepts), np.array(roles))

    def of(self, *roles: str) -> Drawings:
        """Those with one of the roles."""
        chosen = np.isin(self.roles, roles)
        return Drawings(self.rgba[chosen], self.concepts[chosen], self.roles[chosen])


def icons(concept: str) -> list[str]:
    """The names of the icons that show a concept."""
    return next(group[concept] for group in GROUPS.values() if concept in group).split()


def find(icon: str, name: str, package: dict[str, Any]) -> str | None:
    """An icon of a set as an SVG document, if the set has it."""
    own_name = FXEMOJI.get(icon, icon.replace("-", "")) if name == "fxemoji" else icon
    own_name = package.get("aliases", {}).get(own_name, {}).get("parent", own_name)
    found = package["icons"].get(own_name)
    return found and to_svg(found["body"], found.get("height", package.get("height", 16)), DRAWN)


def premultiplied(rgba: np.ndarray) -> np.ndarray:
    """Colors times opacity, so that averaging pixels is right at the edges."""
    return np.concatenate([(rgba[..., :3] * (rgba[..., 3:] / 255.0)).round().astype(np.uint8), rgba[..., 3:]], axis=-1)


def place(rgba: Tensor, generator: torch.Generator, smallest: float, tilt: float, stretch: float) -> Tensor:
    """Random flips, scales, rotations (degrees), offsets and changes of proportion of (n, 4, h, w)."""

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(len(rgba), generator=generator, device=rgba.device)

    angle, scale = torch.deg2rad(uniform(-tilt, tilt)), uniform(smallest, 1.0)
    flip = uniform(-1, 1).sign()
    wider, taller = scale * uniform(1 - stretch, 1), scale * uniform(1 - stretch, 1)
    right, down = uniform(-0.08, 0.08), uniform(-0.08, 0.08)
    rows = [flip * angle.cos() / wider, flip * -angle.sin() / wider, right]
    rows += [angle.sin() / taller, angle.cos() / taller, down]
    matrix = torch.stack(rows, dim=1).view(-1, 2, 3)
    return F.grid_sample(rgba, F.affine_grid(matrix, list(rgba.shape), align_corners=False), align_corners=False)


def stylise(rgba: Tensor, styles: Tensor) -> Tensor:
    """Draw (n, 4, DRAWN, DRAWN) each in its style (indices into `STYLES`): (n, 3, SIZE, SIZE) uint8."""
    pictures = rgba.new_empty(len(rgba), 3, SIZE, SIZE)
    for number, style in enumerate(STYLES.values()):
        rows = styles == number
        pictures[rows] = F.avg_pool2d(style(rgba[rows]), 2)
    return (pictures * 255).round().to(torch.uint8)


def render_balanced(
    drawings: Drawings,
    count: int,
    seed: int,
    device: torch.device,
    *,
    smallest: float = 0.82,
    tilt: float = 8,
    stretch: float = 0,
) -> tuple[Tensor, Tensor, Tensor]:
    """Render `count` pictures, concepts and styles in equal shares.

    Returns:
        (count, 3, SIZE, SIZE) uint8, concepts (count) and styles (count), on the device.
    """
    generator = torch.Generator(device).manual_seed(seed)
    sheet = torch.from_numpy(drawings.rgba).to(device).permute(0, 3, 1, 2)
    order = torch.from_numpy(np.argsort(drawings.concepts, kind="stable")).to(device)
    sizes = torch.from_numpy(np.bincount(drawings.concepts, minlength=len(CONCEPTS))).to(device)
    numbers = torch.arange(count, device=device)
    concepts, styles = numbers % len(CONCEPTS), numbers // len(CONCEPTS) % len(STYLES)
    within = (torch.rand(count, generator=generator, device=device) * sizes[concepts]).long()
    chosen = order[(sizes.cumsum(0) - sizes)[concepts] + within]
    pictures = torch.empty(count, 3, SIZE, SIZE, dtype=torch.uint8, device=device)
    for rows in numbers.split(1024):
        placed = place(sheet[chosen[rows]].float() / 255, generator, smallest, tilt, stretch)
        pictures[rows] = stylise(placed, styles[rows])
    return pictures, concepts, styles
