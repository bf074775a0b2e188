"""Kinds of updates other than LoRA. A new one is a module here with a `Kind`, and a line in `registry.KINDS`."""
