"""The verb `init`: a recipe for what somebody wants to erase, to read, to change, and to train."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from erasediff_lora.cli.recipe_flags import FIELDS, overrides_from
from erasediff_lora.cli.verb import Verb, user_path
from erasediff_lora.errors import Problem, UserError

if TYPE_CHECKING:
    from erasediff_lora.recipe.draft import Base, Wanted

LONGEST = 200
"""Characters of a name."""


def _arguments(parser: argparse.ArgumentParser) -> None:
    what = parser.add_argument_group("what to erase")
    kind = what.add_mutually_exclusive_group()
    kind.add_argument("--style", nargs="+", metavar="NAME", help="styles, such as those of artists")
    kind.add_argument("--object", nargs="+", metavar="NAME", help="objects, people, anything that has a name")
    kind.add_argument("--nudity", action="store_true", help="nudity")
    what.add_argument(
        "--images",
        type=user_path,
        metavar="FOLDER",
        help="your own pictures of it; alone: one folder a concept, whose names are what to erase",
    )
    parser.add_argument(
        "--base", default="demo", help="diffusers folder, hub id or single-file checkpoint [demo, the embedded model]"
    )
    parser.add_argument("--family", help="of the base, where it cannot be told, such as stable_diffusion_xl")
    parser.add_argument("--output", type=user_path, metavar="FILE", help="the recipe [erase-NAME.yaml]")
    parser.add_argument("--overwrite", action="store_true", help="replace the output")


def _init(parsed: argparse.Namespace, rest: list[str]) -> None:
    from erasediff_lora.recipe import Recipe
    from erasediff_lora.recipe.draft import draft, written
    from erasediff_lora.recipe.yaml_io import overlay
    from erasediff_lora.storage.files import require_writable, write_text

    given = overrides_from(rest)
    wanted = _wanted(parsed)
    output = parsed.output or Path(f"erase-{wanted.slug}.yaml")
    _require_free(output, overwrite=parsed.overwrite)
    require_writable(output.parent)
    base = _base(parsed.base, parsed.family)
    values = overlay(draft(wanted, base), given)
    Recipe.parse(values)
    next_steps = _next_steps(output, str(values["output"]))
    what = f"erases {wanted.title} from {base.name}"
    head = [f"This recipe {what}. `erasediff-lora init` wrote it, to be read and changed.", "Next:"]
    text = written(values, wanted.kind, [*head, *(f"  {command}" for command, _ in next_steps)])
    write_text(output, text)
    print(f"{output}: {what}\nnext:")
    for command, does in next_steps:
        print(f"  {command}\n      {does}")


def _next_steps(recipe: Path, run: str) -> list[tuple[str, str]]:
    from erasediff_lora.storage.run_folder import REPORT_FILE, SET_SHEETS

    file, folder = shlex.quote(str(recipe)), shlex.quote(run)
    return [
        (f"erasediff-lora plan {file}", "says whether it fits this machine's memory, and what would make it fit"),
        (
            f"erasediff-lora prepare {file}",
            f"draws both sets; look at {folder}/{SET_SHEETS['forget']}: is it there?",
        ),
        (f"erasediff-lora train {file}", f"trains and evaluates; the verdict is in {folder}/{REPORT_FILE}"),
        (f"erasediff-lora evaluate {folder} --full", "tries everything that brings the concept back"),
    ]


def _require_free(output: Path, *, overwrite: bool) -> None:
    if output.is_dir():
        raise UserError(Problem("output", str(output), "is a folder.", "Name a file."))
    if output.exists() and not overwrite:
        what, remedy = "exists already.", "Choose another name with --output, or replace it with --overwrite."
        raise UserError(Problem("output", str(output), what, remedy))


def _wanted(parsed: argparse.Namespace) -> Wanted:
    """What to erase.

    Raises:
        UserError: If nothing is named, or a name is none, or there are no pictures.
    """
    from erasediff_lora.recipe.draft import Wanted

    labels = [] if parsed.images is None else _labels(parsed.images)
    if parsed.nudity:
        return Wanted("nudity", (), parsed.images)
    if parsed.style:
        return Wanted("style", _names("--style", parsed.style), parsed.images)
    names = parsed.object or labels
    if not names and parsed.images is not None:
        what, remedy = "does not say what its pictures show.", "Add --object NAME or --style NAME."
        raise UserError(Problem("--images", str(parsed.images), what, remedy))
    if not names:
        raise UserError(
            Problem("--style", None, "nothing to erase is named.", "Add --style NAME, --object NAME or --nudity.")
        )
    return Wanted("object", _names("--object", names), parsed.images)


def _names(field: str, given: Sequence[str]) -> list[str]:
    names = [" ".join(name.split()) for name in given]
    for name in names:
        if not name:
            raise UserError(Problem(field, name, "is no name.", "Write what prompts call it."))
        if len(name) > LONGEST:
            what = f"has {len(name):,} characters, and {LONGEST} are plenty for a name."
            raise UserError(Problem(field, name, what, "Write what prompts call it."))
    return names


def _labels(folder: Path) -> list[str]:
    """The folders that pictures lie in, where all of them do.

    Raises:
        UserError: If the folder is not there, or without a picture.
    """
    from erasediff_lora.data.captions import find
    from erasediff_lora.data.set_report import SetReport
    from erasediff_lora.recipe import Images

    if not folder.is_dir():
        raise UserError(Problem("--images", str(folder), "there is no such folder.", "Check the path."))
    pictures = find("forget", Images(folder=folder), SetReport())
    if not pictures:
        raise UserError(Problem("--images", str(folder), "holds no picture.", "Give a folder of pictures."))
    parents = [picture.relative.parts[0] for picture in pictures if len(picture.relative.parts) > 1]
    return list(dict.fromkeys(parents)) if len(parents) == len(pictures) else []


def _base(name: str, family: str | None) -> Base:
    """What the base is.

    Raises:
        UserError: If it cannot be read, or is of no family that prompts make pictures with.
    """
    from erasediff_lora import families
    from erasediff_lora.recipe.draft import Base
    from erasediff_lora.registry import FAMILIES
    from erasediff_lora.storage.paths import at_home, existing

    if name == "demo":
        return Base()
    name = at_home(name, "--base")
    path = existing(name, "--base")
    if path.exists():
        architectures, config = _looked_at(path)
        if config is not None:
            return Base(name, config=config)
    else:
        architectures = _on_the_hub(name) if family is None else ()
    if family is not None:
        architectures = families.identifiers(family)
    found = families.of_architecture(architectures[0]) if architectures else None
    if found is None:
        what = "is of no family that is known." if family is None else f"cannot be a {family}."
        raise UserError(Problem("--base", name, what, f"Add --family, one of: {', '.join(FAMILIES)}."))
    its_family, architecture = found
    if not its_family.text_to_image:
        what, remedy = "draws classes, not prompts.", "Copy a recipe: erasediff-lora recipes copy fashion_mnist FILE."
        raise UserError(Problem("--base", name, what, remedy))
    return Base(name, families.name_of(its_family), architecture.resolution, its_family.component == "transformer")


def _looked_at(path: Path) -> tuple[Sequence[str], Path | None]:
    """The architectures that a local base can be of; where it is the embedded model, also the folder describing it."""
    from erasediff_lora import demo
    from erasediff_lora.adapter.checkpoint import Checkpoint, fingerprint, fingerprint_of

    checkpoint = Checkpoint(path)
    if path.is_file() and fingerprint(checkpoint) == fingerprint_of(demo.MODEL_DIR):
        return (), demo.MODEL_DIR
    return checkpoint.architectures, None


def _on_the_hub(name: str) -> Sequence[str]:
    """The architectures of a hub model, by the pipeline that it names.

    Raises:
        UserError: If there is neither such a file nor such a model within reach.
    """
    import json

    from huggingface_hub import snapshot_download

    from erasediff_lora import families

    if len(Path(name).parts) != 2 or Path(name).suffix == ".safetensors" or name[0] in "/.~":
        remedy = "Give 'demo', a diffusers folder, a hub id such as owner/name, or a checkpoint file."
        raise UserError(Problem("--base", name, "there is no such folder or file.", remedy))
    try:
        folder = Path(snapshot_download(name, allow_patterns=["model_index.json"]))  # asks a hub that is away once
        index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
        family = families.of_pipeline(str(index.get("_class_name")))
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        what = f"is neither a local path nor a hub model within reach: {reason}"
        raise UserError(
            Problem("--base", name, what, "Check the name and the connection, or say its --family.")
        ) from error
    return () if family is None else families.identifiers(family)


VERBS = {
    "init": Verb("write a recipe for what you want to erase, explained, to change and train", _arguments, _init, FIELDS)
}
