"""Bad input: one message with field, value and remedy, exit status 2, no traceback, nothing half-written."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import pytest
import torch
from fixtures import Cli, RecipeFile
from refusals import refused
from safetensors.torch import load_file

from erasediff_lora import Recipe


def test_missing_model(recipe_file: RecipeFile, cli: Cli, tmp_path: Path) -> None:
    missing = str(tmp_path / "nowhere")
    refused(cli("train", recipe_file(), "--model.base", missing), f"model.base = '{missing}': there is no such folder")
    assert not (tmp_path / "run").exists()
    (tmp_path / "empty").mkdir()
    refused(cli("train", recipe_file(), "--model.base", tmp_path / "empty"), "has no model_index.json")


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
@pytest.mark.parametrize("damage", ["truncated", "gone"])
def test_corrupt_model(
    recipe_file: RecipeFile, tiny_base: Path, cli: Cli, tmp_path: Path, part: str, damage: str
) -> None:
    base = shutil.copytree(tiny_base, tmp_path / "copy")
    (weights,) = (base / part).glob("*.safetensors")
    if damage == "gone":
        weights.unlink()
    else:
        weights.write_bytes(weights.read_bytes()[:1000])
    refused(cli("train", recipe_file(), "--model.base", base), f"model.base = '{base}': cannot be loaded", "complete")
    assert not (tmp_path / "run/recipe.yaml").exists()


def test_pickles_are_refused_unless_asked_for(
    recipe_file: RecipeFile, tiny_base: Path, cli: Cli, tmp_path: Path
) -> None:
    base = shutil.copytree(tiny_base, tmp_path / "copy")
    (weights,) = (base / "unet").glob("*.safetensors")
    torch.save(load_file(weights), base / "unet/diffusion_pytorch_model.bin")
    weights.unlink()
    refused(cli("train", recipe_file(), "--model.base", base), "are opened with model.allow_pickle: true only")
    assert cli("train", recipe_file(), "--model.base", base, "--model.allow_pickle", "true").status == 0


def test_unreadable_single_file(recipe_file: RecipeFile, cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"\x00" * 100)
    refused(cli("train", recipe_file(), "--model.base", tmp_path / "model.safetensors"), "cannot be loaded")


def test_targets_that_match_nothing(recipe_file: RecipeFile, cli: Cli) -> None:
    refused(
        cli("train", recipe_file(), "--adapter.targets", r"['.*attn3\.to_q']"),
        r"adapter.targets = '.*attn3\\.to_q': matches no module",
        "Presets: text, cross_attention, self_attention",
        "attn2.to_q",
    )
    refused(cli("train", recipe_file(), "--adapter.targets", "atention"), "Did you mean 'attention'?")


def test_an_output_folder_that_holds_a_run(recipe_file: RecipeFile, cli: Cli) -> None:
    assert cli("train", recipe_file()).status == 0
    refused(cli("train", recipe_file()), "holds a run already. Continue it with --resume, replace it with --overwrite")
    assert cli("train", recipe_file(), "--overwrite").status == 0


def test_nothing_to_evaluate(recipe_file: RecipeFile, cli: Cli) -> None:
    refused(cli("evaluate", recipe_file()), "holds no adapter. Train first")


def test_losses_that_are_not_finite(recipe_file: RecipeFile, cli: Cli, tmp_path: Path) -> None:
    result = cli("train", recipe_file(), "--training.learning_rate", "1e30", "--training.steps", "9")
    refused(result, "is not finite at step", "the step was not taken.", "Lower training.learning_rate")
    run = tmp_path / "run"
    assert not (run / "pytorch_lora_weights.safetensors").exists()
    for checkpoint in (run / "checkpoints").glob("step-*/adapter.safetensors"):
        assert all(torch.isfinite(tensor).all() for tensor in load_file(checkpoint).values())


def test_a_gpu_that_is_not_there(recipe_file: RecipeFile, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    refused(
        cli("train", recipe_file(), "--model.device", "cuda"), "model.device = 'cuda': this machine has no usable GPU"
    )
    refused(cli("train", recipe_file(), "--model.dtype", "float16"), "model.dtype = 'float16'", "Use bfloat16.")


def test_unknown_demo_concept(cli: Cli) -> None:
    refused(
        cli("demo", "--concept", "cats"), "--concept = 'cats': the demo model does not know it. Did you mean 'cat'?"
    )


MADE_TO_TAKE_LONG = {
    "half a million values": "a: [" + "a," * 500_000 + "]",
    "half a million digits of base 60": "a: 1" + ":1" * 500_000,
    "a table that is taken in ten thousand times": "a: &a {"
    + ",".join(f"k{n}: 1" for n in range(30_000))
    + "}\nc:\n"
    + "  - {<<: *a}\n" * 10_000,
    "tables that multiply": "m0: &m0 {a: 1}\n"
    + "".join(f"m{n + 1}: &m{n + 1} {{<<: [{','.join([f'*m{n}'] * 9)}]}}\n" for n in range(12)),
}


@pytest.mark.parametrize("name", MADE_TO_TAKE_LONG)
def test_yaml_that_was_made_to_take_long(name: str, recipe_file: RecipeFile, cli: Cli) -> None:
    file = recipe_file()
    file.write_text(MADE_TO_TAKE_LONG[name])
    began = time.process_time()
    refused(cli("train", file), "is not readable as YAML: ")
    assert time.process_time() - began < 2


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ("!!int ''", "a value is not what its tag says"),
        ("!!bool perhaps", "a value is not what its tag says"),
        ("!!timestamp now", "a value is not what its tag says"),
        ('"\\UFFFFFFFF"', "invalid"),
        ("1" + ":1" * 400 + ".5", "is a number of base 60"),
        ("1:30", "1:30 is a number of base 60 in YAML: put it in quotes"),
        ("4\n  steps: 5", "'steps' stands there twice, in line"),
    ],
)
def test_values_that_yaml_would_read_otherwise(value: str, told: str, recipe_file: RecipeFile, cli: Cli) -> None:
    file = recipe_file(training={"steps": 4})
    file.write_text(file.read_text().replace("steps: 4", f"steps: {value}"))
    refused(cli("train", file), "is not readable as YAML: ", told)


def test_tables_that_take_in_another_are_fine(recipe_file: RecipeFile) -> None:
    file = recipe_file()
    text = file.read_text().replace("forget:\n", "forget: &set\n").replace("retain:\n", "retain:\n  <<: *set\n")
    file.write_text(text)
    assert Recipe.load(file).retain.concepts == ["dog", "car"]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32", "latin-1", "utf-8-sig"])
def test_recipes_in_other_encodings(encoding: str, recipe_file: RecipeFile, cli: Cli) -> None:
    file = recipe_file(evaluation={"judge": "café"})
    file.write_text(file.read_text().replace("caf\\xE9", "café"), encoding=encoding)
    told = "evaluation.judge = 'café'" if encoding == "utf-8-sig" else "is no text in UTF-8. Save it as UTF-8."
    refused(cli("train", file), told)


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (("--forget.count", "true"), "forget.count = True: is no number. Write one."),
        (("--training.learning_rate", "yes"), "training.learning_rate = True: is no number. Write one."),
        (("--sampling.guidance", ".inf"), "sampling.guidance = inf: must be a finite number."),
        (("--forget.concepts", "['  ']"), "forget.concepts.0.name = '  ': is no name. Write what prompts call it."),
        (("--output", "''"), "output = '': is empty. Write a path, or leave it out."),
        (("--forget.images.folder", "''"), "forget.images.folder = '': is empty. Write a path, or leave it out."),
        (("--output", "/"), "output = '/': is the root of a disk. Choose a folder in it."),
        (("--cache", "/.."), "cache = '/..': is the root of a disk. Choose a folder in it."),
    ],
)
def test_values_that_stand_for_something_else(
    flags: tuple[str, str], told: str, recipe_file: RecipeFile, cli: Cli
) -> None:
    refused(cli("train", recipe_file(), *flags), told)


@pytest.mark.parametrize("verb", ["train", "prepare"])
def test_a_refused_run_leaves_no_folder(verb: str, recipe_file: RecipeFile, cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    file = recipe_file(cache=str(tmp_path / "file"), output=str(tmp_path / "runs/of today/cat"))
    refused(cli(verb, file), f"cache = '{tmp_path / 'file'}': cannot be used")
    assert {path.name for path in tmp_path.iterdir()} == {"file", file.name}
