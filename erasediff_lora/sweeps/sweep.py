"""A sweep: its folder, which of its runs are missing, and what came of them."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from erasediff_lora.errors import Problem, UserError
from erasediff_lora.recipe import Recipe
from erasediff_lora.storage.files import write_text
from erasediff_lora.storage.run_folder import EVALUATION_FILE, RECIPE_FILE
from erasediff_lora.sweeps.launchers import Job, Launcher

log = logging.getLogger(__name__)
RECIPES = "recipes"
LOGS = "logs"
COMPARISON_FILE = "comparison.html"


@dataclass(frozen=True)
class Sweep:
    """One recipe with many values.

    Attributes:
        folder: Holds a folder for each run, under the run's name, and what the sweep itself writes.
        recipes: Name -> recipe; its output is the run's folder.
    """

    folder: Path
    recipes: Mapping[str, Recipe]

    @classmethod
    def of(
        cls,
        folder: Path,
        load: Callable[[dict[str, Any]], Recipe],
        combinations: Mapping[str, Mapping[str, Any]],
    ) -> Sweep:
        """Check every recipe, so that the last run does not fail for what could be known before the first.

        Args:
            folder: Of the sweep.
            load: From overriding fields to the recipe.
            combinations: Name -> values of its fields.

        Raises:
            UserError: With what is wrong in any combination.
        """
        recipes: dict[str, Recipe] = {}
        problems: list[Problem] = []
        for name, values in combinations.items():
            try:
                recipes[name] = load({**values, "output": str(folder / name)})
            except UserError as error:
                problems += [problem for problem in error.problems if problem not in problems]
        if problems:
            raise UserError(*problems)
        return cls(folder, recipes)

    def finished(self) -> list[Path]:
        """Folders of the runs that have been evaluated."""
        return [recipe.output for recipe in self.recipes.values() if is_finished(recipe)]

    def write(self, *, overwrite: bool) -> list[Job]:
        """Write the recipes; returns what is left to do.

        Args:
            overwrite: Replace runs that the folder holds of other recipes; all are run again.

        Raises:
            UserError: If the folder holds runs of other recipes, or cannot be written.
        """
        texts = {self._file(name): recipe.to_yaml() for name, recipe in self.recipes.items()}
        if not overwrite:
            self._refuse_others(texts)
        for file, text in texts.items():
            write_text(file, text, field="--folder")
        jobs = [
            Job(name, self._file(name), self.folder / LOGS / f"{name}.log", overwrite)
            for name, recipe in self.recipes.items()
            if overwrite or not is_finished(recipe)
        ]
        (self.folder / LOGS).mkdir(exist_ok=True)
        return jobs

    def _file(self, name: str) -> Path:
        return self.folder / RECIPES / f"{name}.yaml"

    def _refuse_others(self, texts: Mapping[Path, str]) -> None:
        remedy = "Choose another --folder, or replace those runs with --overwrite."
        for name, recipe in self.recipes.items():
            file = self._file(name)
            if file.is_file() and file.read_text(encoding="utf-8") != texts[file]:
                what = f"holds a run {name} of another recipe."
                raise UserError(Problem("--folder", str(self.folder), what, remedy))
            if not file.is_file() and (recipe.output / RECIPE_FILE).exists():
                raise UserError(Problem("--folder", str(recipe.output), "is a run of something else.", remedy))

    def run(self, jobs: Sequence[Job], launcher: Launcher) -> None:
        """Start what is left to do, and wait for all of it.

        Raises:
            UserError: After all have ended, naming those that failed.
        """
        failed: list[Problem] = []
        for number, (job, status) in enumerate(launcher.launch(jobs), start=1):
            log.info("%d of %d: %s %s", number, len(jobs), job.name, "done" if status == 0 else f"failed ({status})")
            if status != 0:
                what = f"ended with status {status}: {last_line(job.log)}"
                failed.append(Problem("run", job.name, what, f"See {job.log}; the same sweep goes on where it ended."))
        if failed:
            raise UserError(*failed)


def is_finished(recipe: Recipe) -> bool:
    """Whether the run has been evaluated, which comes last."""
    return (recipe.output / EVALUATION_FILE).is_file()


def last_line(log_file: Path) -> str:
    """The last line of a log that says something; bars are redrawn over themselves."""
    try:
        text = log_file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return "it left no log"
    lines = [line.strip() for line in re.split(r"[\r\n]+", text) if line.strip()]
    return lines[-1][:300] if lines else "it said nothing"
