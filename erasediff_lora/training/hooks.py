"""What can take part in a run beside the objective: the loop asks every hook in turn, and knows none of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

from erasediff_lora.objectives import Batch


class Hook:
    """One file each, added in `setup.create_hooks`. Each method does nothing unless a hook overrides it."""

    name: ClassVar[str] = ""
    """What its state is called in checkpoints; empty: it has none."""

    def before_step(self, step: int) -> None:
        """The step is about to draw its batches; the first is 0."""

    def retain_weights(self) -> Tensor | None:
        """How often each retain picture should be drawn, (N,), relative to the others; None: no opinion."""
        return None

    def forget_concepts(self) -> Sequence[str] | None:
        """Which concepts the forget batch is to show, in equal parts; None: no opinion."""
        return None

    def change_forget(self, batches: list[Batch]) -> list[Batch]:
        """The forget micro-batches as they are to be trained on; they are not aimed yet."""
        return batches

    def after_step(self, done: int, metrics: Mapping[str, float | None]) -> None:
        """The step has been taken; `done` counts those of the run, `metrics` are its direction's."""

    def after_saving(self, done: int) -> None:
        """The step's checkpoint is written, if one was due: what fails from here on costs no step."""

    def make_up(self, done: int) -> None:
        """The run goes on from this step's checkpoint: do what was due after saving it, unless it has been done."""

    def is_enough(self) -> bool | None:
        """Whether the run may end here; None: no opinion."""
        return None

    def metrics(self) -> dict[str, float | None]:
        """What a line of the log says of it."""
        return {}

    def findings(self, done: int) -> dict[str, float]:
        """What it found out at this step, after saving: for the trackers."""
        return {}

    def sheets(self, done: int) -> dict[str, Path]:
        """Pictures with their prompts that it drew at this step, after saving: for the trackers."""
        return {}

    def state(self) -> Any:
        """What a resumed run needs: tensors, numbers, lists and dictionaries."""
        return None

    def load_state(self, state: Any) -> None:
        """Put what `state` returned back; the parameters have been restored."""

    def adapter(self) -> Mapping[str, Tensor] | None:
        """What is written at the end in the place of the last step's adapter; None: no opinion."""
        return None


class Hooks(Hook):
    """All hooks of a run, as one."""

    def __init__(self, hooks: Sequence[Hook] = ()) -> None:
        self.hooks = list(hooks)

    def __iter__(self) -> Iterator[Hook]:
        return iter(self.hooks)

    def before_step(self, step: int) -> None:
        for hook in self.hooks:
            hook.before_step(step)

    def retain_weights(self) -> Tensor | None:
        """Of the first that has an opinion."""
        return next((weights for hook in self.hooks if (weights := hook.retain_weights()) is not None), None)

    def forget_concepts(self) -> Sequence[str] | None:
        """Of the first that has an opinion."""
        return next((names for hook in self.hooks if (names := hook.forget_concepts()) is not None), None)

    def change_forget(self, batches: list[Batch]) -> list[Batch]:
        """Changed by one after the other."""
        for hook in self.hooks:
            batches = hook.change_forget(batches)
        return batches

    def after_step(self, done: int, metrics: Mapping[str, float | None]) -> None:
        for hook in self.hooks:
            hook.after_step(done, metrics)

    def after_saving(self, done: int) -> None:
        for hook in self.hooks:
            hook.after_saving(done)

    def make_up(self, done: int) -> None:
        for hook in self.hooks:
            hook.make_up(done)

    def is_enough(self) -> bool | None:
        """If all say so that have an opinion."""
        opinions = [opinion for hook in self.hooks if (opinion := hook.is_enough()) is not None]
        return all(opinions) if opinions else None

    def metrics(self) -> dict[str, float | None]:
        return {name: value for hook in self.hooks for name, value in hook.metrics().items()}

    def findings(self, done: int) -> dict[str, float]:
        return {name: value for hook in self.hooks for name, value in hook.findings(done).items()}

    def sheets(self, done: int) -> dict[str, Path]:
        return {name: file for hook in self.hooks for name, file in hook.sheets(done).items()}

    def state(self) -> dict[str, Any]:
        """By name."""
        return {hook.name: hook.state() for hook in self.hooks if hook.name}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Of those that the state knows."""
        for hook in self.hooks:
            if hook.name in state:
                hook.load_state(state[hook.name])

    def adapter(self) -> Mapping[str, Tensor] | None:
        """Of the first that has an opinion."""
        return next((adapter for hook in self.hooks if (adapter := hook.adapter()) is not None), None)
