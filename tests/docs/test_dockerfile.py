"""The container runs what the documents say; it is built where there is a Docker."""

from __future__ import annotations

import json
import re
import shlex
import tomllib
from pathlib import Path

from erasediff_lora.cli import VERBS

ROOT = Path(__file__).parent.parent.parent
DOCKERFILE = (ROOT / "Dockerfile").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
IMAGE = re.compile(r"erasediff-lora(:\w+)?")


def instructions(name: str) -> list[str]:
    return [line.removeprefix(f"{name} ") for line in DOCKERFILE.splitlines() if line.startswith(f"{name} ")]


def test_it_copies_all_that_an_installation_reads() -> None:
    copied = {word for line in instructions("COPY") for word in line.split()[:-1]}
    ignored = (ROOT / ".dockerignore").read_text().split()
    assert all((ROOT / word).exists() and word not in ignored for word in copied)
    manifest = {line.split()[1] for line in (ROOT / "MANIFEST.in").read_text().splitlines()}
    assert copied >= {"pyproject.toml", "setup.py", "MANIFEST.in", "LICENSE", "erasediff_lora", PROJECT["readme"]}
    assert copied >= manifest
    (extras,) = re.findall(r"'/src\[([\w,]+)\]'", DOCKERFILE)
    assert set(extras.split(",")) <= set(PROJECT["optional-dependencies"])


def test_it_runs_what_the_readme_tries_first_and_as_nobody_special() -> None:
    (entry,), given = (json.loads(*instructions(name)) for name in ("ENTRYPOINT", "CMD"))
    assert entry in PROJECT["scripts"]
    assert shlex.join([entry, *given]) in (ROOT / "README.md").read_text()
    assert DOCKERFILE.rindex("\nUSER ") > DOCKERFILE.rindex("\nRUN "), "nothing is run as root in the end"
    assert instructions("USER") != ["root"]


def test_the_documented_commands_fit_it() -> None:
    text = (ROOT / "docs/install.md").read_text()
    arguments = {line.partition("=")[0] for line in instructions("ARG")}
    (workdir,) = instructions("WORKDIR")
    commands = [shlex.split(line) for line in text.splitlines() if line.startswith("docker ")]
    built = [words for words in commands if words[1] == "build"]
    run = [words for words in commands if words[1] == "run"]
    assert len(built) == len(run) == 2
    for words in built:
        given = [words[place + 1] for place, word in enumerate(words) if word == "--build-arg"]
        assert {name.partition("=")[0] for name in given} <= arguments
    for words in run:
        image = next(place for place, word in enumerate(words) if IMAGE.fullmatch(word))
        assert words[image] in {built_as[built_as.index("-t") + 1] for built_as in built}
        assert words[words.index("-v") + 1].endswith(f":{workdir}") and words[image + 1] in VERBS
