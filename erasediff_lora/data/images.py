"""Forget and retain pictures from disk: imagefolder layouts, labelled sets and `datasets`."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from erasediff_lora.data import layouts
from erasediff_lora.data.imaging import SUFFIXES, open_picture
from erasediff_lora.errors import Problem, UserError, nearest
from erasediff_lora.recipe import Images

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Picture:
    """A captioned picture; `concept` is the forget concept it shows, None in a retain set."""

    image: Image.Image
    caption: str
    concept: str | None


def read(
    field: str, images: Images, concepts: Sequence[str], templates: Sequence[str], classes: Sequence[str] = ()
) -> list[Picture]:
    """Read a forget set (with `concepts`) or a retain set (without).

    Of a labelled set (`data/layouts`, or `datasets` with a ClassLabel column) only the pictures of `classes` are
    taken, and a caption is the first template with the class's name.

    A caption comes from metadata or the dataset's column, else from `images.caption`, else from the first
    template. A concept comes from metadata, else from the picture's folder, else it is the only one.

    Raises:
        UserError: For an unreadable picture (unless images.on_error is skip), a picture without caption or
            concept, or an empty set.
    """
    if images.folder is None:
        rows = _dataset_rows(field, images, classes, templates[0])
    elif layouts.find(images.folder) is None:
        rows = _folder_rows(field, images)
    else:
        rows = _labelled_rows(field, images, classes, templates[0])
    pictures = []
    for name, raw, values in rows:
        try:
            image = open_picture(raw)
        except OSError as error:
            if images.on_error == "skip":
                log.warning("skipped unreadable picture %s: %s", name, error)
                continue
            raise UserError(
                Problem(
                    f"{field}.images",
                    name,
                    f"is not a readable picture: {error}",
                    f"Replace it, or set {field}.images.on_error: skip.",
                )
            ) from None
        concept = _concept(field, images, name, values, concepts)
        caption = values.get(images.caption_column) or images.caption or (templates[0] if concept else None)
        if not isinstance(caption, str):
            raise UserError(
                Problem(
                    f"{field}.images",
                    name,
                    "has no caption.",
                    f"Write metadata.jsonl with {images.caption_column!r}, or set {field}.images.caption.",
                )
            )
        pictures.append(Picture(image, caption.replace("{concept}", concept or "{concept}"), concept))
    if not pictures:
        raise UserError(
            Problem(
                f"{field}.images",
                str(images.folder or images.dataset),
                "holds no readable picture.",
                "An empty set cannot be trained on.",
            )
        )
    return pictures


Row = tuple[str, Any, dict[str, Any]]


def _labelled_rows(field: str, images: Images, classes: Sequence[str], template: str) -> Iterator[Row]:
    assert images.folder is not None
    data = layouts.read(images.folder, images.split, f"{field}.images.folder")
    for name in classes:
        if name not in data.names:
            raise UserError(
                Problem(f"{field}.concepts", name, "is no class of the set.", nearest(name, data.names)),
            )
        of_class = np.flatnonzero(data.labels == data.names.index(name))[: images.per_concept]
        for index in of_class.tolist():
            picture = Image.fromarray(data.pixels[index].squeeze())
            caption = template.replace("{concept}", name)
            yield f"{images.folder}[{index}]", picture, {images.caption_column: caption, images.concept_column: name}


def _folder_rows(field: str, images: Images) -> Iterator[Row]:
    assert images.folder is not None
    metadata: dict[str, dict[str, Any]] = {}
    listing = images.folder / "metadata.jsonl"
    if listing.is_file():
        for number, line in enumerate(listing.read_bytes().splitlines(), start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line.decode("utf-8"))
                metadata[row["file_name"]] = row
            except (ValueError, KeyError, TypeError, RecursionError):
                raise UserError(
                    Problem(
                        f"{field}.images.folder",
                        f"{listing}:{number}",
                        "is not a JSON object with file_name, in UTF-8.",
                        'Each line is like {"file_name": "a.png", "text": "a photo of a cat"}.',
                    )
                ) from None
    for file in sorted(images.folder.rglob("*")):
        if file.suffix.lower() in SUFFIXES:
            relative = file.relative_to(images.folder)
            folder = {"_folder": relative.parts[0]} if len(relative.parts) > 1 else {}
            yield str(file), file, folder | metadata.get(relative.as_posix(), {})


def _dataset_rows(field: str, images: Images, classes: Sequence[str], template: str) -> Iterator[Row]:
    try:
        import datasets
    except ImportError:
        raise UserError(
            Problem(
                f"{field}.images.dataset",
                images.dataset,
                "needs the datasets package.",
                "pip install 'erasediff-lora[datasets]'.",
            )
        ) from None
    assert images.dataset is not None
    try:
        if (Path(images.dataset) / "dataset_info.json").is_file() or (
            Path(images.dataset) / "dataset_dict.json"
        ).is_file():
            loaded: Any = datasets.load_from_disk(images.dataset)
            data = loaded[images.split] if isinstance(loaded, datasets.DatasetDict) else loaded
        else:
            data = datasets.load_dataset(images.dataset, split=images.split)
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(
            Problem(f"{field}.images.dataset", images.dataset, f"cannot be loaded: {reason}", "Check name and split.")
        ) from error
    if images.image_column not in data.column_names:
        raise UserError(
            Problem(
                f"{field}.images.image_column",
                images.image_column,
                "is no column of the dataset.",
                f"It has: {', '.join(data.column_names)}.",
            )
        )
    labels = getattr(data.features.get(images.concept_column), "names", None)
    for index, row in enumerate(data):
        if labels is not None:  # a ClassLabel, as in CIFAR-10: only the classes that are asked for
            name = labels[row[images.concept_column]]
            if name not in classes:
                continue
            row = {images.caption_column: template.replace("{concept}", name)} | row | {images.concept_column: name}
        yield f"{images.dataset}[{index}]", row[images.image_column], row


def _concept(field: str, images: Images, name: str, values: dict[str, Any], concepts: Sequence[str]) -> str | None:
    if not concepts:
        return None
    for key in (images.concept_column, "_folder"):
        if values.get(key) in concepts:
            return str(values[key])
    if len(concepts) == 1:
        return concepts[0]
    raise UserError(
        Problem(
            f"{field}.images",
            name,
            f"belongs to none of the concepts {', '.join(concepts)}.",
            f"Put it into a folder named after one, or write {images.concept_column!r} into metadata.jsonl.",
        )
    )
