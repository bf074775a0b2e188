"""peft's LoraConfig, and those of LoHa and LoKr, as far as it decides what the tensors beside it mean."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import regex

from erasediff_lora.adapter.weights import unusable

LORA = "LORA"
TYPES = (LORA, "LOHA", "LOKR")
"""Values of `peft_type` that are read."""
DEFAULT = 8.0
"""Rank and alpha of LoHa and LoKr, where the configuration has none."""
LARGEST_ALPHA = 1e9
LONGEST_PATTERN = 1000
SECONDS = 0.5
"""For all patterns of a configuration together: a hostile one can keep a regex engine busy for hours."""
_TRAINING_ONLY = """
    peft_type auto_mapping peft_version base_model_name_or_path revision task_type inference_mode r lora_alpha
    use_rslora rank_pattern alpha_pattern use_dora lora_bias target_modules exclude_modules lora_dropout fan_in_fan_out
    layers_to_transform layers_pattern ephemeral_gpu_offload runtime_config loftq_config eva_config corda_config
    lora_ga_config megatron_core qalora_group_size ensure_weight_tying velora_config init_lora_weights
    init_weights alpha module_dropout rank_dropout rank_dropout_scale use_effective_conv2d decompose_both
    decompose_factor
"""
_HARMLESS = frozenset(_TRAINING_ONLY.split())
"""What is honoured here, or acts in training only, or tells which modules were chosen, as the tensors do."""
_BASE_KEPT = ("gaussian", "eva", "orthogonal", "mica", "default", "true", "false")
"""Initialisations that leave the base as it is: B A starts at 0. Others move a part of the base into the adapter."""


@dataclass(frozen=True)
class LoraConfig:
    """What a configuration says of the scale, once it has been checked.

    Attributes:
        source: The file, for messages.
        kind: peft's type of adapter.
        alpha: Of modules that no pattern matches; None: the rank.
        alphas: Pattern -> alpha.
        rslora: Whether scales are alpha / sqrt(r).
        dora: Whether it is a DoRA.
        rank: The same of ranks, where they are not those of the tensors; None: they are.
        ranks: Pattern -> rank.
    """

    source: Path
    kind: str = LORA
    alpha: float | None = None
    alphas: Mapping[str, float] = field(default_factory=dict)
    rslora: bool = False
    dora: bool = False
    rank: int | None = None
    ranks: Mapping[str, float] = field(default_factory=dict)

    def alpha_of(self, path: str) -> float | None:
        """The alpha of the module with that path."""
        pattern = self._patterns[0].first(path)
        return self.alpha if pattern is None else self.alphas[pattern]

    def rank_of(self, path: str) -> int | None:
        """The rank of the module with that path, as its scale goes by it; None: that of the tensors."""
        pattern = self._patterns[1].first(path)
        return self.rank if pattern is None else max(1, int(self.ranks[pattern]))

    @cached_property
    def _patterns(self) -> tuple[Patterns, Patterns]:
        return Patterns(self.alphas, self.source), Patterns(self.ranks, self.source)


class Patterns:
    """Regexes for the ends of module paths, which peft looks through in their order; in bounded time.

    Raises:
        UserError: If one is no regex, or longer than any is; on use, if they take too long.
    """

    def __init__(self, patterns: Iterable[str], source: object) -> None:
        self.source = source
        self.seconds = SECONDS
        self._patterns = [(pattern, _compiled(pattern, source), _last_word(pattern)) for pattern in patterns]

    def first(self, path: str) -> str | None:
        """The first pattern that the path ends in, after a dot or whole; None: none."""
        for pattern, compiled, last in self._patterns:
            if last is not None and not path.endswith(last):
                continue
            if last is not None and (path == pattern or path.endswith(f".{pattern}")):
                return pattern
            begin = time.perf_counter()
            try:
                found = compiled.fullmatch(path, timeout=max(self.seconds, 1e-3))
            except TimeoutError:
                raise unusable(
                    self.source, f"has the pattern {pattern!r:.80}, which takes too long to match."
                ) from None
            self.seconds -= time.perf_counter() - begin
            if found:
                return pattern
        return None


def _compiled(pattern: str, source: object) -> Any:
    try:
        if len(pattern) > LONGEST_PATTERN:
            raise ValueError(f"it has {len(pattern)} characters")
        return regex.compile(rf"(.*\.)?({pattern})")
    except (ValueError, RecursionError, OverflowError, MemoryError, regex.error) as error:
        raise unusable(source, f"has the pattern {pattern!r:.80}, which is no regex for names: {error}.") from None


def _last_word(pattern: str) -> str | None:
    """What every match of a pattern without special characters ends in; None of other patterns."""
    return pattern.rpartition(".")[2] if re.fullmatch(r"[\w.]+", pattern) else None


def lora_config(fields: Mapping[str, Any], source: Path) -> LoraConfig:
    """Check the fields of a LoraConfig, LoHaConfig or LoKrConfig.

    Raises:
        UserError: If one changes what the tensors mean in a way that is not known here, or is no number or pattern.
    """
    _refuse_changes(fields, source)
    if fields.get("peft_type", LORA) == LORA:
        alpha, alphas = _numbers(fields, "lora_alpha", "alpha_pattern", source)
        return LoraConfig(source, LORA, alpha, alphas, bool(fields.get("use_rslora")), bool(fields.get("use_dora")))
    alpha, alphas = _numbers(fields, "alpha", "alpha_pattern", source)
    rank, ranks = _numbers(fields, "r", "rank_pattern", source)
    rank = max(1, int(DEFAULT if rank is None else rank))  # also where no tensor has that rank
    alpha = DEFAULT if alpha is None else alpha
    return LoraConfig(source, str(fields["peft_type"]), alpha, alphas, rank=rank, ranks=ranks)


def _numbers(
    fields: Mapping[str, Any], name: str, by_pattern: str, source: Path
) -> tuple[float | None, dict[str, float]]:
    """A number, and those of modules that patterns match.

    Raises:
        UserError: If they are no numbers.
    """
    patterns = fields.get(by_pattern) or {}
    if not isinstance(patterns, dict):
        raise unusable(source, f"has the {by_pattern} {patterns!r:.80}, which is no table.")
    own = fields.get(name)
    for place, value in [(name, 1 if own is None else own), *patterns.items()]:
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < LARGEST_ALPHA:
            raise unusable(source, f"gives {place!r:.80} the value {value!r:.80}, which is no number below 1e9.")
    return None if own is None else float(own), {pattern: float(value) for pattern, value in patterns.items()}


def _refuse_changes(fields: Mapping[str, Any], source: Path) -> None:
    """Stop at a field that makes the adapter something else than B A beside the base's weights."""
    init = fields.get("init_lora_weights", True)
    if not isinstance(init, bool | None) and str(init).lower() not in _BASE_KEPT:
        raise unusable(
            source,
            f"has init_lora_weights = {init!r:.40}, which took a part of the base into the adapter: on the base as it"
            " is, it gives another model.",
            "Save it with path_initial_model_for_weight_conversion, which makes a plain LoRA of it.",
        )
    neutral: tuple[Any, ...] = (None, False, "none", [], {}, "")
    for name, value in fields.items():
        if name not in _HARMLESS and value not in neutral:
            raise unusable(
                source,
                f"has {name} = {value!r:.60}, with which it is more than plain LoRA or DoRA.",
                "Merge it with peft, and make a LoRA of the difference with extract.",
            )
