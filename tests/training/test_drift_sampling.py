"""Keeping what is near: the retain batch follows what the adapter disturbs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from fixtures import Cli, RecipeFile

from erasediff_lora import denoisers
from erasediff_lora.data import sets
from erasediff_lora.data.batches import BatchSampler
from erasediff_lora.objectives import aim
from erasediff_lora.recipe import Recipe
from erasediff_lora.registry import OBJECTIVES
from erasediff_lora.training.drift_sampling import MEMORY, DriftSampler
from erasediff_lora.training.setup import adapt, create_objective

STEP = 6


@pytest.fixture
def recipe(recipe_file: RecipeFile) -> Any:
    file = recipe_file(
        retain={"concepts": ["dog", "car", "house"], "count": 9, "focus": 0.5, "focus_every": 2, "focus_samples": 9},
        training={"batch_size": 8},
    )
    return Recipe.load(file)


@pytest.fixture
def denoiser(recipe: Any) -> Any:
    return denoisers.load(recipe.model)


@pytest.fixture
def retain(recipe: Any, denoiser: Any) -> Any:
    return sets.prepare(recipe, denoiser, "retain")


@pytest.fixture
def drift_sampler(recipe: Any, denoiser: Any, retain: Any) -> Any:
    """Of an adapter that has changed."""
    trainable = adapt(recipe, denoiser)
    objective = create_objective(recipe, denoiser, trainable)
    generator = torch.Generator().manual_seed(0)
    for parameter in trainable.parameters:
        parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator)
    return DriftSampler(recipe.retain, denoiser, retain, objective.network.predict_base, lambda tensor: tensor, seed=0)


def test_scores_are_the_drift_of_each_prompt(drift_sampler: Any, denoiser: Any, retain: Any) -> None:
    drift_sampler.before_step(0)
    drift_sampler.before_step(3)
    assert drift_sampler.retain_weights() is None, "not yet, and not between the periods"
    drift_sampler.before_step(STEP)
    captions = [retain.prompts[row] for row in retain.captions.tolist()]
    noisy, timesteps, _, texts = next(drift_sampler.pictures.noised(denoiser, 9, STEP))
    for text in set(captions):
        rows = [row for row, other in enumerate(texts) if other == text]
        assert len(rows) == 3, "nine pictures are looked at, three of each prompt"
        prompts = denoiser.encode_prompts([text] * 3)
        with torch.no_grad():
            given = noisy[rows], timesteps[rows], prompts
            drift = (denoiser.predict(*given) - drift_sampler.predict_base(*given)).square().mean()
        assert drift > 0
        score = drift_sampler.scores[retain.prompts.index(text)]
        torch.testing.assert_close(score, drift)
        assert drift_sampler.retain_weights()[captions.index(text)] == score
    before = drift_sampler.scores.clone()
    drift_sampler.before_step(STEP + 2)
    disturbance_again = drift_sampler.scores
    assert not torch.equal(before, disturbance_again)
    known = before > 0
    assert bool((disturbance_again[known] >= MEMORY * before[known]).all()), "earlier measurements count on"


def test_the_focused_share_of_a_batch_is_drawn_by_the_odds(recipe: Any, denoiser: Any, retain: Any) -> None:
    forget = sets.prepare(recipe, denoiser, "forget")
    sampler = BatchSampler.of(recipe, forget, retain, denoiser)
    drift_weights = torch.zeros(9)
    drift_weights[4] = 1.0
    (even,), (focused,) = (sampler.draw(3, given)[1] for given in (None, drift_weights))
    assert focused.rows[:4].tolist() == [4] * 4
    assert torch.equal(focused.rows[4:], even.rows[4:])
    assert torch.equal(focused.timesteps, even.timesteps), "the other draws are as they were"
    assert torch.equal(focused.noisy[4:], even.noisy[4:])
    (other,), _ = sampler.draw(3, None)
    (same,), _ = sampler.draw(3, drift_weights)
    assert torch.equal(other.noisy, same.noisy), "the forget batch too"
    drift_weights = torch.tensor([3.0, 1.0] + [0.0] * 7)
    counts = torch.zeros(9)
    for step in range(200):
        counts += torch.bincount(sampler.draw(step, drift_weights)[1][0].rows[:4], minlength=9)
    assert counts[2:].sum() == 0 and float(counts[0] / counts.sum()) == pytest.approx(0.75, abs=0.05)


def test_what_is_not_finite_is_not_counted(drift_sampler: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    drift_sampler.before_step(2)
    before = drift_sampler.scores.clone()
    monkeypatch.setattr(drift_sampler, "predict_base", lambda noisy, *rest: torch.full_like(noisy, float("inf")))
    drift_sampler.before_step(4)
    assert torch.equal(drift_sampler.scores, before)


def test_contrasted_samples_show_forget_pictures_held_to_the_base(recipe: Any, denoiser: Any, retain: Any) -> None:
    forget = sets.prepare(recipe, denoiser, "forget")
    recipe = recipe.model_copy(update={"retain": recipe.retain.model_copy(update={"contrast": 0.5})})
    sampler = BatchSampler.of(recipe, forget, retain, denoiser)
    (batch,) = sampler.draw(3)[1]
    assert int(batch.contrasted.sum()) == 4
    alphas = denoiser.noise_scheduler.alphas_cumprod[batch.timesteps].view(-1, 1, 1, 1)
    clean = (batch.noisy - (1 - alphas).sqrt() * batch.target) / alphas.sqrt()
    late = batch.timesteps < 900  # x_0 is lost in rounding where next to nothing is left of it
    for latents, rows in ((forget.latents[:], batch.contrasted), (retain.latents[:], ~batch.contrasted)):
        distances = (clean[rows & late][:, None] - latents[None]).flatten(2).abs().amax(dim=2)
        assert float(distances.amin(dim=1).max()) < 1e-3
    empty = (batch.prompts.tokens == retain.embeddings[:].tokens[0]).all(dim=2).all(dim=1)
    assert int((empty & batch.contrasted).sum()) >= 2, "half of them under no prompt"
    objective = create_objective(recipe, denoiser, adapt(recipe, denoiser))
    _, (held,) = aim(objective, [], [batch])
    given = batch.noisy[batch.contrasted], batch.timesteps[batch.contrasted], batch.prompts[batch.contrasted]
    assert torch.equal(held.target[batch.contrasted], objective.network.predict_base(*given).detach())
    assert torch.equal(held.target[~batch.contrasted], batch.target[~batch.contrasted])
    (without,) = BatchSampler.of(recipe, forget, retain, denoiser).draw(3)[0]
    assert without.contrasted is None, "none in the forget batch"


def test_a_share_of_the_retain_batch_has_high_noise(recipe: Any, denoiser: Any, retain: Any) -> None:
    forget = sets.prepare(recipe, denoiser, "forget")
    recipe = recipe.model_copy(update={"retain": recipe.retain.model_copy(update={"high_noise": 0.5})})
    after = BatchSampler.of(recipe, forget, retain, denoiser)
    assert after.retain.high_noise == 0.5
    before = after.plain
    moved, late = [], []
    for step in range(100):
        (forgotten,), (was,) = before.draw(step)
        (same,), (now,) = after.draw(step)
        assert torch.equal(forgotten.noisy, same.noisy), "the forget batch stays"
        changed = now.timesteps != was.timesteps
        assert torch.equal(now.noisy[~changed], was.noisy[~changed])
        assert bool((now.timesteps[changed] >= 600).all()) and int(now.timesteps.max()) < 1000
        moved.append(changed.float().mean())
        late.append((now.timesteps >= 600).float().mean())
    assert float(torch.stack(moved).mean()) == pytest.approx(0.5, abs=0.06)
    assert float(torch.stack(late).mean()) == pytest.approx(0.5 + 0.5 * 0.4, abs=0.06)


def test_what_an_objective_prepares_comes_from_the_retain_set_alone(
    recipe_file: RecipeFile, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []

    def prepare(self: Any, draw: Any) -> Any:
        seen.extend(batch for step in range(3) for batch in draw(step)[1])
        return ()

    monkeypatch.setattr(OBJECTIVES["finetune"], "prepare", prepare)
    file = recipe_file(objective={"name": "finetune"}, retain={"contrast": 0.5, "high_noise": 1.0})
    assert cli("train", file).status == 0
    assert [batch.contrasted for batch in seen] == [None] * 3
    assert min(int(batch.timesteps.min()) for batch in seen) < 600
