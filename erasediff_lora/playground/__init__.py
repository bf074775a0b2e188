"""A local page to try adapters on: the same prompt and seed without them and with them, at any strength."""
