"""How well the concept is gone, and the rest still there."""
