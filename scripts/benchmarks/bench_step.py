"""What a training step costs, beside the network passes that it must make and beside diffusers' own training step.

    export OMP_NUM_THREADS=1
    python scripts/benchmarks/bench_step.py [--only demo sd15-256 sdxl-512-checkpointing] [--variants compile]

In turns, on one network: a whole step; its bare passes (the forget target without gradient, forward and backward of the
retain and of the forget loss, the passes of the inner steps); the retain loss with its gradient; the step that
diffusers' example script for LoRA takes on the same batch. With --full also a step of EraseDiff as published, on a
copy of all weights. The embedded model, erasing one concept or five (demo-5), or configurations of bench_memory.py with
random weights. Medians, in seconds of the processor where there is no GPU; prints a Markdown table and writes step.json
under --work.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import bench_memory
import torch
from accelerate import Accelerator
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from erasediff_lora import __version__
from erasediff_lora.data.noising import denoising_target
from erasediff_lora.errors import UserError
from erasediff_lora.objectives import aim
from erasediff_lora.objectives.base import Batch, loss_and_gradient
from erasediff_lora.objectives.erasediff import EraseDiff, EraseDiffSettings
from erasediff_lora.recipe import Recipe
from erasediff_lora.recipe.yaml_io import overlay, read_yaml
from erasediff_lora.training import distributed, loop
from erasediff_lora.training.setup import Run, set_up

DEMO = Path(__file__).parent.parent.parent / "recipes/demo_concept.yaml"
OBJECTIVES: dict[str, dict[str, Any]] = {
    "grad_norm, detached": {"objective.barrier": "grad_norm", "objective.gradient": "detached"},
    "gap, detached": {"objective.barrier": "gap", "objective.gradient": "detached"},
    "gap, first order": {"objective.barrier": "gap", "objective.gradient": "first_order"},
}
PUBLISHED: dict[str, Any] = {
    "adapter": "none",
    "objective": {"name": "erasediff", "preset": "paper"},
    "training.learning_rate": 1e-5,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "channels_last": {"training.channels_last": True},
    "compile": {"training.compile": True},
    "one_pass": {"training.one_pass": True},
}
SEVERAL: dict[str, Any] = {
    "forget.concepts": [{"name": name, "anchor": "heart"} for name in ("cat", "car", "clock", "fish", "house")],
    "retain.concepts": ["heart", "flower", "book", "cloud", "face"],
    "evaluation.paraphrases.names": {},
}


def recipe_of(name: str, work: Path, overrides: dict[str, Any]) -> Recipe:
    """A configuration's recipe, written under a folder of its own."""
    if name.startswith("demo"):
        values = read_yaml(DEMO)
        overrides = (SEVERAL if name == "demo-5" else {}) | overrides
    else:
        values = bench_memory.recipe_values(name, work, steps=1)
    return Recipe.parse(overlay(values, {"output": tempfile.mkdtemp(dir=work)} | overrides))


def bare_passes(run: Run, forget: list[Batch], retain: list[Batch]) -> None:
    """The forward and backward passes of one step, and nothing else."""
    settings, objective = run.recipe.objective, run.objective
    assert isinstance(settings, EraseDiffSettings) and isinstance(objective, EraseDiff)
    network = objective.network

    def forward_backward(batch: Batch, target: Tensor) -> None:
        prediction = network.predict(batch.noisy, batch.timesteps, batch.prompts)
        loss = torch.nn.functional.mse_loss(prediction.float(), target.float())
        torch.autograd.grad(loss, run.trainable.parameters, allow_unused=True)

    forget, retain = aim(objective, forget, retain)
    for batch in retain:
        forward_backward(batch, batch.target)
    inner = 0 if settings.inner_steps_are_inert else settings.inner_steps - 1  # the first reuses the outer gradient
    for _ in range(1 + inner + (settings.gradient == "first_order")):
        for batch in forget:
            forward_backward(batch, batch.target)
    if not settings.inner_steps_are_inert and settings.gradient == "detached":
        with torch.no_grad():
            for batch in forget:
                network.predict(batch.noisy, batch.timesteps, batch.prompts)


def diffusers_step(run: Run, accelerator: Accelerator, retain: list[Batch]) -> None:
    """As examples/text_to_image/train_text_to_image_lora.py steps, from latents and embeddings on."""
    scheduler = run.denoiser.noise_scheduler
    parameters = run.trainable.parameters
    for batch in retain:
        latents = batch.target.to(batch.noisy.dtype)  # any tensor of that shape costs the same
        noise = torch.randn_like(latents)
        timesteps = torch.randint(0, scheduler.config.num_train_timesteps, (len(latents),), device=latents.device)
        noisy = scheduler.add_noise(latents, noise, timesteps)
        target = denoising_target(scheduler, latents, noise, timesteps)
        prediction = run.denoiser.predict(noisy, timesteps, batch.prompts)
        loss = torch.nn.functional.mse_loss(prediction.float(), target.float(), reduction="mean")
        accelerator.backward(loss / len(retain))
    accelerator.clip_grad_norm_(parameters, 1.0)
    run.optimizer.step()
    run.schedule.step()
    run.optimizer.zero_grad()


def seconds(work: Callable[[], object]) -> float:
    """By the clock, with the device's work done; without a GPU of the processor, whoever else uses it."""
    if not torch.cuda.is_available():
        began = time.process_time()
        work()
        return time.process_time() - began
    torch.cuda.synchronize()
    began = time.perf_counter()
    work()
    torch.cuda.synchronize()
    return time.perf_counter() - began


def measure(recipe: Recipe, rounds: int, warm_up: int) -> dict[str, float]:
    """Median seconds of everything that is compared, in turns; the first `warm_up` rounds do not count."""
    accelerator = distributed.start(recipe)
    run = set_up(recipe, accelerator, resume=False)
    times: dict[str, list[float]] = {"bare": [], "step": [], "retain": [], "diffusers": []}
    for step in range(rounds + warm_up):
        forget, retain = run.sampler.draw(step)
        jobs: dict[str, Callable[[], object]] = {"step": partial(loop.take_step, run, step)}
        if recipe.adapter.kind == "lora":
            objective = run.objective
            jobs |= {
                "bare": partial(bare_passes, run, forget, retain),
                "retain": partial(loss_and_gradient, objective.network, retain, objective.loss),
                "diffusers": partial(diffusers_step, run, accelerator, retain),
            }
        for name, job in jobs.items():
            times[name].append(seconds(job))
    medians = {name: statistics.median(values[warm_up:]) for name, values in times.items() if values}
    medians["samples_per_second"] = 2 * recipe.training.batch_size / medians["step"]
    if recipe.adapter.kind == "lora" and (share := share_of_peak(operations(run), medians["step"])) is not None:
        medians["share_of_peak"] = share
    del run
    gc.collect()
    return medians


PEAKS = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "L40": 181e12, "4090": 165e12, "3090": 71e12}
"""Dense arithmetic of cards in bfloat16, operations a second, by a part of their names."""


def operations(run: Run) -> float:
    """Floating-point operations of a step, as torch counts those of matrix products and convolutions."""
    with FlopCounterMode(display=False) as counted:
        loop.take_step(run, 0)
    return float(counted.get_total_flops())


def share_of_peak(per_step: float, seconds: float) -> float | None:
    """Of the card's arithmetic; None without a card that is known."""
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    peak = next((value for part, value in PEAKS.items() if part in name), None)
    return None if peak is None else per_step / seconds / peak


def table(rows: list[dict[str, Any]]) -> str:
    """A Markdown table of the results."""
    lines = [
        "| configuration | objective | step | bare passes | ratio | retain pass | diffusers' step | ratio | "
        "samples/s | share of the card's peak |",
        "|---" * 10 + "|",
    ]
    for row in rows:
        cells = [row["configuration"], row["objective"], f"{row['step']:.3f} s"]
        if "bare" in row:
            cells += [f"{row['bare']:.3f} s", f"{row['step'] / row['bare']:.3f}"]
            cells += [f"{row['retain']:.3f} s", f"{row['diffusers']:.3f} s", f"{row['retain'] / row['diffusers']:.3f}"]
        else:
            cells += ["–"] * 5
        share = row.get("share_of_peak")
        cells += [f"{row['samples_per_second']:.2f}", "–" if share is None else f"{share:.1%}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def write(work: Path, rows: list[dict[str, Any]]) -> None:
    """All rows so far, and what they were measured on."""
    cuda = torch.cuda.is_available()
    environment = {
        "version": __version__,
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name() if cuda else f"CPU, {torch.get_num_threads()} thread(s)",
    }
    (work / "step.json").write_text(json.dumps({"environment": environment, "rows": rows}, indent=2) + "\n")


def main() -> None:
    """Measure what is asked for, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("build/memory"))
    parser.add_argument("--only", nargs="+", default=["demo"], help="demo, demo-5, or names of bench_memory.py's grid")
    parser.add_argument("--objectives", nargs="+", default=list(OBJECTIVES), choices=list(OBJECTIVES))
    parser.add_argument("--variants", nargs="+", default=["plain"], choices=list(VARIANTS))
    parser.add_argument("--batch_sizes", nargs="+", type=int, help="instead of the configuration's own")
    parser.add_argument("--full", action="store_true", help="also all weights, as published")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--warm_up", type=int, default=2, help="rounds before those that count")
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    for name in arguments.only:
        chosen = {
            f"{objective}{'' if variant == 'plain' else ', ' + variant}": OBJECTIVES[objective] | VARIANTS[variant]
            for objective in arguments.objectives
            for variant in arguments.variants
        }
        if arguments.full:
            chosen["published, all weights"] = PUBLISHED
        for size in arguments.batch_sizes or [None]:
            shown = name if size is None else f"{name}, batch {size}"
            for objective, overrides in chosen.items():
                own = {} if size is None else {"training.batch_size": size}
                try:
                    row = measure(recipe_of(name, arguments.work, own | overrides), arguments.rounds, arguments.warm_up)
                except (UserError, torch.OutOfMemoryError) as error:
                    print(f"{shown}, {objective}: {error}", flush=True)
                    continue
                rows.append({"configuration": shown, "objective": objective} | row)
                print(table(rows), flush=True)
                write(arguments.work, rows)  # as far as it has come


if __name__ == "__main__":
    main()
