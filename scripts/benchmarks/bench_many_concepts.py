"""What each phase of a run takes when a recipe has many concepts: prepare, plan, train, evaluate with attacks.

    OMP_NUM_THREADS=1 python scripts/benchmarks/bench_many_concepts.py [--counts 2 20 200] [--side 64]

The base is tiny, so that the memory is that of the concepts. Every phase runs in a process of its own, as a user starts
it, the training without its evaluation. Prints a Markdown table of MiB at the peak and seconds of processor time, and
writes many_concepts.json under --work.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parent.parent.parent
PROGRAM = """
import sys, torch
from erasediff_lora.cli import main
from erasediff_lora.machine.devices import peak_memory
from erasediff_lora.recipe import Recipe
from erasediff_lora.training.loop import train

verb, target = sys.argv[1:]
status = train(Recipe.load(target)) and 0 if verb == "train" else main([verb, target])
print(peak_memory(torch.device("cpu")))
sys.exit(status)
"""
PHASES = ("prepare", "plan", "train", "evaluate")


def concepts(count: int) -> list[str]:
    """So many names."""
    return [f"artist {number}" for number in range(count)]


def recipe_of(work: Path, base: Path, judge: Path, count: int, side: int) -> Path:
    """A recipe of so many concepts, which trains two robust steps and evaluates with all kinds of attacks."""
    from tiny import tiny_values

    names = concepts(count)
    values = tiny_values(
        base, work,
        preset="robust",
        forget={"concepts": [{"name": name, "anchor": "dog"} for name in names], "count": max(64, count)},
        retain={"focus_every": 1, "focus_samples": 4, "count": 64},
        sampling={"resolution": side, "batch_size": 16},
        adversary={"pool": 4, "refresh_every": 1, "steps": 1, "batch_size": 4},
        training={"steps": 2, "batch_size": 16, "checkpoint_every": 2, "average": 1},
        evaluation={
            "judge": f"transformers:{judge}", "retain_samples": 64, "forget_samples": 64,
            "metrics": ["accuracy", "drift", "distances"],
            "attacks": ["inversion", "paraphrases", "guidance_attack", "latent_start"],
            "inversion": {"restarts": 1, "steps": 1, "samples": 2, "batch_size": 2},
            "paraphrases": {"names": {name: [f"painter of {name}"] for name in names}, "samples": 2},
            "guidance_attack": {"scales": [4.0], "samples": 2},
        },
    )  # fmt: skip
    file = work / "recipe.yaml"
    file.write_text(yaml.safe_dump(values))
    return file


def measured(verb: str, target: Path, log: Path) -> dict[str, float]:
    """Run a verb in a process of its own; its peak, and what it took of the processor."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with log.open("a") as stream:
        ends = [(os.POSIX_SPAWN_DUP2, stream.fileno(), number) for number in (1, 2)]
        command = [sys.executable, "-c", PROGRAM, verb, str(target)]
        pid = os.posix_spawn(sys.executable, command, environment, file_actions=ends)
    _, status, usage = os.wait4(pid, 0)
    if status:
        raise RuntimeError(f"{verb}: {log.read_text()[-2000:]}")
    peak = int(log.read_text().splitlines()[-1])
    return {"MiB": round(peak / 2**20), "processor_seconds": round(usage.ru_utime + usage.ru_stime, 1)}


def table(rows: dict[str, dict[str, dict[str, float]]]) -> str:
    """In Markdown."""
    lines = ["| concepts | " + " | ".join(PHASES) + " |", "|---" * (1 + len(PHASES)) + "|"]
    for count, row in rows.items():
        cells = [f"{row[verb]['MiB']:.0f} MiB, {row[verb]['processor_seconds']:.0f} s" for verb in PHASES]
        lines.append(f"| {count} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("build/many_concepts"))
    parser.add_argument("--counts", type=int, nargs="+", default=[2, 20, 200])
    parser.add_argument("--side", type=int, default=64, help="of a picture, in pixels")
    arguments = parser.parse_args()
    sys.path.insert(0, str(ROOT / "tests"))
    from tiny import tiny_classifier, tiny_pipeline

    work: Path = arguments.work.absolute()
    tiny_pipeline().save_pretrained(work / "base")
    rows: dict[str, Any] = {}
    for count in arguments.counts:
        place = work / f"{count}"
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        judge = tiny_classifier(place / "judge", [*concepts(count), "dog", "car"], favourite="artist 0")
        file = recipe_of(place, work / "base", judge, count, arguments.side)
        targets = dict.fromkeys(PHASES, file) | {"evaluate": place / "run"}
        rows[f"{count}"] = {verb: measured(verb, target, place / "log.txt") for verb, target in targets.items()}
        (work / "many_concepts.json").write_text(json.dumps({"side": arguments.side, "rows": rows}, indent=2) + "\n")
        print(count, rows[f"{count}"], flush=True)
    print(table(rows))


if __name__ == "__main__":
    main()
