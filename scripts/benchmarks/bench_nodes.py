"""Train on two machines of two processes each, as far as one machine can stand in for them.

    OMP_NUM_THREADS=1 python scripts/benchmarks/bench_nodes.py [--runs 50]

Four processes join over the loopback; a machine is a value of LOCAL_WORLD_SIZE and a cache of its own, or one that both
share. Every run starts from an empty cache; in some a machine dies while sets are made, and all are started again.
Prints a Markdown table and writes nodes.json under --work.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import signal
import socket
import statistics
import sys
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from bench_kills import ROOT, Killer, ended, fork, preload

from erasediff_lora.recipe import Recipe
from erasediff_lora.training.loop import train

WORLD, ON_EACH = 4, 2


def environment(rank: int, port: int, on_each: int = ON_EACH) -> dict[str, str]:
    """What a launcher tells the process."""
    node, local = divmod(rank, on_each)
    values = {
        **{"RANK": rank, "LOCAL_RANK": local, "WORLD_SIZE": WORLD, "LOCAL_WORLD_SIZE": on_each, "GROUP_RANK": node},
        **{"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "ACCELERATE_USE_CPU": "true"},
    }
    return {name: str(value) for name, value in values.items()}


def job(
    values: Mapping[str, Any], root: Path, *, caches: int, on_each: int = ON_EACH, dies_at: int = 0
) -> list[int | None]:
    """Train once; returns the exit codes by rank, None of what hung.

    Args:
        values: A recipe.
        root: Where output and caches lie.
        caches: One for all, or one for each machine.
        on_each: Processes of a machine.
        dies_at: File operation in a cache before which the second machine's first process is killed, and with it the
            other one there; 0: none.
    """
    root.mkdir(parents=True, exist_ok=True)
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    killer = Killer(root, dies_at)

    def work(rank: int) -> None:
        sys.stderr = (root / f"log-{rank}.txt").open("a")
        os.environ |= environment(rank, port, on_each)
        if dies_at and rank == on_each:
            killer.watch()
        cache = root / f"cache-{rank // on_each if caches > 1 else 0}"
        train(Recipe.parse({**values, "output": str(root / "run"), "cache": str(cache)}), resume=True)

    pids = [fork(partial(work, rank)) for rank in range(WORLD)]
    if dies_at:
        while os.waitid(os.P_PID, pids[on_each], os.WEXITED | os.WNOWAIT | os.WNOHANG) is None:
            time.sleep(0.01)
        for pid in pids[on_each + 1 : 2 * on_each]:
            os.kill(pid, signal.SIGKILL)
    return ended(pids)


LAYOUTS: dict[str, dict[str, int]] = {
    "one machine of four": {"caches": 1, "on_each": 4},
    "two machines, one cache": {"caches": 1},
    "two machines, two caches": {"caches": 2},
    "two machines, one dies and is started again": {"caches": 2, "dies_at": 9},
}
"""What is tried -> how `job` is called. The first one is the work itself, which the others may not wait beyond."""


def tried(values: Mapping[str, Any], root: Path, options: Mapping[str, int]) -> tuple[bool, float, float]:
    """Whether a run ended as it must, the seconds that it took, and those of the processor of all processes."""
    began, before = time.perf_counter(), os.times()
    codes = job(values, root, **options)
    if "dies_at" in options:
        died = codes[2] == -signal.SIGKILL and codes[:2] == [2, 2]
        codes = job(values, root, caches=options["caches"]) if died else codes
    ended_well = codes == [0] * WORLD
    if not ended_well:
        print(codes, *[(root / f"log-{rank}.txt").read_text()[-600:] for rank in range(WORLD)], sep="\n", flush=True)
    after = os.times()
    processor = after.children_user + after.children_system - before.children_user - before.children_system
    return ended_well, time.perf_counter() - began, processor


def table(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """In Markdown."""
    head = "| processes | runs | failed or hung | seconds, median | longest | of the processor, median |"
    lines = [head, "|---|---|---|---|---|---|"]
    for name, row in rows.items():
        if taken := row["seconds"]:
            worked = statistics.median(row["processor_seconds"])
            ends = f"{statistics.median(taken):.1f} | {max(taken):.1f} | {worked:.1f}"
            lines.append(f"| {name} | {len(taken)} | {row['failed']} | {ends} |")
    return "\n".join(lines)


def main() -> None:
    """Run, time, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("build/nodes"))
    parser.add_argument("--runs", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=math.inf, help="end after these; another call goes on")
    arguments = parser.parse_args()
    until = time.monotonic() + arguments.seconds
    sys.path.insert(0, str(ROOT / "tests"))
    from tiny import tiny_pipeline, tiny_values

    work = arguments.work.absolute()
    tiny_pipeline().save_pretrained(work / "base")
    torch.set_num_threads(1)
    values = tiny_values(
        work / "base", work,
        forget={"concepts": [{"name": "cat", "anchor": "dog"}]}, objective={"name": "saliency", "mask_batches": 2},
        training={"steps": 2, "batch_size": 4, "checkpoint_every": 2},
    )  # fmt: skip
    preload("nodes", values, work)
    file = work / "nodes.json"
    rows: dict[str, dict[str, Any]] = json.loads(file.read_text()) if file.is_file() else {}
    for name in LAYOUTS:
        rows.setdefault(name, {"failed": 0, "seconds": [], "processor_seconds": []})
    while time.monotonic() < until and min(len(row["seconds"]) for row in rows.values()) < arguments.runs:
        for name, options in LAYOUTS.items():
            shutil.rmtree(work / "run", ignore_errors=True)
            ended_well, seconds, processor = tried(values, work / "run", options)
            rows[name]["failed"] += not ended_well
            rows[name]["seconds"].append(round(seconds, 2))
            rows[name]["processor_seconds"].append(round(processor, 2))
        file.write_text(json.dumps(rows, indent=2) + "\n")
    print(table(rows))


if __name__ == "__main__":
    main()
