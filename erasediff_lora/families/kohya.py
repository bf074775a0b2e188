"""How the files of kohya's sd-scripts name a family's modules: in one word, dots and underscores alike."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

OUTSIDE_TEXT_MODEL = ("text_projection",)
"""What a text encoder has beside its `text_model`: ComfyUI, Forge and diffusers know lora_te2_text_projection only."""


def _same(name: str) -> str | None:
    return name


@dataclass(frozen=True)
class KohyaNames:
    """The names of one family's modules.

    Attributes:
        prefixes: Component of the pipeline -> what stands before its module paths.
        words: Parts of a path that have an underscore themselves: what makes the paths readable again.
        to_theirs: Their name, dots still in it, of a module such as 'unet.conv_in'; None if they have none.
        to_ours: The inverse; None if it is no name of this family's.
        implementation: Whose module names they are, for `modelspec.implementation`.
        marks_v: Whether the version of the base ends in '_v' where it predicts v.
    """

    prefixes: Mapping[str, str]
    words: tuple[str, ...]
    to_theirs: Callable[[str], str | None] = _same
    to_ours: Callable[[str], str | None] = _same
    implementation: str = "diffusers"
    marks_v: bool = False

    @cached_property
    def _token(self) -> re.Pattern[str]:
        return re.compile(rf"(?:{'|'.join(self.words)}|[^_]+)(?=_|$)")

    @property
    def roots(self) -> tuple[str, ...]:
        """The first two words of the prefixes, such as 'lora_te_': what tells the format."""
        return tuple("_".join(prefix.split("_")[:2]) + "_" for prefix in self.prefixes.values())

    def module(self, name: str) -> str | None:
        """'lora_unet_mid_block_attentions_0_proj_in' -> 'unet.mid_block.attentions.0.proj_in'; None if unknown."""
        for component, prefix in self.prefixes.items():
            if name.startswith(prefix):
                path = ".".join(self._token.findall(name.removeprefix(prefix)))
                return self.to_ours(f"{component}.{path}")
        return None

    def name(self, module: str) -> str:
        """The inverse of `module`; where they have no name for it, it is ours with underscores."""
        component, _, path = (self.to_theirs(module) or module).partition(".")
        prefix = self.prefixes[component]
        if path in OUTSIDE_TEXT_MODEL:
            prefix = prefix.removesuffix("text_model_")
        return prefix + path.replace(".", "_")
