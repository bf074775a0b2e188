"""The verb that opens a page to try adapters on."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from erasediff_lora.cli.recipe_flags import FIELDS, load_recipe
from erasediff_lora.cli.verb import Verb, user_path
from erasediff_lora.errors import Problem, UserError

PORT = 7860


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "runs", nargs="+", type=user_path, metavar="RUN", help="folder of a run; after the first also adapter files"
    )
    parser.add_argument("--port", type=int, default=PORT, help=f"of this machine; 0: any that is free [{PORT}]")
    parser.add_argument(
        "--share", action="store_true", help="also through a public link, which leads through Gradio's servers"
    )


def _play(parsed: argparse.Namespace, rest: list[str]) -> None:
    from erasediff_lora.playground.server import start

    first: Path = parsed.runs[0]
    _require_adapters(parsed.runs)
    recipe = load_recipe(first, rest)
    page, address = start(recipe, parsed.runs, port=parsed.port, share=parsed.share)
    print(f"playground {address}\nCtrl-C ends it", flush=True)
    try:
        while True:
            time.sleep(1)
    finally:
        page.close(verbose=False)


def _require_adapters(runs: list[Path]) -> None:
    """See that there is something to try, before anything is imported.

    Raises:
        UserError: If there is not.
    """
    from erasediff_lora.storage.run_folder import RECIPE_FILE, WEIGHTS_FILE

    problems = []
    if not (runs[0] / RECIPE_FILE).is_file():
        remedy = "Name the run first: its recipe says which base is drawn with."
        problems.append(Problem("RUN", str(runs[0]), "is no folder of a run.", remedy))
    for run in runs:
        if not run.exists():
            problems.append(Problem("RUN", str(run), "is not there."))
        elif run.is_dir() and not [*run.glob("*.safetensors"), *run.glob(f"*/{WEIGHTS_FILE}")]:
            problems.append(Problem("RUN", str(run), "holds no adapter.", "Train first: erasediff-lora train RECIPE."))
    if problems:
        raise UserError(*problems)


VERBS = {"play": Verb("open a local page to try adapters on: prompts, strengths, attacks", _arguments, _play, FIELDS)}
