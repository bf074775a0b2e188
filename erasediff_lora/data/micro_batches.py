"""How many parts a batch is cut into: as the recipe says, or as few as memory allows."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import torch

from erasediff_lora.errors import Problem, UserError
from erasediff_lora.machine.devices import give_back, is_out_of_memory
from erasediff_lora.recipe import Training

log = logging.getLogger(__name__)
FIELD = "training.gradient_accumulation"
Result = TypeVar("Result")


@dataclass
class MicroBatches:
    """One for a whole run: all that predict see the same number, also after it has changed.

    Attributes:
        rows: Samples of a set that this process has of a batch.
        count: Parts that they are cut into.
        may_grow: Whether there may be more of them when memory runs out.
    """

    rows: int
    count: int = 1
    may_grow: bool = False

    @classmethod
    def of(cls, training: Training, world: int = 1, begin: int = 1) -> MicroBatches:
        """As the recipe says.

        Args:
            training: Its batch size and `gradient_accumulation`.
            world: Processes that share a batch.
            begin: Of `auto` the number that is tried first.
        """
        rows, asked = max(1, training.batch_size // world), training.gradient_accumulation
        return cls(rows, begin, may_grow=True) if isinstance(asked, str) else cls(rows, asked)

    @property
    def at_once(self) -> int:
        """Samples that the network sees together: what else is computed should take no more memory."""
        return max(1, self.rows // self.count)

    def keep(self, at_once: int) -> None:
        """Go on as a run did that saw so many samples at once, for the same last bits; or finer, if less fits now."""
        before = next(parts for parts in divisors(self.rows) if self.rows // parts <= max(1, at_once))
        if self.count > before:
            log.warning("%s: the run had %s, and goes on with %d", FIELD, _told(before), self.count)
        elif self.count < before:
            log.info("%s: the run goes on with %s, as before", FIELD, _told(before))
        self.count = max(self.count, before)

    def fit(self, work: Callable[[], Result]) -> Result:
        """What `work` returns, done again in smaller parts where memory runs out; it must leave no trace then.

        Raises:
            UserError: If it runs out for good.
        """
        before = self.count
        while True:
            try:
                result = work()
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                said = str(error).splitlines()[0]
            else:
                if self.count != before:
                    text = "memory ran out with %s: auto goes on with %d, of %d each; the steps are the same"
                    log.warning(text, _told(before), self.count, self.at_once)
                return result
            gc.collect()  # what the error held is let go only now
            if (kind := torch.accelerator.current_accelerator()) is not None:
                give_back(kind)
            self._cut_finer(said)

    def _cut_finer(self, said: str) -> None:
        finer = [parts for parts in divisors(self.rows) if parts > self.count]
        if self.may_grow and finer:
            self.count = finer[0]
            return
        alone = self.at_once == 1
        what = f"memory ran out with {'one picture' if alone else f'{self.at_once} pictures'} at once: {said}"
        remedy = f"Set it to auto, or to {finer[0]}." if finer else LESS
        raise UserError(Problem(FIELD, "auto" if self.may_grow else self.count, what, remedy))


LESS = (
    "Set training.gradient_checkpointing: true, training.optimizer: adamw8bit or model.quantize: nf4, "
    "or choose a lower sampling.resolution; `erasediff-lora plan` says what fits."
)


def divisors(rows: int) -> Iterator[int]:
    """Numbers of parts of the same size, the fewest first."""
    return (parts for parts in range(1, rows + 1) if rows % parts == 0)


def _told(count: int) -> str:
    return "one micro-batch" if count == 1 else f"{count} micro-batches"
