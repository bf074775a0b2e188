"""What a picture's way through the network takes on this device: a few passes, and a clock."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from erasediff_lora import denoisers
from erasediff_lora.data.micro_batches import MicroBatches
from erasediff_lora.denoisers import Denoiser
from erasediff_lora.denoisers.side_by_side import drawing_threads
from erasediff_lora.memory.hollow_run import Repeated
from erasediff_lora.memory.plan import processes
from erasediff_lora.memory.room import SMALL_BASE
from erasediff_lora.objectives.base import Batch, loss_and_gradient, mean_squared_error
from erasediff_lora.recipe import Recipe
from erasediff_lora.timing.stages import Stage
from erasediff_lora.training.setup import adapt, create_objective

ROUNDS = 3
LONGEST = 20.0
"""Seconds after which one round has to do."""


@dataclass(frozen=True)
class Speed:
    """Seconds of a picture.

    Attributes:
        looked: Through the network without gradients.
        trained: Forward and backward, through the adapted network.
        encoded: Through the autoencoder; 0 if nothing is encoded.
        drawn_at_once: Batches that are drawn side by side.
        shared_by: Processes that share the steps.
    """

    looked: float
    trained: float
    encoded: float = 0.0
    drawn_at_once: int = 1
    shared_by: int = 1

    def seconds(self, stage: Stage) -> float:
        """Of a stage; searches of an evaluation are made by one process."""
        own = stage.looked * self.looked + stage.trained * self.trained + stage.encoded * self.encoded
        if stage.name in DRAWING:
            return own / self.drawn_at_once if not stage.trained else own
        return own / self.shared_by


DRAWING = ("draw the sets", "sample sheets", "choose the best", "evaluate", "encode the sets")
"""Stages that one process makes for all."""


def is_at_hand(recipe: Recipe, device: str, *, anyhow: bool) -> bool:
    """Whether the base can be loaded here without fetching it, and soon unless that does not matter.

    Args:
        recipe: Names the base.
        device: 'cpu' or another.
        anyhow: Also where it takes a while.
    """
    if recipe.model.is_hub_id and recipe.model.base != "demo":
        return False
    source = denoisers.load(recipe.model).source
    files = [source] if source.is_file() else list(source.rglob("*.safetensors"))
    size = sum(file.stat().st_size for file in files)
    return bool(files) and (anyhow or device != "cpu" or size < SMALL_BASE)


def measure(recipe: Recipe, stages: Sequence[Stage]) -> Speed:
    """Time a pass of each kind that the stages have, at the sizes that the run uses.

    Args:
        recipe: Its micro-batches are decided.
        stages: Of the run.

    Raises:
        UserError: If the base cannot be loaded.
    """
    if recipe.training.threads:
        torch.set_num_threads(recipe.training.threads)
    denoiser = denoisers.load(recipe.model)
    _, (batch,) = Repeated.of(_one_batch(recipe), denoiser).to(denoiser.device).batches
    size = recipe.sampling.batch_size
    rows = torch.arange(size * denoiser.rows_drawn(recipe.sampling.guidance)) % len(batch)
    drawn = batch[rows]
    with torch.no_grad():
        looked = _median(denoiser, lambda: denoiser.predict(drawn.noisy, drawn.timesteps, drawn.prompts)) / len(drawn)
        encoded = _encoding(recipe, denoiser) if any(stage.encoded for stage in stages) else 0.0
    trained = 0.0
    if any(stage.trained for stage in stages):
        trainable = adapt(recipe, denoiser)
        network = create_objective(recipe, denoiser, trainable).network

        def loss(part: Batch) -> torch.Tensor:
            return mean_squared_error(network.predict(part.noisy, part.timesteps, part.prompts), part.target)

        trained = _median(denoiser, lambda: loss_and_gradient(network, [batch], loss)) / len(batch)
    return Speed(looked, trained, encoded, drawing_threads(denoiser), processes())


def _one_batch(recipe: Recipe) -> Recipe:
    """As many pictures as a process sees at once."""
    at_once = MicroBatches.of(recipe.training, processes()).at_once
    training = recipe.training.model_copy(update={"batch_size": at_once, "gradient_accumulation": 1})
    return recipe.model_copy(update={"training": training})


def _encoding(recipe: Recipe, denoiser: Denoiser) -> float:
    side = recipe.sampling.resolution or denoiser.resolution
    pixels = torch.zeros(min(4, recipe.sampling.batch_size), 3, side, side)
    return _median(denoiser, lambda: denoiser.encode_images(pixels)) / len(pixels)


def _median(denoiser: Denoiser, work: Callable[[], object]) -> float:
    """Seconds of a call, the first of which does not count: it loads kernels."""
    kind = denoiser.device.type
    synchronize: Callable[[], object] = getattr(torch, kind).synchronize if kind != "cpu" else lambda: None
    times: list[float] = []
    for _ in range(1 + ROUNDS):
        began = time.perf_counter()
        work()
        synchronize()
        times.append(time.perf_counter() - began)
        if sum(times) > LONGEST:
            break
    return statistics.median(times[1:] or times)
