"""Forget and retain pictures from disk: which of them are taken, and what their captions are."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from erasediff_lora.data.captions import caption_of, columns_read
from erasediff_lora.data.labels import Asked, labels_in, match
from erasediff_lora.data.picture_index import Look, PictureIndex, picture_index
from erasediff_lora.data.pictures import look_at, open_picture
from erasediff_lora.data.prompts import attributes_in, attributes_of, templates_of
from erasediff_lora.data.rows import Kind, find_rows
from erasediff_lora.data.rows_base import Row
from erasediff_lora.data.set_report import LeftOut, Noted, SetReport, summary
from erasediff_lora.errors import Problem, UserError, is_text, nearest
from erasediff_lora.recipe import ForgetSet, Images, RetainSet
from erasediff_lora.recipe.templates import fill, fill_known, names_in
from erasediff_lora.storage.files import sha256

log = logging.getLogger(__name__)
MOST_LABELS = 20
"""That a message lists."""


@dataclass(frozen=True, slots=True)
class Picture:
    """A captioned picture; its pixels are read when they are asked for.

    Attributes:
        name: Its file, or where it is in a data set.
        caption: What the model reads.
        concept: What it is labelled with; None in a retain set without labels.
        size: Width and height.
        pixels: SHA-256 of size and pixels.
    """

    name: str
    caption: str
    concept: str | None
    size: tuple[int, int]
    pixels: str
    _open: Callable[[], Image.Image] = field(repr=False)

    @property
    def image(self) -> Image.Image:
        """The picture in RGB, read anew."""
        return self._open()


def read(
    kind: Kind,
    data: ForgetSet | RetainSet,
    report: SetReport | None = None,
    *,
    forgotten: Sequence[str] = (),
    seed: int = 0,
    cache: Path | None = None,
) -> list[Picture]:
    """Read a set, as far as its pictures are labelled with what it asks for.

    A label comes from `images.concept`, the column or key of labels, else from the folders that the picture lies in. A
    picture without any shows the one concept to forget, or in a retain set nothing in particular. What is labelled
    otherwise is left out and counted.

    A caption comes from metadata, the column of captions or a text file beside the picture, else from `images.caption`,
    else from the first template. An empty one is a caption.

    Args:
        kind: 'forget' or 'retain'.
        data: That table of the recipe, with `images`.
        report: Counts what is left out, and what is to be known.
        forgotten: What is to be forgotten: left out of a retain set.
        seed: Of the choice of {names} in templates.
        cache: Folder that remembers which pictures were looked at before; None: all are looked at.

    Raises:
        UserError: For an unreadable picture (unless images.on_error is skip), a picture without caption or concept, a
            concept to forget without a picture, or an empty set.
    """
    report = SetReport() if report is None else report
    images = data.images
    assert images is not None
    names = [concept if isinstance(concept, str) else concept.name for concept in data.concepts]
    rows = list(find_rows(kind, images, names, report, cache))
    named = any(match(row.folders, names) is not None for row in rows)
    # In a retain set folders may be called anything: they are labels if that is all there is, or if they prove to be.
    asked = Asked(names, forgotten, kind == "forget" or not names or named, images.concept)
    _note_columns(images, rows, attributes_in(data), report)
    captioner = _Captioner(kind, data, images, seed, report)
    found: list[Picture] = []
    with picture_index(cache, images.background) as index:
        for row in rows:
            _require_text(kind, row)
            concept, left_out = asked.concept_of(_labels(kind, images, row), row.folders)
            if left_out is not None:
                report.leave_out(*left_out)
                continue
            if concept is None and isinstance(data, ForgetSet):
                concept = _only(kind, images, row, names)
            if (look := _looked_at(kind, images, row, index, report)) is None:
                continue
            caption = captioner.caption(row, concept, len(found))
            report.add_picture(row.name, look.pixels)
            again = partial(_open, row.source, images.background)
            found.append(Picture(row.name, caption, concept, look.size, look.pixels, again))
    _require_pictures(kind, images, names, found, report)
    return found


def count_pictures(kind: Kind, data: ForgetSet | RetainSet) -> int:
    """How many pictures are read, labelled as asked for or not; none is opened, and a stream is not counted.

    Raises:
        UserError: For a set that is not readable.
    """
    images = data.images
    if images is None or images.streaming:
        return 0
    names = [concept if isinstance(concept, str) else concept.name for concept in data.concepts]
    return sum(1 for _ in find_rows(kind, images, names, SetReport()))


def _require_text(kind: Kind, row: Row) -> None:
    """What is written about a picture is text, also where JSON can write what no text is."""
    for name, value in row.values.items():
        for part in value if isinstance(value, list) else [value]:
            if isinstance(part, str) and not is_text(part):
                raise _unusable(kind, row, f"has half of a character in {name!r}: {part!r}.", "Correct the text.")


def _note_columns(images: Images, rows: Sequence[Row], attributes: Collection[str], report: SetReport) -> None:
    """Columns of metadata that nothing asks for: in one of them may be what is missed."""
    if images.folder is not None:
        read = {*columns_read(images), *attributes}
        for name in dict.fromkeys(name for row in rows for name in row.values if name not in read):
            report.note(Noted.UNUSED_COLUMNS, name)


def _labels(kind: Kind, images: Images, row: Row) -> list[str]:
    try:
        return labels_in(row.values, images.concept_column, row.classes)
    except ValueError as error:
        raise _unusable(kind, row, f"{error}.", "Write the name of a concept.") from None


def _looked_at(kind: Kind, images: Images, row: Row, index: PictureIndex, report: SetReport) -> Look | None:
    """What the row's picture is like; None if it cannot be read and the recipe says to skip such.

    Raises:
        UserError: If it cannot be read, and the recipe does not say so.
    """

    def take() -> Look:
        image, noted = look_at(row.source(), images.background)
        return Look(image.size, sha256(repr(image.size).encode() + image.tobytes()), tuple(noted))

    try:
        look = index.look(row.mark, take)
    except OSError as error:
        if images.on_error == "skip":
            log.warning("skipped unreadable picture %s: %s", row.name, error)
            report.leave_out(LeftOut.UNREADABLE, row.name)
            return None
        remedy = f"Replace it, or set {kind}.images.on_error: skip."
        raise _unusable(kind, row, f"is not a readable picture: {_ended(error)}", remedy) from None
    for what in look.noted:
        report.note(what, row.name)
    return look


def _ended(error: Exception) -> str:
    """What a library says, as a sentence, without the address of what it read."""
    return re.sub(r"<_io\.BytesIO[^>]*>", "file", str(error)).rstrip(".") + "."


def _open(source: Callable[[], Any], background: str) -> Image.Image:
    return open_picture(source(), background)


@dataclass(frozen=True)
class _Captioner:
    """Captions of a set's pictures."""

    kind: Kind
    data: ForgetSet | RetainSet
    images: Images
    seed: int
    report: SetReport

    def caption(self, row: Row, concept: str | None, index: int) -> str:
        """What the model reads of a picture, the set's `index`-th."""
        try:
            own = caption_of(row.values, self.images.caption_column)
        except ValueError as error:
            raise _unusable(self.kind, row, f"{error}.", "Write the caption as text.") from None
        if own is not None:
            return self._written(own, row, concept, index)
        self.report.note(Noted.NO_CAPTION, row.name)
        templates, placeholders = self._templates(concept)
        template = self.images.caption
        if template is None:
            if concept is None:
                raise _unusable(
                    self.kind,
                    row,
                    "has no caption.",
                    f"Write metadata.jsonl with {self.images.caption_column!r}, or set {self.kind}.images.caption.",
                )
            template = templates[0]
        if concept is None and "concept" in names_in(template):
            raise _unusable(
                self.kind,
                row,
                f"has no label for the {{concept}} of {template!r}.",
                f"Put it into a folder named after its concept, or set {self.kind}.images.concept.",
            )
        return fill(template, concept, attributes_of(template, placeholders, self.seed, index, row.values))

    def _written(self, caption: str, row: Row, concept: str | None, index: int) -> str:
        """A caption of the picture's own, in which the recipe's {names} may stand."""
        if not caption.strip():
            self.report.note(Noted.EMPTY_CAPTION, row.name)
        if "{" not in caption:
            return caption
        _, placeholders = self._templates(concept)
        known = "".join(f"{{{name}}}" for name in placeholders if f"{{{name}}}" in caption)
        values = attributes_of(known, placeholders, self.seed, index, row.values)
        filled = fill_known(caption, values if concept is None else values | {"concept": concept})
        if "{" in filled:
            self.report.note(Noted.BRACES, filled)
        return filled

    def _templates(self, concept: str | None) -> tuple[Sequence[str], dict[str, list[str]]]:
        if isinstance(self.data, ForgetSet):
            for known in self.data.concepts:
                if known.name == concept:
                    return templates_of(self.data, known)
        return self.data.templates, self.data.placeholders


def _only(kind: Kind, images: Images, row: Row, names: Sequence[str]) -> str:
    """The one concept that a picture without a label shows.

    Raises:
        UserError: If there are several.
    """
    if len(names) == 1:
        return names[0]
    raise _unusable(
        kind,
        row,
        f"belongs to none of the concepts {', '.join(names)}.",
        f"Put it into a folder named after one, or write {images.concept_column!r} into metadata.jsonl.",
    )


def _unusable(kind: Kind, row: Row, what: str, remedy: str) -> UserError:
    return UserError(Problem(f"{kind}.images", row.name, what, remedy))


def _hint(name: str, labels: Collection[str]) -> str:
    return nearest(name, labels) + " " if len(labels) <= MOST_LABELS else ""


def _require_pictures(
    kind: Kind, images: Images, names: Sequence[str], found: Sequence[Picture], report: SetReport
) -> None:
    """There are pictures, and of every concept to forget."""
    place = str(images.folder or images.dataset)
    shown = {picture.concept for picture in found}
    missing = [name for name in names if name not in shown]
    others = report.left_out.get(LeftOut.OTHER_LABEL)
    if missing and others and (kind == "forget" or not found):
        raise UserError(
            Problem(
                f"{kind}.images",
                place,
                f"no picture is labelled {missing[0]!r}; there are {summary(others)}.",
                f"{_hint(missing[0], others)}Set {kind}.images.concept, if all pictures show one concept.",
            )
        )
    if not found:
        reasons = ", ".join(f"{reason.value}: {summary(what)}" for reason, what in report.left_out.items())
        raise UserError(
            Problem(
                f"{kind}.images",
                place,
                "holds no readable picture." + (f" Left out: {reasons}." if reasons else ""),
                "An empty set cannot be trained on.",
            )
        )
    if missing and kind == "forget":
        raise UserError(
            Problem(
                f"{kind}.images",
                place,
                f"no picture shows {missing[0]!r}, which is to be forgotten.",
                "Add some, or take the concept out of forget.concepts.",
            )
        )
    if shown - {None}:
        for name in missing:
            report.note(Noted.NOT_SHOWN, name)
