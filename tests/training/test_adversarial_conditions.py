"""The adversarial forget set: conditions found by the loop itself, and their part in the batch."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from fixtures import Cli, RecipeFile
from PIL import Image
from refusals import refused
from safetensors.torch import load_file

from erasediff_lora import denoisers
from erasediff_lora.data import sets
from erasediff_lora.data.batches import BatchSampler
from erasediff_lora.memory.plan import plan
from erasediff_lora.objectives import loss_scaling
from erasediff_lora.recipe import Recipe
from erasediff_lora.registry import OBJECTIVES
from erasediff_lora.training.adversarial_conditions import AdversarialSet, Place
from erasediff_lora.training.distributed import Processes

SMALL = 1e-4
ADVERSARY = {"pool": 3, "refresh_every": 1, "steps": 2, "batch_size": 2, "space": "tokens"}
CONCEPTS = [{"name": "cat", "anchor": "dog"}, {"name": "car", "anchor": "dog"}]


@pytest.fixture
def file(recipe_file: RecipeFile) -> Any:
    return recipe_file(
        forget={"concepts": CONCEPTS, "templates": ["a photo of a {concept}", "one {concept}"], "count": 8},
        retain={"concepts": ["dog"], "focus": 0.5, "focus_every": 1, "contrast": 0.5},
        adversary=ADVERSARY,
    )


@pytest.fixture
def made(file: Any) -> Any:
    """The adversarial set of a recipe, its encoded forget set, and a sampler of batches of 8."""
    recipe = Recipe.load(file, {"adversary.share": 0.5, "training.batch_size": 8})
    denoiser = denoisers.load(recipe.model)
    forget = sets.prepare(recipe, denoiser, "forget")
    sampler = BatchSampler.of(recipe, forget, forget, denoiser)
    return AdversarialSet(recipe, denoiser, forget), forget, sampler


def adapter_of(folder: Any) -> dict[str, torch.Tensor]:
    return load_file(folder / "pytorch_lora_weights.safetensors")


def goes_on_bit_equal(cli: Cli, file: Any, tmp_path: Path, *flags: str) -> None:
    """Stopped after two steps and resumed, it ends with the adapter of the run that nobody stopped."""
    assert cli("train", file, *flags, "--training.steps", "2").status == 0
    assert cli("train", file, *flags, "--resume").status == 0
    assert cli("train", file, *flags, "--output", tmp_path / "whole").status == 0
    whole = adapter_of(tmp_path / "whole")
    assert all(torch.equal(tensor, adapter_of(tmp_path / "run")[name]) for name, tensor in whole.items())


def only(adversary: AdversarialSet) -> Place:
    """The one place that it searches in."""
    (place,) = adversary.places.values()
    return place


def test_a_share_of_the_batch_is_trained_under_conditions_of_its_own_concept(made: Any) -> None:
    adversary, forget, sampler = made
    (batch,) = sampler.draw(0)[0]
    assert adversary.change_forget([batch])[0] is batch, "nothing has been found yet"
    for step in range(3):
        adversary.before_step(step)
    denoiser = adversary.denoiser
    changed, used = [], set()
    for step in range(6):
        (batch,) = sampler.draw(step)[0]
        (mixed,) = adversary.change_forget([batch])
        texts = [forget.prompts[row] for row in forget.captions[batch.rows].tolist()]
        changed.append(0)
        for text, before, after in zip(texts, batch.prompts.tokens, mixed.prompts.tokens, strict=True):
            concept = "cat" if "cat" in text else "car"
            candidates = [
                denoiser.encode_slots([text.replace(concept, "<*>")], vectors).tokens[0]
                for vectors in only(adversary).pools[concept]
            ]
            if not torch.equal(before, after):
                fits = [torch.allclose(after, candidate, atol=1e-6) for candidate in candidates]
                assert any(fits), f"{text} goes on under a condition of {concept}, in its own wording"
                used.add((concept, fits.index(True)))
                changed[-1] += 1
        assert mixed.extras is batch.extras and torch.equal(mixed.noisy, batch.noisy)
    assert changed == [4] * 6, "half of each batch"
    assert len(used) >= 4, "of all conditions"


def test_a_search_finds_what_the_network_denoises_better_by(made: Any) -> None:
    """Against a random start, on pictures and noise that the search did not see."""
    from erasediff_lora.denoisers.textual_inversion import Search, Tokens, invert, loss_under

    adversary, _, _ = made
    denoiser, pictures = adversary.denoiser, only(adversary).pictures["cat"]
    space = Tokens(denoiser)
    start, stream = space.start([], 1, 0, seed=3), pictures.noised(denoiser, 4, 3)
    ((found, _),) = invert(denoiser, space, [Search(stream, start)], steps=60, learning_rate=0.05, label="test")
    batch = next(pictures.noised(denoiser, 64, 99))
    with torch.no_grad():
        before, after = (loss_under(denoiser, batch, partial(space.told, vectors=one)) for one in (start, found))
    assert after < before


def test_a_search_through_a_float16_network_goes_where_one_in_float32_goes(
    recipe_file: RecipeFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a loss so small that its gradient vanishes in float16 where it is not scaled."""
    from erasediff_lora.denoisers import textual_inversion as search

    plain = search.losses_under
    monkeypatch.setattr(search, "losses_under", lambda *arguments: SMALL * plain(*arguments))
    moved = {}
    for dtype, scale in ((torch.float32, 1.0), (torch.float16, 1024.0), (torch.float16, 1.0)):
        monkeypatch.setattr(loss_scaling, "LOSS_SCALE", scale)
        recipe = Recipe.load(recipe_file(adversary=ADVERSARY))
        denoiser = denoisers.load(recipe.model)
        adversary = AdversarialSet(recipe, denoiser, sets.prepare(recipe, denoiser, "forget"))
        denoiser.network.to(dtype)
        denoiser.dtype = dtype
        space = search.Tokens(denoiser)
        start = space.start([], 1, 0, seed=3)
        stream = only(adversary).pictures["cat"].noised(denoiser, 4, 3)
        ((found, _),) = search.invert(denoiser, space, [search.Search(stream, start)], steps=5, learning_rate=0.01)
        moved[dtype, scale] = (found - start).flatten()
    likeness = {
        key: float(torch.cosine_similarity(way, moved[torch.float32, 1.0], dim=0)) for key, way in moved.items()
    }
    assert likeness[torch.float16, 1024.0] > 0.99
    assert likeness[torch.float16, 1.0] < 0.5


def test_the_newest_conditions_are_kept_and_come_back(made: Any) -> None:
    adversary, _, _ = made
    seen = []
    for step in range(5):
        adversary.before_step(step)
        seen.append(only(adversary).pools["cat"][-1].clone())
    assert only(adversary).pools["cat"].shape == (3, 1, 32)
    assert torch.equal(only(adversary).pools["cat"], torch.stack(seen[-3:]))
    state = adversary.state()
    adversary.before_step(5)
    adversary.load_state(state)
    assert torch.equal(only(adversary).pools["cat"], torch.stack(seen[-3:]))


def test_a_search_that_is_not_finite_is_left_out(
    made: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    adversary, _, sampler = made

    def broken(noisy: Any, timesteps: Any, prompts: Any) -> Any:
        return noisy * prompts.tokens.mean() * float("nan")

    monkeypatch.setattr(adversary.denoiser, "predict", broken)
    adversary.before_step(0)
    assert only(adversary).pools == {}
    assert "the search for a condition of cat at step 1 is not finite and left out" in caplog.text
    (batch,) = sampler.draw(0)[0]
    assert torch.equal(adversary.change_forget([batch])[0].prompts.tokens, batch.prompts.tokens)


def test_refreshing_keeps_to_its_period(recipe_file: RecipeFile) -> None:
    recipe = Recipe.load(recipe_file(adversary=ADVERSARY | {"refresh_every": 3}))
    denoiser = denoisers.load(recipe.model)
    adversary = AdversarialSet(recipe, denoiser, sets.prepare(recipe, denoiser, "forget"))
    sizes = []
    for step in range(7):
        adversary.before_step(step)
        sizes.append(len(only(adversary).pools["cat"]))
    assert sizes == [1, 1, 1, 2, 2, 2, 3]


def test_searches_go_round_the_concepts_and_to_those_that_come_back(made: Any) -> None:
    adversary, _, _ = made
    adversary.settings = adversary.settings.model_copy(update={"searches": 1, "pool": 50})
    for step in range(2):
        adversary.before_step(step)
    assert {name: len(pool) for name, pool in only(adversary).pools.items()} == {"cat": 1, "car": 1}
    for step in range(2, 24):
        adversary.after_step(step, {"forget_loss/cat": 1.0, "forget_loss/car": 0.1 if step > 2 else 1.0})
        adversary.before_step(step)
    assert len(only(adversary).pools["cat"]) > 3 * len(only(adversary).pools["car"]) > 3


def test_processes_share_the_searches(file: Any) -> None:
    """Each makes its part and nothing of the others': together they find what one alone finds."""
    recipe = Recipe.load(file)
    denoiser = denoisers.load(recipe.model)
    forget = sets.prepare(recipe, denoiser, "forget")
    alone = AdversarialSet(recipe, denoiser, forget)
    parts = [AdversarialSet(recipe, denoiser, forget, Processes(rank, 2, lambda one: one / 2)) for rank in (0, 1)]
    for adversary in (alone, *parts):
        adversary.before_step(0)
    for name, pool in only(alone).pools.items():
        found = [only(part).pools[name] for part in parts]
        assert sum(bool(one.any()) for one in found) == 1
        torch.testing.assert_close(found[0] + found[1], pool)


@pytest.mark.parametrize("at_once", [None, 3, 1])
def test_what_a_search_finds_does_not_depend_on_the_others(made: Any, at_once: int | None) -> None:
    """Side by side, in parts of any size, and where the pictures of one are of another shape."""
    from erasediff_lora.data.captioned import CaptionedPictures
    from erasediff_lora.denoisers.textual_inversion import Search, invert

    adversary, _, _ = made
    denoiser, space, cats = adversary.denoiser, only(adversary).space, only(adversary).pictures["cat"]
    assert isinstance(cats.latents, torch.Tensor)
    flat = CaptionedPictures(cats.latents[:, :, :4], torch.tensor([[4, 8]] * len(cats.captions)), cats.captions)

    def searches() -> list[Search]:
        pictures = [cats, flat, only(adversary).pictures["car"]]
        return [Search(one.noised(denoiser, 2, seed), space.start([], 2, 0, seed)) for seed, one in enumerate(pictures)]

    options: dict[str, Any] = {"steps": 4, "learning_rate": 0.1}
    together = invert(denoiser, space, searches(), at_once=at_once, **options)
    for search, (found, losses) in zip(searches(), together, strict=True):
        ((alone, own_losses),) = invert(denoiser, space, [search], **options)
        torch.testing.assert_close(found, alone, rtol=1e-4, atol=1e-5)
        assert losses == pytest.approx(own_losses, rel=1e-4)
        assert not torch.allclose(found, search.start, rtol=1e-2)


def test_searches_for_several_concepts_find_what_each_finds_alone(file: Any) -> None:
    recipe = Recipe.load(file)
    denoiser = denoisers.load(recipe.model)
    forget = sets.prepare(recipe, denoiser, "forget")
    together = AdversarialSet(recipe, denoiser, forget)
    together.before_step(0)
    for name in ("cat", "car"):
        alone = AdversarialSet(recipe, denoiser, forget)
        alone.turns.names = [name]
        alone.before_step(0)
        assert list(only(alone).pools) == [name]
        torch.testing.assert_close(only(together).pools[name], only(alone).pools[name], rtol=1e-4, atol=1e-5)


def test_searches_go_on_from_conditions_of_the_pool(recipe_file: RecipeFile) -> None:
    """The same as one long search, restated: each stretch starts where an earlier one ended."""
    from erasediff_lora.denoisers.textual_inversion import Search, Tokens, invert

    recipe = Recipe.load(recipe_file(adversary=ADVERSARY | {"continued": 1.0, "steps": 3}))
    denoiser = denoisers.load(recipe.model)
    adversary = AdversarialSet(recipe, denoiser, sets.prepare(recipe, denoiser, "forget"))
    space = Tokens(denoiser)
    found = space.start([], 1, 0, seed=0)
    for step in range(3):
        stream = only(adversary).pictures["cat"].noised(denoiser, 2, step)
        rate = recipe.adversary.learning_rate
        ((found, _),) = invert(denoiser, space, [Search(stream, found)], steps=3, learning_rate=rate)
        adversary.before_step(step)
        assert torch.equal(only(adversary).pools["cat"], found[None]), "in the place of the one that it went on from"


def test_some_searches_go_on_and_some_start_anew(recipe_file: RecipeFile) -> None:
    recipe = Recipe.load(recipe_file(adversary=ADVERSARY | {"continued": 0.5, "pool": 50}))
    denoiser = denoisers.load(recipe.model)
    adversary = AdversarialSet(recipe, denoiser, sets.prepare(recipe, denoiser, "forget"))
    for step in range(24):
        adversary.before_step(step)
    assert 6 <= len(only(adversary).pools["cat"]) <= 18


def test_a_resumed_run_ends_bit_equal(file: Any, cli: Cli, tmp_path: Path) -> None:
    assert cli("train", file).status == 0
    assert cli("train", file, "--output", tmp_path / "plain", "--adversary.pool", "0").status == 0
    assert cli("train", file, "--output", tmp_path / "half", "--training.steps", "2").status == 0
    assert cli("train", file, "--output", tmp_path / "half", "--resume").status == 0
    whole = adapter_of(tmp_path / "run")
    assert all(torch.equal(tensor, adapter_of(tmp_path / "half")[name]) for name, tensor in whole.items())
    assert any(not torch.equal(tensor, adapter_of(tmp_path / "plain")[name]) for name, tensor in whole.items())
    refused(
        cli("train", file, "--output", tmp_path / "half", "--resume", "--adversary.steps", "3"),
        "adversary.steps = 3: was 2 when the run was started.",
    )


def test_a_concept_without_pictures_is_refused(recipe_file: RecipeFile, cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "pictures/cat").mkdir(parents=True)
    Image.new("RGB", (32, 32), "red").save(tmp_path / "pictures/cat/1.png")
    images = {"folder": str(tmp_path / "pictures"), "caption": "a photo of a {concept}"}
    retain = {"concepts": ["dog"]}
    file = recipe_file(forget={"concepts": CONCEPTS, "images": images}, retain=retain, adversary=ADVERSARY)
    refused(cli("train", file), "no picture shows 'car', which is to be forgotten.")


@pytest.mark.parametrize("name", [name for name in OBJECTIVES if name not in ("uce", "rece")])
def test_every_objective_trains_against_it(name: str, file: Any, cli: Cli, tmp_path: Path) -> None:
    """The first step's forget loss is another one, where the method has one."""
    logs = {}
    for pool in ("0", "3"):
        flags = ("--objective", f"{{name: {name}}}", "--adversary.pool", pool, "--adversary.share", "1")
        out = tmp_path / pool
        assert cli("train", file, "--output", out, *flags, "--training.steps", "1").status == 0
        logs[pool] = json.loads((out / "training_log.jsonl").read_text())
    if logs["0"]["forget_loss"] is not None:
        assert logs["0"]["forget_loss"] != logs["3"]["forget_loss"]


def test_the_plan_counts_what_the_search_needs(file: Any) -> None:
    without = plan(Recipe.load(file, {"adversary.pool": 0}))["train"].parts
    small = plan(Recipe.load(file))["train"].parts
    large = plan(Recipe.load(file, {"adversary.batch_size": 64, "training.batch_size": 64}))["train"].parts
    denoiser = denoisers.load(Recipe.load(file).model)
    stay = sum(p.nbytes for part in (denoiser.pipeline.vae, denoiser.pipeline.text_encoder) for p in part.parameters())
    assert small["weights"] - without["weights"] == pytest.approx(stay, rel=0.01)
    assert without["activations"] <= small["activations"] < large["activations"]


OUTPUTS = {"adversary.space": "outputs", "adversary.vectors": 2}


def test_conditions_are_found_in_what_the_encoder_hands_out(file: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Behind each picture's own prompt, which was encoded with the set: the encoder is asked for nothing more."""
    recipe = Recipe.load(file, OUTPUTS | {"adversary.share": 1.0, "training.batch_size": 8})
    denoiser = denoisers.load(recipe.model)
    forget = sets.prepare(recipe, denoiser, "forget")
    for name in ("encode_slots", "encode_prompts"):
        monkeypatch.setattr(denoiser, name, lambda *arguments: pytest.fail("the text encoder is not there"))
    adversary = AdversarialSet(recipe, denoiser, forget)
    adversary.before_step(0)
    assert only(adversary).pools["cat"].shape == only(adversary).pools["car"].shape == (1, 2, 32)
    (batch,) = BatchSampler.of(recipe, forget, forget, denoiser).draw(0)[0]
    (mixed,) = adversary.change_forget([batch])
    for row, before, after in zip(batch.rows.tolist(), batch.prompts.tokens, mixed.prompts.tokens, strict=True):
        text = forget.prompts[int(forget.captions[row])]
        assert torch.equal(before[:-2], after[:-2]), "the prompt itself stays"
        assert torch.equal(after[-2:], only(adversary).pools["cat" if "cat" in text else "car"][0])


def test_a_search_in_outputs_finds_what_the_network_denoises_better_by(file: Any) -> None:
    from erasediff_lora.denoisers.textual_inversion import Search, invert, loss_under

    recipe = Recipe.load(file, OUTPUTS)
    denoiser = denoisers.load(recipe.model)
    adversary = AdversarialSet(recipe, denoiser, sets.prepare(recipe, denoiser, "forget"))
    space, pictures = only(adversary).space, only(adversary).pictures["cat"]
    start = space.start([], 2, 0, seed=3)
    search = Search(pictures.noised(denoiser, 4, 3), start)
    ((found, _),) = invert(denoiser, space, [search], steps=60, learning_rate=0.05)
    batch = next(pictures.noised(denoiser, 64, 99))
    with torch.no_grad():
        before, after = (loss_under(denoiser, batch, partial(space.told, vectors=one)) for one in (start, found))
    assert after < before


def test_without_the_encoders_it_trains_in_less_and_offloads(file: Any, cli: Cli, tmp_path: Path) -> None:
    goes_on_bit_equal(cli, file, tmp_path, "--adversary.space", "outputs")
    reading, without = (plan(Recipe.load(file, {"adversary.space": space}))["train"] for space in ("tokens", "outputs"))
    denoiser = denoisers.load(Recipe.load(file).model)
    stay = sum(p.nbytes for part in (denoiser.pipeline.vae, denoiser.pipeline.text_encoder) for p in part.parameters())
    assert reading.parts["weights"] - without.parts["weights"] == pytest.approx(stay, rel=0.01)
    refused(cli("prepare", file, "--model.offload", "true"), "model.offload = True", "set adversary.space: outputs")
    Recipe.load(file, {"model.offload": True, "adversary.space": "outputs"})


def test_both_spaces_take_turns(file: Any) -> None:
    """Of each concept by itself, and half of the conditions that a batch is trained under are of either."""
    recipe = Recipe.load(file, {"adversary.space": "auto", "adversary.share": 1.0, "training.batch_size": 8})
    denoiser = denoisers.load(recipe.model)
    forget = sets.prepare(recipe, denoiser, "forget")
    adversary = AdversarialSet(recipe, denoiser, forget)
    words, outputs = adversary.places["tokens"], adversary.places["outputs"]
    adversary.before_step(0)
    assert set(words.pools) == {"cat", "car"} and not outputs.pools
    resumed = AdversarialSet(recipe, denoiser, forget)
    resumed.load_state(adversary.state())
    for again in (adversary, resumed):
        again.before_step(1)
        assert {name: len(place.pools["car"]) for name, place in again.places.items()} == {"tokens": 1, "outputs": 1}
    for name in ("cat", "car"):
        assert torch.equal(resumed.places["outputs"].pools[name], outputs.pools[name])
    sampler, behind = BatchSampler.of(recipe, forget, forget, denoiser), []
    for step in range(6):
        (batch,) = sampler.draw(step)[0]
        (mixed,) = adversary.change_forget([batch])
        for row, told in zip(batch.rows.tolist(), mixed.prompts.tokens, strict=True):
            text = forget.prompts[int(forget.captions[row])]
            name = "cat" if "cat" in text else "car"
            at_the_end = torch.equal(told[-1:], outputs.pools[name][0])
            word = denoiser.encode_slots([text.replace(name, "<*>")], words.pools[name][0]).tokens[0]
            assert at_the_end != torch.allclose(told, word, atol=1e-6), f"{text} is told in one of the two ways"
            behind.append(at_the_end)
    assert sum(behind) == len(behind) / 2


def test_a_recipe_that_searches_in_both_spaces_goes_on_bit_equal(file: Any, cli: Cli, tmp_path: Path) -> None:
    goes_on_bit_equal(cli, file, tmp_path, "--adversary.space", "both")


def test_a_family_without_text_encoders_has_no_outputs(recipe_file: RecipeFile, cli: Cli, tiny_base: Path) -> None:
    file = recipe_file(model={"base": str(tiny_base), "family": "class_conditional"})
    for flag in ("--adversary.space", "--evaluation.inversion.space"):
        result = cli("prepare", file, flag, "outputs")
        refused(result, f"{flag[2:]} = 'outputs': is what text encoders hand out; this family has none.")
    refused(cli("prepare", file, "--adversary.space", "both"), "adversary.space = 'both': is what text encoders hand")
