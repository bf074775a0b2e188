"""Prompts from files: what evaluations of the field are run on.

`formats` reads the files, `columns` knows what theirs are called, and `reading` makes prompts of the rows: to forget,
to retain, or to attack with.
"""

from erasediff_lora.data.prompt_files.reading import FIELD, FilePrompts, describe, file_prompts

__all__ = ["FIELD", "FilePrompts", "describe", "file_prompts"]
