"""The playground as a program sees it, through gradio_client."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from diffusers import StableDiffusionPipeline
from fixtures import Cli
from PIL import Image
from played import needs, playground
from safetensors.torch import save_file
from tiny import tiny_base_recipe, tiny_classifier

from erasediff_lora.cli import main

needs("gradio")
gradio_client = needs("gradio_client")

STEPS = 2


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> list[Path]:
    """An evaluated run, and one that nobody evaluated."""
    root = tmp_path_factory.mktemp("played")
    judge = tiny_classifier(root / "judge", ["cat", "dog"], favourite="cat")
    values = {"judge": f"transformers:{judge}", "metrics": ["accuracy"], "forget_samples": 2, "retain_samples": 2}
    made = []
    for name, rate in (("first", 0.05), ("second", 0.02)):
        (root / name).mkdir()
        file = tiny_base_recipe(tiny_base, root / name, evaluation=values, training={"learning_rate": rate, "steps": 2})
        assert main(["train", str(file)]) == 0
        made.append(root / name / "run")
    (made[1] / "evaluation.json").unlink()
    return made


@pytest.fixture(scope="module")
def address(runs: list[Path]) -> Iterator[str]:
    with playground(*runs) as address:  # the first request waits for the weights: nobody loads others meanwhile
        _client(address, runs[0] / "got").predict("a cat", 0, 1, None, 1, 0, api_name="/draw")
        yield address


@pytest.fixture
def client(address: str, tmp_path: Path) -> Any:
    return gradio_client.Client(address, verbose=False, download_files=str(tmp_path / "got"))


def pixels(file: str) -> Any:
    return np.asarray(Image.open(file).convert("RGB").resize((32, 32), Image.Resampling.BOX)).astype(int)


def test_a_pair_is_what_diffusers_draws(client: Any, runs: list[Path], tiny_base: Path) -> None:
    pipeline = StableDiffusionPipeline.from_pretrained(tiny_base, safety_checker=None)
    pipeline.set_progress_bar_config(disable=True)
    for name, run in zip(("one", "two"), runs, strict=True):
        pipeline.load_lora_weights(run, weight_name="pytorch_lora_weights.safetensors", adapter_name=name)

    def drawn() -> Any:
        generator = torch.Generator().manual_seed(7)
        image = pipeline(
            "a cat", num_inference_steps=STEPS, guidance_scale=json_guidance(runs[0]), generator=generator,
            height=32, width=32,
        ).images[0]  # fmt: skip
        return np.asarray(image.resize((384, 384)).resize((32, 32), Image.Resampling.BOX)).astype(int)

    pipeline.set_adapters(["one", "two"], [1.5, 0.5])
    with_both = drawn()
    pipeline.disable_lora()
    plain = drawn()
    base, erased, said = client.predict("a cat", 7, STEPS, None, 1.5, 0.5, api_name="/draw")
    assert said.startswith("Drawn in ")
    assert np.abs(pixels(base) - plain).max() <= 1 and np.abs(pixels(erased) - with_both).max() <= 1
    assert np.abs(plain - with_both).max() > 1, "the adapters change something"
    base, erased, _ = client.predict("a cat", 7, STEPS, None, 0, 0, api_name="/draw")
    assert np.array_equal(pixels(base), pixels(erased)), "at strength 0 they change nothing"


def json_guidance(run: Path) -> float:
    return float(json.loads((run / "evaluation.json").read_text())["sampling"]["guidance"])


def test_judge_and_attack(client: Any) -> None:
    said = client.predict("a cat", 7, STEPS, None, 1, 0, api_name="/judge")
    assert said.endswith("sees: without the adapter **cat**, with it **cat**.")
    shown, table = client.predict("a kitten\n\n a tabby", 7, STEPS, None, 1, 0, api_name="/attack")
    assert [item["caption"] for item in shown] == [
        "without: a kitten", "with: a kitten", "without: a tabby", "with: a tabby"
    ]  # fmt: skip
    assert table["data"] == [["a kitten", "cat", "cat"], ["a tabby", "cat", "cat"]]


def test_a_found_embedding(client: Any, tmp_path: Path) -> None:
    save_file(
        {"emb_params": torch.randn(2, 32, generator=torch.Generator().manual_seed(1))}, tmp_path / "found.safetensors"
    )
    given = gradio_client.handle_file(str(tmp_path / "found.safetensors"))
    one = client.predict("a <*>", 7, STEPS, given, 1, 0, api_name="/draw")[0]
    other = client.predict("a cat", 7, STEPS, None, 1, 0, api_name="/draw")[0]
    assert not np.array_equal(pixels(one), pixels(other))
    with pytest.raises(Exception, match=r"has no (<|&lt;)\*"):
        client.predict("a cat", 7, STEPS, given, 1, 0, api_name="/draw")
    save_file({"emb_params": torch.zeros(2, 99)}, tmp_path / "wide.safetensors")
    with pytest.raises(Exception, match="the base takes one tensor of vectors of 32 numbers"):
        client.predict(
            "a <*>", 7, STEPS, gradio_client.handle_file(str(tmp_path / "wide.safetensors")), 1, 0, api_name="/draw"
        )


@pytest.mark.parametrize(("prompt", "seed", "steps", "strength", "says"), [
    ("x" * 10_000, 0, STEPS, 1, "has 10,000 characters"),
    ("a cat", 0, STEPS, 1000, "strength of adapter 1 = 1000.0: must be 0 to 4"),
    ("", 0, STEPS, 1, "is empty"),
    ("a cat", 0.5, STEPS, 1, "seed = 0.5: must be a whole number"),
    ("a cat", None, STEPS, 1, "seed = None: must be a whole number"),
    ("a cat", 0, 0, 1, "steps = 0"),
])  # fmt: skip
def test_an_error_is_a_message(
    client: Any, prompt: str, seed: float | None, steps: int, strength: float, says: str
) -> None:
    with pytest.raises(Exception, match=says):
        client.predict(prompt, seed, steps, None, strength, 0, api_name="/draw")


def test_examples_reach_the_card(client: Any, runs: list[Path], cli: Cli) -> None:
    said = client.predict("a cat with a <script>", 7, api_name="/save")
    assert "steps and run (1) alone, at strength 1" in said
    assert client.predict("a dog", 8, api_name="/save").endswith("shows 2 of yours.")
    assert client.predict("a dog", 8, api_name="/save").endswith("shows 2 of yours."), "the same again replaces it"
    examples = json.loads((runs[0] / "examples.json").read_text())
    assert [entry["kind"] for entry in examples] == ["forget", "retain"]
    assert all((runs[0] / entry[name]).is_file() for entry in examples for name in ("base", "erased"))
    assert cli("publish", runs[0], "--repo", "me/erased", "--dry_run", "--force").status == 0
    assert "a dog" in (runs[0] / "hub/README.md").read_text()
    assert "<script>" not in (runs[0] / "hub/README.md").read_text().split("\n---\n", 1)[1], "but in YAML"


def test_a_run_without_evaluation_says_so(runs: list[Path]) -> None:
    from erasediff_lora.cli.recipe_flags import load_recipe
    from erasediff_lora.playground.facts import Facts

    facts = Facts.of(load_recipe(runs[1], []), [runs[1]])
    assert facts.headline().startswith("# Erasing cat: not evaluated")
    assert "erasediff\\-lora evaluate RUN" in facts.headline()
    assert Facts.of(load_recipe(runs[0], []), runs).headline().startswith("# Erasing cat: failed")


def test_a_hundred_requests_of_two_users(address: str, tmp_path: Path) -> None:
    """None fails, none gets another's picture, and the memory stays what it is."""
    process, failures = psutil.Process(), list[Exception]()
    expected = {
        user: pixels(
            _client(address, tmp_path / f"expected-{user}").predict("a cat", user, 1, None, 1, 0, api_name="/draw")[1]
        )
        for user in (1, 2)
    }

    assert not np.array_equal(expected[1], expected[2]) and expected[1].std() > 1

    def use(user: int, count: int) -> None:
        try:
            ask(user, count)
        except Exception as error:
            failures.append(error)

    def ask(user: int, count: int) -> None:
        client = _client(address, tmp_path / f"user-{user}")
        for number in range(count):
            client.predict("a dog", 1000 * user + number, 1, None, 1, 0.1, api_name="/draw")
            got = client.predict("a cat", user, 1, None, 1, 0, api_name="/draw")[1]
            if not np.array_equal(pixels(got), expected[user]):
                failures.append(AssertionError(f"user {user}, request {number}"))

    def both(count: int) -> int:
        users = [threading.Thread(target=use, args=(user, count)) for user in (1, 2)]
        for thread in users:
            thread.start()
        for thread in users:
            thread.join()
        return int(process.memory_info().rss)

    before = both(10)
    after = both(25)
    assert failures == [] and after < 1.1 * before


def _client(address: str, folder: Path) -> Any:
    return gradio_client.Client(address, verbose=False, download_files=str(folder))
