"""Pictures that leave the machine: those of the run, and nothing that a stranger's evaluation.json points at."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fixtures import Cli
from measured_run import edit
from PIL import Image
from refusals import refused

from erasediff_lora.errors import UserError
from erasediff_lora.storage.run_folder import picture_in

SECRET = b"the password is xyzzy"


def outside(run: Path) -> Any:
    (run.parent / "secret.txt").write_bytes(SECRET)
    return "../secret.txt"


def outside_picture(run: Path) -> Any:
    Image.new("RGB", (32, 32)).save(run.parent / "private.png")
    return "../private.png"


def there_and_back(run: Path) -> Any:
    return f"pictures/../../{run.name}/before_after.png"


def absolute(run: Path) -> Any:
    return str(run / "before_after.png")


def link(run: Path) -> Any:
    outside_picture(run)
    (run / "pictures/link.png").symlink_to(run.parent / "private.png")
    return "pictures/link.png"


def link_inside(run: Path) -> Any:
    (run / "pictures/link.png").symlink_to(run / "before_after.png")
    return "pictures/link.png"


def behind_a_link(run: Path) -> Any:
    outside_picture(run)
    (run / "elsewhere").symlink_to(run.parent)
    return "elsewhere/private.png"


def text_by_the_name_of_a_picture(run: Path) -> Any:
    (run / "pictures/x.png").write_bytes(SECRET)
    return "pictures/x.png"


def recipe(run: Path) -> Any:
    return "recipe.yaml"


def other_type(run: Path) -> Any:
    Image.new("RGB", (32, 32)).save(run / "pictures/x.png", format="TIFF")
    return "pictures/x.png"


def folder(run: Path) -> Any:
    return "pictures"


def pipe(run: Path) -> Any:
    os.mkfifo(run / "pictures/x.png")
    return "pictures/x.png"


def huge(run: Path) -> Any:
    Image.new("1", (9000, 9000)).save(run / "pictures/x.png")
    return "pictures/x.png"


def empty(run: Path) -> Any:
    return ""


def zero(run: Path) -> Any:
    return "pictures/\0"


WAYS = [
    *(outside, outside_picture, there_and_back, absolute, link, link_inside, behind_a_link),
    *(text_by_the_name_of_a_picture, recipe, other_type, folder, pipe, huge, empty, zero),
]


@pytest.mark.parametrize("way", WAYS)
def test_only_pictures_inside_the_run_are_published(way: Callable[[Path], Any], run: Path, cli: Cli) -> None:
    pictures = json.loads((run / "evaluation.json").read_text())["pictures"]
    pictures[1]["erased"] = way(run)
    edit(run, pictures=pictures)
    result = cli("publish", run, "--repo", "me/x", "--dry_run")
    refused(result, "evaluation.json: pictures.1.erased = ", f"inside {run} is used")
    assert not (run / "hub").exists()


@pytest.mark.parametrize("way", WAYS)
def test_only_pictures_inside_the_run_are_compared(way: Callable[[Path], Any], run: Path, cli: Cli) -> None:
    edit(run, strips=[{"section": "forget", "title": "cat", "rows": [], "alt": "", "file": way(run)}])
    page = run.parent / "page.html"
    refused(cli("compare", run, "--output", page), "evaluation.json: strips.0.file = ", f"inside {run} is used")
    assert not page.exists()


@pytest.mark.parametrize("name", ["before_after.png", "forget_set.png"])
def test_sheets_are_no_links_either(name: str, run: Path, cli: Cli) -> None:
    (run / name).unlink()
    (run / name).symlink_to(run.parent / "private.png")
    outside_picture(run)
    refused(cli("publish", run, "--repo", "me/x", "--dry_run", "--training_images"), f"run = '{name}': is a link")


def test_pictures_are_drawn_anew_without_what_hides_in_them(run: Path, cli: Cli) -> None:
    entry = json.loads((run / "evaluation.json").read_text())["pictures"][0]
    exif = Image.Exif()
    exif[0x010E] = SECRET.decode()
    for name in (entry["base"], entry["erased"]):
        Image.new("RGB", (32, 32), "red").save(run / name, format="JPEG", exif=exif)
        with (run / name).open("ab") as file:
            file.write(SECRET)
    with (run / "before_after.png").open("ab") as file:
        file.write(SECRET)
    assert cli("publish", run, "--repo", "me/x", "--dry_run").status == 0
    files = [file for file in (run / "hub").rglob("*") if file.is_file()]
    assert not [file for file in files if SECRET in file.read_bytes()]


def test_types_go_by_content(tmp_path: Path) -> None:
    for kind in ("PNG", "JPEG", "WEBP"):
        Image.new("RGB", (4, 4)).save(tmp_path / f"{kind}.dat", format=kind)
        assert picture_in(tmp_path, f"{kind}.dat", "x") == tmp_path.resolve() / f"{kind}.dat"
    assert picture_in(tmp_path, "missing.png", "x") is None
    with pytest.raises(UserError, match="names no file"):
        picture_in(tmp_path, ["a.png"], "x")
