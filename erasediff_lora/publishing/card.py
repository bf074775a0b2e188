"""The model card of an adapter: it says what was measured, and nothing else."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, metadata
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData
from huggingface_hub.repocard import metadata_load
from huggingface_hub.repocard_data import eval_results_to_model_index, model_index_to_eval_results

from erasediff_lora import __version__, families
from erasediff_lora.adapter import formats
from erasediff_lora.adapter.formats import Published
from erasediff_lora.adapter.programs import lines_of_best
from erasediff_lora.adapter.weights import LoraAdapter
from erasediff_lora.evaluation.verdict import RULES
from erasediff_lora.families import License
from erasediff_lora.publishing.findings import Claim, Findings, Metrics
from erasediff_lora.publishing.measured import accuracy_table, attack_table, became, distance_name, eval_results
from erasediff_lora.recipe.evaluation import without_folders
from erasediff_lora.recipe.names import few
from erasediff_lora.registry import FORMATS
from erasediff_lora.storage.markdown import Markdown, one_line, table, template
from erasediff_lora.storage.run_folder import GRID_FILE, RECIPE_FILE

log = logging.getLogger(__name__)
TEMPLATE = Path(__file__).parent / "card.md.jinja"
PACKAGE = "erasediff-lora"
TAGS = ["text-to-image", "diffusers", "lora", "template:sd-lora", "erasediff", "concept-erasure"]
TEXT_TAGS = {"text-to-image", "template:sd-lora"}
ERASURE_TAGS = {"erasediff", "concept-erasure"}
AUDIENCE_TAG = "not-for-all-audiences"


@dataclass(frozen=True)
class Contents:
    """What lies in a hub folder, for its card.

    Attributes:
        adapter: The adapter.
        folder: The hub folder.
        repo: 'user/name' on the hub.
        files: Format -> its weights file, from the folder on.
        base_model: Hub id of the base, if there is one.
        license: That of the adapter, if it is known.
        findings: What was measured.
        shown: The pictures: kind, prompt, seed and picture of each.
        sensitive: Whether nudity is the subject.
        blurred: Whether the pictures are blurred.
    """

    adapter: LoraAdapter
    folder: Path
    repo: str
    files: Mapping[str, Path]
    base_model: str | None
    license: License | None
    findings: Findings
    shown: Sequence[Mapping[str, Any]]
    sensitive: bool
    blurred: bool

    @property
    def base(self) -> str | None:
        """The base's name for people."""
        own = self.adapter.provenance.base_model
        return self.base_model or ("the embedded model of erasediff-lora" if own == "demo" else own)

    @property
    def concepts(self) -> list[str]:
        """What is erased, or was meant to be."""
        numbers = self.findings.numbers
        return list(self.adapter.provenance.concepts or (numbers.concepts if numbers else ()))

    @property
    def is_erasure(self) -> bool:
        """Whether there is an erasure to speak of: recorded in the adapter, or measured."""
        return self.adapter.provenance.is_erasure or self.findings.numbers is not None

    @property
    def draws_text(self) -> bool:
        """Whether prompts are text."""
        found = families.of_architecture(self.adapter.architecture)
        return found is None or found[0].text_to_image


def model_card(contents: Contents) -> str:
    """The card of what lies in a hub folder."""
    numbers, folder = contents.findings.numbers, contents.folder
    metrics = numbers.metrics if numbers else Metrics()
    body = template(TEMPLATE.read_text(encoding="utf-8")).render(
        card=contents,
        adapter=contents.adapter,
        provenance=contents.adapter.provenance,
        claims=contents.findings.claims,
        verdict=_verdict(contents.findings.claims.values()),
        rules=RULES,
        names=few(contents.concepts) or "a concept",
        numbers=numbers,
        judge=without_folders(numbers.judge if numbers and numbers.judge else "unknown"),
        accuracy=accuracy_table(metrics.accuracy) if metrics.accuracy else None,
        became=became(numbers) if numbers else [],
        distances=metrics.distances,
        distance_name=distance_name,
        attacks=attack_table(contents.findings),
        has_grid=(folder / GRID_FILE).is_file(),
        usage=_usage(contents),
        losses=_losses(contents),
        parameters=sum(layer.down.numel() + layer.up.numel() for layer in contents.adapter.layers.values()),
        kibibytes=round((folder / next(iter(contents.files.values()))).stat().st_size / 1024),
        has_recipe=(folder / RECIPE_FILE).is_file(),
        link=_project_link(),
        version=__version__,
    )
    return f"---\n{card_data(contents).to_yaml()}\n---\n\n{body}\n"


def card_data(contents: Contents) -> ModelCardData:
    """What the hub itself reads."""
    if contents.license is None:
        log.warning("warning: the licence of the base is unknown, so the card names none; give it with --license")
    named, numbers = contents.license or License(""), contents.findings.numbers
    results = eval_results(numbers, _task(contents)) if numbers else []
    unsuited = (set() if contents.draws_text else TEXT_TAGS) | (set() if contents.is_erasure else ERASURE_TAGS)
    tags = [tag for tag in TAGS if tag not in unsuited]
    widget = [{"text": one_line(entry["prompt"]), "output": {"url": entry["picture"]}} for entry in contents.shown]
    return ModelCardData(
        license=named.id or None,
        license_name=named.name,
        license_link=named.link,
        library_name="diffusers",
        pipeline_tag=_task(contents),
        tags=[*tags, AUDIENCE_TAG] if contents.sensitive else tags,
        widget=widget or None,
        base_model=contents.base_model,
        base_model_relation="adapter" if contents.base_model else None,
        model_name=contents.repo.rpartition("/")[2] if results else None,
        eval_results=results or None,
    )


def check_card(file: Path) -> None:
    """Read a card as huggingface_hub does, as far as it can without the hub.

    Raises:
        ValueError: If it does not come back as it was written.
    """
    card, raw = ModelCard.load(file), metadata_load(file)
    if card.data.to_dict() != raw:
        raise ValueError(f"{file} does not come back as it was written")
    if index := (raw or {}).get("model-index"):
        name, results = model_index_to_eval_results(index)
        if eval_results_to_model_index(name, results) != index:
            raise ValueError(f"the model-index of {file} does not come back as it was written")


def _verdict(claims: Iterable[Claim]) -> Markdown:
    rows = [one for claim in claims for one in (claim, *claim.parts)]
    return table(("claim", "", "by what"), [(row.name, row.answer, row.text) for row in rows])


def _task(contents: Contents) -> str:
    return "text-to-image" if contents.draws_text else "unconditional-image-generation"


def _usage(contents: Contents) -> list[Markdown]:
    base = contents.base_model or "PATH_OF_THE_BASE"
    texts = [
        FORMATS[name].usage(Published(contents.adapter, contents.repo, file.as_posix(), base))
        for name, file in contents.files.items()
    ]
    return [Markdown(text) for text in texts if text]


def _losses(contents: Contents) -> list[str]:
    """What programs will not read of the files, or read otherwise."""
    files = {file: (name, formats.describe(contents.folder / file)[1]) for name, file in contents.files.items()}
    return lines_of_best(files)


def _project_link() -> str | None:
    """The home page in the package's metadata."""
    try:
        entries = metadata(PACKAGE).get_all("Project-URL", [])
    except PackageNotFoundError:
        return None
    pages = (entry.partition(",") for entry in entries)
    return next((address.strip() for label, _, address in pages if label.lower() == "homepage"), None)
