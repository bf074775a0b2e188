"""The loop that erases: set-up, steps, checkpoints, several processes."""
