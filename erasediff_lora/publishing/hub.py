"""The hub folder of an adapter: files, model card, pictures; and its upload."""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import yaml
from huggingface_hub import HfApi, ModelCard
from huggingface_hub.errors import HFValidationError, HTTPError, LocalTokenNotFoundError, RepositoryNotFoundError
from huggingface_hub.utils import validate_repo_id

from erasediff_lora.adapter import formats
from erasediff_lora.adapter.formats import NOTHING, Asked
from erasediff_lora.adapter.weights import LoraAdapter
from erasediff_lora.errors import Problem, UserError
from erasediff_lora.families import License
from erasediff_lora.publishing.card import Contents, check_card, model_card
from erasediff_lora.publishing.findings import Findings, chosen_pairs, read_findings
from erasediff_lora.publishing.licenses import license_of, parse
from erasediff_lora.publishing.pictures import IMAGES, Pictures, copy_pictures, copy_sets, is_ours
from erasediff_lora.recipe import Recipe
from erasediff_lora.recipe.evaluation import without_folders
from erasediff_lora.recipe.public import is_sensitive, public_recipe
from erasediff_lora.registry import FORMATS
from erasediff_lora.storage.files import atomic_folder, write_text
from erasediff_lora.storage.inside import read_inside
from erasediff_lora.storage.ownership import strangers
from erasediff_lora.storage.paths import existing
from erasediff_lora.storage.run_folder import EVALUATION_FILE, RECIPE_FILE

log = logging.getLogger(__name__)
HUB = "hub"
CARD_FILE = "README.md"
PARTS = (CARD_FILE, IMAGES, "adapter.safetensors", ".cache", ".gitattributes")
"""What lies in a hub folder besides what a run has too: an adapter of which it is not recorded what it erases has that
name, and the last two are the hub's own."""
NAMING_FILES = ("base", "judge", "metrics", "recipe")
"""Parts of an evaluation that name files; earlier versions wrote where these lie."""
UNPROVEN = {
    "no": "failed",
    "not decided": "is not decided by its evaluation",
    "not measured": "was not measured",
}


def publish(
    run: Path | str,
    repo: str,
    *,
    dry_run: bool = False,
    public: bool = False,
    force: bool = False,
    base_model: str | None = None,
    license: str | None = None,
    pictures: Pictures = "both",
    training_images: bool = False,
    family: str | None = None,
) -> Path:
    """Assemble the hub folder of a run, and upload it.

    Args:
        run: Folder of a run, or any folder with an adapter.
        repo: 'user/name' on the hub.
        dry_run: Only make the folder.
        public: Let everybody see the repository. It is private otherwise.
        force: Make public also what failed, or was not measured; the card says so.
        base_model: Hub id of the base, if the recipe does not have it.
        license: Licence id, or 'other:NAME:LINK'; that of the base's family otherwise.
        pictures: 'after' leaves out what the base draws for the erased concept; 'none' leaves out all; 'unblurred'
            shows both as they are, where nudity is the subject too.
        training_images: Include the contact sheets of the forget and the retain set.
        family: What base the adapter is for, such as 'stable-diffusion-v1', where its file does not tell.

    Returns:
        The folder, RUN/hub.

    Raises:
        UserError: If something given cannot be used, or the hub refuses.
    """
    named = _checked(repo, base_model, license)
    source = read_source(existing(run, "run"), Asked.parse(family))
    _require_proof(source, public=public, force=force)
    folder = assemble(
        source, repo, base_model=base_model, license=named, pictures=pictures, training_images=training_images
    )
    if not dry_run:
        upload(folder, repo, public=public)
    return folder


@dataclass(frozen=True)
class Source:
    """What is published.

    Attributes:
        run: The folder.
        adapter: Its adapter.
        recipe: Its recipe, if it has one.
        findings: What its evaluation found.
    """

    run: Path
    adapter: LoraAdapter
    recipe: Recipe | None
    findings: Findings

    @property
    def is_sensitive(self) -> bool:
        """Whether nudity is the subject."""
        numbers = self.findings.numbers
        measured = numbers.concepts if numbers else []
        return is_sensitive([*self.adapter.provenance.concepts, *measured]) or bool(numbers and numbers.blur)

    @property
    def is_blurred(self) -> bool:
        """Whether pictures are blurred: as the recipe says, or where nudity is the subject."""
        chosen = self.recipe.evaluation.blur if self.recipe is not None else None
        return self.is_sensitive if chosen is None else chosen


def read_source(run: Path, asked: Asked = NOTHING) -> Source:
    """What a folder has to be published.

    Args:
        run: The folder.
        asked: What the user says of the adapter.

    Raises:
        UserError: If it is no folder, has no adapter, or something in it is damaged.
    """
    remedy = "Give the folder of a run, or any folder with an adapter."
    if not run.exists():
        raise UserError(Problem("run", str(run), "there is no such folder.", remedy))
    if not run.is_dir():
        raise UserError(Problem("run", str(run), "is a file.", remedy))
    try:
        file = formats.locate(run)
    except UserError as error:
        raise UserError(*(Problem("run", str(run), problem.what, remedy) for problem in error.problems)) from None
    adapter = formats.read(file, asked)
    recipe = Recipe.of_run(run) if os.path.lexists(run / RECIPE_FILE) else None
    return Source(run, adapter, recipe, read_findings(run, file, adapter.provenance.concepts))


def assemble(
    source: Source,
    repo: str,
    *,
    base_model: str | None = None,
    license: License | None = None,
    pictures: Pictures = "both",
    training_images: bool = False,
) -> Path:
    """Make RUN/hub anew: the adapter in every format, the recipe without local paths, numbers, pictures, card."""
    run, adapter, recipe, findings = source.run, source.adapter, source.recipe, source.findings
    if base_model is None and recipe is not None and recipe.model.is_hub_id:
        base_model = recipe.model.base
    if base_model is None:
        log.warning("warning: the base has no hub id, so the card names none; give it with --base_model owner/name")
    _require_ours(run / HUB)
    blur = source.is_blurred and pictures != "unblurred"
    with atomic_folder(run / HUB) as folder:
        files = {
            name: formats.write(adapter, folder / FORMATS[name].FOLDER, name)[0].relative_to(folder)
            for name in formats.suited(adapter)
        }
        pairs = [*(findings.numbers.pictures if findings.numbers else []), *chosen_pairs(run)]
        shown = copy_pictures(run, folder, pairs, pictures, blur=blur) if pairs else []
        if training_images:
            copy_sets(run, folder, blur=blur)
        if recipe is not None:
            write_text(folder / RECIPE_FILE, yaml.safe_dump(public_recipe(recipe), sort_keys=False, allow_unicode=True))
        if findings.numbers:
            kept = {name: value for name, value in findings.result.items() if name != "strips"}
            kept |= {name: without_folders(kept[name]) for name in NAMING_FILES if name in kept}
            kept |= {"refused": findings.numbers.reasons}
            write_text(folder / EVALUATION_FILE, json.dumps(kept | {"pictures": shown}, indent=2) + "\n")
        contents = Contents(
            adapter=adapter,
            folder=folder,
            repo=repo,
            files=files,
            base_model=base_model,
            license=license_of(adapter, license),
            findings=findings,
            shown=shown,
            sensitive=source.is_sensitive,
            blurred=blur and any(folder.rglob("*.png")),
        )
        write_text(folder / CARD_FILE, model_card(contents))
        check_card(folder / CARD_FILE)
    return run / HUB


def upload(folder: Path, repo: str, *, public: bool) -> None:
    """Upload a hub folder with the token that huggingface_hub finds; it is never read or shown here.

    Raises:
        UserError: If there is no login, the hub refuses the card or anything else, or the repository is public and
            `public` is not set.
    """
    api = HfApi()
    with _explained(folder, repo):
        try:
            is_private = api.repo_info(repo).private
        except RepositoryNotFoundError:
            is_private = None
        if is_private is False and not public:
            raise UserError(
                Problem("--repo", repo, "exists and is public.", "Add --public if everybody may see the adapter.")
            )
        _validate(folder / CARD_FILE)
        api.create_repo(repo, private=not public, exist_ok=True)
        api.upload_folder(repo_id=repo, folder_path=folder, commit_message="Upload adapter")
        if public and is_private:  # it was there, and so stayed as it was
            api.update_repo_settings(repo, private=False)
            log.info("%s was private, and is public now", repo)


def _checked(repo: str, base_model: str | None, license: str | None) -> License | None:
    """The licence that was asked for, once all that was given is known to be of use."""
    problems = []
    for field, name in (("--repo", repo), ("--base_model", base_model)):
        if name is None:
            continue
        try:
            validate_repo_id(name)
            if "/" not in name:
                problems.append(Problem(field, name, "is no repository name.", "Write user/name."))
        except HFValidationError as error:
            reason = str(error).partition(f": '{name}'")[0].rstrip(".")
            problems.append(Problem(field, name, f"is no repository name: {reason}.", "Write user/name."))
    try:
        named = None if license is None else parse(license)
    except UserError as error:
        problems += error.problems
    if problems:
        raise UserError(*problems)
    return named


def _require_proof(source: Source, *, public: bool, force: bool) -> None:
    """Nobody ships by mistake what they meant to remove."""
    claim = source.findings.claims["erased"]
    if claim.answer == "yes":
        return
    what = f"its erasure {UNPROVEN[claim.answer]}: {claim.text}"
    if not source.adapter.provenance.is_erasure and not claim.measured:
        what = "it is recorded nowhere that it erases anything, and nothing was measured."
    if not public or force:
        log.warning("warning: %s: %s The card says so.", source.run, what)
        return
    way = "Train it further" if claim.holds is False else f"Measure it with `erasediff-lora evaluate {source.run}`"
    raise UserError(
        Problem("--public", str(source.run), what, f"{way}, leave out --public, or add --force: the card will say so.")
    )


def _require_ours(folder: Path) -> None:
    """Only a hub folder is replaced by one, and nothing that somebody else put into it."""
    remedy = "Move it away: its place is needed."
    if folder.is_symlink() or (folder.exists() and not _is_ours(folder)):
        raise UserError(Problem("run", str(folder), "is there already, and no hub folder.", remedy))
    ours = {*PARTS, *(FORMATS[name].FOLDER for name in FORMATS)}
    added = strangers(folder, "run", ours) if folder.exists() else []
    if (folder / IMAGES).is_dir():
        added += [f"{IMAGES}/{file.name}" for file in sorted((folder / IMAGES).iterdir()) if not is_ours(file.name)]
    if added:
        what = f"holds {added[0]}, which is not of this program, and would go as the folder is made anew."
        raise UserError(Problem("run", str(folder), what, "Move that away."))


def _is_ours(folder: Path) -> bool:
    """Whether it has a card as they are written here."""
    try:
        return "erasediff" in (read_inside(folder, CARD_FILE) or "")
    except UserError:
        return False


def _validate(card: Path) -> None:
    """Ask the hub what it thinks of the card."""
    try:
        ModelCard.load(card).validate(repo_type="model")
    except ValueError as error:
        raise UserError(
            Problem("model card", str(card), f"the hub refuses it: {_shown(error)}", "Correct what it names.")
        ) from None


@contextmanager
def _explained(folder: Path, repo: str) -> Iterator[None]:
    """Turn what goes wrong on the way to the hub into an error that says so.

    Raises:
        UserError: Instead of what the hub's library raises: no token, a refusal, no connection, a proxy of no use.
    """
    try:
        yield
    except LocalTokenNotFoundError:
        raise UserError(
            Problem("--repo", repo, "can't be reached: you are not logged in.", "Run `hf auth login` or set HF_TOKEN.")
        ) from None
    except (HTTPError, OSError, ValueError, ImportError) as error:
        raise UserError(
            Problem(
                "--repo",
                repo,
                f"the hub refused, or cannot be reached: {_shown(error).rstrip('.')}.",
                f"Check the name, your rights and the connection; the folder is ready in {folder}.",
            )
        ) from None


def _shown(error: Exception) -> str:
    """What an error says, without tokens and passwords."""
    text = " ".join(str(error).split()) or type(error).__name__
    return re.sub(r"(?<=//)[^/@\s]+@", "…@", re.sub(r"hf_\w+", "hf_…", text))[:300]
