"""A picture's label is respected: what is not asked for is neither forgotten nor retained, but counted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from encoded import anchors, captions, class_folders, counts, folder_of, noise, shown
from fixtures import Cli, RecipeFile
from refusals import refused

from erasediff_lora.errors import UserError

NAMED = {"concepts": [{"name": "cat", "anchor": "dog"}]}


ALL, UNCOND = {"concepts": [], "templates": ["x"]}, {"target": "uncond"}


def images(folder: Path, **fields: Any) -> dict[str, Any]:
    return {"images": {"folder": str(folder), **fields}}


def test_only_the_named_concepts_folders_are_forgotten(prepare: Any, tmp_path: Path) -> None:
    folder = class_folders(tmp_path / "pictures", "cat", "clock", "fish")
    data = prepare(forget=NAMED | images(folder), objective={"target": "anchor"})
    assert captions(data) == ["a photo of a cat"] * 2 and anchors(data) == ["a photo of a dog"] * 2
    assert shown(data) == ["cat", "cat"]
    assert counts(data.report.left_out) == {"OTHER_LABEL": {"clock": 2, "fish": 2}}


@pytest.mark.parametrize("column", ["concept", "label"])
def test_only_the_named_concepts_rows_are_forgotten(prepare: Any, tmp_path: Path, column: str) -> None:
    folder = folder_of(tmp_path / "pictures", a=noise(0), b=noise(1), c=noise(2))
    rows = [
        {"file_name": f"{name}.png", column: label} for name, label in zip("abc", ("cat", "clock", "CAT"), strict=True)
    ]
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    data = prepare(forget=images(folder))
    assert shown(data) == ["cat", "cat"], "whatever its case"
    assert counts(data.report.left_out) == {"OTHER_LABEL": {"clock": 1}}


@pytest.mark.parametrize(
    ("label", "concept"),
    [
        ("garbage_truck", "garbage truck"),
        ("Garbage-Truck", "garbage truck"),
        ("r2 d2", "R2-D2"),
        ("cafe\u0301", "caf\u00e9"),
    ],
)
def test_a_label_however_it_is_spelled(prepare: Any, tmp_path: Path, label: str, concept: str) -> None:
    folder = class_folders(tmp_path / "pictures", label, "dog")
    data = prepare(forget={"concepts": [concept]} | images(folder))
    assert captions(data) == [f"a photo of a {concept}"] * 2
    kept = prepare("retain", forget={"concepts": [concept]}, retain=ALL | images(folder), objective=UNCOND)
    assert shown(kept) == ["dog", "dog"]
    assert counts(kept.report.left_out) == {"FORGOTTEN_LABEL": {concept: 2}}


def test_what_is_labelled_with_the_plural_is_not_retained(prepare: Any, tmp_path: Path) -> None:
    folder = class_folders(tmp_path / "pictures", "cats", "dog")
    data = prepare("retain", retain=ALL | images(folder), objective=UNCOND)
    assert shown(data) == ["dog", "dog"] and counts(data.report.left_out) == {"FORGOTTEN_LABEL": {"cat": 2}}


def test_a_folder_below_a_concept_is_of_the_concept(prepare: Any, tmp_path: Path) -> None:
    folder = class_folders(tmp_path / "pictures", "train/Cat/tabby", "train/clock/cuckoo")
    assert shown(prepare(forget=images(folder))) == ["cat", "cat"]


def test_linked_folders_are_read(prepare: Any, tmp_path: Path) -> None:
    class_folders(tmp_path / "elsewhere", "tabby", "clock")
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures/cat").symlink_to(tmp_path / "elsewhere/tabby")
    (tmp_path / "elsewhere/tabby/back").symlink_to(tmp_path / "pictures")
    assert shown(prepare(forget=images(tmp_path / "pictures"))) == ["cat", "cat"]


def test_pictures_without_label_show_the_only_concept(prepare: Any, tmp_path: Path) -> None:
    folder = class_folders(tmp_path / "pictures", "clock")
    noise(7).save(folder / "mine.png")
    data = prepare(forget=images(folder))
    assert shown(data) == ["cat"] and data.report.left_out


def test_nothing_labelled_so_is_refused(recipe_file: RecipeFile, cli: Cli, tmp_path: Path) -> None:
    folder = class_folders(tmp_path / "pictures", "cats", "fish")
    refused(
        cli("train", recipe_file(forget=images(folder))),
        f"forget.images = '{folder}': no picture is labelled 'cat'; there are cats (2), fish (2).",
        "Did you mean 'cats'? Set forget.images.concept, if all pictures show one concept.",
    )
    refused(
        cli("prepare", recipe_file(forget=images(folder, concept="cow"))),
        "forget.images.concept = 'cow': is not among forget.concepts",
    )


def test_a_recipe_can_say_what_all_pictures_show(prepare: Any, tmp_path: Path) -> None:
    folder = class_folders(tmp_path / "pictures", "batch1", "batch2")
    assert shown(prepare(forget=images(folder, concept="cat"))) == ["cat"] * 4


def test_every_forgotten_concept_has_a_picture(prepare: Any, tmp_path: Path) -> None:
    folder = class_folders(tmp_path / "pictures", "cat")
    with pytest.raises(UserError, match="no picture shows 'rose', which is to be forgotten"):
        prepare(forget={"concepts": ["cat", "rose"]} | images(folder))


def test_retained_are_the_asked_concepts_and_never_the_forgotten(prepare: Any, tmp_path: Path) -> None:
    folder = class_folders(tmp_path / "pictures", "dog", "car", "cat", "fish", each=1)
    data = prepare("retain", retain=images(folder, caption="a photo of a {concept}"))
    assert captions(data) == ["a photo of a car", "a photo of a dog"]
    assert counts(data.report.left_out) == {"FORGOTTEN_LABEL": {"cat": 1}, "OTHER_LABEL": {"fish": 1}}
    retain = images(folder, caption="a {concept}") | {"concepts": [], "templates": ["x"]}
    everything = prepare("retain", retain=retain, objective={"target": "uncond"})
    assert captions(everything) == ["a car", "a dog", "a fish"] and shown(everything) == ["car", "dog", "fish"]


def test_folders_that_are_no_labels_do_not_matter_in_a_retain_set(prepare: Any, tmp_path: Path) -> None:
    folder = class_folders(tmp_path / "pictures", "part1", "part2", each=1)
    data = prepare("retain", retain=images(folder, caption="a thing"))
    assert captions(data) == ["a thing"] * 2 and shown(data) == [None, None]
    assert not data.report.left_out


def dataset(folder: Path, features: dict[str, Any], **columns: list[Any]) -> str:
    datasets = pytest.importorskip("datasets")
    data = datasets.Dataset.from_dict(columns)
    for name, feature in features.items():
        data = data.cast_column(name, feature)
    data.save_to_disk(folder)
    return str(folder)


@pytest.mark.parametrize("kind", ["strings", "classes", "lists"])
@pytest.mark.parametrize("column", ["concept", "label", "kind"])
def test_labels_of_datasets(prepare: Any, tmp_path: Path, kind: str, column: str) -> None:
    datasets = pytest.importorskip("datasets")
    names = ["clock", "cat", "fish"]
    values: Any = {"strings": ["fish", "cat", "clock"], "classes": [2, 1, 0], "lists": [["fish"], ["a", "cat"], []]}[
        kind
    ]
    if kind == "lists":
        values[2] = ["clock"]
    features = {"image": datasets.Image()}
    if kind == "classes":
        features[column] = datasets.ClassLabel(names=names)
    source = dataset(tmp_path / "set", features, image=[noise(0), noise(1), noise(2)], **{column: values})
    options = {"concept_column": "kind"} if column == "kind" else {}
    data = prepare(forget={"images": {"dataset": source, **options}})
    alone = prepare(forget=images(folder_of(tmp_path / "alone", a=noise(1))))
    assert shown(data) == ["cat"] and bool((data.latents[:] == alone.latents[:]).all())


def test_columns_that_do_not_exist_are_named(prepare: Any, tmp_path: Path) -> None:
    source = dataset(tmp_path / "set", {}, image=["a.png"], text=["a cat"], number=[1])
    for option in ("image_column", "caption_column", "concept_column"):
        with pytest.raises(UserError, match=f"forget.images.{option} = 'missing': is no column .*image, text, number"):
            prepare(forget={"images": {"dataset": source, option: "missing"}})
    with pytest.raises(UserError, match="True is no label"):
        flags = dataset(tmp_path / "flags", {}, image=["a.png"], concept=[True])
        prepare(forget={"images": {"dataset": flags}})


def test_several_columns_of_labels(prepare: Any, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    label = datasets.ClassLabel(names=["cat", "fish"])
    source = dataset(tmp_path / "set", {"fine": label, "coarse": label}, image=["a.png"], fine=[0], coarse=[1])
    with pytest.raises(UserError, match="has several with labels: fine, coarse"):
        prepare(forget={"images": {"dataset": source}})
    with pytest.raises(UserError, match="is not a readable picture"):
        prepare(forget={"images": {"dataset": source, "concept_column": "fine"}})


@pytest.mark.parametrize("what", ["damaged", "null", "bytes", "path"])
def test_pictures_of_datasets_that_cannot_be_read(prepare: Any, tmp_path: Path, what: str) -> None:
    """Decoded where an unreadable one can be passed over."""
    datasets = pytest.importorskip("datasets")
    file = folder_of(tmp_path / "file", a=noise(1)) / "a.png"
    broken = {"damaged": {"bytes": b"no picture", "path": None}, "null": None}.get(what, {"bytes": None, "path": "/no"})
    whole = {"bytes": None if what == "path" else file.read_bytes(), "path": str(file) if what == "path" else None}
    features = datasets.Features(
        {
            "image": datasets.Image()
            if what in ("damaged", "null")
            else {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}
        }
    )
    datasets.Dataset.from_dict({"image": [broken, whole]}, features=features).save_to_disk(tmp_path / "set")
    forget = {"images": {"dataset": str(tmp_path / "set")}}
    with pytest.raises(UserError, match=r"set\[0\]': is not a readable picture"):
        prepare(forget=forget)
    forget["images"]["on_error"] = "skip"
    data = prepare(forget=forget)
    assert len(data.latents) == 1 and data.report.left_out
    assert bool((data.latents[:] == prepare(forget=images(tmp_path / "file")).latents[:]).all())
