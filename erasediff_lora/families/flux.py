"""FLUX.1: dev, which is told the strength of guidance, and schnell, which draws in four steps without any."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from erasediff_lora.families.base import Architecture, Family, License
from erasediff_lora.families.kohya import KohyaNames
from erasediff_lora.families.layouts import Layout, Shapes
from erasediff_lora.families.layouts.text_encoders import CLIP_L, T5
from erasediff_lora.families.native import NativeNames

HEAD = 128
MODULES = ("transformer_blocks.", "single_transformer_blocks.")
_DOUBLE = {
    "img_mod.lin": ("norm1.linear",),
    "txt_mod.lin": ("norm1_context.linear",),
    "img_attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "txt_attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    "img_attn.proj": ("attn.to_out.0",),
    "txt_attn.proj": ("attn.to_add_out",),
    "img_attn.norm.query_norm": ("attn.norm_q",),
    "img_attn.norm.key_norm": ("attn.norm_k",),
    "txt_attn.norm.query_norm": ("attn.norm_added_q",),
    "txt_attn.norm.key_norm": ("attn.norm_added_k",),
    "img_mlp.0": ("ff.net.0.proj",),
    "img_mlp.2": ("ff.net.2",),
    "txt_mlp.0": ("ff_context.net.0.proj",),
    "txt_mlp.2": ("ff_context.net.2",),
}
_SINGLE = {
    "modulation.lin": ("norm.linear",),
    "linear1": ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"),
    "linear2": ("proj_out",),
    "norm.query_norm": ("attn.norm_q",),
    "norm.key_norm": ("attn.norm_k",),
}
_BY_XLABS = {
    "double_blocks.#.qkv_lora1": _DOUBLE["img_attn.qkv"],
    "double_blocks.#.qkv_lora2": _DOUBLE["txt_attn.qkv"],
    "double_blocks.#.proj_lora1": _DOUBLE["img_attn.proj"],
    "double_blocks.#.proj_lora2": _DOUBLE["txt_attn.proj"],
    "single_blocks.#.qkv": _SINGLE["linear1"][:3],
    "single_blocks.#.proj": _SINGLE["linear2"],
    "single_blocks.#.linear1_qkv": _SINGLE["linear1"][:3],  # as ComfyUI calls it
}
"""Adapters of XLabs and USO: what is behind `processor`."""
_EMBEDDERS = {"time_in": "timestep_embedder", "vector_in": "text_embedder", "guidance_in": "guidance_embedder"}
_OUTER = {
    "img_in": ("x_embedder",),
    "txt_in": ("context_embedder",),
    **{
        f"{theirs}.{end}_layer": (f"time_text_embed.{ours}.linear_{number}",)
        for theirs, ours in _EMBEDDERS.items()
        for number, end in ((1, "in"), (2, "out"))
    },
    "final_layer.adaLN_modulation.1": ("norm_out.linear",),
    "final_layer.linear": ("proj_out",),
}
NATIVE = NativeNames(
    component="transformer",
    table={
        **{f"double_blocks.#.{n}": tuple(f"transformer_blocks.#.{p}" for p in ours) for n, ours in _DOUBLE.items()},
        **{
            f"single_blocks.#.{n}": tuple(f"single_transformer_blocks.#.{p}" for p in ours)
            for n, ours in _SINGLE.items()
        },
        **_OUTER,
    },
    shares={"single_blocks.#.linear1": (1, 1, 1, 4)},
    swapped=frozenset({"final_layer.adaLN_modulation.1"}),
    encoders={
        "text_encoders.clip_l.transformer.": "text_encoder",
        "text_encoders.t5xxl.transformer.": "text_encoder_2",
    },
    telling=("transformer_blocks.0.norm1.linear", "single_transformer_blocks.0.norm.linear"),  # not in FLUX.2
    aliases={
        theirs: tuple(f"{'single_' * theirs.startswith('single')}transformer_blocks.#.{path}" for path in ours)
        for theirs, ours in _BY_XLABS.items()
    },
)


@dataclass(frozen=True)
class FluxTransformer:
    """`FluxTransformer2DModel` by its configuration.

    Attributes:
        double: Blocks with weights of their own for the picture and for the prompt.
        single: Blocks with the same weights for both.
        heads: Of the attentions, each of 128 channels.
        guidance: Whether it is told the strength of guidance.
        context: Width of T5's embeddings.
        pooled: Width of CLIP's.
    """

    double: int = 19
    single: int = 38
    heads: int = 24
    guidance: bool = True
    context: int = 4096
    pooled: int = 768

    def weights(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """All modules with a weight."""
        width = self.heads * HEAD
        inputs = {"timestep_embedder": 256, "text_embedder": self.pooled}
        for name, given in (inputs | ({"guidance_embedder": 256} if self.guidance else {})).items():
            yield f"time_text_embed.{name}.linear_1", (width, given)
            yield f"time_text_embed.{name}.linear_2", (width, width)
        yield "context_embedder", (width, self.context)
        yield "x_embedder", (width, 64)
        for index in range(self.double):
            yield from self._double(f"transformer_blocks.{index}", width)
        for index in range(self.single):
            yield from self._single(f"single_transformer_blocks.{index}", width)
        yield "norm_out.linear", (2 * width, width)
        yield "proj_out", (64, width)

    def native(self) -> Iterator[tuple[str, tuple[str, ...]]]:
        """The authors' names."""
        return NATIVE.names([path for path, _ in self.weights()])

    def _double(self, block: str, width: int) -> Iterator[tuple[str, tuple[int, ...]]]:
        for theirs, ours in _DOUBLE.items():
            rows = 6 * width if theirs.endswith("mod.lin") else 4 * width if theirs.endswith("mlp.0") else width
            for path in ours:
                is_norm = ".norm." in theirs
                columns = 4 * width if theirs.endswith("mlp.2") else width
                yield f"{block}.{path}", (HEAD,) if is_norm else (rows, columns)

    def _single(self, block: str, width: int) -> Iterator[tuple[str, tuple[int, ...]]]:
        yield f"{block}.norm.linear", (3 * width, width)
        yield f"{block}.proj_mlp", (4 * width, width)
        yield f"{block}.proj_out", (width, 5 * width)
        for name in ("to_q", "to_k", "to_v"):
            yield f"{block}.attn.{name}", (width, width)
        for name in ("norm_q", "norm_k"):
            yield f"{block}.attn.{name}", (HEAD,)


def _size(*, guidance: bool) -> Mapping[str, Layout]:
    transformer = FluxTransformer(guidance=guidance)
    return {"transformer": transformer, "text_encoder": CLIP_L, "text_encoder_2": T5()}


DEV = Architecture(
    "flux-1-dev",
    1024,
    License(
        "other",
        name="flux-1-dev-non-commercial-license",
        link="https://huggingface.co/black-forest-labs/FLUX.1-dev/blob/main/LICENSE.md",
    ),
    "flux1",
    (_size(guidance=True),),
)
SCHNELL = Architecture("flux-1-schnell", 1024, License("apache-2.0"), "flux1", (_size(guidance=False),))


def _recognise(shapes: Shapes) -> str | None:
    """What tells the two apart is the guidance's embedder, which adapters seldom have."""
    return DEV.id if any("guidance_embedder" in name for name in shapes) else None


FAMILY = Family(
    denoiser="erasediff_lora.denoisers.flux:Flux",
    pipeline="FluxPipeline",
    component="transformer",
    encoders=("text_encoder", "text_encoder_2"),
    modules=MODULES,
    architectures=(DEV, SCHNELL),
    recognise=_recognise,
    kohya=KohyaNames(
        prefixes={
            "transformer": "lora_unet_",
            "text_encoder": "lora_te1_text_model_",
            "text_encoder_2": "lora_te3_",
        },
        words=("self_attn", "q_proj", "k_proj", "v_proj", "out_proj"),
        implementation="https://github.com/black-forest-labs/flux",
    ),
    native=NATIVE,
    prefixes={
        "transformer": ("lora_transformer_",),
        "text_encoder": ("text_encoders_clip_l_transformer_", "clip_l_"),
        "text_encoder_2": ("lora_te2_", "text_encoders_t5xxl_transformer_", "t5_"),
    },
    single_file=NATIVE.slots,
    read_by={
        "kohya": ("diffusers", "comfyui", "forge", "invokeai", "kohya"),
        "diffusers": ("diffusers", "comfyui", "forge", "invokeai"),
        "peft": ("peft",),
    },
    flow_matching=True,
    searched_in="outputs",
)
