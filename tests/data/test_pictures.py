"""Pictures are trained as they are meant to be seen, whatever their format."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from encoded import counts, folder_of, noise
from fixtures import Cli, RecipeFile
from PIL import Image
from refusals import refused

from erasediff_lora.data.pictures import SUFFIXES, open_picture

ORIENTATIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}
"""EXIF orientation -> how the camera stored the upright picture."""


def same(one: Image.Image, other: Image.Image) -> bool:
    return np.array_equal(np.asarray(one), np.asarray(other))


def latents(prepare: Any, folder: Path, **images: Any) -> torch.Tensor:
    return prepare(forget={"images": {"folder": str(folder), **images}}).latents[:]


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("suffix", ["png", "tiff", "webp"])
def test_exif_says_which_way_is_up(prepare: Any, tmp_path: Path, orientation: Any, suffix: str) -> None:
    upright = noise(0, (48, 32))
    stored = upright.transpose(ORIENTATIONS[orientation])
    exif = Image.Exif()
    exif[0x0112] = orientation
    (tmp_path / "turned").mkdir()
    stored.save(tmp_path / f"turned/a.{suffix}", exif=exif, lossless=True)
    expected = latents(prepare, folder_of(tmp_path / "upright", a=upright))
    assert torch.equal(latents(prepare, tmp_path / "turned"), expected)
    assert same(open_picture(tmp_path / f"turned/a.{suffix}"), upright)


def test_a_photo_is_upright_from_a_folder_and_from_datasets(prepare: Any, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    exif = Image.Exif()
    exif[0x0112] = 6
    (tmp_path / "photos").mkdir()
    noise(0, (48, 32)).save(tmp_path / "photos/a.jpg", exif=exif)
    data = datasets.Dataset.from_dict({"image": [str(tmp_path / "photos/a.jpg")]})
    data.cast_column("image", datasets.Image()).save_to_disk(tmp_path / "set")
    found = prepare(forget={"images": {"folder": str(tmp_path / "photos")}})
    assert counts(found.report.noted)["TURNED"] == {str(tmp_path / "photos/a.jpg"): 1}
    assert torch.equal(prepare(forget={"images": {"dataset": str(tmp_path / "set")}}).latents[:], found.latents[:])


def transparent(kind: str) -> Image.Image:
    """A grey picture whose left half is clear, with magenta underneath."""
    rgba = Image.new("RGBA", (32, 32), (90, 90, 90, 255))
    rgba.paste((255, 0, 255, 0), (0, 0, 16, 32))
    match kind:
        case "RGBA":
            return rgba
        case "LA":
            grey = Image.new("LA", (32, 32), (90, 255))
            grey.paste((200, 0), (0, 0, 16, 32))
            return grey
        case "palette":
            return rgba.quantize(4)
        case "colour key":
            keyed = rgba.convert("RGB")
            keyed.info["transparency"] = (255, 0, 255)
            return keyed
        case _:
            array = np.full((32, 32), 90 * 257, np.uint16)
            array[:, :16] = 5
            deep = Image.fromarray(array)
            deep.info["transparency"] = 5
            return deep


@pytest.mark.parametrize("kind", ["RGBA", "LA", "palette", "colour key", "16 bits"])
@pytest.mark.parametrize("background", [None, "black", "#0a0b0c"])
def test_transparency_lies_on_the_background(prepare: Any, tmp_path: Path, kind: str, background: str | None) -> None:
    (tmp_path / "clear").mkdir()
    picture = transparent(kind)
    options = {"transparency": picture.info["transparency"]} if "transparency" in picture.info else {}
    picture.save(tmp_path / "clear/a.png", **options)
    flat = Image.new("RGB", (32, 32), background or "white")
    flat.paste((90, 90, 90), (16, 0, 32, 32))
    chosen = {} if background is None else {"background": background}
    found = prepare(forget={"images": {"folder": str(tmp_path / "clear"), **chosen}})
    assert torch.equal(found.latents[:], latents(prepare, folder_of(tmp_path / "flat", a=flat)))
    assert counts(found.report.noted)["FLATTENED"] == {str(tmp_path / "clear/a.png"): 1}


def test_a_background_is_a_colour(recipe_file: RecipeFile, cli: Cli, tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "pictures", a=noise(0))
    for value, remedy in (("blakc", "Did you mean 'black'?"), ("#12", "Write a name such as white, or '#rrggbb'.")):
        images = {"folder": str(folder), "background": value}
        result = cli("prepare", recipe_file(forget={"images": images}))
        refused(result, f"forget.images.background = {value!r}: is no colour. {remedy}")


def test_sixteen_bits_are_scaled_and_not_clipped(tmp_path: Path) -> None:
    ramp = np.linspace(0, 65535, 32 * 32).reshape(32, 32)
    expected = np.rint(ramp / 257).astype(np.uint8)
    Image.fromarray(ramp.astype(np.uint16)).save(tmp_path / "deep.png")
    Image.fromarray((ramp / 65535).astype(np.float32)).save(tmp_path / "float.tiff")
    Image.fromarray(np.rint(ramp).astype(np.int32)).save(tmp_path / "long.tiff")
    for name in ("deep.png", "float.tiff", "long.tiff"):
        found = np.array(open_picture(tmp_path / name))
        assert np.abs(found.astype(int) - expected[..., None]).max() <= 1, name
    Image.fromarray((ramp * 1000).astype(np.float32)).save(tmp_path / "unknown.tiff")
    with pytest.raises(OSError, match=r"its values go from 0 to 6.5535e\+07, and 1 would be white"):
        open_picture(tmp_path / "unknown.tiff")


@pytest.mark.parametrize(("mode", "colour", "seen"), [
    ("CMYK", (0, 255, 255, 0), (255, 0, 0)), ("L", 77, (77, 77, 77)), ("1", 1, (255, 255, 255)), ("P", 9, (9, 9, 9)),
    ("YCbCr", (76, 85, 255), (254, 0, 0)),
])  # fmt: skip
def test_other_colour_spaces(tmp_path: Path, mode: str, colour: Any, seen: Any) -> None:
    picture = Image.new(mode, (8, 8), colour)
    if mode == "P":
        picture.putpalette([value for shade in range(256) for value in (shade,) * 3])
    suffix = "png" if mode in ("L", "1", "P") else "jpg" if mode == "CMYK" else "tiff"
    picture.save(tmp_path / f"a.{suffix}")
    found: Any = open_picture(tmp_path / f"a.{suffix}").getpixel((4, 4))
    assert max(abs(a - b) for a, b in zip(found, seen, strict=True)) <= 2


@pytest.mark.parametrize("suffix", ["gif", "tiff", "tif", "jfif", "avif", "jp2", "ppm", "tga", "webp", "bmp"])
def test_what_pillow_reads_is_read(prepare: Any, tmp_path: Path, suffix: str) -> None:
    (tmp_path / "pictures").mkdir()
    Image.new("RGB", (32, 32), (10, 200, 30)).save(tmp_path / f"pictures/a.{suffix.upper()}")
    assert f".{suffix}" in SUFFIXES
    found: Any = open_picture(tmp_path / f"pictures/a.{suffix.upper()}").getpixel((3, 3))
    assert max(abs(a - b) for a, b in zip(found, (10, 200, 30), strict=True)) <= 12
    assert len(latents(prepare, tmp_path / "pictures")) == 1


@pytest.mark.parametrize("suffix", ["gif", "png", "webp", "tiff"])
def test_of_several_frames_the_first(prepare: Any, tmp_path: Path, suffix: str) -> None:
    (tmp_path / "pictures").mkdir()
    frames = [Image.new("RGB", (32, 32), colour) for colour in ("red", "blue", "lime")]
    file = tmp_path / f"pictures/a.{suffix}"
    frames[0].save(file, save_all=True, append_images=frames[1:], lossless=True)
    assert open_picture(file).getpixel((0, 0)) == (255, 0, 0)
    found = prepare(forget={"images": {"folder": str(tmp_path / "pictures")}})
    assert counts(found.report.noted)["FIRST_FRAME"] == {str(file): 1}


def test_what_is_no_picture_is_counted(prepare: Any, tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "pictures", a=noise(0))
    for name in ("b.heic", "c.heic", "d.psd", "README", ".DS_Store", "._a.png", "__MACOSX/a.png"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"something else")
    found = prepare(forget={"images": {"folder": str(folder)}})
    assert counts(found.report.left_out) == {
        "NO_PICTURE": {".heic": 2, ".psd": 1, "README": 1},
        "HIDDEN": {".DS_Store": 1, "._a.png": 1, "__MACOSX/a.png": 1},
    }


def test_a_folder_of_nothing_but_other_files(recipe_file: RecipeFile, cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures/a.heic").write_bytes(b"x")
    result = cli("prepare", recipe_file(forget={"images": {"folder": str(tmp_path / "pictures")}}))
    refused(result, "holds no readable picture. Left out: files that are no pictures: .heic.")


def test_programs_are_not_run(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n")
    with pytest.raises(OSError, match="cannot identify"):
        open_picture(tmp_path / "a.png")


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_damaged_exif_says_nothing(tmp_path: Path) -> None:
    noise(0).save(tmp_path / "a.png", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff\x01\x12")
    assert same(open_picture(tmp_path / "a.png"), noise(0))


def test_real_images_of_an_evaluation_are_opened_in_the_same_way(tmp_path: Path) -> None:
    from erasediff_lora.evaluation.metrics.distances import read_images

    upright, exif = noise(0, (48, 32)), Image.Exif()
    exif[0x0112] = 6
    upright.transpose(ORIENTATIONS[6]).save(tmp_path / "a.png", exif=exif)
    transparent("RGBA").save(tmp_path / "b.gif")
    turned, flat = read_images(tmp_path)
    assert same(turned, upright) and flat.getpixel((0, 0)) == (255, 255, 255)
