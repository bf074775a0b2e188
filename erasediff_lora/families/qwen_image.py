"""Qwen-Image: a transformer of joint attention that is told the tokens of a language model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from erasediff_lora.families.base import Architecture, Family, License
from erasediff_lora.families.kohya import KohyaNames
from erasediff_lora.families.native import NativeNames

WIDTH, HEAD = 3072, 128
_BLOCK: dict[str, tuple[int, ...]] = {
    **{f"{name}_mod.1": (6, 1) for name in ("img", "txt")},
    **{f"attn.{name}": (1, 1) for name in ("to_q", "to_k", "to_v", "add_q_proj", "add_k_proj", "add_v_proj")},
    **{f"attn.{name}": (1, 1) for name in ("to_out.0", "to_add_out")},
    **{f"attn.{name}": () for name in ("norm_q", "norm_k", "norm_added_q", "norm_added_k")},
    **{f"{name}_mlp.net.0.proj": (4, 1) for name in ("img", "txt")},
    **{f"{name}_mlp.net.2": (1, 4) for name in ("img", "txt")},
}
"""Path in a block -> rows and columns in widths; (): of a norm."""
_OUTER = {
    "time_text_embed.timestep_embedder.linear_1": (WIDTH, 256),
    "time_text_embed.timestep_embedder.linear_2": (WIDTH, WIDTH),
    "txt_norm": (3584,),
    "img_in": (WIDTH, 64),
    "txt_in": (WIDTH, 3584),
    "norm_out.linear": (2 * WIDTH, WIDTH),
    "proj_out": (64, WIDTH),
}
NATIVE = NativeNames(  # the authors' names are diffusers'
    component="transformer",
    table={path: (path,) for path in (*(f"transformer_blocks.#.{inner}" for inner in _BLOCK), *_OUTER)},
    telling=("transformer_blocks.0.img_mod.1",),
)


@dataclass(frozen=True)
class QwenImageTransformer:
    """`QwenImageTransformer2DModel` of the published size."""

    layers: int = 60

    def weights(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """All modules with a weight."""
        yield from _OUTER.items()
        for index in range(self.layers):
            for path, widths in _BLOCK.items():
                yield f"transformer_blocks.{index}.{path}", tuple(n * WIDTH for n in widths) or (HEAD,)

    def native(self) -> Iterator[tuple[str, tuple[str, ...]]]:
        """None but its own."""
        return iter(())


ARCHITECTURE = Architecture(
    "qwen-image", 1024, License("apache-2.0"), "qwen_image", ({"transformer": QwenImageTransformer()},)
)
FAMILY = Family(
    denoiser="erasediff_lora.denoisers.qwen_image:QwenImage",
    pipeline="QwenImagePipeline",
    component="transformer",
    encoders=("text_encoder",),
    modules=("transformer_blocks.", "txt_norm."),
    architectures=(ARCHITECTURE,),
    kohya=KohyaNames(
        prefixes={"transformer": "lora_unet_"},
        words=("transformer_blocks", "img_mlp", "txt_mlp", "img_mod", "txt_mod"),
        implementation="https://github.com/QwenLM/Qwen-Image",
    ),
    native=NATIVE,
    prefixes={"transformer": ("lora_transformer_",)},
    single_file=NATIVE.slots,
    read_by={"kohya": ("diffusers", "comfyui"), "diffusers": ("diffusers", "comfyui"), "peft": ("peft",)},
    flow_matching=True,
    searched_in="outputs",
)
