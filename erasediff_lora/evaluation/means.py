"""What an evaluation needs, looked at before the first picture and before training: minutes are lost, not hours."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from erasediff_lora.adapter.provenance import Provenance
from erasediff_lora.data.prompt_files import file_prompts
from erasediff_lora.denoisers import Denoiser
from erasediff_lora.denoisers.noise_schedule import require_steps
from erasediff_lora.errors import Problem, UserError
from erasediff_lora.evaluation.attacks import attack
from erasediff_lora.evaluation.candidates import locate_never_learned
from erasediff_lora.evaluation.judging import judge_of
from erasediff_lora.evaluation.metrics import metric
from erasediff_lora.evaluation.parts import Part
from erasediff_lora.recipe import Recipe
from erasediff_lora.recipe.evaluation import Evaluation
from erasediff_lora.recipe.names import folded
from erasediff_lora.registry import PROTOCOLS, SURVIVAL
from erasediff_lora.storage.files import PICKLE_SUFFIXES, open_safetensors
from erasediff_lora.storage.run_folder import RECIPE_FILE

log = logging.getLogger(__name__)


def check_means(recipe: Recipe) -> None:
    """See that the judge can see what it is asked for, and that all weights and packages that are named are there.

    What the recipe does not name, such as features that are a default, is left out of the evaluation if it is missing.

    Raises:
        UserError: With all that is missing.
    """
    options = recipe.evaluation
    parts: list[Part] = [*map(metric, options.metrics), *map(attack, options.attacks)]
    parts += [SURVIVAL[name](name) for name in options.survival]
    looks: list[Callable[[], object]] = [partial(file_prompts, recipe)]
    looks += [partial(judge_of, recipe), partial(locate_never_learned, recipe)]
    looks += [partial(part.require_means, options) for part in parts]
    looks += [partial(_require_means_of_protocol, options)]
    problems: dict[str, Problem] = {}
    for look in looks:
        try:
            look()
        except UserError as error:
            problems |= {str(problem): problem for problem in error.problems}
    if problems:
        raise UserError(*problems.values())


def _require_means_of_protocol(options: Evaluation) -> None:
    """See that what a protocol measures can be measured: its name would stand over other numbers.

    Raises:
        UserError: If it is left to the recipe by what, and the recipe does not say.
    """
    if options.protocol is None:
        return
    measured = PROTOCOLS[options.protocol].values.get("metrics", ())
    asked = (name for name in measured if name in options.metrics)
    open_fields = {name: field for name in asked if (field := metric(name).left_open(options)) is not None}
    if open_fields:
        remedy = "Say by what; the protocol's source says what others use."
        raise UserError(
            *(
                Problem(field, None, f"is left open, and {options.protocol} measures {name}.", remedy)
                for name, field in open_fields.items()
            )
        )


def check_same_erasure(recipe: Recipe, adapter: Path, file: Path) -> None:
    """See that the recipe is about what the adapter erases: its numbers would be put down to the wrong concept.

    Args:
        recipe: To evaluate by.
        adapter: What was given: the file or the folder of a run.
        file: The adapter's.

    Raises:
        UserError: If the recipe names a concept that the adapter's header, or else the run's own recipe, does not.
    """
    asked = [concept.name for concept in recipe.forget.concepts]
    erased = _erased_by(adapter, file)
    known = {folded(name) for name in erased}
    if erased and any(folded(name) not in known for name in asked):
        raise UserError(
            Problem(
                "forget.concepts",
                asked,
                f"is not what {file.name} erases, which is {', '.join(erased)}.",
                "Give the recipe that it was trained by, or add --force to judge it by this one.",
            )
        )


def _erased_by(adapter: Path, file: Path) -> list[str]:
    """The concepts that an adapter is for; none if nothing says."""
    named: Sequence[str] = ()
    if file.is_file() and file.suffix.lower() not in PICKLE_SUFFIXES:
        with open_safetensors(file, "adapter") as stored:
            named = Provenance.from_header(stored.metadata() or {}).concepts
    own = adapter / RECIPE_FILE
    if named or not own.is_file():
        return list(named)
    try:
        return [concept.name for concept in Recipe.of_run(adapter).forget.concepts]
    except UserError:  # its pictures may be gone by now
        return []


def require_steps_of_base(recipe: Recipe, denoiser: Denoiser) -> None:
    """See that the base's schedule has as many steps as pictures are to be drawn in.

    Raises:
        UserError: If it has not.
    """
    require_steps(denoiser.noise_scheduler, recipe.sampling.steps)
    require_steps(denoiser.noise_scheduler, recipe.evaluation.steps or 1, "evaluation.steps")


def warn_of_resolution(recipe: Recipe, denoiser: Denoiser) -> None:
    """Say so where pictures are not of the base's own size: it may not draw at any other."""
    asked = recipe.sampling.resolution
    if asked is not None and asked != denoiser.resolution:
        log.warning(
            "warning: sampling.resolution = %d: the base draws at %d px, and may not draw the concept at any other"
            " size; look at the sets",
            *(asked, denoiser.resolution),
        )
