"""The one place that opens pictures: whatever their format, upright, in RGB of 8 bits, without transparency."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import ExifTags, Image, ImageOps

from erasediff_lora.data.set_report import Noted

_READ = ("PNG", "JPEG", "MPO", "WEBP", "BMP", "DIB", "GIF", "TIFF", "AVIF", "JPEG2000", "PPM", "QOI", "TGA")
"""What is read, whatever the name of the file: others, such as PostScript, run programs."""

_KNOWN = Image.registered_extensions()
FORMATS = tuple(name for name in _READ if name in Image.OPEN)
"""Those of them that this pillow has."""
SUFFIXES = frozenset(suffix for suffix, name in _KNOWN.items() if name in FORMATS)

MOST_PIXELS = 80_000_000
SIXTEEN_BITS = 65535
WHITE = "white"


def open_picture(source: Any, background: str = WHITE) -> Image.Image:
    """A picture as it is meant to be seen, in RGB.

    Turned as its EXIF says; what is transparent laid on the background; 16 bits and floating-point numbers scaled to
    8 bits; of several frames the first.

    Args:
        source: A file, an open one, or a picture.
        background: Name of a colour, or #rrggbb.

    Raises:
        OSError: If it is not readable, in no known format, or has more than MOST_PIXELS.
    """
    return look_at(source, background)[0]


def look_at(source: Any, background: str = WHITE) -> tuple[Image.Image, list[Noted]]:
    """As `open_picture`, with what had to be done to it."""
    try:
        if isinstance(source, Image.Image):
            return _normal(source, background)
        with Image.open(source, formats=FORMATS) as image:
            return _normal(image, background)
    except OSError:
        raise
    except Exception as error:  # decoders of damaged files raise whatever they stumble over
        raise OSError(f"{type(error).__name__}: {error}") from error


def _normal(image: Image.Image, background: str) -> tuple[Image.Image, list[Noted]]:
    width, height = image.size
    if width * height > MOST_PIXELS:
        raise OSError(f"it has {width} x {height} pixels, more than {MOST_PIXELS}")
    noted = []
    if image.format != "MPO" and getattr(image, "is_animated", False):  # MPO: a photo, and others of the same moment
        noted.append(Noted.FIRST_FRAME)
        image.seek(0)
    if _is_turned(image):
        noted.append(Noted.TURNED)
        image = ImageOps.exif_transpose(image)
    coloured = _eight_bits(image)
    if coloured is not image:
        noted.append(Noted.SCALED)
    flat = _flat(coloured, background)
    if flat is not coloured:
        noted.append(Noted.FLATTENED)
    return flat.convert("RGB"), noted


def _is_turned(image: Image.Image) -> bool:
    try:
        return image.getexif().get(ExifTags.Base.Orientation, 1) in range(2, 9)
    except Exception:  # damaged EXIF says nothing
        return False


def _eight_bits(image: Image.Image) -> Image.Image:
    """Grey of 16 bits or floating-point numbers in 8 bits, with alpha where one grey stands for transparency.

    Raises:
        OSError: If it cannot be told which number is white.
    """
    if not image.mode.startswith(("I", "F")):
        return image
    values = np.asarray(image).astype(np.float64)
    white = 1.0 if image.mode == "F" else SIXTEEN_BITS
    if not (values.min() >= 0 and values.max() <= white):  # or NaN
        raise OSError(f"its values go from {values.min():g} to {values.max():g}, and {white:g} would be white")
    grey = Image.fromarray(np.rint(values * (255 / white)).astype(np.uint8))
    clear = image.info.get("transparency")
    if not isinstance(clear, int):
        return grey
    grey.putalpha(Image.fromarray(np.where(values == clear, 0, 255).astype(np.uint8)))
    return grey


def _flat(image: Image.Image, background: str) -> Image.Image:
    """Without transparency; the same picture where there is none."""
    has_alpha = image.mode in ("RGBA", "RGBa", "LA", "La", "PA") or "transparency" in image.info
    if not has_alpha and not (image.palette is not None and image.palette.mode.endswith("A")):
        return image
    if image.mode == "La":
        image = image.convert("LA")
    clear = image.convert("RGBA")
    if clear.getchannel("A").getextrema() == (255, 255):
        return image
    ground = Image.new("RGB", clear.size, background).convert("RGBA")
    return Image.alpha_composite(ground, clear).convert("RGB")
