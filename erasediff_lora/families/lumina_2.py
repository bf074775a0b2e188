"""Lumina-Image 2.0: one stream of the picture's and the prompt's tokens, several queries to each key."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from erasediff_lora.families.base import Architecture, Family, License
from erasediff_lora.families.kohya import KohyaNames
from erasediff_lora.families.native import NativeNames

BLOCKS = ("layers", "noise_refiner", "context_refiner")
_BLOCK = {
    "attention.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "attention.out": ("attn.to_out.0",),
    "attention.q_norm": ("attn.norm_q",),
    "attention.k_norm": ("attn.norm_k",),
    **{f"feed_forward.w{number}": (f"feed_forward.linear_{number}",) for number in (1, 2, 3)},
    "attention_norm2": ("norm2",),
    "ffn_norm1": ("ffn_norm1",),
    "ffn_norm2": ("ffn_norm2",),
}
_TOLD = {"adaLN_modulation.1": ("norm1.linear",), "attention_norm1": ("norm1.norm",)}
_UNTOLD = {"attention_norm1": ("norm1",)}
_OUTER = {
    "x_embedder": "x_embedder",
    "t_embedder.mlp.0": "time_caption_embed.timestep_embedder.linear_1",
    "t_embedder.mlp.2": "time_caption_embed.timestep_embedder.linear_2",
    "cap_embedder.0": "time_caption_embed.caption_embedder.0",
    "cap_embedder.1": "time_caption_embed.caption_embedder.1",
    "final_layer.adaLN_modulation.1": "norm_out.linear_1",
    "final_layer.linear": "norm_out.linear_2",
}


def _names(block: str) -> dict[str, tuple[str, ...]]:
    """In a block: theirs -> ours. The prompt's are not told the time."""
    return _BLOCK | (_UNTOLD if block == "context_refiner" else _TOLD)


NATIVE = NativeNames(
    component="transformer",
    table={
        **{f"{b}.#.{n}": tuple(f"{b}.#.{path}" for path in ours) for b in BLOCKS for n, ours in _names(b).items()},
        **{theirs: (ours,) for theirs, ours in _OUTER.items()},
    },
    shares={f"{block}.#.attention.qkv": (3, 1, 1) for block in BLOCKS},
    telling=("layers.0.norm1.linear",),  # Z-Image has other names for it
)


@dataclass(frozen=True)
class LuminaTransformer:
    """`Lumina2Transformer2DModel` by its configuration."""

    width: int = 2304
    layers: int = 26
    refiners: int = 2
    head: int = 96
    context: int = 2304

    def weights(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """All modules with a weight."""
        width, told = self.width, min(self.width, 1024)
        yield "x_embedder", (width, 64)
        yield "time_caption_embed.timestep_embedder.linear_1", (told, 256)
        yield "time_caption_embed.timestep_embedder.linear_2", (told, told)
        yield "time_caption_embed.caption_embedder.0", (self.context,)
        yield "time_caption_embed.caption_embedder.1", (width, self.context)
        yield "norm_out.linear_1", (width, told)
        yield "norm_out.linear_2", (64, width)
        for name, count in zip(BLOCKS, (self.layers, self.refiners, self.refiners), strict=True):
            for index in range(count):
                yield from self._block(f"{name}.{index}", is_told=name != "context_refiner")

    def native(self) -> Iterator[tuple[str, tuple[str, ...]]]:
        """The authors' names."""
        return NATIVE.names([path for path, _ in self.weights()])

    def _block(self, block: str, *, is_told: bool) -> Iterator[tuple[str, tuple[int, ...]]]:
        width, hidden = self.width, 4 * self.width
        yield f"{block}.attn.to_q", (width, width)
        for name in ("to_k", "to_v"):
            yield f"{block}.attn.{name}", (width // 3, width)
        yield f"{block}.attn.to_out.0", (width, width)
        for name in ("norm_q", "norm_k"):
            yield f"{block}.attn.{name}", (self.head,)
        for name in ("linear_1", "linear_3"):
            yield f"{block}.feed_forward.{name}", (hidden, width)
        yield f"{block}.feed_forward.linear_2", (width, hidden)
        if is_told:
            yield f"{block}.norm1.linear", (4 * width, min(width, 1024))
        for name in ("norm1.norm" if is_told else "norm1", "norm2", "ffn_norm1", "ffn_norm2"):
            yield f"{block}.{name}", (width,)


ARCHITECTURE = Architecture("lumina-2", 1024, License("apache-2.0"), "lumina2", ({"transformer": LuminaTransformer()},))
FAMILY = Family(
    denoiser="erasediff_lora.denoisers.lumina_2:Lumina2",
    pipeline="Lumina2Pipeline",
    component="transformer",
    encoders=("text_encoder",),
    modules=("time_caption_embed.", "norm_out.linear_1."),
    architectures=(ARCHITECTURE,),
    kohya=KohyaNames(
        prefixes={"transformer": "lora_unet_"},
        words=("adaLN_modulation", "feed_forward"),
        implementation="https://github.com/Alpha-VLLM/Lumina-Image-2.0",
    ),
    native=NATIVE,
    prefixes={"transformer": ("lora_transformer_",)},
    single_file=NATIVE.slots,
    read_by={"kohya": ("comfyui", "kohya"), "diffusers": ("diffusers",), "peft": ("peft",)},
    flow_matching=True,
    searched_in="outputs",
)
