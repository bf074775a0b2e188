"""Many runs of one recipe: every combination of a grid of values, started by a launcher, compared at the end."""
