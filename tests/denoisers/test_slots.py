"""Token embeddings in the place of a word, and drawing from embeddings and from pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from erasediff_lora import denoisers
from erasediff_lora.denoisers import SLOT
from erasediff_lora.denoisers.pixels import to_unit_tensor
from erasediff_lora.recipe import Model, Sampling


@pytest.fixture(scope="module")
def denoiser(tiny_base: Path) -> Any:
    return denoisers.load(Model(base=str(tiny_base)))


def test_a_words_own_embeddings_give_the_words_own_encoding(denoiser: Any) -> None:
    vectors = denoiser.embed_word("cat")
    texts = [f"a photo of a {SLOT} on grass", f"{SLOT}"]
    filled = denoiser.encode_slots(texts, vectors).tokens
    plain = denoiser.encode_prompts([text.replace(SLOT, "cat") for text in texts]).tokens
    assert torch.equal(filled.detach(), plain)


def test_vectors_get_the_gradient_that_finite_differences_give(denoiser: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    vectors, direction = torch.randn(2, 2, 32, generator=generator)
    weights = torch.randn(32, 32, generator=generator)

    def value(given: torch.Tensor) -> torch.Tensor:
        return (denoiser.encode_slots([f"a {SLOT}"], given).tokens[0] * weights).sum()

    (gradient,) = torch.autograd.grad(value(vectors.requires_grad_()), [vectors])
    assert bool((gradient != 0).any(dim=1).all()), "both vectors count"
    step = 1e-2
    with torch.no_grad():
        slope = (value(vectors + step * direction) - value(vectors - step * direction)) / (2 * step)
    assert float((gradient * direction).sum()) == pytest.approx(float(slope), rel=0.02)


def test_a_slot_beyond_the_models_length_is_cut_like_any_word(denoiser: Any) -> None:
    long = "word " * 12
    vectors = denoiser.embed_word("cat")
    filled = denoiser.encode_slots([f"{SLOT} {long}", f"{long}{SLOT}"], vectors).tokens
    plain = denoiser.encode_prompts([f"cat {long}", f"{long}cat"]).tokens
    assert torch.equal(filled.detach(), plain)
    beyond = denoiser.encode_slots([f"{long * 3}{SLOT}"], vectors).tokens
    assert torch.equal(beyond.detach(), denoiser.encode_prompts([f"{long * 3}cat"]).tokens), "nothing of it is left"


def test_every_prompt_can_have_vectors_of_its_own(denoiser: Any) -> None:
    words = ["cat", "dog"]
    vectors = torch.stack([denoiser.embed_word(word) for word in words])
    filled = denoiser.encode_slots([f"a {SLOT} on grass", f"{SLOT}"], vectors).tokens
    assert torch.equal(filled.detach(), denoiser.encode_prompts(["a cat on grass", "dog"]).tokens)


def test_tokens_are_spelled(denoiser: Any) -> None:
    table = denoiser.token_embeddings
    row = int((table == denoiser.embed_word("x")[0]).all(dim=1).nonzero()[0])
    assert denoiser.decode_tokens([row, row]) == "x</w> x</w>"
    assert len(table) == len(denoiser.pipeline.tokenizer) - 2, "without the special ones"


def test_drawing_from_embeddings_is_drawing_from_their_prompt(denoiser: Any) -> None:
    sampling = Sampling(steps=2, guidance=2.0)
    texts = ["a photo of a cat", "a photo of a dog"]
    plain = denoiser.generate(texts, [1, 2], sampling)
    given = denoiser.generate(denoiser.encode_prompts(texts), [1, 2], sampling)
    assert [image.tobytes() for image in plain] == [image.tobytes() for image in given]


def test_drawing_from_a_picture_keeps_more_of_it_with_less_noise(denoiser: Any) -> None:
    sampling = Sampling(steps=20, guidance=1.0)
    sources = denoiser.generate(["a photo of a cat"] * 3, [1, 2, 3], sampling)
    kept = denoiser.decode(denoiser.encode_images(torch.stack([to_unit_tensor(image, 32) for image in sources])))

    def distance(strength: float) -> float:
        drawn = denoiser.generate_from(sources, strength, ["a photo of a cat"] * 3, [4, 5, 6], sampling)
        pairs = zip(drawn, kept, strict=True)
        return float(np.mean([np.abs(np.asarray(a, float) - np.asarray(b, float)).mean() for a, b in pairs]))

    assert distance(0.05) < distance(0.9)
