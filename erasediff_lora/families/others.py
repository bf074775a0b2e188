"""What files for models of other families look like, so that whoever gives one is told what it is."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from erasediff_lora.registry import FAMILIES

_BY_NAME = {
    "Stable Cascade": r"lora_prior_(unet|te)_",
    "Chroma": r"distilled_guidance_layer",
    "HunyuanVideo": r"individual_token_refiner|token_refiner_blocks",
    "HiDream": r"(double|single)_stream_blocks",
    "AuraFlow": r"joint_transformer_blocks|double_layers_\d|single_layers_\d",
    "Lumina": r"(noise|context)_refiner|cap_embedder|layers_\d+_(attention_(qkv|out)|feed_forward_w\d|adaln_mod)",
    "Krea 2": r"attn_to_gate|text_fusion_|txtfusion_|(^|_)blocks_\d+_attn_w[qkvo](_|$)",
    "Ideogram 4": r"(^|_)layers_\d+_(attention_o|adaln_modulation)(_|$)",
    "FLUX.3": r"mode_blocks_\d|single_blocks_\d+_(q_proj|attn_out|mlp_in)",
    "Cosmos or Anima": r"blocks_\d+_(self_attn|cross_attn)_(q|k|v|output)_proj|llm_adapter",
    "Wan": r"blocks_\d+_(self_attn_(q|k|v|o)|cross_attn_(q|k|v|o|k_img|v_img)|ffn_[02])(_|$)|condition_embedder_time",
    "Kandinsky": r"(visual|text)_transformer_blocks_\d",
    "Sana": r"conv_inverted|conv_depth|caption_projection",
    "Hunyuan-DiT": r"text_states_|blocks_\d+_(default_modulation|skip_linear)|blocks_\d+_attn[12]_(Wqkv|q_proj)",
    "PixArt or LTX": r"^(?!.*(attentions|put_blocks|middle_block)_).*transformer_blocks_\d+_attn[12]_to_|adaln_single",
    "a ControlNet": r"lora_controlnet|lllite_|control_model|controlnet_|input_hint_block|zero_convs",
    "an IP-Adapter": r"ip_adapter|image_proj_|to_[kv]_ip",
    "AnimateDiff (a motion module)": r"motion_modules?_|temporal_transformer",
    "a language model": r"(^|_)model_layers_\d+_(self_attn|mlp)_(q|k|v|o|gate|up|down)_proj|h_\d+_attn_c_attn",
}
"""Family -> what a name of its files has, dots written as underscores; the most telling first."""
SHARED = ("Kolors", "Playground", "Chroma")
"""Families whose networks have modules of Stable Diffusion XL or FLUX.1, in the same shapes."""
_REFINER = "the refiner of Stable Diffusion XL"
_BY_WIDTH = {5120: "Wan", 2304: "Lumina"}
"""Widths of transformers whose attention has the names of Stable Diffusion 3's."""
_HEADERS = {
    "flux2": "FLUX.2",
    "chroma": "Chroma",
    "lumina": "Lumina",
    "hunyuan": "Hunyuan",
    "anima": "Cosmos or Anima",
    "wan": "Wan",
    "hidream": "HiDream",
    "auraflow": "AuraFlow",
    "stable-cascade": "Stable Cascade",
    "pixart": "PixArt or LTX",
    "ltx": "PixArt or LTX",
    "sana": "Sana",
    "playground": "Playground",
    "kolors": "Kolors",
    "pony-v7": "AuraFlow",
    "krea": "Krea 2",
    "ideogram": "Ideogram 4",
}


def by_names(names: Iterable[str], shapes: Mapping[str, tuple[int, ...]]) -> str | None:
    """The family that names, in any spelling, look like; None: none known.

    Args:
        names: Of modules.
        shapes: Of their weights, as far as they are known.
    """
    flat = [name.replace(".", "_") for name in names]
    wide = ("to_q", "to_k", "to_v", "to_out_0", "add_q_proj", "context_embedder", "proj_out", "x_embedder", "qkv")
    widths = {side for name, shape in shapes.items() if name.replace(".", "_").endswith(wide) for side in shape[:2]}
    if any(re.search(r"attn2\.?_?to_[kv]$", name) and shape[1:] == (1280,) for name, shape in shapes.items()):
        return _REFINER
    for family, pattern in _BY_NAME.items():
        if not _is_here(family) and any(re.search(pattern, name) for name in flat):
            return family
    found = (family for width, family in _BY_WIDTH.items() if width in widths)
    return next((family for family in found if not _is_here(family)), None)


def by_header(metadata: Mapping[str, str]) -> str | None:
    """The family that a header names, as kohya's and the modelspec standard's do; None: none that is known here."""
    for field in ("modelspec.architecture", "ss_base_model_version"):
        said = str(metadata.get(field, "")).lower()
        for begin, family in _HEADERS.items():
            if said.startswith(begin) and not _is_here(family):
                return family
    return None


def _is_here(family: str) -> bool:
    """Whether a family that was another one has been registered since, under a name that begins so."""
    begin = re.sub(r"\W", "_", family.lower())
    return any(name.startswith(begin) for name in FAMILIES)
