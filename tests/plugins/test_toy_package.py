"""A package with one part of each kind, built and installed outside: used by every verb, no line of ours changed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from fixtures import RecipeFile
from safetensors import safe_open
from safetensors.torch import load_file, save_file

UNET = "unet/diffusion_pytorch_model.safetensors"
ROOT = Path(__file__).parent.parent.parent
SOURCE = Path(__file__).parent / "toy_package"
SESSION = """
import sys, json
from erasediff_lora.cli import main
for words in json.loads(sys.argv[1]):
    print("$", *words, flush=True)
    print("status", main(words), flush=True)
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which pip has put the package."""
    work = tmp_path_factory.mktemp("toys")
    shutil.copytree(SOURCE, work / "source")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*pip, "--target", work / "site", work / "source"], check=True, capture_output=True)
    return work / "site"


def session(site: Path, *commands: list[object]) -> subprocess.CompletedProcess[str]:
    """Several commands of one user, in a process that has the package."""
    given = json.dumps([[str(word) for word in words] for words in commands])
    return subprocess.run(
        [sys.executable, "-c", SESSION, given], capture_output=True, text=True, timeout=300,
        env=os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{site}", "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


@pytest.fixture
def recipe(recipe_file: RecipeFile, tiny_base: Path, tmp_path: Path) -> Path:
    base = tmp_path / "toy_base"
    shutil.copytree(tiny_base, base)
    index = json.loads((base / "model_index.json").read_text())
    (base / "model_index.json").write_text(json.dumps(index | {"_class_name": "ToyPipeline"}))
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    generator = np.random.default_rng(0)
    np.save(pictures / "pictures.npy", generator.integers(0, 255, (8, 32, 32, 3), dtype=np.uint8))
    np.save(pictures / "labels.npy", np.array([0, 1] * 4))
    file: Path = recipe_file(
        model={"base": str(base), "family": "toy_diffusion"},
        objective={"name": "towards_grey", "retain_weight": 0.5},
        adapter={"kind": "timid"},
        evaluation={
            "judge": "brightest",
            "metrics": ["accuracy", "brightness", "distances"],
            "distances": {"features": "mean_colour"},
            "attacks": ["shout"],
            "brightness": {"scale": 2.0},
            "forget_samples": 2,
            "retain_samples": 2,
        },
    )
    values = yaml.safe_load(file.read_text())
    values["forget"]["images"] = {"folder": str(pictures)}
    file.write_text(yaml.safe_dump(values))
    return file


def test_one_of_each_kind(installed: Path, recipe: Path, tmp_path: Path) -> None:
    run, halves = tmp_path / "run", tmp_path / "halves.safetensors"
    name = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    base = load_file(tmp_path / "toy_base" / UNET)[f"{name.removeprefix('unet.')}.weight"]
    parts = {f"{name}.half_{part}": torch.randn(base.shape) for part in ("one", "two")}
    save_file(parts, halves)
    done = session(
        installed,
        ["prepare", recipe],
        ["plan", recipe],
        ["train", recipe, "--evaluation.shout.suffix", "loud"],
        ["evaluate", run, "--evaluation.brightness.scale", "3"],
        ["compare", run, "--output", tmp_path / "page.html"],
        ["inspect", run, "--for", "viewer"],
        ["merge", tmp_path / "toy_base", halves, "--family", "toy-diffusion", "--output", tmp_path / "sum"],
        ["convert", run, tmp_path / "one.safetensors", "--format", "plain"],
        ["inspect", tmp_path / "one.safetensors", "--for", "viewer"],
        ["convert", tmp_path / "one.safetensors", tmp_path / "back", "--format", "peft"],
        ["merge", tmp_path / "toy_base", tmp_path / "one.safetensors", "--output", tmp_path / "merged"],
        ["extract", tmp_path / "toy_base", tmp_path / "merged", "--output", tmp_path / "again", "--rank", "4"],
        ["publish", run, "--repo", "me/toy", "--dry_run"],
    )
    statuses = [line for line in done.stdout.splitlines() if line.startswith("status")]
    assert statuses == ["status 0"] * 13, done.stdout + done.stderr
    found = json.loads((run / "evaluation.json").read_text())
    assert found["metrics"]["brightness"].keys() == {"base", "erased"} and not found["refused"]
    assert found["attacks"]["shout"]["models"]["erased"]["pictures"] == 1
    assert found["metrics"]["distances"]["features"] == "mean_colour"
    merged = load_file(tmp_path / "sum" / UNET)[f"{name.removeprefix('unet.')}.weight"]
    torch.testing.assert_close(merged, base + sum(parts.values()))
    said = [line for line in done.stdout.splitlines() if line.startswith("viewer 1.0")]
    assert "it reads no diffusers files" in said[0] and any("nothing is lost of" in line for line in said), said
    page = (run / "report.html").read_text()
    for text in ("How bright:", "Shouting: the prompt, louder", "distance to grey"):
        assert text in page, text
    with safe_open(run / "pytorch_lora_weights.safetensors", framework="pt") as written:
        assert written.metadata()["erasediff.objective"] == "towards_grey"
        assert written.metadata()["erasediff.architecture"] == "toy-diffusion"
    assert (run / "plain.safetensors").is_file(), "written in every format that suits"
    card = (run / "hub" / "README.md").read_text()
    assert "license: mit" in card and "**toys**: open `plain/plain.safetensors`." in card


def test_a_part_that_cannot_be_imported_is_named_and_the_rest_works(installed: Path, recipe: Path) -> None:
    """`no_such` of the attacks leads nowhere."""
    done = session(installed, ["prepare", recipe])
    assert "status 0" in done.stdout, done.stderr
    expected = "the plug-in 'no_such' (attacks, erasediff_toys:NoSuchThing) of the package erasediff-toys is left out"
    assert done.stderr.count(expected) == 1


def test_without_the_package_its_parts_are_unknown(recipe: Path) -> None:
    done = session(Path(os.devnull), ["train", recipe])
    assert "status 2" in done.stdout
    for field, value in (("objective.name", "towards_grey"), ("model.family", "toy_diffusion")):
        assert f"{field} = '{value}'" in done.stderr
