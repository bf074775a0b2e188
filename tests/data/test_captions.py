"""Captions are read where people write them, and what fits no picture is named."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from encoded import anchors, captions, counts, folder_of, noise, shown
from fixtures import Cli, RecipeFile
from refusals import refused

from erasediff_lora.errors import UserError

SPELLINGS = ["./a/Ä.png", "a\\Ä.png", "a/../a/Ä.png", "a/ä.png", "a/Ä.JPG"]
ANCHORED = {"concepts": [{"name": "cat", "anchor": "dog"}]}


def images(folder: Path, **fields: Any) -> dict[str, Any]:
    return {"images": {"folder": str(folder), **fields}}


def two(folder: Path) -> Path:
    return folder_of(folder, **{"0": noise(0), "1": noise(1)})


def write_rows(listing: Path, *rows: dict[str, Any], bom: bool = False) -> None:
    listing.parent.mkdir(exist_ok=True, parents=True)
    if listing.suffix == ".csv":
        names = list(dict.fromkeys(name for row in rows for name in row))
        lines = [",".join(names)] + [",".join(f'"{row.get(name, "")}"' for name in names) for row in rows]
        text = "\r\n".join(lines)
    else:
        text = "\n".join(map(json.dumps, rows))
    listing.write_bytes(b"\xef\xbb\xbf" * bom + text.encode())


@pytest.mark.parametrize("suffix", ["txt", "caption", "png.txt"])
def test_text_files_beside_the_pictures(prepare: Any, tmp_path: Path, suffix: str) -> None:
    folder = two(tmp_path / "pictures")
    (folder / f"0.{suffix}").write_bytes(b"\xef\xbb\xbfa cat asleep \r\n")
    data = prepare(forget=ANCHORED | images(folder), objective={"target": "anchor"})
    assert captions(data) == ["a cat asleep", "a photo of a cat"]
    assert anchors(data) == ["a dog asleep", "a photo of a dog"]
    assert counts(data.report.noted) == {"NO_CAPTION": {str(folder / "1.png"): 1}}


def test_text_files_that_fit_no_picture_are_reported(prepare: Any, tmp_path: Path) -> None:
    folder = two(tmp_path / "pictures")
    (folder / "0.txt").write_text("a cat asleep")
    (folder / "9.txt").write_text("a cat gone")
    (folder / "1.txt").write_text("\na cat awake\nor another\n")
    write_rows(folder / "metadata.jsonl", {"file_name": "0.png", "text": "a cat from metadata"})
    data = prepare(forget=images(folder))
    assert captions(data) == ["a cat from metadata", "a cat awake"]
    assert counts(data.report.noted) == {"FURTHER_LINES": {"1.txt": 1}, "UNUSED_CAPTIONS": {"0.txt": 1, "9.txt": 1}}


def test_a_text_file_in_another_case(prepare: Any, tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "pictures", a=noise(0), b=noise(1), B=noise(2))
    for name in ("A.TXT", "b.txt"):
        (folder / name).write_text(f"a cat in {name}")
    data = prepare(forget=images(folder))
    assert sorted(captions(data)) == ["a cat in A.TXT", "a cat in b.txt", "a photo of a cat"], "B.png has none"


@pytest.mark.parametrize(("name", "content"), [
    ("metadata.csv", b'file_name, text\r\n0.png, "a ""fat"" cat, asleep"\r\n'),
    ("METADATA.CSV", b'File_Name,Caption\n0.png,"a ""fat"" cat, asleep"\n'),
    ("Metadata.jsonl", b'{"File_name": "0.png", "Text": "a \\"fat\\" cat, asleep"}\r\n\r\n'),
])  # fmt: skip
def test_columns_however_they_are_spelled(prepare: Any, tmp_path: Path, name: str, content: bytes) -> None:
    folder = two(tmp_path / "pictures")
    (folder / name).write_bytes(content)
    assert captions(prepare(forget=images(folder)))[0] == 'a "fat" cat, asleep'


def test_columns_that_nobody_asks_for_are_reported(prepare: Any, tmp_path: Path) -> None:
    folder = two(tmp_path / "pictures")
    write_rows(folder / "metadata.csv", {"file_name": "0.png", "prompt": "a cat", "where": "here", "class": "dog"})
    templates = {"templates": ["a {concept} {where}"], "placeholders": {"where": ["there"]}}
    data = prepare(forget=templates | images(folder))
    assert captions(data) == ["a cat here", "a cat there"]
    assert counts(data.report.noted)["UNUSED_COLUMNS"] == {"prompt": 1, "class": 1}


def test_captions_that_do_not_name_the_concept_are_reported(prepare: Any, tmp_path: Path) -> None:
    folder = two(tmp_path / "pictures")
    (folder / "0.txt").write_text("a fluffy animal")
    (folder / "1.txt").write_text("two Cats")
    data = prepare(forget=ANCHORED | images(folder), objective={"target": "anchor"})
    assert anchors(data) == ["dog", "two dogs"]
    assert counts(data.report.noted) == {"NOT_NAMED": {"a fluffy animal": 1}}
    assert not prepare(forget=ANCHORED | images(folder), objective={"target": "uniform"}).report.noted


def test_text_that_is_no_utf8(recipe_file: RecipeFile, cli: Cli, tmp_path: Path) -> None:
    folder = two(tmp_path / "pictures")
    (folder / "0.txt").write_bytes(b"a caf\xe9")
    refused(cli("prepare", recipe_file(forget=images(folder))), f"'{folder}/0.txt': is not readable as text in UTF-8")


@pytest.mark.parametrize("listing", ["metadata.csv", "metadata.jsonl"])
@pytest.mark.parametrize("key", ["text", "caption", "prompt"])
@pytest.mark.parametrize("bom", [False, True])
def test_metadata(prepare: Any, tmp_path: Path, listing: str, key: str, bom: bool) -> None:
    folder = two(tmp_path / "pictures")
    rows = [{"file_name": "0.png", key: "a cat, asleep"}, {"file_name": "1.png", key: ""}]
    write_rows(folder / listing, *rows, bom=bom)
    options = {"caption_column": "prompt"} if key == "prompt" else {}
    data = prepare(forget=images(folder, **options))
    assert captions(data) == ["a cat, asleep", ""], "an empty caption is one"
    assert counts(data.report.noted) == {"EMPTY_CAPTION": {str(folder / "1.png"): 1}}


@pytest.mark.parametrize("spelling", [*SPELLINGS, "NFD", "below", "absolute"])
@pytest.mark.parametrize("listing", ["metadata.csv", "metadata.jsonl"])
def test_paths_however_they_are_spelled(prepare: Any, tmp_path: Path, spelling: Any, listing: str) -> None:
    folder = folder_of(tmp_path / "pictures")
    folder_of(folder / "a", Ä=noise(0))
    place, name = folder / listing, spelling
    match spelling:
        case "NFD":
            name = unicodedata.normalize("NFD", "a/Ä.png")
        case "below":
            place, name = folder / "a" / listing, "Ä.png"
        case "absolute":
            name = str(folder / "a/Ä.png")
    write_rows(place, {"file_name": name, "text": "a cat there", "concept": "cat"})
    data = prepare(forget=images(folder))
    assert captions(data) == ["a cat there"] and shown(data) == ["cat"]


def test_rows_without_their_picture_are_named(recipe_file: RecipeFile, cli: Cli, prepare: Any, tmp_path: Path) -> None:
    folder = two(tmp_path / "pictures")
    rows = [{"file_name": f"{name}.png", "text": "a cat"} for name in ("0", "11", "22")]
    write_rows(folder / "metadata.jsonl", *rows)
    refused(
        cli("prepare", recipe_file(forget=images(folder))),
        f"forget.images.folder = '{folder}/metadata.jsonl:2': there is no picture '11.png', and 1 more: 22.png.",
        "Did you mean '1.png'? Correct file_name, or set images.on_error: skip.",
    )
    data = prepare(forget=images(folder, on_error="skip"))
    assert captions(data) == ["a cat", "a photo of a cat"]
    assert counts(data.report.left_out) == {"UNMATCHED": {"11.png": 1, "22.png": 1}}


def test_one_name_for_two_pictures_is_not_guessed(prepare: Any, tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "pictures", a=noise(0))
    noise(1).save(folder / "a.bmp")
    write_rows(folder / "metadata.jsonl", {"file_name": "a.jpg", "text": "which"})
    with pytest.raises(UserError, match=r"there is no picture 'a.jpg'"):
        prepare(forget=images(folder))


def test_rows_that_contradict_each_other(prepare: Any, tmp_path: Path) -> None:
    folder = two(tmp_path / "pictures")
    write_rows(folder / "metadata.jsonl", {"file_name": "0.png", "text": "a cat"})
    write_rows(folder / "metadata.csv", {"file_name": "./0.png", "text": "a dog"})
    with pytest.raises(UserError, match=r"says other things of 0.png than an earlier row"):
        prepare(forget=images(folder))


@pytest.mark.parametrize(("name", "content", "what"), [
    ("metadata.csv", b"name,text\n0.png,a\n", "metadata.csv:2': is not a table with the column file_name, in UTF-8"),
    ("metadata.csv", b"file_name;text\n0.png;a cat\n", "metadata.csv:2': is not a table with the column file_name"),
    ("metadata.csv", b"file_name,text\n0.png,a cat, red\n", "metadata.csv:2': has more fields than there are columns"),
    ("metadata.csv", b"file_name,text\n0.png,caf\xe9\n", "metadata.csv:1': is not a table"),
    ("metadata.jsonl", b'{"file_name": "0.png"}\n{"file": 1}', "metadata.jsonl:2': is not a JSON object with"),
    ("metadata.jsonl", b'{"file_name": "0.png", "text": 5}', "0.png': its caption 5 is no text."),
    ("metadata.jsonl", b'{"file_name": "0.png", "text": "a", "text": "b"}', "metadata.jsonl:1': has 'text' twice."),
    ("metadata.csv", b"file_name,text,text\n0.png,a,b\n", "metadata.csv:1': has 'text' twice. Take one out."),
    ("0.txt", b"cat " * 10_000, "0.png': its caption has 39,999 characters, and 32,768 are plenty."),
    ("metadata.jsonl", b'{"file_name": "0.png", "concept": {}}', "0.png': {} is no label."),
])  # fmt: skip
def test_unreadable_metadata(
    recipe_file: RecipeFile, cli: Cli, tmp_path: Path, name: str, content: Any, what: str
) -> None:
    folder = two(tmp_path / "pictures")
    (folder / name).write_bytes(content)
    refused(cli("prepare", recipe_file(forget=images(folder))), what)


@pytest.mark.parametrize("option", ["caption_column", "concept_column"])
def test_a_column_that_no_row_has(recipe_file: RecipeFile, cli: Cli, tmp_path: Path, option: str) -> None:
    folder = two(tmp_path / "pictures")
    write_rows(folder / "metadata.jsonl", {"file_name": "0.png", "prompts": "a cat"})
    refused(
        cli("prepare", recipe_file(forget=images(folder, **{option: "prompt"}))),
        f"forget.images.{option} = 'prompt': is in no row of the metadata. Did you mean 'prompts'?",
    )


def test_captions_of_datasets(prepare: Any, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    data = datasets.Dataset.from_dict({"image": [noise(0), noise(1)], "caption": ["a cat asleep", ""]})
    data.cast_column("image", datasets.Image()).save_to_disk(tmp_path / "set")
    found = prepare(forget={"images": {"dataset": str(tmp_path / "set")}})
    assert captions(found) == ["a cat asleep", ""]
