"""An adapter on a model hub: its folder and its card."""

from erasediff_lora.publishing.hub import publish

__all__ = ["publish"]
