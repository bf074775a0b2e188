"""The UNet of Stable Diffusion: `UNet2DConditionModel`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from erasediff_lora.families.ldm import UNetNumbering

Weights = Iterator[tuple[str, tuple[int, ...]]]


@dataclass(frozen=True)
class UNet:
    """A UNet by its configuration.

    Attributes:
        channels: Of each resolution, the highest first.
        depths: Transformer blocks of an attention at each resolution; 0: it has none.
        context: Width of the prompt embeddings.
        linear: Whether the projections around transformer blocks are linear layers instead of 1×1 convolutions.
        inputs: Channels of the input: 9 of inpainting models.
        pooled: Width of the added conditions, if there are any.
        layers: ResNet blocks of each resolution on the way down.
    """

    channels: tuple[int, ...]
    depths: tuple[int, ...]
    context: int
    linear: bool = False
    inputs: int = 4
    pooled: int | None = None
    layers: int = 2

    @property
    def numbering(self) -> UNetNumbering:
        """How LDM counts its blocks."""
        up = reversed(self.depths)
        return UNetNumbering(self.layers, frozenset(block for block, depth in enumerate(up) if depth))

    def weights(self) -> Weights:
        """All modules with a weight."""
        first, time = self.channels[0], 4 * self.channels[0]
        yield "conv_in", (first, self.inputs, 3, 3)
        yield from _embedding("time_embedding", first, time)
        if self.pooled is not None:
            yield from _embedding("add_embedding", self.pooled, time)
        yield from self._down()
        last = self.channels[-1]
        for index in range(2):
            yield from self._resnet(f"mid_block.resnets.{index}", last, last)
        yield from self._attention("mid_block.attentions.0", last, max(self.depths[-1], 1))
        yield from self._up()
        yield "conv_norm_out", (first,)
        yield "conv_out", (4, first, 3, 3)

    def native(self) -> Iterator[tuple[str, tuple[str, ...]]]:
        """LDM's names."""
        numbering = self.numbering
        for path, _ in self.weights():
            if (theirs := numbering.to_ldm(path)) is not None:
                yield theirs, (path,)

    def _down(self) -> Weights:
        before = self.channels[0]
        for block, (width, depth) in enumerate(zip(self.channels, self.depths, strict=True)):
            for layer in range(self.layers):
                yield from self._resnet(f"down_blocks.{block}.resnets.{layer}", before, width)
                yield from self._attention(f"down_blocks.{block}.attentions.{layer}", width, depth)
                before = width
            if block < len(self.channels) - 1:
                yield f"down_blocks.{block}.downsamplers.0.conv", (width, width, 3, 3)

    def _up(self) -> Weights:
        widths, depths = self.channels[::-1], self.depths[::-1]
        before = widths[0]
        for block, (width, depth) in enumerate(zip(widths, depths, strict=True)):
            lower = widths[min(block + 1, len(widths) - 1)]
            for layer in range(self.layers + 1):
                skip = lower if layer == self.layers else width
                yield from self._resnet(f"up_blocks.{block}.resnets.{layer}", before + skip, width)
                yield from self._attention(f"up_blocks.{block}.attentions.{layer}", width, depth)
                before = width
            if block < len(widths) - 1:
                yield f"up_blocks.{block}.upsamplers.0.conv", (width, width, 3, 3)

    def _resnet(self, path: str, inputs: int, outputs: int) -> Weights:
        yield f"{path}.norm1", (inputs,)
        yield f"{path}.conv1", (outputs, inputs, 3, 3)
        yield f"{path}.time_emb_proj", (outputs, 4 * self.channels[0])
        yield f"{path}.norm2", (outputs,)
        yield f"{path}.conv2", (outputs, outputs, 3, 3)
        if inputs != outputs:
            yield f"{path}.conv_shortcut", (outputs, inputs, 1, 1)

    def _attention(self, path: str, width: int, depth: int) -> Weights:
        if not depth:
            return
        project = (width, width) if self.linear else (width, width, 1, 1)
        yield f"{path}.norm", (width,)
        yield f"{path}.proj_in", project
        for index in range(depth):
            block = f"{path}.transformer_blocks.{index}"
            for norm in ("norm1", "norm2", "norm3"):
                yield f"{block}.{norm}", (width,)
            for attention, context in (("attn1", width), ("attn2", self.context)):
                yield f"{block}.{attention}.to_q", (width, width)
                yield f"{block}.{attention}.to_k", (width, context)
                yield f"{block}.{attention}.to_v", (width, context)
                yield f"{block}.{attention}.to_out.0", (width, width)
            yield f"{block}.ff.net.0.proj", (8 * width, width)
            yield f"{block}.ff.net.2", (width, 4 * width)
        yield f"{path}.proj_out", project


def _embedding(path: str, inputs: int, width: int) -> Weights:
    yield f"{path}.linear_1", (width, inputs)
    yield f"{path}.linear_2", (width, width)
