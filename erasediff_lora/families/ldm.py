"""Names of weights in original (LDM) single-file checkpoints of Stable Diffusion 1.x, 2.x and XL.

A UNet's numbering follows from one figure, the ResNet blocks per resolution (2 in all published models), and its
upsamplers' from whether the block has attention. Text encoders are CLIP, named as in transformers, or OpenCLIP, which
keeps the query, key and value projections in one weight.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from erasediff_lora.families.slot import Slot

UNET = "model.diffusion_model."
FIXED = {
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "label_emb.0.0": "add_embedding.linear_1",
    "label_emb.0.2": "add_embedding.linear_2",
    "input_blocks.0.0": "conv_in",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
}
RESNET = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
OPEN_CLIP_MODULES = {"attn.out_proj": "self_attn.out_proj", "mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2"}


_IS_LDM = re.compile(r"unet\.(input_blocks|middle_block|output_blocks|time_embed|label_emb|out)\.")


def is_ldm(module: str) -> bool:
    """Whether a module's name, such as 'unet.input_blocks.1.1.proj_in', is of LDM's UNet instead of diffusers'."""
    return _IS_LDM.match(module) is not None


@dataclass(frozen=True)
class UNetNumbering:
    """Translates module paths of a UNet between LDM and diffusers.

    Attributes:
        layers_per_block: ResNet blocks per resolution on the way down.
        attention_up_blocks: Up blocks with attention, whose upsampler comes third instead of second.
    """

    layers_per_block: int = 2
    attention_up_blocks: frozenset[int] = frozenset()

    def to_diffusers(self, path: str) -> str | None:
        """The diffusers path of an LDM path (without prefix and leaf); None if it is no UNet module's."""
        if path in FIXED:
            return FIXED[path]
        stride = self.layers_per_block + 1
        if match := re.fullmatch(r"input_blocks\.(\d+)\.(\d)\.(.+)", path):
            block, layer = divmod(int(match[1]) - 1, stride)
            if match[3] == "op":
                return f"down_blocks.{block}.downsamplers.0.conv"
            return _inner(f"down_blocks.{block}", layer, is_attention=match[2] == "1", tail=match[3])
        if match := re.fullmatch(r"middle_block\.(\d)\.(.+)", path):
            index = int(match[1])
            return _inner("mid_block", index // 2, is_attention=index == 1, tail=match[2])
        if match := re.fullmatch(r"output_blocks\.(\d+)\.(\d)\.(.+)", path):
            block, layer = divmod(int(match[1]), stride)
            if match[3] == "conv":
                return f"up_blocks.{block}.upsamplers.0.conv"
            return _inner(f"up_blocks.{block}", layer, is_attention=match[2] == "1", tail=match[3])
        return None

    def to_ldm(self, path: str) -> str | None:
        """The LDM path of a diffusers path; None if it is no UNet module's."""
        for theirs, ours in FIXED.items():
            if path == ours:
                return theirs
        stride = self.layers_per_block + 1
        if match := re.fullmatch(r"down_blocks\.(\d+)\.downsamplers\.0\.conv", path):
            return f"input_blocks.{(int(match[1]) + 1) * stride}.0.op"
        if match := re.fullmatch(r"up_blocks\.(\d+)\.upsamplers\.0\.conv", path):
            index = 2 if int(match[1]) in self.attention_up_blocks else 1
            return f"output_blocks.{int(match[1]) * stride + self.layers_per_block}.{index}.conv"
        if match := re.fullmatch(r"(down|up)_blocks\.(\d+)\.(resnets|attentions)\.(\d+)\.(.+)", path):
            number = int(match[2]) * stride + int(match[4]) + (match[1] == "down")
            name = "input_blocks" if match[1] == "down" else "output_blocks"
            is_attention = match[3] == "attentions"
            return f"{name}.{number}.{int(is_attention)}.{_tail(match[5], is_attention)}"
        if match := re.fullmatch(r"mid_block\.(resnets|attentions)\.(\d)\.(.+)", path):
            is_attention = match[1] == "attentions"
            return f"middle_block.{1 if is_attention else 2 * int(match[2])}.{_tail(match[3], is_attention)}"
        return None

    @classmethod
    def of(cls, keys: Collection[str]) -> UNetNumbering:
        """Read the numbering off a checkpoint's keys (with the UNet's prefix)."""
        ops = [int(match[1]) for key in keys if (match := re.search(r"input_blocks\.(\d+)\.0\.op\.weight$", key))]
        layers = min(ops) - 1 if ops else 2
        third = re.compile(r"output_blocks\.(\d+)\.2\.conv\.weight$")
        blocks = {int(match[1]) // (layers + 1) for key in keys if (match := third.search(key))}
        return cls(layers, frozenset(blocks))


SDXL = UNetNumbering(2, frozenset({0, 1}))


@dataclass(frozen=True)
class LdmNames:
    """Single-file checkpoints of a family in LDM's layout.

    Attributes:
        clip: Prefix of a text encoder's keys -> component, for encoders with the names of transformers.
        open_clip: The same for encoders with OpenCLIP's names.
    """

    clip: Mapping[str, str]
    open_clip: Mapping[str, str]

    def slots(self, keys: Collection[str]) -> dict[str, Slot]:
        """Adapter name -> slot, for every weight of the UNet and the text encoders of a checkpoint."""
        numbering = UNetNumbering.of(keys)
        found: dict[str, Slot] = {}
        for key in keys:
            path = key.removesuffix(".weight")
            if key.startswith(UNET) and path != key:
                if (module := numbering.to_diffusers(path.removeprefix(UNET))) is not None:
                    found[f"unet.{module}"] = Slot(key)
                continue
            for prefix, component in self.clip.items():
                if key.startswith(prefix) and path != key:
                    found[f"{component}.{path.removeprefix(prefix)}"] = Slot(key)
            for prefix, component in self.open_clip.items():
                if match := re.fullmatch(re.escape(prefix) + r"resblocks\.(\d+)\.(.+?)(_weight|\.weight)", key):
                    found |= _open_clip_slots(key, f"{component}.encoder.layers.{match[1]}.", match[2])
        return found


def _open_clip_slots(key: str, layer: str, module: str) -> dict[str, Slot]:
    """The weights that a tensor of OpenCLIP holds."""
    if module == "attn.in_proj":
        return {f"{layer}self_attn.{name}": Slot(key, i, 3) for i, name in enumerate(("q_proj", "k_proj", "v_proj"))}
    return {layer + OPEN_CLIP_MODULES[module]: Slot(key)} if module in OPEN_CLIP_MODULES else {}


def _inner(block: str, layer: int, *, is_attention: bool, tail: str) -> str | None:
    if is_attention:
        return f"{block}.attentions.{layer}.{tail}"
    return f"{block}.resnets.{layer}.{RESNET[tail]}" if tail in RESNET else None


def _tail(tail: str, is_attention: bool) -> str:
    if is_attention:
        return tail
    return next((theirs for theirs, ours in RESNET.items() if ours == tail), tail)
