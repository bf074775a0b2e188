"""Text encoders: CLIP, as transformers names it without `text_model.`, T5, and the language models of Qwen."""

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


@dataclass(frozen=True)
class Qwen:
    """Qwen2.5 or 3, the text alone.

    Attributes:
        width: Of its embeddings.
        hidden: Of the feed-forward layers.
        layers: How many there are.
        heads: Of queries, and of keys and values, each of 128 channels.
        norms: Whether queries and keys are normalised, as in version 3; they have biases otherwise.
        vocabulary: Tokens.
    """

    width: int
    hidden: int
    layers: int
    heads: tuple[int, int]
    norms: bool = True
    vocabulary: int = 151936

    def weights(self) -> Weights:
        """All modules with a weight."""
        yield "embed_tokens", (self.vocabulary, self.width)
        queries, keys = (128 * heads for heads in self.heads)
        for index in range(self.layers):
            layer = f"layers.{index}"
            yield f"{layer}.self_attn.q_proj", (queries, self.width)
            for name in ("k_proj", "v_proj"):
                yield f"{layer}.self_attn.{name}", (keys, self.width)
            yield f"{layer}.self_attn.o_proj", (self.width, queries)
            for name in ("q_norm", "k_norm") if self.norms else ():
                yield f"{layer}.self_attn.{name}", (128,)
            for name in ("gate_proj", "up_proj"):
                yield f"{layer}.mlp.{name}", (self.hidden, self.width)
            yield f"{layer}.mlp.down_proj", (self.width, self.hidden)
            for name in ("input_layernorm", "post_attention_layernorm"):
                yield f"{layer}.{name}", (self.width,)
        yield "norm", (self.width,)

    def native(self) -> Iterator[tuple[str, tuple[str, ...]]]:
        """With the head's prefix before them, as whole language models have it."""
        for path, _ in self.weights():
            yield f"model.{path}", (path,)


CLIP_L = Clip(768, 12)
OPEN_CLIP_H = Clip(1024, 23)
OPEN_CLIP_G = Clip(1280, 32, projection=True)
