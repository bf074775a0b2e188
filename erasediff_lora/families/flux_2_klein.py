"""FLUX.2 klein, of 4 and 9 billion weights, told the tokens of Qwen3."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from erasediff_lora.families.base import Architecture, Family, License
from erasediff_lora.families.kohya import KohyaNames
from erasediff_lora.families.layouts.text_encoders import Qwen
from erasediff_lora.families.native import NativeNames

HEAD = 128
_DOUBLE: dict[str, tuple[str, ...]] = {
    "img_attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "txt_attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    "img_attn.proj": ("attn.to_out.0",),
    "txt_attn.proj": ("attn.to_add_out",),
    "img_attn.norm.query_norm": ("attn.norm_q",),
    "img_attn.norm.key_norm": ("attn.norm_k",),
    "txt_attn.norm.query_norm": ("attn.norm_added_q",),
    "txt_attn.norm.key_norm": ("attn.norm_added_k",),
    "img_mlp.0": ("ff.linear_in",),
    "img_mlp.2": ("ff.linear_out",),
    "txt_mlp.0": ("ff_context.linear_in",),
    "txt_mlp.2": ("ff_context.linear_out",),
}
_SINGLE = {
    "linear1": "attn.to_qkv_mlp_proj",
    "linear2": "attn.to_out",
    "norm.query_norm": "attn.norm_q",
    "norm.key_norm": "attn.norm_k",
}
_MODULATIONS = {"double_stream_modulation_img": 6, "double_stream_modulation_txt": 6, "single_stream_modulation": 3}
NATIVE = NativeNames(
    component="transformer",
    table={
        **{f"double_blocks.#.{n}": tuple(f"transformer_blocks.#.{p}" for p in ours) for n, ours in _DOUBLE.items()},
        **{f"single_blocks.#.{name}": (f"single_transformer_blocks.#.{path}",) for name, path in _SINGLE.items()},
        **{f"{name}.lin": (f"{name}.linear",) for name in _MODULATIONS},
        "img_in": ("x_embedder",),
        "txt_in": ("context_embedder",),
        "time_in.in_layer": ("time_guidance_embed.timestep_embedder.linear_1",),
        "time_in.out_layer": ("time_guidance_embed.timestep_embedder.linear_2",),
        "final_layer.adaLN_modulation.1": ("norm_out.linear",),
        "final_layer.linear": ("proj_out",),
    },
    swapped=frozenset({"final_layer.adaLN_modulation.1"}),
    telling=("single_stream_modulation.linear",),
)


@dataclass(frozen=True)
class Flux2Transformer:
    """`Flux2Transformer2DModel` by its configuration, without guidance.

    Attributes:
        double: Blocks with weights of their own for the picture and for the prompt.
        single: Blocks with the same weights for both.
        heads: Of the attentions, each of 128 channels.
        context: Width of the tokens.
    """

    double: int
    single: int
    heads: int
    context: int

    def weights(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """All modules with a weight."""
        width = self.heads * HEAD
        yield "time_guidance_embed.timestep_embedder.linear_1", (width, 256)
        yield "time_guidance_embed.timestep_embedder.linear_2", (width, width)
        for name, count in _MODULATIONS.items():
            yield f"{name}.linear", (count * width, width)
        yield "x_embedder", (width, 128)
        yield "context_embedder", (width, self.context)
        for index in range(self.double):
            for theirs, ours in _DOUBLE.items():
                rows, columns = {"0": (6, 1), "2": (1, 3)}.get(theirs[-1], (1, 1))
                shape = (HEAD,) if ".norm." in theirs else (rows * width, columns * width)
                yield from ((f"transformer_blocks.{index}.{path}", shape) for path in ours)
        for index in range(self.single):
            block = f"single_transformer_blocks.{index}.attn"
            yield f"{block}.to_qkv_mlp_proj", (9 * width, width)
            yield f"{block}.to_out", (width, 4 * width)
            yield f"{block}.norm_q", (HEAD,)
            yield f"{block}.norm_k", (HEAD,)
        yield "norm_out.linear", (2 * width, width)
        yield "proj_out", (128, width)

    def native(self) -> Iterator[tuple[str, tuple[str, ...]]]:
        """The authors' names."""
        return NATIVE.names([path for path, _ in self.weights()])


KLEIN_4B = Architecture(
    "flux-2-klein-4b",
    1024,
    License("apache-2.0"),
    "flux2_klein_4b",
    ({"transformer": Flux2Transformer(5, 20, 24, 7680), "text_encoder": Qwen(2560, 9728, 36, (32, 8))},),
)
KLEIN_9B = Architecture(
    "flux-2-klein-9b",
    1024,
    License(
        "other",
        name="flux-non-commercial-license",
        link="https://huggingface.co/black-forest-labs/FLUX.2-klein-9B/blob/main/LICENSE.md",
    ),
    "flux2_klein_9b",
    ({"transformer": Flux2Transformer(8, 24, 32, 12288), "text_encoder": Qwen(4096, 12288, 36, (32, 8))},),
)
FAMILY = Family(
    denoiser="erasediff_lora.denoisers.flux_2_klein:Flux2Klein",
    pipeline="Flux2KleinPipeline",
    component="transformer",
    encoders=("text_encoder",),
    modules=("single_transformer_blocks.", "double_stream_modulation_img.linear"),
    architectures=(KLEIN_4B, KLEIN_9B),
    kohya=KohyaNames(
        prefixes={"transformer": "lora_unet_"},
        words=("double_blocks", "single_blocks"),
        implementation="https://github.com/black-forest-labs/flux2",
    ),
    native=NATIVE,
    prefixes={"transformer": ("lora_transformer_",)},
    single_file=NATIVE.slots,
    read_by={"kohya": ("diffusers", "comfyui"), "diffusers": ("diffusers",), "peft": ("peft",)},
    flow_matching=True,
    searched_in="outputs",
)
