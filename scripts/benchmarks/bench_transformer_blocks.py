"""The first two blocks of each kind of a published transformer, at full width on the CPU, against the plan.

    OMP_NUM_THREADS=1 python scripts/benchmarks/bench_transformer_blocks.py --work build/blocks [--family z_image]

Random weights in bfloat16, tiny text encoders of the published width of tokens, three steps at 256 px with gradient
checkpointing off and on. Peak memory is the resident set. Prints a Markdown table and writes blocks.json under --work.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import diffusers
import torch
import yaml

ROOT = Path(__file__).parent.parent.parent
sys.path += [str(ROOT / "tests"), str(Path(__file__).parent)]

from erasediff_lora.memory.plan import plan  # noqa: E402
from erasediff_lora.memory.room import gib  # noqa: E402
from erasediff_lora.recipe import Recipe  # noqa: E402
from erasediff_lora.recipe.yaml_io import overlay  # noqa: E402

SHORT: dict[str, dict[str, Any]] = {
    "z_image": {"n_layers": 2, "n_refiner_layers": 2},
    "flux": {"num_layers": 2, "num_single_layers": 2},
}
"""What keeps two blocks of each kind."""
SIDE = 256
LONG = "a {concept}" + ", very large" * 200
"""A prompt of as many tokens as the network is told at most, which is what `plan` counts."""


def base(family: str, folder: Path) -> Path:
    """A pipeline whose transformer has the published width; all else is the tests' tiny one."""
    import tiny_transformers
    from published_configs import BASES
    from random_bases import filled

    if folder.is_dir():
        return folder
    _, config = BASES[family][1]["transformer"]
    kind = getattr(diffusers, config["_class_name"])
    tiny = getattr(tiny_transformers, f"tiny_{family}_pipeline")()
    width = {"z_image": "cap_feat_dim", "flux": "joint_attention_dim"}[family]
    own: dict[str, Any] = {
        width: getattr(tiny.transformer.config, width),
        "in_channels": tiny.transformer.config.in_channels,
    }
    if family == "flux":
        own["pooled_projection_dim"] = tiny.transformer.config.pooled_projection_dim
    with torch.device("meta"):  # neither has buffers with values
        transformer = kind.from_config(config | SHORT[family] | own)
    tiny.register_modules(transformer=filled(transformer, torch.bfloat16))
    tiny.save_pretrained(folder)
    return folder


def measured(family: str, work: Path, overrides: dict[str, Any]) -> dict[str, Any]:
    """Prediction and measurement of three steps."""
    checked = "-".join(str(value).lower() for value in overrides.values())
    values: dict[str, Any] = {
        "model": {"base": str(base(family, work / family)), "family": family, "dtype": "bfloat16"},
        "forget": {"concepts": [{"name": "cat", "anchor": "dog"}], "templates": [LONG], "count": 2},
        "retain": {"concepts": ["dog"], "templates": [LONG], "count": 2},
        "sampling": {"resolution": SIDE, "steps": 1, "guidance": 0.0, "batch_size": 1},
        "adapter": {"rank": 8, "targets": "attention"},
        "training": {"steps": 3, "batch_size": 1},
        "output": str(work / f"{family}-{checked}"),
        "cache": str(work / "cache"),
    }
    file = work / f"{family}-{checked}.yaml"
    file.write_text(yaml.safe_dump(overlay(values, overrides)))
    recipe = Recipe.load(file)
    planned = plan(recipe, ["train"])["train"]
    subprocess.run([sys.executable, "-m", "erasediff_lora.cli", "prepare", str(file)], check=True)
    shutil.rmtree(recipe.output, ignore_errors=True)
    only_training = (
        "import sys, pathlib; from erasediff_lora.recipe import Recipe; from erasediff_lora.training.loop import train;"
        "train(Recipe.load(pathlib.Path(sys.argv[1])), overwrite=True)"
    )
    given_back = os.environ | {"MALLOC_MMAP_THRESHOLD_": str(256 * 2**10)}
    subprocess.run([sys.executable, "-c", only_training, file], check=True, env=given_back)
    lines = [json.loads(line) for line in (recipe.output / "training_log.jsonl").read_text().splitlines()]
    peak = lines[-1]["peak_memory_bytes"]
    return {"predicted_bytes": planned.peak, "measured_bytes": peak, "error": planned.peak / peak - 1}


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("build/blocks"))
    parser.add_argument("--family", nargs="+", choices=SHORT, default=["z_image"])
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    found = {}
    print("| two blocks of each kind | predicted | measured | error |\n|---|---|---|---|")
    for family in arguments.family:
        for checkpointing in (False, True):
            overrides = {"training.gradient_checkpointing": checkpointing}
            row = measured(family, arguments.work, overrides)
            name = f"{family}{', checkpointing' if checkpointing else ''}"
            found[name] = row
            print(f"| {name} | {gib(row['predicted_bytes'])} | {gib(row['measured_bytes'])} | {row['error']:+.1%} |")
            (arguments.work / "blocks.json").write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
