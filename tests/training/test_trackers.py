"""What TensorBoard and Weights & Biases are told of a run, read back from what they wrote."""

from __future__ import annotations

import importlib.util
import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fixtures import Cli, RecipeFile
from refusals import refused
from tiny import tiny_classifier

MEASURED = {"unlearning_accuracy", "unlearning_accuracy/cat", "unlearning_accuracy/kitten", "retain_accuracy"}
SCALARS = {
    *(f"{when}/{name}" for when in ("evaluation", "final") for name in MEASURED),
    *("lambda", "lambda/cat", "lambda/kitten"),
}
TEXTS = {"verdict/erased", "verdict/kept", "verdict/robust"}
PAIR = "a photo of a kitten (seed 1000001)"


def watched(cli: Cli, recipe_file: RecipeFile, folder: Path, tracker: str) -> Path:
    """A run of two concepts with two evaluations on the way, one at its end, and one by hand."""
    judge = tiny_classifier(folder / "judge", ["cat", "kitten", "dog"], favourite="dog")
    concepts = '[{"name": "cat", "anchor": "dog"}, {"name": "kitten", "anchor": "dog"}]'
    result = cli(
        *("train", recipe_file(), "--training.log_with", f"[{tracker}]", "--training.evaluate_every", "2"),
        *("--evaluation.judge", f"transformers:{judge}", "--retain.concepts", "[dog]", "--forget.concepts", concepts),
        *("--evaluation.metrics", "[accuracy]", "--evaluation.forget_samples", "2", "--training.batch_size", "4"),
    )
    assert result.status == 0, result.err
    result = cli("evaluate", folder / "run", "--name", "again")
    assert result.status == 0, result.err
    return folder / "run"


def test_tensorboard(recipe_file: RecipeFile, cli: Cli, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    scalars, images, texts = set[str](), set[str](), dict[str, str]()
    for file in watched(cli, recipe_file, tmp_path, "tensorboard").rglob("events.out.tfevents*"):
        events = EventAccumulator(str(file)).Reload()
        scalars |= set(events.Tags()["scalars"])
        images |= set(events.Tags()["images"])
        for tag in events.Tags()["tensors"]:
            (value,) = events.Tensors(tag)[-1].tensor_proto.string_val
            texts[tag.partition("/text_summary")[0]] = value.decode()
    assert scalars >= SCALARS
    assert images >= {"evaluation", "final", f"without and with the adapter/{PAIR}"}
    assert texts.keys() >= {*TEXTS, "report"} and "| erased | **" in texts["report"]


def test_weights_and_biases(recipe_file: RecipeFile, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What would be sent, from the file that offline runs keep for `wandb sync`."""
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    run = watched(cli, recipe_file, tmp_path, "wandb")
    wandb.teardown()  # its service writes what it still holds
    kept = list((run / "wandb").glob("offline-run-*"))
    assert len(kept) == 3, "training, its evaluation, and the one by hand"
    told = {
        part: {name: value for row in history(next(part.glob("*.wandb"))) for name, value in row.items()}
        for part in kept
    }
    (trained,) = (part for part in kept if "lambda" in told[part])
    assert told[trained].keys() >= {name for name in SCALARS if not name.startswith("final/")} | {
        "evaluation/filenames"
    }
    for part in set(kept) - {trained}:
        one = told[part]
        assert one.keys() >= {name for name in SCALARS if name.startswith("final/")} | TEXTS
        assert PAIR in one["without and with the adapter/captions"]
        report = (part / "files" / one["report/path"]).read_text()
        assert "<h1" in report and (part / "files" / one["final/filenames"][0]).stat().st_size > 100


def history(file: Path) -> Iterator[dict[str, Any]]:
    """The rows of a run: records in the layout of LevelDB's log, after a header of seven bytes."""
    from wandb.proto.wandb_internal_pb2 import Record

    block, place, whole = 2**15, 7, b""
    stored = file.read_bytes()
    while place + 7 <= len(stored):
        if (left := block - place % block) < 7:
            place += left
            continue
        length, kind = struct.unpack("<HB", stored[place + 4 : place + 7])
        whole = (b"" if kind in (1, 2) else whole) + stored[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):
            record = Record.FromString(whole)
            items = record.history.item if record.HasField("history") else ()
            yield {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}


def test_a_tracker_that_is_not_there(
    recipe_file: RecipeFile, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(
        "erasediff_lora.training.trackers.find_spec", lambda name: None if name == "wandb" else found(name)
    )
    result = cli("train", recipe_file(), "--training.log_with", "[tensorboard, wandb]")
    refused(result, "training.log_with = 'wandb': is not installed.", 'pip install "erasediff-lora[wandb]"')
    assert not (tmp_path / "run").exists()


def test_a_tracker_that_does_not_start(
    recipe_file: RecipeFile, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*given: Any, **options: Any) -> None:
        raise ValueError("no key")

    monkeypatch.setattr("accelerate.Accelerator.init_trackers", fail)
    result = cli("train", recipe_file(), "--training.log_with", "[tensorboard]")
    refused(result, "training.log_with = ['tensorboard']: cannot be started: no key", "wandb login")
    assert not list((tmp_path / "run").glob("*.safetensors"))
