"""Prompts from files: what evaluations of the field are run on.

`formats` reads the files, `columns` knows what theirs are called, `row_reader` makes prompts of a row, and `reading` of
all: to forget, to retain, or to attack with.
"""

from erasediff_lora.data.prompt_files.reading import FilePrompts, describe, file_prompts
from erasediff_lora.data.prompt_files.row_reader import FIELD

__all__ = ["FIELD", "FilePrompts", "describe", "file_prompts"]
