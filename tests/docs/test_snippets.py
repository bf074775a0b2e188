"""Every command and every snippet of the README and the documentation runs, page by page, as a reader would type them.

What differs from what a reader gets: runs are short, a few steps and pictures, by flags behind the page's own.
`model.safetensors`, a checkpoint of theirs, is the embedded model in one file, with one weight changed, so that nothing
knows it; CLIP, which would be downloaded, is no judge of it, and its prompts are short. A sweep only says what it would
run. Of scripts that measure for hours, and of recipes whose base takes an hour to make, the file and the flags are
checked, not run.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml
from diffusers import StableDiffusionPipeline
from fixtures import Cli
from PIL import Image
from safetensors.torch import load_file, save_file
from single_file import pack

from erasediff_lora import Recipe, demo
from erasediff_lora.cli import main
from erasediff_lora.cli.recipe_flags import overrides_from
from erasediff_lora.recipe import flags

ROOT = Path(__file__).parent.parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
RECIPE_VERBS = {"demo", "prepare", "plan", "train", "evaluate"}
SHORT: dict[str, Any] = {
    **{"training.steps": 2, "training.batch_size": 4, "training.gradient_accumulation": 1, "training.average": 1},
    **{"forget.count": 8, "retain.count": 9, "sampling.steps": 2, "adversary.pool": 1, "adversary.steps": 1},
    **{"retain.focus": 0.0, "evaluation.forget_samples": 4, "evaluation.retain_samples": 9},
    **{"evaluation.attacks": [], "evaluation.metrics": ["accuracy"]},
}
UNKNOWN: dict[str, Any] = {
    **{"model.base": "model.safetensors", "model.config": str(demo.MODEL_DIR), "sampling.resolution": None},
    **{"forget.concepts": [{"name": "gogh", "anchor": "monet"}], "retain.concepts": ["monet"], "retain.neighbours": 0},
    **{f"{kind}.templates": ["a {concept}"] for kind in ("forget", "retain")},
    **{f"{kind}.placeholders": {} for kind in ("forget", "retain")},
    **{"evaluation.judge": None, "evaluation.metrics": ["drift"], "evaluation.distances.features": None},
    **{"evaluation.clip_score.weights": None, "evaluation.paraphrases.names": {}},
}
"""For a checkpoint of theirs: the embedded model reads short prompts only, and nobody judges it."""

RUNS = {
    "evaluation.md": ["runs/demo-cat", "runs/demo-clock"],
    "adapters.md": ["runs/sd15_artist_style", "runs/erase-cat", "runs/erase-clock"],
    "robust.md": ["runs/some"],
}
"""What lies there when a reader comes to a page."""
SETTING = {"RECIPE": "recipes/demo_concept.yaml", "RUN": "runs/some", "BASE": str(demo.MODEL_DIR)}
"""Names in capitals, which a reader replaces."""
UNTOUCHED = {"git", "cd", "python3", ".", "sudo", "export", "docker"}
"""Commands that change the reader's machine."""
BEFORE = {
    "adapters.md": "from diffusers import StableDiffusionPipeline",
    "evaluation.md": "from PIL import Image\nreal = drawn = [Image.new('RGB', (32, 32), c) for c in ('red', 'blue')]",
    "CONTRIBUTING.md": "from typing import Literal\nfrom pydantic import Field\nfrom torch import Tensor\n"
    "from erasediff_lora.data.batches import Batch\nfrom erasediff_lora.objectives.base import WeightedSum\n"
    "from erasediff_lora.recipe import ObjectiveSettings",
}
"""What a snippet takes for granted."""


def blocks(page: Path, *languages: str) -> Iterator[tuple[str, str]]:
    """Language and text of the page's fenced blocks."""
    for language, text in re.findall(r"^```(\w+)\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL):
        if language in languages:
            yield language, text


def commands(text: str) -> Iterator[list[str]]:
    """The words of each command of a block; variables that it sets are filled in."""
    names: dict[str, str] = {}
    for line in text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        while words and (set_here := re.fullmatch(r"([A-Z_]+)=(.*)", words[0])):
            names[f"${set_here[1]}"] = set_here[2]
            words = words[1:]
        words = [part for word in words for part in (shlex.split(names[word]) if word in names else [word])]
        while "&&" in words:
            yield words[: words.index("&&")]
            words = words[words.index("&&") + 1 :]
        if words:
            yield words


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on the embedded model, evaluated."""
    folder = tmp_path_factory.mktemp("trained")
    given = [f"--{name}={yaml.safe_dump(value).removesuffix('...').strip()}" for name, value in SHORT.items()]
    assert main(["demo", "cat", *given, "--output", str(folder / "run"), "--cache", str(folder / "cache")]) == 0
    return folder / "run"


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trained: Path) -> Path:
    """A folder with what readers have: a checkpoint, pictures, a LoRA of somebody, and the repository's folders."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for folder in ("recipes", "scripts", "docs"):
        Path(folder).symlink_to(ROOT / folder)
    weights = load_file(pack(demo.MODEL_DIR, tmp_path / "model.safetensors"))
    weights["model.diffusion_model.out.2.bias"] += 1e-3
    weights["model.diffusion_model.out.2.weight"][0, 0] += 1e-2
    save_file(weights, tmp_path / "model.safetensors")
    shutil.copy(ROOT / "recipes/demo_concept.yaml", "recipe.yaml")
    Path("photos").mkdir()
    for number, colour in enumerate(("red", "green", "blue")):
        Image.new("RGB", (64, 64), colour).save(f"photos/{number}.png")
    Path("concepts.csv").write_text(next(blocks(ROOT / "docs/tutorial/several.md", "text"))[1])
    for name in ("watercolour.safetensors", "stranger.safetensors"):
        shutil.copy(trained / "pytorch_lora_weights.safetensors", name)
    return tmp_path


@dataclass
class Reader:
    """Types the commands of a page."""

    cli: Cli

    def types(self, words: list[str]) -> None:
        """Run a command, or check what would be run."""
        words = [SETTING.get(word, word) for word in words]
        program, *rest = words
        if program == "erasediff-lora":
            self.erasediff_lora(rest)
        elif program in ("accelerate", "torchrun"):
            script = next(index for index, word in enumerate(rest) if word == "scripts/train_erase_lora.py")
            assert all(Path(word).is_file() for word in rest[:script] if word.endswith(".yaml"))
            self.erasediff_lora(["train", *rest[script + 1 :], "--overwrite"])
        elif program in ("python", ".venv/bin/python") and rest[0] != "-m":
            self.script(Path(rest[0]), rest[1:])
        elif program in ("pip", ".venv/bin/pip"):
            self.extras(rest)
        elif program == "make":
            assert re.search(rf"^{rest[0]}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
        else:
            assert program in UNTOUCHED or program.startswith(".venv/bin/"), words

    def erasediff_lora(self, words: list[str]) -> None:
        verb, *rest = words
        if verb in RECIPE_VERBS and "fashion_mnist.yaml" in rest[0]:
            data = {"forget.images.folder": "photos", "retain.images.folder": "photos"}
            assert Recipe.load(rest[0], data | overrides_from(rest[1:])).model.family == "class_conditional"
            return
        if verb == "init" and "model.safetensors" in rest:
            rest += ["--family", "stable_diffusion"]  # which is told by the size of a published model
        if verb == "sweep":
            rest += ["--dry-run"]
        if verb in RECIPE_VERBS:
            rest += self.shortened(verb, rest)
        result = self.cli(verb, *rest)
        fits = verb != "plan" or result.status == 2  # whatever the card
        assert result.status == 0 or (fits and "--vram" in result.err), (words, result.err)

    def shortened(self, verb: str, words: list[str]) -> list[str]:
        """Flags that make a run short; what decides where its results lie stays."""
        short = dict(SHORT)
        recipe = Path(words[0])
        recipe = recipe / "recipe.yaml" if recipe.is_dir() else recipe
        text = recipe.read_text() if verb != "demo" and recipe.suffix == ".yaml" and recipe.is_file() else ""
        if "model.safetensors" in text or "stable-diffusion-v1-5/" in text:
            short |= UNKNOWN
        return [f"--{name}={yaml.safe_dump(value).removesuffix('...').strip()}" for name, value in short.items()]

    def script(self, file: Path, words: list[str]) -> None:
        text, fields = file.read_text(), {name for name, _, _ in flags()}
        for flag in (word[2:].partition("=")[0] for word in words if word.startswith("--")):
            known = flag in fields or any(name.startswith(f"{flag}.") for name in fields) or flag == "preset"
            assert known or f'"--{flag}"' in text, (file, flag)

    def extras(self, words: list[str]) -> None:
        known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        named = [name for word in words for group in re.findall(r"\[(.*)\]", word) for name in group.split(",")]
        assert set(named) <= set(known)


@pytest.mark.parametrize("page", [page for page in PAGES if any(blocks(page, "bash", "python"))], ids=lambda p: p.name)
def test_what_a_page_says_runs(
    page: Path, desk: Path, trained: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    for run in RUNS.get(page.name, []):
        shutil.copytree(trained, run)
    for name, load in {"from_single_file": pretrained, "from_pretrained": pretrained}.items():
        monkeypatch.setattr(StableDiffusionPipeline, name, partial(load, StableDiffusionPipeline.from_pretrained))
    namespace: dict[str, Any] = {}
    exec(BEFORE.get(page.name, ""), namespace)
    reader = Reader(cli)
    for language, text in blocks(page, "bash", "python"):
        if language == "python":
            with_few_steps = text.replace('{"output": "runs/cat"}', repr(SHORT | {"output": "runs/cat"}))
            exec(compile(with_few_steps, str(page), "exec"), namespace)
            continue
        for words in commands(text):
            reader.types(words)


def pretrained(load: Callable[..., Any], source: object, **options: Any) -> Any:
    """The embedded model, whatever checkpoint a snippet names."""
    return load(demo.MODEL_DIR, safety_checker=None)


def test_recipes_in_pages_are_recipes(desk: Path) -> None:
    """Those that are whole, and those that show two tables of one."""
    seen = 0
    for page in PAGES:
        for _, text in blocks(page, "yaml"):
            values = yaml.safe_load(text)
            template = {"templates": ["a {concept}"]}
            values["forget"] = template | values["forget"]
            values = {"retain": template | {"concepts": ["heart", "book"]}, "model": {"base": "own/er"}} | values
            assert Recipe.parse(values).forget.concepts
            seen += 1
    assert seen >= 3


def test_the_notebook_runs(desk: Path) -> None:
    notebook = json.loads((ROOT / "docs/demo.ipynb").read_text())
    namespace: dict[str, Any] = {}
    for number, cell in enumerate(cell for cell in notebook["cells"] if cell["cell_type"] == "code"):
        assert not cell["outputs"], "it is shown as it comes out of the reader's run"
        text = "".join(cell["source"])
        if not text.startswith("%pip install "):
            short = text.replace("settings = {}", f"settings = {SHORT!r}")
            exec(compile(short, f"cell {number}", "exec"), namespace)
    assert namespace["sheet"].size == (600, 192) and Path("cat_for_comfyui.safetensors").is_file()
    assert [claim["claim"] for claim in namespace["result"]["verdict"]] == ["erased", "kept", "robust"]
