"""Text encoders: CLIP, as transformers names it without `text_model.`, and T5."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

Weights = Iterator[tuple[str, tuple[int, ...]]]


@dataclass(frozen=True)
class Clip:
    """CLIPTextModel, or with a projection CLIPTextModelWithProjection."""

    width: int
    layers: int
    projection: bool = False
    vocabulary: int = 49408
    length: int = 77

    def weights(self) -> Weights:
        """All modules with a weight."""
        width = self.width
        yield "embeddings.token_embedding", (self.vocabulary, width)
        yield "embeddings.position_embedding", (self.length, width)
        for index in range(self.layers):
            layer = f"encoder.layers.{index}"
            for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
                yield f"{layer}.self_attn.{name}", (width, width)
            yield f"{layer}.layer_norm1", (width,)
            yield f"{layer}.mlp.fc1", (4 * width, width)
            yield f"{layer}.mlp.fc2", (width, 4 * width)
            yield f"{layer}.layer_norm2", (width,)
        yield "final_layer_norm", (width,)
        if self.projection:
            yield "text_projection", (width, width)

    def native(self) -> Iterator[tuple[str, tuple[str, ...]]]:
        """The old names of diffusers, which called queries, keys and values as in its own attention."""
        for index in range(self.layers):
            attention = f"encoder.layers.{index}.self_attn"
            for theirs, ours in (("to_q", "q_proj"), ("to_k", "k_proj"), ("to_v", "v_proj"), ("to_out", "out_proj")):
                yield f"{attention}.{theirs}", (f"{attention}.{ours}",)


@dataclass(frozen=True)
class T5:
    """The encoder of T5 v1.1."""

    width: int = 4096
    hidden: int = 10240
    layers: int = 24
    vocabulary: int = 32128

    def weights(self) -> Weights:
        """All modules with a weight."""
        yield "shared", (self.vocabulary, self.width)
        for index in range(self.layers):
            attention, dense = (f"encoder.block.{index}.layer.{half}" for half in (0, 1))
            for name in ("q", "k", "v", "o"):
                yield f"{attention}.SelfAttention.{name}", (self.width, self.width)
            if index == 0:
                yield f"{attention}.SelfAttention.relative_attention_bias", (32, self.width // 64)
            yield f"{attention}.layer_norm", (self.width,)
            for name in ("wi_0", "wi_1"):
                yield f"{dense}.DenseReluDense.{name}", (self.hidden, self.width)
            yield f"{dense}.DenseReluDense.wo", (self.width, self.hidden)
            yield f"{dense}.layer_norm", (self.width,)
        yield "encoder.final_layer_norm", (self.width,)

    def native(self) -> Iterator[tuple[str, tuple[str, ...]]]:
        """None but its own."""
        return iter(())


CLIP_L = Clip(768, 12)
OPEN_CLIP_H = Clip(1024, 23)
OPEN_CLIP_G = Clip(1280, 32, projection=True)
