"""Two machines of two processes: on one cache, on one each, and when one of them dies."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from bench_faults import same_adapter
from bench_nodes import job
from tiny import tiny_values

from erasediff_lora.errors import UserError
from erasediff_lora.training.distributed import require_same_step


@pytest.fixture
def values(tiny_base: Path, tmp_path: Path) -> dict[str, Any]:
    """With all that is made for the whole job: neighbours, sets, and what the objective prepares."""
    return tiny_values(
        tiny_base, tmp_path,
        forget={"concepts": [{"name": "cat", "anchor": "dog"}]},
        retain={"neighbours": 1, "vocabulary": "imagenet"},
        objective={"name": "saliency", "mask_batches": 2},
        training={"steps": 4, "batch_size": 4, "checkpoint_every": 2},
    )  # fmt: skip


def logs(root: Path) -> list[str]:
    return [(root / f"log-{rank}.txt").read_text() for rank in range(4)]


def made(cache: Path) -> set[str]:
    return {entry.name.split("-")[0] for entry in cache.iterdir()}


def test_one_cache_and_one_each_end_alike(values: Any, tmp_path: Path) -> None:
    """Nobody waits for a lock that one who waits for it has: what is shared is made once on each cache."""
    for caches, root in ((1, tmp_path / "one"), (2, tmp_path / "two")):
        assert job(values, root, caches=caches) == [0, 0, 0, 0], logs(root)
    assert same_adapter(tmp_path / "one/run", tmp_path / "two/run")
    assert made(tmp_path / "one/cache-0") == {"forget", "retain", "words", "prepared"}
    assert made(tmp_path / "two/cache-0") == {"forget", "retain", "words", "prepared"}
    assert made(tmp_path / "two/cache-1") == {"forget", "retain", "words"}, "the preparation is told"
    assert not [path for path in tmp_path.rglob(".*") if path.name.startswith((".erasediff", ".lock"))]


@pytest.mark.parametrize("at", [1, 3, 9])
def test_a_machine_that_dies_ends_the_run_and_it_goes_on(at: int, values: Any, tmp_path: Path) -> None:
    """Before it has told which cache it has; having told, with its mark still there; while it makes its sets."""
    root = tmp_path / "nodes"
    codes = job(values, root, caches=2, dies_at=at)
    assert codes[2] == -9 and codes[3] in (-9, 2), "killed with it, unless it was quicker to see that"
    assert bool(list(root.rglob(".erasediff.job*"))) == (at == 3)
    assert codes[:2] == [2, 2] and all("lost another one" in text for text in logs(root)[:2]), logs(root)
    assert job(values, root, caches=2) == [0, 0, 0, 0], logs(root)
    assert job(values, tmp_path / "whole", caches=2) == [0, 0, 0, 0]
    assert same_adapter(root / "run", tmp_path / "whole/run")
    steps = [json.loads(line)["step"] for line in (root / "run/training_log.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3, 4]
    assert not list(root.rglob(".erasediff*"))


def test_machines_that_see_other_checkpoints_are_refused(tmp_path: Path) -> None:
    """Two processes without a common output: one finds a checkpoint, the other none."""

    class Both:
        num_processes = 2
        device = torch.device("cpu")

        @staticmethod
        def gather(step: Any) -> Any:
            return torch.cat([step, torch.tensor([0])])

    both: Any = Both()
    with pytest.raises(UserError, match=r"checkpoints of steps \[0, 4\]. Use a folder that all machines share"):
        require_same_step(both, tmp_path, 4)
    require_same_step(both, tmp_path, 0)
