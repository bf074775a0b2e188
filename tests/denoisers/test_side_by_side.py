"""Batches that several threads draw at once are those that one draws after the other."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from erasediff_lora import denoisers
from erasediff_lora.denoisers.side_by_side import MOST, drawing_threads, in_order
from erasediff_lora.recipe import Model, Sampling


@pytest.mark.parametrize("output", ["pil", "latent"])
def test_the_same_pictures(output: str, tiny_base: Path) -> None:
    denoiser = denoisers.load(Model(base=str(tiny_base), family="stable_diffusion"))
    sampling = Sampling(steps=3, guidance=4.0)

    def draw(number: int) -> list[np.ndarray]:
        found = denoiser.generate([f"picture {number}", "b"], [2 * number, 2 * number + 1], sampling, output=output)
        return [np.asarray(one) for one in found]

    alone = [draw(number) for number in range(8)]
    for threads in (1, 3):
        for one, other in zip(alone, in_order(draw, range(8), threads), strict=True):
            assert all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def test_as_many_as_fit_into_the_cores(tiny_base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    denoiser = denoisers.load(Model(base=str(tiny_base), family="stable_diffusion"))
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(6)), raising=False)
    assert drawing_threads(denoiser) == MOST
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert drawing_threads(denoiser) == 3
    monkeypatch.setattr(torch, "get_num_threads", lambda: 6)
    assert drawing_threads(denoiser) == 1
    denoiser.device = torch.device("meta")
    assert drawing_threads(denoiser) == 1


def test_the_first_failure_ends_the_others_and_comes_out() -> None:
    begun: list[int] = []

    def work(number: int) -> int:
        begun.append(number)
        if number == 1:
            raise ValueError("of the second")
        return number

    found = in_order(work, range(100), 2)
    assert next(found) == 0
    with pytest.raises(ValueError, match="of the second"):
        list(found)
    assert len(begun) < 10 and threading.active_count() < 50
