"""`erasediff-lora plan`: what memory a run takes, and how long it takes."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from erasediff_lora.cli.recipe_flags import FIELDS, load_recipe
from erasediff_lora.cli.verb import Verb, bytes_of, user_path
from erasediff_lora.errors import UserError, brief

if TYPE_CHECKING:
    from erasediff_lora.recipe import Recipe


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", type=user_path, help="recipe file, folder of a run, or name of a shipped recipe")
    parser.add_argument("--vram", metavar="SIZE", help="memory of the card, such as 8GiB; omit for this machine's own")
    parser.add_argument(
        "--time", action="store_true", help="load the base and time a few passes, also where that takes a while"
    )


def _plan(parsed: argparse.Namespace, rest: list[str]) -> None:
    from erasediff_lora.memory import room

    capacity = None if parsed.vram is None else bytes_of("--vram", parsed.vram)
    recipe = load_recipe(parsed.recipe, rest)
    asked = recipe.training.gradient_accumulation
    recipe, found, capacity = room.decided(recipe, capacity)
    names = list(dict.fromkeys(name for phase in found.phases for name in phase.parts))
    print(f"{'on ' + found.device:14}" + "".join(f"{name:>13}" for name in [*names, "peak"]))
    for phase in found.phases:
        cells = [phase.parts.get(name) for name in names] + [phase.peak]
        print(f"{phase.name:14}" + "".join(f"{'–' if c is None else room.gib(c):>13}" for c in cells))
    if (parts := recipe.training.gradient_accumulation) != asked:
        print(f"training.gradient_accumulation: {asked} takes {parts}")
    if found.peak > capacity:
        raise UserError(room.shortage("--vram" if parsed.vram else "memory", recipe, found, capacity))
    print(f"fits in {room.gib(capacity)}; {room.gib(capacity - found.peak)} to spare")
    _plan_time(recipe, found.device, anyhow=parsed.time)


def _plan_time(recipe: Recipe, device: str, *, anyhow: bool) -> None:
    """Print the passes of each stage, and how long they take, if that can be found out here."""
    from erasediff_lora.machine.progress import duration
    from erasediff_lora.timing.halving import half
    from erasediff_lora.timing.speed import Speed, is_at_hand, measure
    from erasediff_lora.timing.stages import effort, stages

    step = effort(recipe)
    found = stages(recipe, step)
    speed: Speed | None = None
    try:
        speed = measure(recipe, found) if is_at_hand(recipe, device, anyhow=anyhow) else None
    except (RuntimeError, LookupError, ValueError) as error:  # of a network that cannot draw what the recipe asks for
        print(f"\nnot timed: a pass through the base fails: {brief(' '.join(str(error).split()))}")
    print(f"\n{'stage':22}{'':44}{'forward':>10}{'+ backward':>12}{'time':>12}")
    for stage in found:
        took = "" if speed is None else duration(speed.seconds(stage))
        forward = stage.looked or stage.encoded
        print(f"{stage.name:22}{stage.detail:44}{forward:>10,.0f}{stage.trained:>12,.0f}{took:>12}")
    if speed is None:
        print("pictures through the network; where the base is at hand, --time says how long that takes")
        return

    def seconds(changed: Recipe) -> float:
        return sum(map(speed.seconds, stages(changed, step)))

    print(f"{'in all, about':88}{duration(seconds(recipe)):>12}")
    shorter = half(recipe, seconds)
    if shorter is None:
        print("no setting halves it: fewer pictures, steps or attacks would, or a faster device")
    else:
        overrides, left = shorter
        flags = " ".join(f"--{name} {'[]' if value == [] else value}" for name, value in overrides.items())
        print(f"half the time: {flags} ({duration(left)})")


VERBS = {"plan": Verb("predict what memory a run takes and how long, and what would help", _arguments, _plan, FIELDS)}
