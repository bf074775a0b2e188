"""Forget and retain sets: prompts, pictures from disk, pictures that the base draws, the encoded cache."""
