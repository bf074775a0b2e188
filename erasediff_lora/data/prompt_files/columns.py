"""What the columns of published prompt files are called, and what they are for."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice

from erasediff_lora.errors import nearest
from erasediff_lora.recipe.prompt_files import WHOLE_LINE, Use

LINE = WHOLE_LINE
ADVERSARIAL = ("adv_prompt", "adversarial_prompt", "sensitive_prompt", "attack_prompt", "jailbreak_prompt")
"""Prompts that were searched for, or written, to bring a concept back (MMA-Diffusion, Ring-A-Bell)."""
UNSAFE = "nsfw"
"""ViSU's prompts (SPQR), beside harmless ones in the column `safe`; elsewhere a score, when there is another title."""
WEAK = ("text", "caption", "captions", "original", "sentence", UNSAFE)
"""Titles that are words of prompts, too: they count beside other titles, or alone."""
LANGUAGES = (
    *("english", "spanish", "french", "german", "italian", "portuguese", "dutch", "russian", "polish", "turkish"),
    *("arabic", "hindi", "chinese", "japanese", "korean", "vietnamese", "indonesian", "thai"),
)
"""Titles beside `original`."""
LIKE_PROMPT = re.compile(r"(?!negative|neg_|normal|clean|sanitized|safe_)\w+_prompts?|prompts?_text")
"""Another title of a column of prompts, where it is the only one."""
NAMES: dict[str, Sequence[str]] = {
    "prompt": (*ADVERSARIAL, "prompt", "prompts", "target_prompt", *WEAK),
    "seed": ("evaluation_seed", "sd_seed", "eval_seed", "seed", "seeds", "random_seed"),
    "guidance": ("evaluation_guidance", "sd_guidance_scale", "guidance_scale", "guidance", "cfg_scale", "cfg"),
    "width": ("sd_image_width", "image_width", "width"),
    "height": ("sd_image_height", "image_height", "height"),
    "size": ("size", "resolution", "image_size"),
    "case": ("case_number", "case_num", "case", "coco_id", "image_id", "id", "index", "unnamed_0", ""),
    "concept": (
        *("concept", "artist", "class", "celebrity", "noun", "label", "style", "object", "theme"),
        *("label_str", "label_name", "classes", "class_name", "object_name", "artist_name", "celebrity_name"),
    ),
    "split": ("type", "split", "use"),
}
"""Role -> names of its columns, those first that go before others."""
PERHAPS_CONCEPT = (
    *("target", "category", "profession", "character", "person", "subject", "name", "word", "identity", "entity"),
)
"""Names of columns of concepts, if one that is to be forgotten stands in them."""
PICTURE_IDS = ("coco_id", "image_id")
"""Of captions of real pictures, which name nothing that is to be forgotten."""
SIDES_OF_PICTURE = ("width", "height")
"""Beside them, these are the photograph's."""
SOURCE, CAPTIONS = "source", "coco"
"""Column -> how its value begins where the prompt is such a caption."""
SPLITS: dict[Use, Sequence[str]] = {
    "forget": (
        *("erase", "erased", "erasing", "to_erase", "forget", "forgotten", "unlearn", "unlearned", "target", "remove"),
        *("removed", "harmful", "unsafe", "malicious"),
    ),
    "retain": (
        *("retain", "retained", "keep", "kept", "preserve", "preserved", "general", "other", "others", "remaining"),
        *("holdout", "hold_out", "held_out", "non_target", "nontarget", "unrelated", "benign", "harmless", "neutral"),
    ),
    "attack": ("attack", "attacks", "adversarial", "jailbreak"),
}
"""Use -> what a split column calls it."""


def spelled(name: str) -> str:
    """A column's name as names are compared: `evaluationSeed` is `Evaluation Seed` and `evaluation_seed`."""
    apart = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name.strip())
    return re.sub(r"\W+", "_", apart.casefold()).strip("_")


def is_title(name: str) -> bool:
    """Whether a column of that name holds prompts."""
    return spelled(name) in NAMES["prompt"] or _is_like_prompt(name)


def _is_like_prompt(name: str) -> bool:
    return LIKE_PROMPT.fullmatch(spelled(name)) is not None


def knows_title(head: Sequence[str], names_alone: bool = False) -> bool:
    """Whether the cells of a first line are titles that we know.

    Args:
        head: The cells.
        names_alone: Whether the only one may be that of a list of names, as the file is a table.
    """
    names = [spelled(cell) for cell in head]
    if any(is_title(cell) and name not in WEAK for cell, name in zip(head, names, strict=True)):
        return True
    if len(head) == 1:
        return names[0] in WEAK or (names_alone and names[0] in NAMES["concept"])
    known = {name for group in NAMES.values() for name in group} - {""} | {*LANGUAGES}
    return sum(name in known for name in names) > 1 or (
        any(name in NAMES["concept"] for name in names) and not any(" " in cell for cell in head)
    )


@dataclass(frozen=True)
class Columns:
    """Which column has which role.

    Attributes:
        prompts: One or several, such as languages; none where prompts are made of names.
        concepts: Those that may name what a prompt stands for, such as a style's and an object's.
        roles: The others.
        captions: Whether the prompts are captions of real pictures.
    """

    prompts: Sequence[str]
    concepts: Sequence[str] = ()
    roles: Mapping[str, str] = field(default_factory=dict)
    captions: bool = False

    @property
    def adversarial(self) -> bool:
        """Whether its prompts are attacks."""
        return any(spelled(name).removesuffix("s") in ADVERSARIAL for name in self.prompts)

    def words(self) -> str:
        """For a log."""
        named = [("prompt", " and ".join(map(repr, self.prompts)) or "the recipe's templates")]
        named += [(role, repr(name)) for role, name in self.roles.items()]
        named += [("concept", " and ".join(map(repr, self.concepts)))] * bool(self.concepts)
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
    of_pictures = any(spelled(name) in PICTURE_IDS for name in columns)
    found: dict[str, list[str]] = {}
    for role in NAMES:
        free = [name for name in columns if name not in taken]
        if of_pictures and role in SIDES_OF_PICTURE:
            free = [name for name in free if spelled(name) not in SIDES_OF_PICTURE]
        found[role] = chosen.get(role) or list(islice(_usual(role, free), None if role == "concept" else 1))
        taken |= {*found[role]}
    prompts, concepts = found.pop("prompt"), found.pop("concept")
    rest = [name for name in columns if name not in taken]
    if not prompts:
        prompts = [name for name in rest if _is_like_prompt(name)]
        if len(prompts) > 1:
            raise ValueError(f"{' and '.join(prompts)} are columns of prompts")
    if not prompts and not concepts:
        raise ValueError(f"none of {', '.join(columns[:12])} is a column of prompts")
    concepts += [name for name in rest if spelled(name) in PERHAPS_CONCEPT and "concept" not in given]
    captions = of_pictures and [spelled(name) for name in prompts] != [UNSAFE]
    return Columns(prompts, concepts, {role: names[0] for role, names in found.items() if names}, captions)


def _listed(names: str | Sequence[str]) -> Sequence[str]:
    return [names] if isinstance(names, str) else names


def _usual(role: str, columns: Sequence[str]) -> Iterator[str]:
    """Columns that are called so, in the order of the names.

    Raises:
        ValueError: If two are called alike.
    """
    for usual in NAMES[role]:
        called = [name for name in columns if spelled(name) == usual]
        if len(called) > 1 and role != "case":
            raise ValueError(f"{' and '.join(map(repr, called))} are called alike")
        yield from called


def _find(name: str, columns: Sequence[str]) -> str:
    for column in columns:
        if name == column or spelled(name) == spelled(column):
            return column
    if name.isdecimal() and 1 <= int(name) <= len(columns):
        return columns[int(name) - 1]
    raise ValueError(f"there is no column {name!r}. {nearest(name, columns)}".rstrip("."))
