"""An adapter on a model hub: its folder and its card."""

from erasediff_lora.publishing.hub import public_recipe, publish

__all__ = ["public_recipe", "publish"]
