"""`python -m erasediff_lora.cli`."""

from erasediff_lora.cli import program

program()
