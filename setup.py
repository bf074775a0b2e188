"""Puts `recipes/`, which lies at the root for readers, into the wheel as `erasediff_lora/recipes`."""

from __future__ import annotations

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithRecipes(build_py):
    """Copies the recipes beside the built modules; an editable install finds them where they are."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            shutil.copytree("recipes", Path(self.build_lib) / "erasediff_lora/recipes", dirs_exist_ok=True)


setup(cmdclass={"build_py": BuildWithRecipes})
