"""Keeping the best adapter of a training run.

The rule: of the adapters that keep enough of the base's retain accuracy (`evaluation.retain_floor`), the one with the
highest unlearning accuracy; among equals the one that retains more, then the earliest.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor

from erasediff_lora.data.prompts import balanced, shared_out
from erasediff_lora.denoisers import Denoiser
from erasediff_lora.errors import UserError
from erasediff_lora.evaluation.judging import judge_of
from erasediff_lora.evaluation.metrics.accuracy import kept, success
from erasediff_lora.evaluation.metrics.strength_sweep import SweepSettings
from erasediff_lora.evaluation.picture_store import PictureStore
from erasediff_lora.evaluation.pictures import forget_prompts, generate, painter, prompt_sheet, retain_prompts
from erasediff_lora.evaluation.shares import share
from erasediff_lora.recipe import Recipe
from erasediff_lora.storage.files import save_safetensors, write_text
from erasediff_lora.storage.inside import parse_json, read_inside
from erasediff_lora.storage.run_folder import BEST_FILE, SELECTION_FILE
from erasediff_lora.training.hooks import Hook
from erasediff_lora.training.sample_sheets import network_at_rest
from erasediff_lora.training.trainables import Trainable

log = logging.getLogger(__name__)
MEASURED = ("unlearning_accuracy", "retain_accuracy", "floor")
"""What a row has besides its step."""
SEED_OFFSET = 500_000
"""The pictures that choose are not those that the final evaluation judges."""


@dataclass
class Selection(Hook):
    """The adapters of a run that were evaluated while it went on.

    Attributes:
        recipe: Says how many pictures, of which prompts, and the floor.
        denoiser: With the adapter in training.
        trainable: That adapter; it is switched off for the base's own retain accuracy.
        every: Steps from one evaluation to the next.
        rows: What was measured, by step.
    """

    recipe: Recipe
    denoiser: Denoiser
    trainable: Trainable
    every: int
    rows: list[dict[str, Any]] = field(default_factory=list)

    def after_saving(self, done: int) -> None:
        """Evaluate the adapter as it is, if it is time, and keep it if it is the best so far."""
        if done % self.every == 0:
            with network_at_rest(self.denoiser):
                self.consider(done, self.trainable.state())

    def make_up(self, done: int) -> None:
        """Take up what was measured before; evaluate what was due when the run was stopped."""
        self.rows = [row for row in self._read() if row["step"] <= done]
        if not (self.rows and self.rows[-1]["step"] == done):
            self.after_saving(done)

    def consider(self, step: int, adapter: Mapping[str, Tensor]) -> None:
        """Evaluate the adapter as it is, and keep it if it is the best so far."""
        rows = self.rows
        rows.append({"step": step} | self._measure(step, rows))
        if best_row(rows) is rows[-1]:
            save_safetensors(dict(adapter), self.recipe.output / BEST_FILE, {"step": str(step)})
        write_text(self.recipe.output / SELECTION_FILE, json.dumps(rows, indent=2) + "\n")
        row = rows[-1]
        log.info(
            "step %d: unlearning accuracy %.1f%%, retain accuracy %.1f%% (required: %.1f%%)%s",
            *(step, 100 * row["unlearning_accuracy"], 100 * row["retain_accuracy"], 100 * row["floor"]),
            ", the best so far" if best_row(rows) is row else "",
        )

    def findings(self, done: int) -> dict[str, float]:
        row = next((row for row in self.rows if row["step"] == done), {})
        return {f"evaluation/{name}": value for name, value in row.items() if name != "step"}

    def sheets(self, done: int) -> dict[str, Path]:
        return {"evaluation": self._sheet(done)} if done % self.every == 0 else {}

    def _sheet(self, step: int) -> Path:
        return self.recipe.output / "samples" / f"evaluation-{step:06d}.png"

    def is_enough(self) -> bool | None:
        """Whether the last look saw none of the concepts, and the rest kept."""
        rows = self.rows
        return (
            bool(rows) and rows[-1]["unlearning_accuracy"] == 1.0 and rows[-1]["retain_accuracy"] >= rows[-1]["floor"]
        )

    def adapter(self) -> dict[str, Tensor] | None:
        """The adapter to keep; None if none was evaluated or all fall below the floor."""
        rows = self.rows
        best = best_row(rows)
        if best is None:
            if rows:
                log.warning(
                    "no adapter kept %.1f%% of the retain pictures; the last one is saved", 100 * rows[-1]["floor"]
                )
            return None
        with safe_open(self.recipe.output / BEST_FILE, framework="pt") as stored:
            if stored.metadata()["step"] != str(best["step"]):  # of a run that got further, and was resumed from before
                log.warning("the adapter of step %d, the best, is not there; the last one is saved", best["step"])
                return None
            log.info("the adapter of step %d is kept", best["step"])
            return {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118

    def _read(self) -> list[dict[str, Any]]:
        """What an earlier life of the run wrote; what cannot be read is measured again."""
        try:
            rows = parse_json(read_inside(self.recipe.output, SELECTION_FILE) or "[]")
            return [row | {"step": int(row["step"])} | {name: float(row[name]) for name in MEASURED} for row in rows]
        except (UserError, ValueError, TypeError, LookupError, OverflowError) as error:
            file = self.recipe.output / SELECTION_FILE
            log.warning("%s is damaged (%s): earlier evaluations do not count", file, error)
            return []

    def _measure(self, step: int, rows: list[dict[str, Any]]) -> dict[str, float]:
        options = self.recipe.evaluation
        judge = judge_of(self.recipe)
        assert judge is not None  # the recipe's checks see to that
        seed, paint = options.seed + SEED_OFFSET, painter(self.denoiser)
        count = options.settings(SweepSettings).samples
        concepts = len(self.recipe.forget.concepts)
        forget = shared_out(forget_prompts(self.recipe), options.shared(count, concepts), seed)
        retain = balanced(retain_prompts(self.recipe), count, seed)
        if rows:
            floor = rows[-1]["floor"]
        else:
            store = PictureStore.of(self.recipe, self.denoiser, None)
            with self.trainable.disabled():
                before = generate(paint, self.recipe, retain, seed + len(forget), "retain, base", store)
            floor = options.retain_floor * (share([row[0] for row in kept(judge, before)]) or 0.0)
        forgotten = generate(paint, self.recipe, forget, seed, f"forget, step {step}")
        retained = generate(paint, self.recipe, retain, seed + len(forget), f"retain, step {step}")
        prompt_sheet([*forgotten, *retained], self._sheet(step))
        gone: dict[str, list[bool]] = {}
        for item, seen in zip(forgotten, success(judge, forgotten), strict=True):
            gone.setdefault(str(item.prompt.concept), []).append(not seen)
        return {
            "unlearning_accuracy": share([told for each in gone.values() for told in each]) or 0.0,
            **{f"unlearning_accuracy/{name}": share(each) or 0.0 for name, each in gone.items()},
            "retain_accuracy": share([row[0] for row in kept(judge, retained)]) or 0.0,
            "floor": floor,
        }


def best_row(rows: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The row that the rule chooses; None if none reaches the floor."""
    able = [row for row in rows if row["retain_accuracy"] >= row["floor"]]
    return max(able, key=lambda row: (row["unlearning_accuracy"], row["retain_accuracy"], -row["step"]), default=None)
