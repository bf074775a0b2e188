"""The recipes that come with the package; in its repository they lie beside it."""

from __future__ import annotations

from pathlib import Path

from erasediff_lora.errors import Problem, UserError, nearest
from erasediff_lora.storage.paths import existing

_PACKAGE = Path(__file__).parent.parent


def folder() -> Path:
    """Where they are: in the installed package, or in the repository."""
    inside = _PACKAGE / "recipes"
    return inside if inside.is_dir() else _PACKAGE.parent / "recipes"


def recipes() -> dict[str, Path]:
    """Name -> recipe."""
    return {file.stem: file for file in sorted(folder().glob("*.yaml"))}


def launchers() -> dict[str, Path]:
    """Name -> configuration of `accelerate launch`."""
    return {f"accelerate/{file.stem}": file for file in sorted(folder().glob("accelerate/*.yaml"))}


def find(path: Path | str) -> Path:
    """The recipe that a path means: the file itself, or the shipped recipe of that name where there is no file.

    Raises:
        UserError: If it is a bare name, and there is no file nor a recipe of that name.
    """
    file, shipped = existing(path, "recipe"), recipes()
    if file.exists() or file.suffix or file.name != str(file):
        return file
    if file.name not in shipped:
        what = "there is no such file, nor does a recipe of that name come with the package."
        raise UserError(Problem("recipe", str(path), what, nearest(file.name, shipped)))
    return shipped[file.name]


def is_named(path: Path) -> bool:
    """Whether a path is the name of a shipped recipe, and no file or folder."""
    return str(path) in recipes() and not path.exists()


def summary(file: Path) -> str:
    """What a shipped file is for: the first sentence of its comments, below the line that runs it."""
    lines = file.read_text(encoding="utf-8").splitlines()
    comments = [line.removeprefix("#").strip() for line in lines if line.startswith("#")]
    text = " ".join(line for line in comments if not line.startswith("accelerate launch"))
    return text.partition(". ")[0].removesuffix(".")
