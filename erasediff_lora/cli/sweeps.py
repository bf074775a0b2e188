"""The verb that runs many: `erasediff-lora sweep RECIPE --grid training.seed=0,1,2 …`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from erasediff_lora.cli.recipe_flags import FIELDS, load_recipe, overrides_from
from erasediff_lora.cli.verb import Verb, user_path
from erasediff_lora.errors import Problem, UserError, nearest

if TYPE_CHECKING:
    from erasediff_lora.sweeps.launchers import Launcher

EXAMPLE = """\
Every combination of the grid is a run in a folder of its own. The same command goes on where it ended: runs that are
finished are left alone, begun ones resumed. At the end all are compared.

  erasediff-lora sweep recipe.yaml --grid training.seed=0,1,2 --grid objective.eta=0.1,0.3
  erasediff-lora sweep recipe.yaml --grid adapter.rank=4,8 --launcher submitit --launch slurm_partition=gpu

"""


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", type=user_path, help="recipe file, folder of a run, or name of a shipped recipe")
    parser.add_argument(
        "--grid", action="append", metavar="FIELD=VALUE,…", help="a field of the recipe and its values; repeat for more"
    )
    parser.add_argument("--folder", type=user_path, help="where the runs go [runs/sweep-RECIPE]")
    parser.add_argument("--launcher", default="processes", help="processes, submitit (Slurm) or ray [processes]")
    parser.add_argument("--launch", action="append", default=[], metavar="NAME=VALUE", help="an option of the launcher")
    parser.add_argument("--jobs", type=int, help="runs at a time [one for each card; for a cluster all]")
    parser.add_argument("--overwrite", action="store_true", help="run all of them again, in the place of what is there")
    parser.add_argument("--dry-run", dest="dry_run", action="store_true", help="only say what would be run")


def _sweep(parsed: argparse.Namespace, rest: list[str]) -> None:
    from erasediff_lora.evaluation.report.comparison import compare
    from erasediff_lora.sweeps.grid import combinations, parse_grid
    from erasediff_lora.sweeps.sweep import COMPARISON_FILE, Sweep

    grid = parse_grid(parsed.grid or [])
    if not grid:
        raise UserError(Problem("--grid", None, "is needed: nothing varies.", "Write --grid training.seed=0,1,2."))
    overrides = overrides_from(rest)
    if "output" in overrides:
        what = "each run has a folder of its own in the sweep's."
        raise UserError(Problem("--output", overrides["output"], what, "Use --folder."))
    folder: Path = parsed.folder or Path("runs") / f"sweep-{parsed.recipe.stem}"
    sweep = Sweep.of(folder, lambda values: load_recipe(parsed.recipe, [], overrides | values), combinations(grid))
    launcher = None if parsed.dry_run else _launcher(parsed)
    print(f"{len(sweep.recipes)} runs in {folder}, {len(sweep.finished())} of them finished")
    if launcher is None:
        for name in sweep.recipes:
            print(f"  {name}")
        return
    jobs = sweep.write(overwrite=parsed.overwrite)
    try:
        sweep.run(jobs, launcher)
    finally:
        if finished := sweep.finished():
            print(compare(finished, folder / COMPARISON_FILE, overwrite=True))
            print(f"\nreport     {folder / COMPARISON_FILE}")


def _launcher(parsed: argparse.Namespace) -> Launcher:
    from erasediff_lora.recipe.yaml_io import parse_yaml
    from erasediff_lora.registry import LAUNCHERS

    if parsed.launcher not in LAUNCHERS:
        raise UserError(
            Problem("--launcher", parsed.launcher, "is no launcher.", nearest(parsed.launcher, list(LAUNCHERS)))
        )
    if parsed.jobs is not None and parsed.jobs < 1:
        raise UserError(Problem("--jobs", parsed.jobs, "is fewer than one run at a time.", "Write 1 or more."))
    options: dict[str, Any] = {}
    for word in parsed.launch:
        name, separator, text = word.partition("=")
        if not separator or not name:
            raise UserError(Problem("--launch", word, "is no option with a value.", "Write --launch NAME=VALUE."))
        try:
            options[name] = parse_yaml(text)
        except ValueError:
            raise UserError(Problem("--launch", word, "has an unreadable value.", "Quote it as YAML.")) from None
    launcher: Launcher = LAUNCHERS[parsed.launcher](parsed.jobs, options)
    return launcher


VERBS = {
    "sweep": Verb(
        "run a recipe over a grid of values, here or on a cluster, and compare", _arguments, _sweep, EXAMPLE + FIELDS
    )
}
