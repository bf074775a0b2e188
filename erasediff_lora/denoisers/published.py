"""Configurations of published models: with them a single file is loaded without the hub that has them."""

from __future__ import annotations

import atexit
import gzip
import json
import logging
import shutil
import tempfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from erasediff_lora import families
from erasediff_lora.adapter.weight_file import WeightFile
from erasediff_lora.errors import UserError
from erasediff_lora.storage.files import PICKLE_SUFFIXES

log = logging.getLogger(__name__)
FOLDER = Path(__file__).parent / "configurations"
MERGES = "clip_merges.txt.gz"
CLIP_TOKENS = 77


def described(file: Path, family: str) -> Path | None:
    """A folder as diffusers saves it, of all but weights, for a single file of a published model.

    Args:
        file: The checkpoint.
        family: Name in the registry.

    Returns:
        A folder that is there until the process ends; None: the file is of no published model that is known here.
    """
    known = FOLDER / f"{family}.yaml"
    if file.suffix.lower() in PICKLE_SUFFIXES or not known.is_file():
        return None
    return _described(file, file.stat().st_mtime_ns, known)


@cache
def _described(file: Path, changed: int, known: Path) -> Path | None:
    """The same, once for a file as it is."""
    try:
        weights = WeightFile(file)
        weights.component = families.network_in(weights.tensors)
    except UserError:  # whoever reads the weights says what is wrong with them
        return None
    models = _models(known)
    name = next((name for name in models if _is_of(weights, models[name])), None)
    if name is None:
        return None
    log.info("%s has the weights of %s", file.name, name)
    return _written(known, name)


@cache
def _models(known: Path) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = yaml.safe_load(known.read_text(encoding="utf-8"))["models"]
    return found


def _is_of(weights: WeightFile, model: Mapping[str, Any]) -> bool:
    for name, shape in model["told_by"].items():
        slot = weights.slot(name)
        if slot is None or list(weights.shape(slot)) != shape:
            return False
    for name, least in model.get("spread", {}).items():
        slot = weights.slot(name)
        if slot is None or float(weights.weight(slot).float().std(correction=0)) <= least:
            return False
    return True


@cache
def _written(known: Path, name: str) -> Path:
    """The configurations of a model in a temporary folder."""
    folder = Path(tempfile.mkdtemp(prefix="erasediff-")) / name
    atexit.register(shutil.rmtree, folder.parent, ignore_errors=True)
    index: dict[str, Any] = {"_class_name": families.FAMILIES[known.stem].pipeline}
    for part, config in _models(known)[name].items():
        if part.startswith("tokenizer"):
            clip_tokenizer(config["pad_token"]).save_pretrained(folder / part)
            index[part] = ["transformers", "CLIPTokenizer"]
        elif part == "force_zeros_for_empty_prompt":
            index[part] = config
        elif part not in ("told_by", "spread"):
            index[part] = ["diffusers", config["_class_name"]] if "_class_name" in config else _transformers(config)
            (folder / part).mkdir(parents=True)
            file = "scheduler_config.json" if part == "scheduler" else "config.json"
            (folder / part / file).write_text(json.dumps(config), encoding="utf-8")
    (folder / "model_index.json").write_text(json.dumps(index), encoding="utf-8")
    return folder


def _transformers(config: Mapping[str, Any]) -> list[str]:
    return ["transformers", config["architectures"][0]]


def clip_tokenizer(pad_token: str) -> Any:
    """CLIP's tokenizer, which all Stable Diffusion models share but for what fills a prompt up."""
    from transformers import CLIPTokenizer
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    merges = gzip.decompress((FOLDER / MERGES).read_bytes()).decode("utf-8").splitlines()
    letters = list(bytes_to_unicode().values())
    pieces = [*letters, *(f"{letter}</w>" for letter in letters), *(merge.replace(" ", "") for merge in merges)]
    pieces += ["<|startoftext|>", "<|endoftext|>"]
    pairs: Any = [tuple(merge.split()) for merge in merges]
    return CLIPTokenizer(
        vocab={piece: index for index, piece in enumerate(pieces)},
        merges=pairs,
        pad_token=pad_token,
        model_max_length=CLIP_TOKENS,
    )
