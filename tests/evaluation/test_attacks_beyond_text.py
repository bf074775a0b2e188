"""Attacks against what they are made of: exhaustive search, diffusers' own negative prompt, the base's predictions."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from fixtures import Cli, RecipeFile
from refusals import refused
from safetensors.torch import load_file
from tiny import tiny_classifier

from erasediff_lora import denoisers
from erasediff_lora.denoisers import SLOT
from erasediff_lora.evaluation.attacks.base import concept_prompts
from erasediff_lora.evaluation.attacks.forget_set import forget_pictures
from erasediff_lora.evaluation.attacks.guidance import with_negative
from erasediff_lora.evaluation.attacks.null_text import there_and_back
from erasediff_lora.evaluation.attacks.p4d import Distilled
from erasediff_lora.evaluation.attacks.ring_a_bell import RingABellSettings, nearest_tokens
from erasediff_lora.evaluation.candidates import load_candidates
from erasediff_lora.evaluation.evidence import Evidence
from erasediff_lora.recipe import Model, Recipe, Sampling
from erasediff_lora.registry import METRICS


@pytest.fixture
def evidence(recipe_file: RecipeFile, cli: Cli, tmp_path: Path) -> Evidence:
    judge = tiny_classifier(tmp_path / "judge", ["cat", "dog", "car"], favourite="cat")
    file = recipe_file(evaluation={"judge": f"transformers:{judge}", "metrics": ["accuracy"]})
    assert cli("train", file, "--training.learning_rate", "0.05").status == 0
    recipe = Recipe.load(tmp_path / "run/recipe.yaml")
    return Evidence(recipe, load_candidates(recipe, tmp_path / "run/pytorch_lora_weights.safetensors"))


def test_ring_a_bell_finds_the_token_that_an_exhaustive_search_finds(evidence: Evidence) -> None:
    denoiser = evidence.candidates.base.denoiser
    prompts, others = ["a cat", "one cat"], ["a dog", "one dog"]
    options = RingABellSettings(tokens=1, steps=20, exchanges=len(denoiser.token_embeddings))
    found = nearest_tokens(denoiser, prompts[0], prompts, others, "cat", options, seed=3)

    table = denoiser.token_embeddings.detach()
    with torch.no_grad():
        means = [denoiser.encode_prompts(texts).tokens.mean(dim=0) for texts in (prompts, others)]
        wanted = denoiser.encode_prompts([prompts[0]]).tokens[0] + means[0] - means[1]
        encoded = denoiser.encode_slots([SLOT] * len(table), table[:, None]).tokens
    distances = (encoded - wanted).square().mean(dim=(1, 2))
    own = {tuple(vector.tolist()) for vector in denoiser.embed_word("cat")}
    allowed = [row for row, vector in enumerate(table) if tuple(vector.tolist()) not in own]
    assert len(allowed) < len(table), "the name itself is no attack"
    assert found[0] in allowed
    assert float(distances[found[0]]) == pytest.approx(min(float(distances[row]) for row in allowed))


def test_a_negative_prompt_is_that_of_diffusers(evidence: Evidence, tiny_base: Path) -> None:
    sampling = evidence.recipe.sampling
    (prompt,) = concept_prompts(evidence, "cat", 1)
    (drawn,) = with_negative(evidence, evidence.candidates.base, [prompt], "dog")
    pipeline = StableDiffusionPipeline.from_pretrained(tiny_base)
    own = pipeline(
        prompt.text,
        negative_prompt="dog",
        num_inference_steps=sampling.steps,
        guidance_scale=sampling.guidance,
        height=drawn.image.height,
        width=drawn.image.width,
        generator=torch.Generator().manual_seed(drawn.seed),
    ).images[0]
    assert drawn.image.tobytes() == own.tobytes()


def test_the_baseline_without_training_is_measured_on_the_base(evidence: Evidence) -> None:
    found = METRICS["negative_prompt"]("negative_prompt").measure(evidence)
    way = found["ways"]["with negative prompt"]
    assert found["avoided"] == "cat" and way["counted"] == {"forget": 2, "forget_base": 2, "retain": 2}
    assert way["unlearning_accuracy"] == way["unlearning_accuracy_base"] == 0.0, "the judge sees cats everywhere"


def test_null_text_inversion_gives_the_picture_back() -> None:
    """The more steps, the closer: on the embedded model, since a network of random weights is not smooth."""
    denoiser = denoisers.load(Model(base="demo"))
    images = denoiser.generate(["a cat", "a car"], [1, 2], Sampling(steps=8), output="pil")
    pixels = torch.stack([torch.from_numpy(np.asarray(image)).permute(2, 0, 1) / 127.5 - 1 for image in images])
    through_vae = denoiser.decode(denoiser.encode_images(pixels))

    def far(steps: int) -> float:
        back = there_and_back(denoiser, images, "", steps)
        pairs = zip(back, through_vae, strict=True)
        return float(np.mean([np.abs(np.asarray(a, float) - np.asarray(b, float)).mean() for a, b in pairs]))

    assert far(25) < 0.6 * far(8) and far(25) < 3.0, "of 255"


def test_p4d_is_taught_what_the_base_predicts(evidence: Evidence) -> None:
    base, erased = evidence.candidates.base, evidence.candidates.erased
    pictures = forget_pictures(evidence, erased, "cat")
    taught = Distilled(pictures, base, erased, "cat")
    batches = zip(taught.noised(erased.denoiser, 2, 5), pictures.noised(base.denoiser, 2, 5), strict=False)
    for (noisy, times, target, captions), (same, _, _, _) in itertools.islice(batches, 2):
        texts = [caption.replace(SLOT, "cat") for caption in captions]
        with torch.no_grad():
            student = erased.denoiser.predict(noisy, times, erased.denoiser.encode_prompts(texts))
            with base.active() as denoiser:
                teacher = denoiser.predict(noisy, times, denoiser.encode_prompts(texts))
        assert torch.equal(noisy, same) and torch.equal(target, teacher)
        assert not torch.equal(student, teacher), "the erased model is the active one when a batch is there"
        with erased.active():
            pass


def test_bad_options(recipe_file: RecipeFile, cli: Cli) -> None:
    asked = {"guidance_attack": {"scales": [0]}, "picture_start": {"strengths": [1.5]}}
    refused(
        cli("train", recipe_file(evaluation=asked)),
        "evaluation.guidance_attack.scales = 0.0: must be above 0",
        "evaluation.picture_start.strengths = 1.5: must be above 0.001 and at most 1",
    )


def test_what_was_found_is_there_for_others(recipe_file: RecipeFile, cli: Cli, tmp_path: Path, tiny_base: Path) -> None:
    """The learned word in diffusers draws what the attack drew; the searched prompts are a list that we read again."""
    judge = tiny_classifier(tmp_path / "judge", ["cat", "dog", "car"], favourite="cat")
    search = {"steps": 2, "restarts": 2, "batch_size": 2, "samples": 1}
    asked = {
        "judge": f"transformers:{judge}",
        "metrics": ["accuracy"],
        "attacks": ["inversion", "adversarial_prompt", "ring_a_bell"],
        "inversion": search,
        "adversarial_prompt": search | {"tokens": 2},
        "ring_a_bell": {"steps": 2, "restarts": 1, "samples": 1, "tokens": 2},
    }
    assert cli("train", recipe_file(evaluation=asked)).status == 0
    (entry,) = (tmp_path / "run/evaluations").iterdir()
    assert sorted(file.name for file in (entry / "attacks").iterdir()) == ["inversion-cat.safetensors", "prompts.csv"]

    pipeline = StableDiffusionPipeline.from_pretrained(tiny_base)
    pipeline.load_textual_inversion(entry / "attacks/inversion-cat.safetensors", token="<word>")
    learned = load_file(entry / "attacks/inversion-cat.safetensors")["emb_params"]
    place = pipeline.tokenizer.convert_tokens_to_ids("<word>")
    assert torch.equal(pipeline.text_encoder.get_input_embeddings().weight[place], learned[0])

    told = cli("evaluate", tmp_path / "run", "--prompts", entry / "attacks/prompts.csv", "--evaluation.attacks", "[]")
    assert told.status == 0 and "2 to attack" in told.err, told.err


def test_inversion_in_what_the_encoder_hands_out(evidence: Evidence, cli: Cli, tmp_path: Path) -> None:
    """Drawn by diffusers from the prompt's own embeddings with the learned ones behind."""
    search = "{space: outputs, vectors: 2, steps: 2, restarts: 1, samples: 4, batch_size: 4}"
    flags = (
        "--evaluation.attacks",
        "[inversion]",
        "--evaluation.inversion",
        search,
        "--evaluation.forget_samples",
        "4",
    )
    result = cli("evaluate", tmp_path / "run", *flags)
    assert result.status == 0, result.err
    (file,) = (tmp_path / "run").rglob("inversion-cat.safetensors")
    found = load_file(file)
    assert found.keys() == {"encoder_outputs"} and found["encoder_outputs"].shape == (2, 32)
