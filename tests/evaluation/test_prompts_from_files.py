"""`evaluate RUN --prompts FILE`, as a user types it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline
from fixtures import Cli, RecipeFile
from PIL import Image
from refusals import refused
from tiny import tiny_classifier

FILE = """,prompt,type,evaluation_seed,evaluation_guidance,sd_image_width,sd_image_height
0,"a cat, asleep",erase,7,2.5,16,32
1,a cat runs,erase,11,7,32,32
2,a dog,keep,13,2.5,32,16
3,zq cat,attack,17,4,,
"""


@pytest.fixture
def run(recipe_file: RecipeFile, cli: Cli, tmp_path: Path) -> Path:
    judge = tiny_classifier(tmp_path / "judge", ["cat", "dog", "car"], favourite="cat")
    asked = {"judge": f"transformers:{judge}", "metrics": ["accuracy"]}
    assert cli("train", recipe_file(evaluation=asked)).status == 0
    return tmp_path / "run"


def result(run: Path) -> dict[str, Any]:
    newest = max((run / "evaluations").iterdir(), key=lambda entry: entry.stat().st_mtime_ns)
    found: dict[str, Any] = json.loads((newest / "evaluation.json").read_text()) | {"folder": newest}
    return found


def test_rows_are_drawn_as_they_say(run: Path, cli: Cli, tiny_base: Path, tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text(FILE)
    told = cli("evaluate", run, "--prompts", tmp_path / "rows.csv", "--name", "rows")
    assert told.status == 0, told.err
    assert "rows.csv: 4 rows; prompt from 'prompt', seed from 'evaluation_seed'" in told.err
    assert "2 to forget, 1 to retain, 1 to attack" in told.err
    assert "first (forget, cat, seed 7, guidance 2.5, 16x32) 'a cat, asleep'" in told.err
    assert "last  (attack, cat, seed 17, guidance 4) 'zq cat'" in told.err
    assert told.err.index("rows.csv: 4 rows") < told.err.index("accuracy") if "accuracy" in told.err else True
    found = result(run)
    assert (found["forget_samples"], found["retain_samples"]) == (2, 1)
    assert found["attacks"]["listed_prompts"]["models"]["base"]["pictures"] == 1
    (file,) = found["prompts"]
    assert file["file"] == "rows.csv" and len(file["sha256"]) == 64 and str(tmp_path) not in json.dumps(file)

    pipeline = StableDiffusionPipeline.from_pretrained(tiny_base)
    steps = found["sampling"]["steps"]
    for entry in found["pictures"]:
        seed, guidance, size = {
            "a cat, asleep": (7, 2.5, (16, 32)),
            "a cat runs": (11, 7.0, (32, 32)),
            "a dog": (13, 2.5, (32, 16)),
        }[entry["prompt"]]
        own = pipeline(
            entry["prompt"],
            width=size[0],
            height=size[1],
            guidance_scale=guidance,
            num_inference_steps=steps,
            generator=torch.Generator().manual_seed(seed),
        ).images[0]
        shown = Image.open(found["folder"] / entry["base"])
        assert entry["seed"] == seed and shown.size == size and shown.tobytes() == own.tobytes()
    assert len(found["pictures"]) == 3

    assert cli("evaluate", run, "--prompts", tmp_path / "rows.csv", "--name", "again").status == 0
    again = result(run)
    assert {name: again[name] for name in ("metrics", "attacks", "prompts")} == {
        name: found[name] for name in ("metrics", "attacks", "prompts")
    }, "drawn and from the cache alike"


def test_columns_and_use_from_the_command_line(run: Path, cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "odd.tsv").write_text("a\tb\nfirst cat\t5\nsecond cat\t6\n")
    refused(cli("evaluate", run, "--prompts", tmp_path / "odd.tsv"), "odd.tsv:1", "--columns prompt=a")
    refused(cli("evaluate", run, "--columns", "prompt=a"), "--columns", "Add --prompts FILE")
    refused(cli("evaluate", run, "--prompts", tmp_path / "odd.tsv", "--columns", "a"), "is no ROLE=COLUMN")
    refused(cli("evaluate", run, "--prompts", tmp_path / "no.csv"), "no.csv", "there is no such file")
    os.mkfifo(tmp_path / "pipe.csv")
    for endless in (tmp_path / "pipe.csv", "/dev/zero"):
        refused(cli("evaluate", run, "--prompts", endless), f"evaluation.prompts = '{endless}': is no file.")
    refused(cli("evaluate", run, "--prompts", tmp_path / "😀.csv"), "😀.csv': there is no such file")
    asked = ("evaluate", run, "--prompts", tmp_path / "odd.tsv", "--columns", "prompt=a", "seed=b", "--use", "retain")
    before = {entry.name for entry in (run / "evaluations").iterdir()}
    told = cli(*asked)
    assert told.status == 0, told.err
    assert "first (retain, seed 5) 'first cat'" in told.err
    assert len({entry.name for entry in (run / "evaluations").iterdir()} - before) == 1
