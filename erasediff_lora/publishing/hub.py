"""The hub folder of an adapter: files, model card, pictures; and its upload."""

from __future__ import annotations

import json
import logging
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import yaml
from huggingface_hub import HfApi, ModelCard
from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError, RepositoryNotFoundError
from PIL import Image

from erasediff_lora.adapter import formats
from erasediff_lora.errors import Problem, UserError
from erasediff_lora.publishing.card import model_card
from erasediff_lora.recipe import Recipe
from erasediff_lora.recipe.public import public_recipe
from erasediff_lora.registry import FORMATS
from erasediff_lora.storage.files import atomic, atomic_folder, write_text
from erasediff_lora.storage.run_folder import EVALUATION_FILE, GRID_FILE, RECIPE_FILE, SET_SHEETS, read_evaluation

log = logging.getLogger(__name__)
HUB = "hub"
Pictures = Literal["both", "after", "none"]


def publish(
    run: Path | str,
    repo: str,
    *,
    dry_run: bool = False,
    public: bool = False,
    base_model: str | None = None,
    license: str | None = None,
    pictures: Pictures = "both",
    training_images: bool = False,
) -> Path:
    """Assemble the hub folder of a run, and upload it.

    Args:
        run: Folder of a run, or any folder with an adapter.
        repo: 'user/name' on the hub.
        dry_run: Only make the folder.
        public: Let everybody see the repository. It is private otherwise.
        base_model: Hub id of the base, if the recipe does not have it.
        license: Licence id; that of the base's family otherwise.
        pictures: 'after' leaves out what the base draws for the erased concept; 'none' leaves out all.
        training_images: Include the contact sheets of the forget and the retain set.

    Returns:
        The folder, RUN/hub.

    Raises:
        UserError: If something given cannot be used, or the hub refuses.
    """
    run = Path(run).expanduser()
    if not re.fullmatch(r"[\w-][\w.-]*/[\w.-]{1,96}", repo):
        raise UserError(Problem("--repo", repo, "is no repository name.", "Write user/name."))
    folder = assemble(
        run, repo, base_model=base_model, license=license, pictures=pictures, training_images=training_images
    )
    if not dry_run:
        upload(folder, repo, public=public)
    return folder


def assemble(
    run: Path,
    repo: str,
    *,
    base_model: str | None = None,
    license: str | None = None,
    pictures: Pictures = "both",
    training_images: bool = False,
) -> Path:
    """Make RUN/hub anew: the adapter in every format, the recipe without local paths, numbers, pictures, card."""
    adapter = formats.read(run)
    recipe = Recipe.load(run / RECIPE_FILE) if (run / RECIPE_FILE).is_file() else None
    evaluation = _evaluation(run)
    if base_model is None and recipe is not None and recipe.model.is_hub_id:
        base_model = recipe.model.base
    if base_model is None:
        log.warning("warning: the base has no hub id, so the card names none; give it with --base_model owner/name")
    with atomic_folder(run / HUB) as folder:
        files = {
            name: formats.write(adapter, folder / FORMATS[name].FOLDER, name)[0].relative_to(folder)
            for name in formats.suited(adapter)
        }
        shown = _copy_pictures(run, folder, evaluation, pictures)
        if recipe is not None:
            write_text(folder / RECIPE_FILE, yaml.safe_dump(public_recipe(recipe), sort_keys=False, allow_unicode=True))
        if evaluation:
            kept = {name: value for name, value in evaluation.items() if name != "strips"}
            write_text(folder / EVALUATION_FILE, json.dumps(kept | {"pictures": shown}, indent=2) + "\n")
        if training_images:
            for name in SET_SHEETS.values():
                if (run / name).is_file():
                    shutil.copy2(run / name, folder / name)
        write_text(
            folder / "README.md", model_card(adapter, folder, repo, files, base_model, license, evaluation, shown)
        )
        ModelCard.load(folder / "README.md")  # huggingface_hub's own parser
    return run / HUB


def upload(folder: Path, repo: str, *, public: bool) -> None:
    """Upload a hub folder with the token that huggingface_hub finds; it is never read or shown here.

    Raises:
        UserError: If there is no login, the hub refuses, or the repository is public and `public` is not set.
    """
    api = HfApi()
    try:
        try:
            is_public = not api.repo_info(repo).private
        except RepositoryNotFoundError:
            is_public = False
        if is_public and not public:
            raise UserError(
                Problem("--repo", repo, "exists and is public.", "Add --public if everybody may see the adapter.")
            )
        api.create_repo(repo, private=not public, exist_ok=True)
        api.upload_folder(repo_id=repo, folder_path=folder, commit_message="Upload erasure adapter")
    except LocalTokenNotFoundError:
        raise UserError(
            Problem("--repo", repo, "can't be reached: you are not logged in.", "Run `hf auth login` or set HF_TOKEN.")
        ) from None
    except (HfHubHTTPError, OSError) as error:
        reason = re.sub(r"hf_\w+", "hf_…", " ".join(str(error).split()))[:300]
        raise UserError(
            Problem(
                "--repo",
                repo,
                f"the hub refused: {reason}",
                f"Check the name, your rights and the connection; the folder is ready in {folder}.",
            )
        ) from None


def _evaluation(run: Path) -> dict[str, Any]:
    if not (run / EVALUATION_FILE).is_file():
        log.warning("warning: %s has no evaluation.json, so the card states no numbers and shows no pictures", run)
        return {}
    return read_evaluation(run)


def _copy_pictures(run: Path, folder: Path, evaluation: Mapping[str, Any], pictures: Pictures) -> list[dict[str, Any]]:
    """One picture a pair: base and erased side by side, or erased alone; plus the grid if the base may be shown."""
    if pictures == "none" or not evaluation:
        return []
    shown = []
    for number, entry in enumerate(evaluation.get("pictures", []), 1):
        names = ("base", "erased") if pictures == "both" else ("erased",)
        if not all((run / entry[name]).is_file() for name in names):
            continue
        images = [Image.open(run / entry[name]).convert("RGB") for name in names]
        sheet = Image.new("RGB", (sum(image.width for image in images), images[0].height))
        for index, image in enumerate(images):
            sheet.paste(image, (index * images[0].width, 0))
        name = f"images/{entry['kind']}-{number}.png"
        with atomic(folder / name) as temporary:
            sheet.save(temporary, format="PNG")
        shown.append({"kind": entry["kind"], "prompt": entry["prompt"], "seed": entry["seed"], "picture": name})
    if pictures == "both" and (run / GRID_FILE).is_file():
        shutil.copy2(run / GRID_FILE, folder / GRID_FILE)
    return shown
