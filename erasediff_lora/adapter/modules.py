"""Which modules of a network can be adapted, are chosen, or have been adapted."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from erasediff_lora.errors import Problem, UserError, nearest


def resolve(targets: str | Sequence[str], presets: Mapping[str, list[str]], paths: Sequence[str]) -> list[str]:
    """Full paths of the modules that a preset or regexes match.

    Args:
        targets: A preset's name, or regexes that must match a module's whole path.
        presets: The model family's presets.
        paths: The modules that there are to choose from.

    Raises:
        UserError: If a preset is unknown or a regex matches nothing.
    """
    if isinstance(targets, str):
        if targets not in presets:
            raise UserError(Problem("adapter.targets", targets, "is no preset.", nearest(targets, presets)))
        patterns: Sequence[str] = presets[targets]
    else:
        patterns = targets
    chosen: list[str] = []
    for pattern in patterns:
        hits = [path for path in paths if re.fullmatch(pattern, path)]
        if not hits and not isinstance(targets, str):
            ends = sorted({".".join([part for part in path.split(".") if not part.isdigit()][-2:]) for path in paths})
            raise UserError(
                Problem(
                    "adapter.targets",
                    pattern,
                    "matches no module of the network.",
                    f"A regex must match a whole path, such as {paths[len(paths) // 2]!r}. "
                    f"Presets: {', '.join(presets)}. Module names end in: {', '.join(ends)}.",
                )
            )
        chosen += hits
    if not chosen:
        raise UserError(
            Problem("adapter.targets", targets, "matches no module of the network.", f"Presets: {', '.join(presets)}.")
        )
    return sorted(set(chosen))


def adaptable(network: nn.Module) -> list[str]:
    """The linear and convolution modules: those that an adapter can be put on."""
    return [path for path, module in network.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)]


def lora_layers(network: nn.Module) -> dict[str, Any]:
    """Path -> peft's wrapper of every module that has been adapted."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    return {path: module for path, module in network.named_modules() if isinstance(module, BaseTunerLayer)}
