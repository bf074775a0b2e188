"""What starting costs: help imports nothing of what the verbs work with."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from fixtures import Cli

from erasediff_lora.cli import VERBS, main

ROOT = Path(__file__).parent.parent.parent
HEAVY = {
    *("torch", "numpy", "scipy", "PIL", "pydantic", "yaml", "safetensors", "matplotlib", "jinja2"),
    *("diffusers", "transformers", "peft", "accelerate", "huggingface_hub", "bitsandbytes", "importlib.metadata"),
}


def python(code: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_help_imports_nothing_heavy() -> None:
    commands = [[], *([verb] for verb in VERBS), ["recipes", "copy"], ["recipes", "fields"]]
    shown = python(
        f"""
import contextlib, io, sys
from erasediff_lora.cli import main
for words in {commands!r}:
    with contextlib.redirect_stdout(io.StringIO()) as shown, contextlib.suppress(SystemExit):
        main([*words, "--help"])
    assert shown.getvalue().startswith("usage: erasediff-lora"), words
    heavy = {HEAVY!r} & sys.modules.keys()
    assert not heavy, (words, heavy)
print("light")
"""
    )
    assert shown == "light\n"


def test_the_package_imports_what_is_asked_for() -> None:
    shown = python(
        f"""
import sys, erasediff_lora
assert not {HEAVY!r} & sys.modules.keys()
assert {{"Recipe", "train", "evaluate", "adapter", "__version__"}} <= set(dir(erasediff_lora))
from erasediff_lora import Recipe
assert Recipe.load("demo_concept").model.base == "demo"
assert "diffusers" not in sys.modules
import os
print(os.environ["HF_HUB_DISABLE_TELEMETRY"], os.environ["ORT_DISABLE_TELEMETRY"])
""",
        HF_HUB_DISABLE_TELEMETRY="0",
    )
    assert shown == "0 1\n", "ours, unless the user has chosen"


def test_the_public_names() -> None:
    import erasediff_lora
    from erasediff_lora import Recipe, adapter, evaluate, train
    from erasediff_lora.evaluation.evaluate import evaluate as evaluate_
    from erasediff_lora.training.loop import train as train_

    assert (train, evaluate) == (train_, evaluate_)
    assert callable(adapter.merge) and Recipe.__name__ == "Recipe"
    assert (ROOT / "erasediff_lora/py.typed").is_file()
    with pytest.raises(AttributeError, match="no attribute 'tain'"):
        erasediff_lora.tain  # noqa: B018


@pytest.mark.parametrize("module", ["erasediff_lora", "erasediff_lora.cli"])
def test_python_m(module: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", module, "--version"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    from erasediff_lora import __version__

    assert done.stdout.strip() == __version__


def test_a_thread_may_call_it(capsys: pytest.CaptureFixture[str]) -> None:
    statuses: list[int] = []
    thread = threading.Thread(target=lambda: statuses.append(main(["recipes"])))
    thread.start()
    thread.join()
    assert statuses == [0] and "sd15_artist_style" in capsys.readouterr().out


def test_fields_of_a_recipe(cli: Cli) -> None:
    from erasediff_lora.recipe import flags

    shown = cli("recipes", "fields").out
    names = [name for name, _, _ in flags()]
    assert len(names) > 50 and all(f"--{name} " in shown for name in names)
    lines = cli("recipes", "fields", "training").out.splitlines()
    assert [line.split()[0] for line in lines[1:]] == [f"--{name}" for name in names if name.startswith("training.")]
    result = cli("recipes", "fields", "trainig")
    assert result.status == 2 and "section = 'trainig': is no table of a recipe. Did you mean 'training'?" in result.err


@pytest.mark.parametrize("verb", ["train", "plan", "prepare", "evaluate", "demo"])
def test_help_says_where_the_fields_are(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([verb, "--help"])
    assert "`erasediff-lora recipes fields [SECTION]`" in capsys.readouterr().out


@pytest.mark.parametrize(("world", "said"), [("1", "taken down\n"), ("2", "")])
def test_one_of_several_processes_leaves_without_taking_the_interpreter_down(world: str, said: str) -> None:
    """Threads of torch, which wait for the interpreter then, would abort the process, and the launcher the job."""
    code = "import atexit; atexit.register(print, 'taken down'); from erasediff_lora.cli import program; program()"
    ended = subprocess.run(
        [sys.executable, "-c", code, "train", "nowhere.yaml"],
        env=os.environ | {"PYTHONPATH": str(ROOT), "WORLD_SIZE": world},
        capture_output=True,
        text=True,
    )
    assert (ended.returncode, ended.stdout) == (2, said)
    assert "nowhere.yaml" in ended.stderr
