"""Z-Image, base and turbo: one stream of the picture's and the prompt's tokens."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from erasediff_lora.families.base import Architecture, Family, License
from erasediff_lora.families.kohya import KohyaNames
from erasediff_lora.families.layouts.text_encoders import Qwen
from erasediff_lora.families.native import NativeNames

BLOCKS = ("layers", "noise_refiner", "context_refiner")
_ALIKE = (
    *("feed_forward.w1", "feed_forward.w2", "feed_forward.w3", "adaLN_modulation.0"),
    *("attention_norm1", "attention_norm2", "ffn_norm1", "ffn_norm2"),
)
_BLOCK = {
    "attention.qkv": ("attention.to_q", "attention.to_k", "attention.to_v"),
    "attention.out": ("attention.to_out.0",),
    "attention.q_norm": ("attention.norm_q",),
    "attention.k_norm": ("attention.norm_k",),
    **{name: (name,) for name in _ALIKE},
}
_OUTER = {
    "x_embedder": ("all_x_embedder.2-1",),
    "final_layer.linear": ("all_final_layer.2-1.linear",),
    "final_layer.adaLN_modulation.1": ("all_final_layer.2-1.adaLN_modulation.1",),
    **{name: (name,) for name in ("t_embedder.mlp.0", "t_embedder.mlp.2", "cap_embedder.0", "cap_embedder.1")},
}
NATIVE = NativeNames(
    component="transformer",
    table={
        **{f"{b}.#.{name}": tuple(f"{b}.#.{path}" for path in ours) for b in BLOCKS for name, ours in _BLOCK.items()},
        **_OUTER,
    },
)


@dataclass(frozen=True)
class ZImageTransformer:
    """`ZImageTransformer2DModel` by its configuration."""

    width: int = 3840
    layers: int = 30
    refiners: int = 2
    head: int = 128
    context: int = 2560

    def weights(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """All modules with a weight."""
        width, told = self.width, min(self.width, 256)
        yield "all_x_embedder.2-1", (width, 64)
        yield "all_final_layer.2-1.linear", (64, width)
        yield "all_final_layer.2-1.adaLN_modulation.1", (width, told)
        yield "t_embedder.mlp.0", (1024, 256)
        yield "t_embedder.mlp.2", (told, 1024)
        yield "cap_embedder.0", (self.context,)
        yield "cap_embedder.1", (width, self.context)
        for name, count in zip(BLOCKS, (self.layers, self.refiners, self.refiners), strict=True):
            for index in range(count):
                yield from self._block(f"{name}.{index}", is_told=name != "context_refiner")

    def native(self) -> Iterator[tuple[str, tuple[str, ...]]]:
        """The authors' names."""
        return NATIVE.names([path for path, _ in self.weights()])

    def _block(self, block: str, *, is_told: bool) -> Iterator[tuple[str, tuple[int, ...]]]:
        width, hidden = self.width, int(self.width / 3 * 8)
        for name in ("to_q", "to_k", "to_v", "to_out.0"):
            yield f"{block}.attention.{name}", (width, width)
        for name in ("norm_q", "norm_k"):
            yield f"{block}.attention.{name}", (self.head,)
        for name in ("w1", "w3"):
            yield f"{block}.feed_forward.{name}", (hidden, width)
        yield f"{block}.feed_forward.w2", (width, hidden)
        if is_told:
            yield f"{block}.adaLN_modulation.0", (4 * width, min(width, 256))
        for name in ("attention_norm1", "attention_norm2", "ffn_norm1", "ffn_norm2"):
            yield f"{block}.{name}", (width,)


ARCHITECTURE = Architecture(
    "z-image",
    1024,
    License("apache-2.0"),
    "zimage",
    ({"transformer": ZImageTransformer(), "text_encoder": Qwen(2560, 9728, 36, (32, 8))},),
)
FAMILY = Family(
    denoiser="erasediff_lora.denoisers.z_image:ZImage",
    pipeline="ZImagePipeline",
    component="transformer",
    encoders=("text_encoder",),
    modules=("all_x_embedder.", "all_final_layer."),  # what the authors' names do not begin with
    architectures=(ARCHITECTURE,),
    kohya=KohyaNames(
        prefixes={"transformer": "lora_unet_"},
        words=("adaLN_modulation", "feed_forward"),
        implementation="https://github.com/Tongyi-MAI/Z-Image",
    ),
    native=NATIVE,
    prefixes={"transformer": ("lora_transformer_",)},
    single_file=NATIVE.slots,
    read_by={"kohya": ("comfyui",), "diffusers": ("diffusers",), "peft": ("peft",)},
    flow_matching=True,
    searched_in="outputs",
)
