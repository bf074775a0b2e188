"""What the name of a tensor in an adapter's file says: which module it belongs to, and what it is of the update.

>>> split("unet.mid_block.attentions.0.proj_in.lora_A.default.weight", part_names())
('unet.mid_block.attentions.0.proj_in', 'lora_down.weight')
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace

from erasediff_lora.adapter.parts import ALPHA, DOWN, MAGNITUDE, UP, UP_BIAS, part_names, shape_of
from erasediff_lora.storage.tensors import StoredTensor

PEFT_MAGNITUDE = "lora_magnitude_vector"
"""Always along the outputs, also of a convolution, where its shape is (1, out, 1, 1)."""
_NAMED = r"(?:\.(?!weight$|bias$)[\w-]+)?"  # peft's name of the adapter, such as .default
_FACTOR = rf"(?:\.lora_{{peft}}{_NAMED}|(?:[._]lora|\.lora_linear_layer)\.{{plain}}|\.lora_{{plain}})"
_DOWN, _UP = _FACTOR.format(peft="A", plain="down"), _FACTOR.format(peft="B", plain="up")
_XLABS = r"(.+\.processor\.\w+_lora[12])\.{plain}"
_SPELLINGS = (
    (re.compile(_XLABS.format(plain="down") + r"\.weight"), DOWN),
    (re.compile(_XLABS.format(plain="up") + r"\.weight"), UP),
    (re.compile(rf"(.+?){_DOWN}(?:\.weight)?"), DOWN),
    (re.compile(rf"(.+?){_UP}(?:\.weight)?"), UP),
    (re.compile(rf"(.+?){_UP}\.bias"), UP_BIAS),
    (re.compile(rf"(.+?)\.lora_magnitude_vector{_NAMED}(?:\.weight)?"), PEFT_MAGNITUDE),
    (re.compile(r"(.+?)\.dora_scale"), MAGNITUDE),
    (re.compile(r"(.+?)(?:[._]lora|\.lora_linear_layer)?\.(?:lora_)?alpha"), ALPHA),
)
SKIPPED = "bundle_emb."


@dataclass
class Sorted:
    """The tensors of a file.

    Attributes:
        modules: Name of a module, in the file's spelling -> part -> tensor.
        keys: Name of a module -> the names of its tensors in the file.
        unknown: Names that say nothing.
        again: Names of what the file has already, as where several adapters lie in it.
        skipped: Embeddings that lie in the file too.
    """

    modules: dict[str, dict[str, StoredTensor]] = field(default_factory=dict)
    keys: dict[str, list[str]] = field(default_factory=dict)
    unknown: list[str] = field(default_factory=list)
    again: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)


def split(key: str, others: Collection[str]) -> tuple[str, str] | None:
    """The module's name in the file's spelling, and the part; None: it is no tensor of an adapter.

    Args:
        key: Name of the tensor.
        others: Parts of other kinds than LoRA, which every program calls alike.
    """
    for pattern, part in _SPELLINGS:
        if match := pattern.fullmatch(key):
            return match[1], part
    words = key.rsplit(".", 2)
    for count in (1, 2):
        part = ".".join(words[-count:])
        if len(words) > count and part in others:
            return key.removesuffix(f".{part}"), part
    return None


def sort(tensors: Mapping[str, StoredTensor]) -> Sorted:
    """Sort a file's tensors by modules."""
    found, others = Sorted(), part_names()
    for key, tensor in tensors.items():
        if key.startswith(SKIPPED):
            found.skipped.append(key)
            continue
        name, part = split(key, others) or (key, "")
        if part == PEFT_MAGNITUDE:
            part, tensor = MAGNITUDE, replace(tensor, shape=(tensor.count,))
        if not part:
            found.unknown.append(key)
        elif part in found.modules.get(name, {}):
            found.again.append(key)
        else:
            found.modules.setdefault(name, {})[part] = tensor
            found.keys.setdefault(name, []).append(key)
    for name in [name for name, parts in found.modules.items() if parts.keys() <= {ALPHA, MAGNITUDE}]:
        found.unknown += found.keys.pop(name)  # the scale of nothing
        del found.modules[name]
    return found


def weight_shape(parts: Mapping[str, StoredTensor]) -> tuple[int, ...] | None:
    """Shape of the weight that the parts change; None if they do not tell.

    Those of LoHa and LoKr tell (out, in · kh · kw).
    """
    if DOWN in parts and UP in parts and parts[DOWN].ndim >= 2 and parts[UP].ndim >= 2:
        if (tucker := shape_of(parts)) is not None:
            return tucker
        return (parts[UP].shape[0], *parts[DOWN].shape[1:])
    return shape_of(parts)
