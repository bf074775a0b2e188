"""What is said of files that are no adapters, or adapters for something else: what, where, and what would work."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence

from erasediff_lora import families
from erasediff_lora.adapter.weights import unusable
from erasediff_lora.errors import UserError
from erasediff_lora.families import others
from erasediff_lora.storage.tensors import StoredTensor, TensorFile

_KINDS = {
    r"\.oft_|\.rescale$": "OFT",
    r"\.boft_": "BOFT",
    r"\.[ab][12]\.weight$": "GLoRA",
    r"\.on_input$|\.ia3_l": "(IA)³",
    r"\.vera_": "VeRA",
    r"\.lora_embedding_": "LoRA of an embedding",
    r"\.lora_diag": "KaSA",
    r"\.(set|reshape)_weight$": "a weight of another shape",
}
_CHECKPOINT = re.compile(
    r"(model\.diffusion_model|first_stage_model|cond_stage_model|conditioner|state_dict|vae|down_blocks|up_blocks"
    r"|mid_block|conv_in|time_embedding|transformer_blocks|joint_blocks|text_model|encoder|decoder|double_blocks"
    r"|single_blocks|layers|blocks)\b.*\.(weight|bias)"
)
_EMBEDDING = re.compile(r"emb_params|string_to_param|clip_[gl]|<.+>")
ADAPTERS = "Known are LoRA, DoRA, LoHa, LoKr and whole differences, as diffusers, kohya, LyCORIS and peft spell them."


def unknown_tensors(unknown: Sequence[str], tensors: Mapping[str, StoredTensor], stored: TensorFile) -> UserError:
    """The complaint about tensors that are no part of an adapter."""
    first = unknown[0]
    what = f"has {_count(len(unknown))} of an unknown layout, the first {_shown(first, tensors)}."
    if all(_EMBEDDING.fullmatch(key) for key in unknown):
        return unusable(stored.path, what, "It looks like a textual-inversion embedding, which is no adapter.")
    if len(unknown) == len(tensors) and _CHECKPOINT.match(first):
        return unusable(
            stored.path,
            what,
            "It looks like a checkpoint: give it to merge as MODEL, or to extract beside its base.",
        )
    if kind := kind_of(first):
        return unusable(stored.path, f"{what[:-1]}, which is {kind}.", ADAPTERS)
    return unusable(stored.path, what, _like(others.by_names(unknown, {}), stored) or ADAPTERS)


def repeated(names: Sequence[str], stored: TensorFile) -> UserError:
    """The complaint about tensors of what the file has already, as where several adapters lie in it."""
    what = f"has {_count(len(names))} of layers that it has already, the first {names[0]}."
    return unusable(stored.path, what, "Export one adapter at a time.")


def kind_of(name: str) -> str | None:
    """What kind of update, of those that are not read, a tensor's name tells of."""
    return next((kind for pattern, kind in _KINDS.items() if re.search(pattern, name)), None)


def unfit_modules(
    unfit: families.Unfit,
    keys: Mapping[str, Collection[str]],
    tensors: Mapping[str, StoredTensor],
    stored: TensorFile,
    asked: Collection[str] = (),
) -> UserError:
    """The complaint about an adapter with modules that the family, such as the one asked for, does not have."""
    mine = [key for name in unfit.names for key in keys[name]]
    first = _shown(next((key for key in mine if tensors[key].ndim > 1), mine[0]), tensors)
    if unfit.fitting:
        fitting = " or ".join(unfit.fitting)
        return unusable(
            stored.path,
            f"is no adapter for {unfit.architecture}: {_count(len(mine))}, the first {first}, fit {fitting}.",
            f"Say --family {unfit.fitting[0]}, or leave it out.",
        )
    if unfit.architecture is None:
        what = f"has {_count(len(mine))} of modules that no known family has, the first {first}."
    elif unfit.names[0] in unfit.expected:
        expected = list(unfit.expected[unfit.names[0]])
        what = (
            f"has {_count(len(mine))} that do not fit {unfit.architecture}, the first {first}: the weight there is"
            f" {expected}."
        )
    else:
        what = f"has {_count(len(mine))} of modules that {unfit.architecture} does not have, the first {first}."
    return unusable(stored.path, what, _like(unfit.like, stored) or _remedy(unfit, asked))


def _like(like: str | None, stored: TensorFile) -> str | None:
    named = like or others.by_header(stored.metadata)
    if named is None:
        return None
    own = ", ".join(families.architectures())
    return f"It looks like a file for {named}; the families here are {own}, and those of installed plug-ins."


def _remedy(unfit: families.Unfit, asked: Collection[str]) -> str:
    if all(name.startswith(("lora_te", "text_encoder")) for name in unfit.names):
        return "Leave the text encoders out with --only unet, or --only transformer."
    if asked:
        return "Export it with the names that diffusers or kohya give them, or leave --family out."
    named = unfit.architecture or "FAMILY"
    return f"If it is for a base of another size, say so with --family {named}."


def _count(number: int) -> str:
    return f"{number} tensor{'s' * (number != 1)}"


def _shown(key: str, tensors: Mapping[str, StoredTensor]) -> str:
    return f"{key} {list(tensors[key].shape)}" if key in tensors else key
