"""The adapter: targets, injection, files."""
