"""The transformer of Stable Diffusion 3: `SD3Transformer2DModel`, and MMDiT in the authors' code."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from erasediff_lora.families.layouts import Swapped

Weights = Iterator[tuple[str, tuple[int, ...]]]
HEAD = 64
OUTER = {
    "x_embedder.proj": "pos_embed.proj",
    "t_embedder.mlp.0": "time_text_embed.timestep_embedder.linear_1",
    "t_embedder.mlp.2": "time_text_embed.timestep_embedder.linear_2",
    "y_embedder.mlp.0": "time_text_embed.text_embedder.linear_1",
    "y_embedder.mlp.2": "time_text_embed.text_embedder.linear_2",
    "context_embedder": "context_embedder",
    "final_layer.linear": "proj_out",
}
LAST = {"final_layer.adaLN_modulation.1": "norm_out.linear"}
IMAGE = {
    "adaLN_modulation.1": ("norm1.linear",),
    "attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "attn.proj": ("attn.to_out.0",),
    "attn.ln_q": ("attn.norm_q",),
    "attn.ln_k": ("attn.norm_k",),
    "attn2.qkv": ("attn2.to_q", "attn2.to_k", "attn2.to_v"),
    "attn2.proj": ("attn2.to_out.0",),
    "attn2.ln_q": ("attn2.norm_q",),
    "attn2.ln_k": ("attn2.norm_k",),
    "mlp.fc1": ("ff.net.0.proj",),
    "mlp.fc2": ("ff.net.2",),
}
TEXT = {
    "adaLN_modulation.1": ("norm1_context.linear",),
    "attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    "attn.proj": ("attn.to_add_out",),
    "attn.ln_q": ("attn.norm_added_q",),
    "attn.ln_k": ("attn.norm_added_k",),
    "mlp.fc1": ("ff_context.net.0.proj",),
    "mlp.fc2": ("ff_context.net.2",),
}


@dataclass(frozen=True)
class MMDiT:
    """A transformer by its configuration.

    Attributes:
        depth: Number of blocks; the width is 64 times that.
        dual: How many of the first blocks have a second attention.
        qk_norm: Whether queries and keys are normalised.
        context: Width of the prompt embeddings.
        pooled: Width of the pooled embeddings.
    """

    depth: int
    dual: int = 0
    qk_norm: bool = False
    context: int = 4096
    pooled: int = 2048

    @property
    def width(self) -> int:
        return self.depth * HEAD

    def weights(self) -> Weights:
        """All modules with a weight."""
        width = self.width
        yield "pos_embed.proj", (width, 16, 2, 2)
        for name, inputs in (("timestep_embedder", 256), ("text_embedder", self.pooled)):
            yield f"time_text_embed.{name}.linear_1", (width, inputs)
            yield f"time_text_embed.{name}.linear_2", (width, width)
        yield "context_embedder", (width, self.context)
        for index in range(self.depth):
            yield from self._block(f"transformer_blocks.{index}", index < self.dual, index == self.depth - 1)
        yield "norm_out.linear", (2 * width, width)
        yield "proj_out", (HEAD, width)

    def native(self) -> Iterator[tuple[str, tuple[str, ...]]]:
        """MMDiT's names. The two layers that shift and scale last do it in another order there."""
        there = dict(self.weights())
        for theirs, ours in OUTER.items():
            yield theirs, (ours,)
        for theirs, ours in LAST.items():
            yield theirs, Swapped((ours,))
        for index in range(self.depth):
            for part, names in (("x_block", IMAGE), ("context_block", TEXT)):
                for theirs, tails in names.items():
                    paths = tuple(f"transformer_blocks.{index}.{tail}" for tail in tails)
                    is_swapped = index == self.depth - 1 and paths[0].endswith("norm1_context.linear")
                    if paths[0] in there:
                        yield f"joint_blocks.{index}.{part}.{theirs}", Swapped(paths) if is_swapped else paths

    def _block(self, block: str, is_dual: bool, is_last: bool) -> Weights:
        width = self.width
        yield f"{block}.norm1.linear", ((9 if is_dual else 6) * width, width)
        yield f"{block}.norm1_context.linear", ((2 if is_last else 6) * width, width)
        names = ["to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj"]
        for name in names if is_last else [*names, "to_add_out"]:
            yield f"{block}.attn.{name}", (width, width)
        norms = ("norm_q", "norm_k", "norm_added_q", "norm_added_k") if self.qk_norm else ()
        for name in norms:
            yield f"{block}.attn.{name}", (HEAD,)
        if is_dual:
            for name in ("to_q", "to_k", "to_v", "to_out.0"):
                yield f"{block}.attn2.{name}", (width, width)
            for name in norms[:2]:
                yield f"{block}.attn2.{name}", (HEAD,)
        for name in ("ff",) if is_last else ("ff", "ff_context"):
            yield f"{block}.{name}.net.0.proj", (4 * width, width)
            yield f"{block}.{name}.net.2", (width, 4 * width)
