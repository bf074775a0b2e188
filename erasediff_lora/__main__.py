"""`python -m erasediff_lora`."""

from erasediff_lora.cli import program

program()
