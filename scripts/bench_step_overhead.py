"""What one EraseDiff step costs beyond the network passes that it must make.

    OMP_NUM_THREADS=1 python scripts/bench_step_overhead.py [RECIPE] [--section.field VALUE ...]

Takes training steps and, in turns, the bare passes of the same step (forget target without gradient, forward and
backward of the retain and of the forget loss, the passes of the inner steps), and prints the ratio of the medians.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch
from accelerate import Accelerator

from erasediff_lora import __version__, train
from erasediff_lora.cli.recipe_flags import overrides_from
from erasediff_lora.recipe import Recipe

ROUNDS = 30
DEMO_RECIPE = Path(__file__).parent.parent / "recipes/demo_concept.yaml"


def bare_passes(run: train.Run, forget: list, retain: list) -> None:
    """The forward and backward passes of one step, and nothing else."""
    settings = run.recipe.objective
    network = run.objective.network  # type: ignore[attr-defined]

    def forward_backward(batch, target) -> None:
        prediction = network.predict(batch.noisy, batch.timesteps, batch.prompts)
        loss = torch.nn.functional.mse_loss(prediction.float(), target.float())
        torch.autograd.grad(loss, run.trainable.parameters, allow_unused=True)

    targets = [run.objective.forget_target(batch) for batch in forget]  # type: ignore[attr-defined]
    for batch in retain:
        forward_backward(batch, batch.target)
    inner = 0 if settings.inner_steps_are_inert else settings.inner_steps - 1  # the first reuses the outer gradient
    repeats = 1 + inner + (settings.gradient == "first_order")
    for _ in range(repeats):
        for batch, target in zip(forget, targets, strict=True):
            forward_backward(batch, target)
    if not settings.inner_steps_are_inert and settings.gradient == "detached":
        with torch.no_grad():
            for batch in forget:
                network.predict(batch.noisy, batch.timesteps, batch.prompts)


def measure(recipe: Recipe) -> dict[str, float | str]:
    """Median seconds of full steps and of bare passes, interleaved."""
    run = train.set_up(recipe, Accelerator(cpu=recipe.model.device == "cpu"), resume=False)
    full, bare = [], []
    for step in range(ROUNDS + 3):
        forget, retain = run.sampler.draw(step)
        began = time.perf_counter()
        bare_passes(run, forget, retain)
        middle = time.perf_counter()
        train.take_step(run, step)
        bare.append(middle - began)
        full.append(time.perf_counter() - middle)
    full, bare = full[3:], bare[3:]  # the first steps warm caches
    return {
        "barrier": recipe.objective.barrier,
        "gradient": recipe.objective.gradient,
        "bare_seconds": statistics.median(bare),
        "step_seconds": statistics.median(full),
        "ratio": statistics.median(full) / statistics.median(bare),
        "ratio_of_minima": min(full) / min(bare),
    }


def main() -> None:
    """Measure the recipe's objective and the three other ways to spend the inner steps."""
    arguments = sys.argv[1:]
    file = Path(arguments.pop(0)) if arguments and not arguments[0].startswith("--") else DEMO_RECIPE
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for barrier, gradient in (
            ("grad_norm", "detached"), ("gap", "detached"), ("grad_norm", "first_order"), ("gap", "first_order"),
        ):  # fmt: skip
            chosen = {"output": folder, "objective.barrier": barrier, "objective.gradient": gradient}
            rows.append(measure(Recipe.load(file, overrides_from(arguments) | chosen)))
    print(f"{'barrier':10} {'gradient':12} {'bare ms':>8} {'step ms':>8} {'ratio':>6} {'of minima':>9}")
    for row in rows:
        print(
            f"{row['barrier']:10} {row['gradient']:12} {row['bare_seconds'] * 1e3:8.1f}"
            f" {row['step_seconds'] * 1e3:8.1f} {row['ratio']:6.3f} {row['ratio_of_minima']:9.3f}"
        )
    report = {"version": __version__, "torch": torch.__version__, "threads": torch.get_num_threads(), "rows": rows}
    Path("bench_step_overhead.json").write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
