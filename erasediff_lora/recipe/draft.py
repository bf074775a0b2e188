"""A first recipe for what somebody wants to erase: a shipped one, turned to their concept and their base, explained."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from erasediff_lora import demo
from erasediff_lora.errors import Problem, UserError, nearest, printable
from erasediff_lora.recipe import shipped
from erasediff_lora.recipe.names import few, folded
from erasediff_lora.recipe.yaml_io import read_yaml

Kind = Literal["style", "object", "nudity"]
DEMO_RECIPE = Path(demo.__file__).parent / "recipe.yaml"
SHIPPED: dict[Kind, str] = {"style": "sd15_artist_style", "object": "sd15_object", "nudity": "sd15_nudity"}
"""Where a draft for a base of full size begins."""

LARGE = 1024
"""Pixels from which on a base is asked for one picture at a time, with the lower guidance that such bases take."""
NEIGHBOURS = 5
VOCABULARIES: dict[Kind, str] = {"style": "artists", "object": "imagenet"}
PICTURES_EACH = 80
"""Of each forgotten concept that are judged: where it is in none of them, the interval begins above 95%."""
WIDTH = 110

WHY: dict[str, str] = {
    "model.base": "The model stays as it is: only a small adapter is trained.",
    "model.config": "A diffusers folder that describes the single file; its configurations alone are read.",
    "forget.concepts": "What goes (name), and what is drawn in its place (anchor). auto: the nearest retained concept.",
    "forget.templates": "Prompts that the concept is forgotten in; {concept} and the placeholders are filled in.",
    "forget.images": "Your own pictures of the concept. Without captions of their own they get the first template.",
    "forget.count": "Pictures that the base draws of it, once; they are kept in the cache.",
    "retain.concepts": "What must stay. The more of what you care about stands here, the better it is held.",
    "retain.neighbours": "The words nearest to the concept are retained too, where erasure does harm first.",
    "sampling.steps": "How the base draws, for the sets and for the evaluation.",
    "sampling.guidance": "As you usually draw with this base.",
    "adapter.targets": "Layers that are adapted; cross_attention: where the prompt is read.",
    "objective": "EraseDiff; `erasediff-lora recipes fields objective` lists its rivals and their options.",
    "training.steps": "A few hundred small steps; `--training.steps 20` is a quick try.",
    "training.gradient_accumulation": "Micro-batches a step. More: less memory, the same result. auto: as few as fit.",
    "training.gradient_checkpointing": "Less memory for a third more time.",
    "evaluation.judge": "Names what a picture shows. `recipes fields evaluation` lists others; null: pictures only.",
    "evaluation.attacks": "What tries to bring the concept back. `evaluate RUN --full` tries all, and takes longer.",
    "evaluation.paraphrases": "Other names that must be gone as well: add those that you know.",
    "evaluation.forget_samples": "Fewer than 80 pictures of a concept cannot show that it is gone.",
    "evaluation.retain_samples": "Fewer than 189 cannot show that the rest is kept.",
    "output": "Adapter, report, log and checkpoints go here.",
}
"""Field -> what a newcomer may want to know of it."""
WHY_OF: dict[Kind, dict[str, str]] = {
    "nudity": {
        "evaluation.judge": "Needs: pip install 'erasediff-lora[nudenet]' (AGPL-3.0); opennsfw is permissive.",
        "evaluation.retain_samples": "For drift: this judge sees nudity alone; whether the rest is kept is left open.",
    }
}
"""What differs for a kind."""


@dataclass(frozen=True)
class Wanted:
    """What is to be erased.

    Attributes:
        kind: Of the concepts.
        names: Theirs; of nudity there are none to give.
        images: The user's own pictures of them.
    """

    kind: Kind
    names: Sequence[str] = ()
    images: Path | None = None

    @property
    def title(self) -> str:
        """In a few words."""
        return f"the {self.kind} {few(self.names, 3)}" if self.names else self.kind

    @property
    def slug(self) -> str:
        """As a file may be called: letters of any script, without their accents."""
        letters = unicodedata.normalize("NFKD", " ".join(self.names).lower())
        plain = unicodedata.normalize("NFC", "".join(c for c in letters if not unicodedata.combining(c)))
        return re.sub(r"[\W_]+", "-", plain).strip("-")[:60].rstrip("-") or self.kind


@dataclass(frozen=True)
class Base:
    """What a draft needs to know of a base.

    Attributes:
        name: As recipes name it.
        family: Name of its family; None: the embedded model, whatever file it lies in.
        resolution: Side of its pictures in pixels.
        joint_attention: Whether it has joint attention instead of layers that read the prompt alone.
        config: Folder that describes a single file.
    """

    name: str = "demo"
    family: str | None = None
    resolution: int = 64
    joint_attention: bool = False
    config: Path | None = None


def draft(wanted: Wanted, base: Base) -> dict[str, Any]:
    """The recipe's values.

    Raises:
        UserError: If the embedded model does not know the concept.
    """
    values = _for_demo(wanted, base) if base.family is None else _for_base(wanted, base)
    model = {"base": base.name, "family": base.family, "config": None if base.config is None else str(base.config)}
    values["model"] = {name: value for name, value in model.items() if value is not None}
    if wanted.images is not None:
        values["forget"]["images"] = {"folder": str(wanted.images)}
        values["forget"].pop("count", None)
    return values | {"output": f"runs/erase-{wanted.slug}"}


def of_demo(names: Sequence[str], field: str, remedy: str = "") -> dict[str, dict[str, Any]]:
    """Tables of a recipe that erases concepts or styles of the embedded model; anchors are the next in its lists.

    Args:
        names: All of one kind.
        field: What the user calls them, for the message.
        remedy: What may help as well where it does not know one.

    Raises:
        UserError: If it does not know one.
    """
    known = demo.STYLES if names[0] in demo.STYLES else demo.CONCEPTS
    for name in names:
        if name not in known:
            everything = known if len(names) > 1 and names[0] in known else demo.CONCEPTS + demo.STYLES
            help = f"{nearest(name, everything)} {remedy}".rstrip()
            raise UserError(Problem(field, name, "the demo model does not know it.", help))
    kept = [other for other in known if other not in names]
    if not kept:
        raise UserError(Problem(field, list(names), "are all that there is.", "Leave one that takes their place."))
    others, attribute, templates = (
        (demo.CONCEPTS, "object", demo.STYLE_TEMPLATES)
        if known is demo.STYLES
        else (demo.STYLES, "style", demo.CONCEPT_TEMPLATES)
    )
    forget, retain = ({"templates": templates, "placeholders": {attribute: others}} for _ in range(2))
    synonyms = {name: demo.SYNONYMS[name] for name in names if name in demo.SYNONYMS}
    return {
        "forget": {"concepts": [{"name": name, "anchor": _next(known, name, kept)} for name in names], **forget},
        "retain": {"concepts": kept, **retain},
        "evaluation": _paraphrases(synonyms),
    }


def _next(known: Sequence[str], name: str, kept: Sequence[str]) -> str:
    following = [*known[known.index(name) + 1 :], *known]
    return next(other for other in following if other in kept)


def _for_demo(wanted: Wanted, base: Base) -> dict[str, Any]:
    values = read_yaml(DEMO_RECIPE)
    if not wanted.names:
        raise UserError(Problem("--base", base.name, f"does not draw {wanted.kind}.", "Name the model that does."))
    own = base.config is not None
    remedy = f"{base.name} is the demo model, in one file." if own else "Or name your own model: --base MODEL."
    for name, table in of_demo(wanted.names, f"--{wanted.kind}", remedy).items():
        values[name] |= table
    return values


def _for_base(wanted: Wanted, base: Base) -> dict[str, Any]:
    values = read_yaml(shipped.recipes()[SHIPPED[wanted.kind]])
    if wanted.names:
        _name_concepts(values, wanted)
        values |= {"objective": {"name": "erasediff", "target": "anchor"}, "evaluation": _evaluation(wanted)}
    values["training"]["optimizer"] = "adamw"  # an adapter's state is a few megabytes, in 32 bits as well
    values["sampling"].pop("resolution", None)
    if base.resolution >= LARGE:
        values["sampling"] |= {"batch_size": 1, "guidance": 6.0}
    if base.joint_attention:
        values["adapter"]["targets"] = "attention"
    return values


def _name_concepts(values: dict[str, Any], wanted: Wanted) -> None:
    forget, retain = values["forget"], values["retain"]
    anchor = "a painter" if wanted.kind == "style" else "auto"
    forgotten = {folded(name) for name in wanted.names}
    forget["concepts"] = [{"name": name, "anchor": anchor} for name in wanted.names]
    forget["count"] = max(forget["count"], 40 * len(wanted.names))
    retain["concepts"] = [name for name in retain["concepts"] if folded(name) not in forgotten]
    retain |= {"neighbours": NEIGHBOURS, "vocabulary": VOCABULARIES[wanted.kind]}


def _evaluation(wanted: Wanted) -> dict[str, Any]:
    """That of the shipped recipe for styles: CLIP knows any name."""
    values: dict[str, Any] = read_yaml(shipped.recipes()[SHIPPED["style"]])["evaluation"]
    shorter = {name: name.partition(" ")[2] for name in wanted.names}
    names = {name: [surname] for name, surname in shorter.items() if wanted.kind == "style" and surname}
    return values | _paraphrases(names) | {"forget_samples": PICTURES_EACH * len(wanted.names)}


def _paraphrases(names: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    return {"attacks": ["paraphrases"] if names else [], "paraphrases": {"names": dict(names)}}


def written(values: Mapping[str, Any], kind: Kind, head: Sequence[str]) -> str:
    """The values as YAML that explains itself.

    Args:
        values: Of a recipe.
        kind: What it erases.
        head: Lines that stand above it.
    """
    reasons = WHY | WHY_OF.get(kind, {})
    lines = [f"# {printable(line)}" for line in head]
    for name, value in values.items():
        if name in reasons:
            lines.append(f"# {reasons[name]}")
        if not isinstance(value, Mapping) or name == "objective":
            lines += _yaml({name: value}, "")
            continue
        lines.append(f"{name}:")
        for field, inside in value.items():
            if (why := reasons.get(f"{name}.{field}")) is not None:
                lines.append(f"  # {why}")
            lines += _yaml({field: inside}, "  ")
    return "\n".join(lines) + "\n"


class _Dumper(yaml.SafeDumper):
    """Writes what stands twice twice, as a person would."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _yaml(values: Mapping[str, Any], indent: str) -> list[str]:
    """A field and its value, in a line if it fits there."""

    def dump(flow: bool | None) -> list[str]:
        text = yaml.dump(
            dict(values), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=10**6, default_flow_style=flow
        )
        return [indent + line for line in text.splitlines()]

    (value,) = values.values()
    lines = dump(None if isinstance(value, Mapping | list) else False)
    return lines if max(map(len, lines)) <= WIDTH else dump(False)
