"""The rows of a set of pictures from disk, before these are opened: folders, labelled sets and `datasets`."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from erasediff_lora.data import captions, layouts, streaming, tars
from erasediff_lora.data.labels import LABEL_COLUMNS, match
from erasediff_lora.data.rows_base import Row, file_of_set
from erasediff_lora.data.set_report import SetReport
from erasediff_lora.errors import Problem, UserError, nearest
from erasediff_lora.recipe import Images
from erasediff_lora.recipe.names import folded

Kind = Literal["forget", "retain"]
KINDS: tuple[Kind, ...] = ("forget", "retain")


def find_rows(
    kind: Kind, images: Images, classes: Sequence[str], report: SetReport, cache: Path | None = None
) -> Iterator[Row]:
    """The pictures of a set, whatever its layout.

    Args:
        kind: 'forget' or 'retain'.
        images: Says where they are.
        classes: The concepts that are asked for: of a labelled set the others are not even listed.
        report: Counts the files that are not used.
        cache: Where a streamed set is kept.

    Raises:
        UserError: For a set that is not readable, or has not the columns or classes that the recipe names.
    """
    if images.streaming:
        yield from streaming.rows(kind, images, cache, partial(_load_stream, kind, images), report)
    elif images.folder is None:
        yield from _dataset_rows(kind, images, classes)
    elif layouts.find(images.folder) is not None:
        yield from _labelled_rows(kind, images, classes)
    elif tars.find(images.folder):
        yield from tars.rows(kind, images, report)
    else:
        for picture in captions.find(kind, images, report):
            folders = picture.relative.parts[:-1]
            yield Row(str(picture.file), partial(Path, picture.file), picture.values, folders, mark=_mark(picture.file))


def _mark(file: Path) -> str | None:
    try:
        found = file.stat()
    except OSError:  # such as of a link that leads nowhere: said when it is opened
        return None
    name = str(file.absolute()).encode("utf-8", "backslashreplace").decode()
    return f"{name} {found.st_size} {found.st_mtime_ns} {found.st_ctime_ns}"


def _require_classes(kind: Kind, classes: Sequence[str], known: Sequence[str]) -> None:
    for name in classes:
        if match([name], known) is None:
            raise UserError(Problem(f"{kind}.concepts", name, "is no class of the set.", nearest(name, known)))


def _labelled_rows(kind: Kind, images: Images, classes: Sequence[str]) -> Iterator[Row]:
    assert images.folder is not None
    data = layouts.read(images.folder, images.split, f"{kind}.images.folder")
    _require_classes(kind, classes, data.names)
    known = {folded(name): index for index, name in enumerate(data.names)}
    for name in classes:
        of_class = np.flatnonzero(data.labels == known[folded(name)])[: images.per_concept]
        for index in of_class.tolist():
            pixels = data.pixels[index].squeeze()
            values = {images.concept_column: name}
            yield Row(f"{images.folder}[{index}]", partial(Image.fromarray, pixels), values)


def _dataset_rows(kind: Kind, images: Images, concepts: Sequence[str]) -> Iterator[Row]:
    data = _load_dataset(kind, images)
    place = f"{kind}.images"
    column = images.image_column
    defaults = Images.model_fields
    for option in ("image_column", "caption_column", "concept_column"):
        name = getattr(images, option)
        if name not in data.column_names and (option == "image_column" or name != defaults[option].default):
            raise UserError(
                Problem(
                    f"{place}.{option}",
                    name,
                    "is no column of the dataset.",
                    f"It has: {', '.join(data.column_names)}.",
                )
            )
    labels = _label_column(kind, images, data)
    classes = None if labels is None else getattr(data.features[labels], "names", None)
    if classes is not None:
        _require_classes(kind, concepts, classes)
    if type(data.features[column]).__name__ == "Image":  # decoded by us, so that a damaged one can be passed over
        data = data.cast_column(column, type(data.features[column])(decode=False))
    media = [name for name, feature in data.features.items() if type(feature).__name__ in ("Image", "Audio", "Video")]
    written = data.remove_columns(list({column, *media}))
    for index, values in enumerate(written if len(written.column_names) else [{}] * len(data)):
        if labels is not None:
            values = values | {images.concept_column: values[labels]}
        mark = f"{data._fingerprint} {column} {index}"
        source = partial(_source, data, index, column, images)
        yield Row(f"{images.dataset}[{index}]", source, values, (), classes, mark)


def _source(data: Any, index: int, column: str, images: Images) -> Any:
    """What a row of `datasets` has for a picture, as `open_picture` takes it.

    Raises:
        OSError: If it has nothing of the kind, or names a file that is not of the set.
    """
    value = data[index][column]
    if isinstance(value, dict):
        value = value.get("bytes") if value.get("bytes") is not None else value.get("path")
    if isinstance(value, bytes):
        return io.BytesIO(value)
    if isinstance(value, str):
        return file_of_set(value, images)
    if isinstance(value, Image.Image):
        return value
    raise OSError("there is none" if value is None else f"it is of type {type(value).__name__}")


def _label_column(kind: Kind, images: Images, data: Any) -> str | None:
    """The column with the labels: the recipe's, else the only one that `datasets` calls one, or is called so.

    Raises:
        UserError: If there are several.
    """
    if images.concept is not None or images.concept_column in data.column_names:
        return images.concept_column if images.concept_column in data.column_names else None
    found = [name for name, feature in data.features.items() if hasattr(feature, "names")]
    found = found or [name for name in LABEL_COLUMNS if name in data.column_names]
    if len(found) > 1:
        raise UserError(
            Problem(
                f"{kind}.images.concept_column",
                images.concept_column,
                f"is no column of the dataset, which has several with labels: {', '.join(found)}.",
                "Name one of them.",
            )
        )
    return found[0] if found else None


def _load_stream(kind: Kind, images: Images) -> Any:
    """A dataset as it comes, its pictures not decoded.

    Raises:
        UserError: If it cannot be loaded, or has no such column.
    """
    data = _load_dataset(kind, images)
    column = images.image_column
    features = data.features or {}
    if features and column not in features:
        what = "is no column of the dataset."
        raise UserError(Problem(f"{kind}.images.image_column", column, what, f"It has: {', '.join(features)}."))
    if type(features.get(column)).__name__ == "Image":
        data = data.cast_column(column, type(features[column])(decode=False))
    return data


def _load_dataset(kind: Kind, images: Images) -> Any:
    try:
        import datasets
    except ImportError:
        raise UserError(
            Problem(
                f"{kind}.images.dataset",
                images.dataset,
                "needs the datasets package.",
                "pip install 'erasediff-lora[datasets]'.",
            )
        ) from None
    assert images.dataset is not None
    try:
        folder = Path(images.dataset)
        if (folder / "dataset_info.json").is_file() or (folder / "dataset_dict.json").is_file():
            loaded: Any = datasets.load_from_disk(images.dataset)
            data = loaded[images.split] if isinstance(loaded, datasets.DatasetDict) else loaded
            return data.to_iterable_dataset() if images.streaming else data
        return datasets.load_dataset(images.dataset, split=images.split, streaming=images.streaming)
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(
            Problem(f"{kind}.images.dataset", images.dataset, f"cannot be loaded: {reason}", "Check name and split.")
        ) from error
