"""What a target leaves of the concept in a latent start, if the adapter fitted it exactly; nothing is trained.

    OMP_NUM_THREADS=1 python scripts/bench_latent_target.py [--names clock car] [--guidance 0 0.5 1 2]

Pictures that the embedded model draws of a concept are noised and denoised again by the base itself, under the target
e_a + s (e_a - e_c) in the place of the concept's prediction e_c. Prints a Markdown table and writes JSON.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import torch

from erasediff_lora import demo, denoisers
from erasediff_lora.cli.recipes import DEMO_RECIPE, demo_overrides
from erasediff_lora.data.prompts import balanced, expand, substitute
from erasediff_lora.denoisers import placement
from erasediff_lora.evaluation import judges
from erasediff_lora.recipe import Recipe


@torch.no_grad()
def shares_left(name: str, guidances: Sequence[float], strength: float, count: int) -> dict[str, float]:
    """Share of the pictures in which the judge sees the concept again, by negative guidance."""
    recipe = Recipe.load(DEMO_RECIPE, demo_overrides(name))
    denoiser, judge = denoisers.load(recipe.model), judges.load("demo", {name, *recipe.retain.concepts})
    data = recipe.forget
    prompts = [p.text for p in balanced(expand(data.templates, [name], data.placeholders), count, seed=0)]
    anchors = [substitute(prompt, name, str(data.concepts[0].anchor)) for prompt in prompts]
    seeds = [900_000 + index for index in range(count)]
    latents = denoiser.draw(prompts, seeds, recipe.sampling, output="latent")
    concept, anchor = denoiser.encode_prompts(prompts), denoiser.encode_prompts(anchors)
    empty = denoiser.encode_prompts([""]).expand_as(concept)
    noise = torch.stack([torch.randn(latents.shape[1:], generator=one) for one in placement.generators(seeds)])

    scheduler = denoiser.pipeline.scheduler
    begin = recipe.sampling.steps - int(recipe.sampling.steps * strength)
    left = {}
    for negative_guidance in guidances:
        scheduler.set_timesteps(recipe.sampling.steps)
        scheduler.set_begin_index(begin)
        noisy = scheduler.add_noise(latents, noise, scheduler.timesteps[begin : begin + 1])
        for timestep in scheduler.timesteps[begin:]:
            at = timestep.expand(count)
            unguided, ours, theirs = (denoiser.predict(noisy, at, prompt) for prompt in (empty, concept, anchor))
            target = theirs + negative_guidance * (theirs - ours)
            predicted = unguided + recipe.sampling.guidance * (target - unguided)
            noisy = scheduler.step(predicted, timestep, noisy).prev_sample
        seen = judge.recognise(denoiser.decode(noisy))
        left[f"{negative_guidance:g}"] = sum(name in concepts for concepts in seen) / count
    return left


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--names", nargs="+", default=demo.CONCEPTS + demo.STYLES)
    parser.add_argument("--guidance", nargs="+", type=float, default=[0.0, 0.5, 1.0, 2.0, 4.0])
    parser.add_argument("--strength", type=float, default=0.6)
    parser.add_argument("--pictures", type=int, default=30)
    arguments = parser.parse_args()
    print(f"| concept | {' | '.join(f's = {s:g}' for s in arguments.guidance)} |")
    print("|---" * (1 + len(arguments.guidance)) + "|")
    rows: dict[str, dict[str, float]] = {}
    for name in arguments.names:
        rows[name] = shares_left(name, arguments.guidance, arguments.strength, arguments.pictures)
        print(f"| {name} | {' | '.join(f'{share:.0%}' for share in rows[name].values())} |", flush=True)
    report = {"strength": arguments.strength, "pictures": arguments.pictures, "left": rows}
    Path("bench_latent_target.json").write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
