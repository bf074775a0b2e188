"""The memory plan: what it counts, what it says about every family, and what it refuses."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from fixtures import Cli, RecipeFile
from picture_folder import pictures
from refusals import refused
from safetensors.torch import load_file
from single_file import pack
from tiny import (
    tiny_base_recipe,
    tiny_class_pipeline,
    tiny_classifier,
    tiny_clip,
    tiny_pipeline,
    tiny_sd3_pipeline,
    tiny_xl_pipeline,
)
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoModelForImageClassification, CLIPModel

from erasediff_lora import demo, denoisers, registry
from erasediff_lora.evaluation.judges.classifier import Classifier
from erasediff_lora.evaluation.rehearsal import rehearsals
from erasediff_lora.memory import room
from erasediff_lora.memory.plan import CUDA_CONTEXT, MemoryPlan, plan
from erasediff_lora.memory.tracker import on_meta
from erasediff_lora.recipe import Model, Recipe, Training
from erasediff_lora.training import loop
from erasediff_lora.training.optimizers import create_optimizer, state_bytes

FAMILIES: dict[str, Callable[[], Any]] = {
    "stable_diffusion": tiny_pipeline,
    "stable_diffusion_xl": tiny_xl_pipeline,
    "stable_diffusion_3": tiny_sd3_pipeline,
    "class_conditional": lambda: tiny_class_pipeline({0: "cat", 1: "dog", 2: "car"}),
}


def _bytes(network: nn.Module) -> int:
    return sum(tensor.nbytes for tensor in [*network.parameters(), *network.buffers()])


def of(file: Any, **overrides: Any) -> dict[str, int]:
    return plan(Recipe.load(file, overrides))["train"].parts


def test_the_tracker_counts_what_is_alive() -> None:
    """By hand: 1000 floats are 4,000 bytes."""
    with on_meta() as memory:
        a = torch.ones(1000)
        view = a[:10]
        b = a + 1
        assert memory.live == 8_000
        del a
        assert memory.live == 8_000, "a view keeps its storage"
        del view, b
        assert (memory.live, memory.peak) == (0, 8_000)
        weight = torch.ones(100, 100, requires_grad=True)
        hidden = (torch.ones(50, 100) @ weight).relu()  # the backward pass keeps the input and relu's output
        assert memory.live == 4 * (100 * 100 + 50 * 100 + 50 * 100)
        hidden.sum().backward()
        assert memory.live == 4 * (2 * 100 * 100 + 50 * 100)


@pytest.mark.parametrize("length", [16, 64])
def test_attention_is_fused(length: int) -> None:
    """No (L, L) matrix is kept: the bytes are linear in the length."""
    with on_meta() as memory:
        query = torch.ones(1, 2, length, 8, requires_grad=True)
        before = memory.live
        out = F.scaled_dot_product_attention(query, query, query)
        assert out.shape == query.shape
        assert memory.live - before == 4 * 2 * length * (8 + 1)  # the result, and a float for each row's sum


@pytest.fixture
def saved() -> Iterator[dict[int, int]]:
    """Address -> bytes of every storage that the forward pass keeps for the backward pass."""
    found: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        found[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield found


def test_activations_are_those_that_torch_saves(tiny_base: Path, saved: dict[int, int]) -> None:
    """Against what a real forward pass of the same network keeps, counted by autograd's own hooks."""
    model = Model(base=str(tiny_base))

    def forward(denoiser: Any, device: str) -> Tensor:
        denoiser.network.requires_grad_(True).train()
        side, rows = denoiser.network.config.sample_size, 8
        noisy = torch.ones(rows, denoiser.network.config.in_channels, side, side, device=device)
        prompts = denoiser.hollow_prompts(rows).to(torch.device(device))
        return denoiser.predict(noisy, torch.ones(rows, dtype=torch.long, device=device), prompts)

    real = denoisers.load(model)
    kept = forward(real, "cpu")
    own = {p.untyped_storage().data_ptr() for p in real.network.parameters()}
    by_hooks = sum(size for address, size in saved.items() if address not in own) + kept.nbytes
    with on_meta() as memory:
        hollow = denoisers.load(model)
        hollow.device = torch.device("meta")
        hollow.without_weights()
        before = memory.live
        also_kept = forward(hollow, "meta")
        counted = memory.live - before
        assert also_kept.shape == kept.shape
    assert counted == pytest.approx(by_hooks, rel=0.02)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_planned_without_its_weights(family: Any, tmp_path: Path, cli: Cli) -> None:
    folder = tmp_path / "base"
    pipeline = FAMILIES[family]()
    pipeline.save_pretrained(folder)
    network = getattr(pipeline, registry.FAMILIES[family].component)
    own = _bytes(network)
    everything = sum(_bytes(part) for part in pipeline.components.values() if isinstance(part, nn.Module))
    for file in folder.rglob("*.safetensors"):
        file.unlink()
    file = tiny_base_recipe(folder, tmp_path, model={"base": str(folder), "family": family})

    found = plan(Recipe.load(file))
    assert found["train"].parts["weights"] == pytest.approx(own, rel=0.02)
    assert found["draw"].parts["weights"] == pytest.approx(everything, rel=0.02)
    assert found["train"].parts["activations"] > 0 < found["draw"].parts["activations"]
    result = cli("plan", file, "--vram", "64GiB")
    assert result.status == 0 and "fits in 64.00 GiB" in result.out, result.err
    assert not (tmp_path / "run").exists()


def test_what_saves_memory_is_seen_to(recipe_file: RecipeFile) -> None:
    file = recipe_file()
    plain = of(file, **{"training.batch_size": 8})
    assert of(file, **{"training.batch_size": 16})["activations"] > 1.8 * plain["activations"]
    cut = of(file, **{"training.batch_size": 8, "training.gradient_accumulation": 4})
    assert cut["activations"] < 0.5 * plain["activations"]
    checkpointed = of(file, **{"training.batch_size": 8, "training.gradient_checkpointing": True})
    assert checkpointed["activations"] < 0.9 * plain["activations"]
    half = of(file, **{"model.dtype": "bfloat16", "training.batch_size": 8})
    assert half["weights"] == plain["weights"] / 2
    full = of(file, **{"adapter": {"kind": "none"}, "objective.barrier": "gap"})
    assert full["trained"] == full["weights"] and full["optimizer"] == 2 * full["weights"]
    part = of(file, **{"adapter": {"kind": "none", "targets": "cross_attention"}, "objective.barrier": "gap"})
    assert part["weights"] == full["weights"] > 2 * part["trained"] and part["optimizer"] == 2 * part["trained"]


@pytest.mark.parametrize("objective", ["esd", "saliency", "selective_amnesia", "blindspot", "finetune"])
def test_every_objective_is_planned(recipe_file: RecipeFile, objective: str) -> None:
    forget = {"concepts": [{"name": "cat", "anchor": "dog"}], "templates": ["a photo of a {concept}"], "count": 4}
    assert of(recipe_file(objective={"name": objective}, forget=forget))["activations"] > 0


@pytest.mark.parametrize("name", ["adamw", "adamw8bit", "lion8bit"])
def test_the_optimizers_state(name: str) -> None:
    """Against the state after a real step."""
    parameters = [nn.Parameter(torch.ones(size)) for size in (64, 4095, 4096, 20_000)]
    training = Training(optimizer=name)
    optimizer = create_optimizer(training, parameters)
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    held = sum(
        value.nbytes for state in optimizer.state.values() for key, value in state.items()
        if isinstance(value, Tensor) and not key.startswith(("step", "qmap"))
    )  # fmt: skip
    assert state_bytes(training, parameters) == pytest.approx(held, rel=0.01)


def test_a_small_card_is_refused_with_what_would_fit(recipe_file: RecipeFile, cli: Cli) -> None:
    file = recipe_file(training={"steps": 2, "batch_size": 64, "threads": 1})
    recipe = Recipe.load(file)
    least = plan(recipe).peak - plan(recipe)["train"].parts["activations"] // 2
    result = cli("plan", file, "--vram", f"{least / 2**20:.0f}MiB")
    refused(result, "--vram = '", "is too little: to train takes", "It fits with --training.gradient_accumulation ")
    remedy = result.err.split("It fits with ")[1].split(" (")[0].split()
    again = cli("plan", file, "--vram", f"{least / 2**20:.0f}MiB", *remedy)
    assert again.status == 0 and "to spare" in again.out, again.err
    refused(cli("plan", file, "--vram", "1MiB"), "No setting makes it fit", "choose a lower sampling.resolution")


@pytest.mark.parametrize("size", ["8Q", "-1GiB", "0", "much"])
def test_sizes_that_are_none(recipe_file: RecipeFile, cli: Cli, size: str) -> None:
    refused(cli("plan", recipe_file(), f"--vram={size}"), f"--vram = '{size}'", "Write for example 8GiB or 512MiB")


def test_training_that_cannot_fit_is_refused_before_it_starts(
    recipe_file: RecipeFile, cli: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(room, "SMALL_BASE", 0)
    monkeypatch.setattr(room, "capacity_of", lambda found: found.peak - 1)
    file = recipe_file(training={"steps": 1, "batch_size": 8, "threads": 1})
    refused(cli("train", file), "training = ", "is too little", "It fits with")
    assert not (tmp_path / "run").exists() and not (tmp_path / "cache").exists()
    assert cli("train", file, "--training.check_memory", "false").status == 0


def test_training_says_what_it_will_take(recipe_file: RecipeFile, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "SMALL_BASE", 0)
    result = cli("train", recipe_file(training={"steps": 1, "batch_size": 2, "threads": 1}))
    assert result.status == 0 and "GiB at the peak of" in result.err
    free = float(result.err.split("at the peak of ")[1].split(" GiB free")[0])
    assert free == pytest.approx(psutil.virtual_memory().available / 2**30, rel=0.25)


def test_a_checkpoint_alone_does_not_describe_itself(recipe_file: RecipeFile, cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"")
    file = recipe_file(model={"base": str(tmp_path / "model.safetensors")})
    refused(cli("plan", file), "model.config = None", "Give the diffusers folder that describes it")


def test_a_checkpoint_is_planned_as_the_folder_that_describes_it(
    tiny_base: Path, recipe_file: RecipeFile, tmp_path: Path
) -> None:
    file = pack(tiny_base, tmp_path / "model.safetensors")
    alone = recipe_file(model={"base": str(file), "config": str(tiny_base)})
    found = plan(Recipe.load(alone))
    whole = plan(Recipe.load(recipe_file()))
    assert [{**phase.parts, "runtime": 0} for phase in found.phases] == [
        {**phase.parts, "runtime": 0} for phase in whole.phases
    ]


def test_the_planned_step_is_the_one_that_trains(recipe_file: RecipeFile, monkeypatch: pytest.MonkeyPatch) -> None:
    """The plan runs `loop.take_step` itself: a step that holds more is planned to."""
    file, plain = recipe_file(), of(recipe_file())["activations"]
    step = loop.take_step

    def wasteful(run: Any, number: Any) -> Any:
        held = torch.ones(10_000_000)
        return step(run, number), held

    monkeypatch.setattr(loop, "take_step", wasteful)
    assert of(file)["activations"] == pytest.approx(plain + 1.05 * 40_000_000, rel=0.01)


def test_tiles_take_less_to_decode_and_are_cached_apart(recipe_file: RecipeFile, cli: Cli, tmp_path: Path) -> None:
    sampling = {"resolution": 256, "batch_size": 1, "steps": 1}
    file = recipe_file(sampling=sampling, forget={"count": 1}, retain={"count": 1})
    tiled = {"model.vae_tiling": True}
    whole, cut = (plan(Recipe.load(file, changes), ["draw"])["draw"].parts for changes in ({}, tiled))
    assert cut["activations"] < whole["activations"] / 2 and cut["weights"] == whole["weights"]
    assert cli("prepare", file).status == 0
    before = set((tmp_path / "cache").iterdir())
    assert cli("prepare", file, "--model.vae_tiling", "true").status == 0
    assert len(set((tmp_path / "cache").iterdir()) - before) == 2
    classes = ("--model.vae_tiling", "true", "--model.family", "class_conditional")
    refused(cli("prepare", file, *classes), "model.vae_tiling = True: needs an autoencoder; this family has none.")


ROBUST: dict[str, Any] = {
    "preset": "robust",
    "forget": {"concepts": [{"name": "cat", "anchor": "dog"}], "count": 4},
    "retain": {"focus_samples": 64, "focus_every": 1},
    "adversary": {"batch_size": 64, "refresh_every": 1, "steps": 1},
}


def activations(file: Any, phase: str = "train", **overrides: Any) -> int:
    return plan(Recipe.load(file, overrides), [phase])[phase].parts["activations"]


def test_searches_and_measurements_take_no_more_than_a_step(recipe_file: RecipeFile) -> None:
    """They look at 64 pictures, of which the network sees as many at once as a step trains on, or twice as many."""
    file = recipe_file(**ROBUST, training={"batch_size": 2})
    few: dict[str, Any] = {"retain.focus_samples": 1, "adversary.batch_size": 1}
    most: dict[str, Any] = {"retain.focus_samples": 4, "adversary.batch_size": 2}
    assert activations(file) == activations(file, **most)
    assert activations(file) < 1.5 * activations(file, **few)
    wide: dict[str, Any] = {"training.batch_size": 64}
    assert activations(file, **wide) > 8 * activations(file)


def test_a_search_in_parts_is_the_search(recipe_file: RecipeFile, cli: Cli, tmp_path: Path) -> None:
    """Against the same run whose search sees all pictures at once: equal up to rounding, in float64."""
    sections = {**ROBUST, "adversary": {"batch_size": 4, "refresh_every": 1, "steps": 2, "pool": 2}}
    sections |= {"retain": {"focus_samples": 8, "focus_every": 1}, "model": {"dtype": "float64"}}
    found = []
    for name, parts in (("whole", 1), ("parts", 4)):
        file = recipe_file(**sections, training={"batch_size": 4, "gradient_accumulation": parts, "steps": 3})
        assert cli("train", file, "--output", tmp_path / name).status == 0
        found.append(load_file(tmp_path / name / "pytorch_lora_weights.safetensors"))
    for key, tensor in found[0].items():
        torch.testing.assert_close(found[1][key], tensor, rtol=0, atol=1e-5)


def test_the_evaluation_is_planned(recipe_file: RecipeFile, cli: Cli) -> None:
    """Drawing at the recipe's batch size, the attacks' searches, and in the midst of a training its optimizer."""
    file = recipe_file()
    plain = plan(Recipe.load(file))
    assert [phase.name for phase in plain.phases] == ["draw", "train", "evaluate"]
    wide: dict[str, Any] = {"sampling.batch_size": 16}
    assert activations(file, "evaluate", **wide) > 3 * activations(file, "evaluate")
    judge: dict[str, Any] = {
        "evaluation.judge": "demo",
        "evaluation.attacks": ["inversion"],
        "evaluation.inversion.batch_size": 64,
    }
    assert activations(file, "evaluate", **judge) > 2 * activations(file, "evaluate")
    midst = plan(Recipe.load(file, {"training.sample_every": 2}), ["evaluate"])["evaluate"].parts
    assert midst["optimizer"] == plain["train"].parts["optimizer"]
    assert "evaluate" in cli("plan", file, "--vram", "64GiB").out


def test_what_is_only_encoded_takes_no_network(recipe_file: RecipeFile, tmp_path: Path) -> None:
    """On a CPU its file is mapped and never read, unless it is converted."""
    drawn = plan(Recipe.load(recipe_file()), ["draw"])["draw"].parts["weights"]
    images = {"images": {"folder": str(pictures(tmp_path / "set", (32, 32)))}}
    file = recipe_file(forget=images, retain=images | {"templates": ["a photo of a dog"]})

    def planned(**more: Any) -> int:
        return plan(Recipe.load(file, more), ["draw"])["draw"].parts["weights"]

    network = _bytes(tiny_pipeline().unet)
    assert planned() == drawn - network
    assert planned(**{"model.dtype": "float64"}) == pytest.approx(2 * drawn, rel=0.001), "but for a few integers"


def test_what_looks_at_pictures_is_planned(recipe_file: RecipeFile, tmp_path: Path, caplog: Any) -> None:
    """Against the bytes of the networks as they are loaded; one whose weights are not there is named, not counted."""
    clip = tiny_clip(tmp_path / "clip")
    vit = tiny_classifier(tmp_path / "vit", ["cat", "dog", "car"])
    judges: dict[str, Any] = {
        "demo": lambda: Classifier.load(demo.JUDGE_FILE),
        f"transformers:{vit}": lambda: AutoModelForImageClassification.from_pretrained(vit),
        f"clip:{clip}": lambda: CLIPModel.from_pretrained(clip),
    }
    for spec, load in judges.items():
        for own in ([], ["accuracy"]):
            recipe = Recipe.load(recipe_file(evaluation={"judge": spec, "metrics": own}))
            held = _bytes(load())
            with on_meta() as memory:
                kept = [rehearse() for rehearse in rehearsals(recipe.evaluation).values()]
                assert memory.live == pytest.approx(held, rel=0.01) and memory.peak > memory.live
                assert len(kept) == 1
    file = recipe_file(evaluation={"metrics": []})
    lone, whole = (
        plan(Recipe.load(file, more), ["evaluate"])["evaluate"].parts
        for more in ({}, {"evaluation.metrics": ["distances", "nudity"], "evaluation.nudity.detector": "opennsfw"})
    )
    assert lone["judges"] == 0 and whole["judges"] > 100 * 2**20 + 4 * 3_000_000, "EfficientNet-lite0 has 3.4 M"
    assert lone["pictures"] == whole["pictures"] > 0
    caplog.clear()
    gone = {"evaluation.judge": "clip:/not/there", "evaluation.metrics": ["accuracy"]}
    assert plan(Recipe.load(file, gone), ["evaluate"])["evaluate"].parts["judges"] == 0
    assert "what clip:/not/there takes is not counted" in caplog.text


def test_an_evaluation_that_does_not_fit_stops_no_training(
    recipe_file: RecipeFile, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "SMALL_BASE", 0)
    judge = {"judge": "demo", "attacks": ["inversion"], "inversion": {"batch_size": 512}}
    file = recipe_file(training={"steps": 1, "threads": 1}, evaluation=judge | {"metrics": []})
    found = plan(Recipe.load(file))
    between = (max(found["train"].peak, found["draw"].peak) + found["evaluate"].peak) // 2
    assert found["evaluate"].peak == found.peak
    monkeypatch.setattr(room, "capacity_of", lambda found: between)
    refused(cli("plan", file), "is too little: to evaluate takes", "evaluate on another machine")
    monkeypatch.setattr("erasediff_lora.cli.running.evaluate_adapter", lambda *_: None)
    result = cli("train", file)
    assert result.status == 0 and "evaluation = '" in result.err and "to evaluate takes" in result.err


@pytest.mark.parametrize(("rank", "card"), [(None, 0), ("1", 1), ("3", 1)])
def test_room_is_what_is_free_on_the_own_card(rank: Any, card: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """By hand: 3 GiB free of 8 on the second card, 1 GiB of it this process's own, and its context."""
    free = {0: (2**30, 8 * 2**30), 1: (3 * 2**30, 8 * 2**30)}
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda card: free[card])
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda card: 2**30)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    if rank is not None:
        monkeypatch.setenv("LOCAL_RANK", rank)
    assert room.capacity_of(MemoryPlan("cuda", [])) == free[card][0] + 2**30 + CUDA_CONTEXT


@pytest.mark.parametrize(
    ("limit", "left"), [("max", None), ("1073741824", 2**30 - 600 * 2**20 + 100 * 2**20), ("1", 0), ("?", None)]
)
def test_the_limit_of_a_container_counts(
    limit: str, left: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """1 GiB allowed, 600 MiB held, of which 100 MiB are files that can be read again."""
    (tmp_path / "memory.max").write_text(limit + "\n")
    (tmp_path / "memory.current").write_text(str(600 * 2**20))
    (tmp_path / "memory.stat").write_text(f"anon 5\ninactive_file {100 * 2**20}\n")
    monkeypatch.setattr(room, "CGROUP", tmp_path)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    found = room.capacity_of(MemoryPlan("cpu", []))
    rss = psutil.Process().memory_info().rss
    whole = psutil.virtual_memory().available if left is None else min(left, psutil.virtual_memory().available)
    assert found == pytest.approx(whole + rss, rel=0.05)


@pytest.fixture
def hub(tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A hub that has one model, owner/tiny, and tells which files were fetched."""
    fetched: list[str] = []

    def snapshot_download(name: str, *, allow_patterns: list[str], **_: Any) -> str:
        if name != "owner/tiny":
            raise OSError("404")
        folder = tmp_path / "hub"
        for file in tiny_base.rglob("*"):
            relative = file.relative_to(tiny_base)
            if file.is_file() and any(file.match(pattern) for pattern in allow_patterns):
                (folder / relative).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(file, folder / relative)
                fetched.append(relative.as_posix())
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    return fetched


def test_a_hub_model_is_planned_by_its_configuration_alone(
    recipe_file: RecipeFile, tiny_base: Path, cli: Cli, hub: list[str]
) -> None:
    here = plan(Recipe.load(recipe_file()))
    there = plan(Recipe.load(recipe_file(model={"base": "owner/tiny"})))
    assert there["train"].parts["weights"] == here["train"].parts["weights"]
    assert there["train"].parts["activations"] == here["train"].parts["activations"]
    assert hub and not [name for name in hub if name.endswith((".safetensors", ".bin"))]
    refused(cli("plan", recipe_file(model={"base": "owner/none"})), "is neither a local path nor a hub model", "404")


def test_a_hub_model_of_another_family_is_refused_before_its_weights_come(
    recipe_file: RecipeFile, cli: Cli, hub: list[str]
) -> None:
    model = {"base": "owner/tiny", "family": "stable_diffusion_xl"}
    refused(cli("prepare", recipe_file(model=model)), "model.family = 'stable_diffusion_xl': owner/tiny is a Stable")
    assert hub == ["model_index.json"]
