"""What the columns of published prompt files are called, and what they are for."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from erasediff_lora.errors import nearest
from erasediff_lora.recipe.prompt_files import WHOLE_LINE

LINE = WHOLE_LINE
ADVERSARIAL = ("adv_prompt", "adversarial_prompt", "sensitive_prompt", "attack_prompt")
"""Prompts that were searched for, or written, to bring a concept back (MMA-Diffusion, Ring-A-Bell)."""
UNSAFE = "nsfw"
"""ViSU's prompts (SPQR), beside harmless ones in the column `safe`; elsewhere a score, when there is another title."""
WEAK = ("text", "caption", "captions", "original", "sentence", UNSAFE)
"""Titles that are words of prompts, too: they count beside other titles, or alone."""
NAMES: dict[str, Sequence[str]] = {
    "prompt": (*ADVERSARIAL, "prompt", "prompts", "target_prompt", *WEAK),
    "seed": ("evaluation_seed", "sd_seed", "eval_seed", "seed"),
    "guidance": ("evaluation_guidance", "sd_guidance_scale", "guidance_scale", "guidance", "cfg_scale", "cfg"),
    "width": ("sd_image_width", "image_width", "width"),
    "height": ("sd_image_height", "image_height", "height"),
    "size": ("size", "resolution", "image_size"),
    "case": ("case_number", "coco_id", "image_id", "id", "index", "unnamed_0", ""),
    "concept": ("concept", "artist", "class", "celebrity", "noun", "label", "style", "object"),
    "split": ("type", "split", "use"),
}
"""Role -> names of its columns, those first that go before others."""
PICTURE_IDS = ("coco_id", "image_id")
"""Of captions of real pictures, which name nothing that is to be forgotten."""
SOURCE, CAPTIONS = "source", "coco"
"""Column -> how its value begins where the prompt is such a caption."""
SPLITS = {
    "forget": ("erase", "erased", "forget", "unlearn", "target", "remove"),
    "retain": ("retain", "keep", "preserve", "kept", "general", "other", "others"),
    "attack": ("attack", "adversarial"),
}
"""Use -> what a split column calls it."""


def spelled(name: str) -> str:
    """A column's name as names are compared."""
    return re.sub(r"\W+", "_", name.strip().casefold()).strip("_")


def is_title(name: str) -> bool:
    """Whether a column of that name holds prompts."""
    return spelled(name) in NAMES["prompt"]


def knows_title(head: Sequence[str]) -> bool:
    """Whether the cells of a first line are titles that we know."""
    names = [spelled(cell) for cell in head]
    if any(name in NAMES["prompt"] and name not in WEAK for name in names):
        return True
    known = {name for group in NAMES.values() for name in group} - {"", *WEAK}
    has_weak = any(name in WEAK for name in names)
    return (
        has_weak
        if len(head) == 1
        else sum(name in known or name in WEAK for name in names) > 1
        or (any(name in NAMES["concept"] for name in names) and not any(" " in cell for cell in head))
    )


@dataclass(frozen=True)
class Columns:
    """Which column has which role.

    Attributes:
        prompts: One or several, such as languages; none where prompts are made of names.
        roles: The others.
        captions: Whether the prompts are captions of real pictures.
    """

    prompts: Sequence[str]
    roles: Mapping[str, str] = field(default_factory=dict)
    captions: bool = False

    @property
    def adversarial(self) -> bool:
        """Whether its prompts are attacks."""
        return any(spelled(name) in ADVERSARIAL for name in self.prompts)

    def words(self) -> str:
        """For a log."""
        named = [("prompt", " and ".join(map(repr, self.prompts)) or "the recipe's templates")]
        named += [(role, repr(name)) for role, name in self.roles.items()]
        return ", ".join(f"{role} from {name}" for role, name in named)


def assign(columns: Sequence[str], given: Mapping[str, str | list[str]]) -> Columns:
    """The roles of a file's columns.

    Args:
        columns: As the file spells them.
        given: Role -> column, or several of prompts, as the user says.

    Raises:
        ValueError: If a column is not there, or there is no prompt.
    """
    if list(columns) == [LINE]:
        return Columns([LINE])
    chosen = {role: [_find(name, columns) for name in _listed(names)] for role, names in given.items()}
    taken = {name for names in chosen.values() for name in names}
    roles: dict[str, str] = {}
    for role in NAMES:
        own = chosen.get(role) or list(_usual(role, [name for name in columns if name not in taken]))[:1]
        if role == "prompt":
            prompts = own
        elif own:
            roles[role] = own[0]
        taken |= {*own}
    if not prompts and "concept" not in roles:
        raise ValueError(f"none of {', '.join(columns[:12])} is a column of prompts")
    harmless = [spelled(name) for name in prompts] != [UNSAFE]
    return Columns(prompts, roles, harmless and any(spelled(name) in PICTURE_IDS for name in columns))


def _listed(names: str | Sequence[str]) -> Sequence[str]:
    return [names] if isinstance(names, str) else names


def _usual(role: str, columns: Sequence[str]) -> Iterator[str]:
    """Columns that are called so, in the order of the names."""
    for usual in NAMES[role]:
        yield from (name for name in columns if spelled(name) == usual)


def _find(name: str, columns: Sequence[str]) -> str:
    for column in columns:
        if name == column or spelled(name) == spelled(column):
            return column
    if name.isdecimal() and 1 <= int(name) <= len(columns):
        return columns[int(name) - 1]
    raise ValueError(f"there is no column {name!r}. {nearest(name, columns)}".rstrip("."))
