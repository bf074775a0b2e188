"""Kill a short training at every one of its file operations, resume it, and compare what it ends with.

    OMP_NUM_THREADS=1 python scripts/benchmarks/bench_kills.py [--only plain robust evaluating shared] [--every 1]

A run on a tiny base is forked for each operation that changes a file: opening to write, renaming, removing, making a
folder, syncing. The fork is killed by SIGKILL just before it, so that nothing is cleaned up, and another one goes on
with `resume`. It must end with the adapter of the run that nobody disturbed, bit for bit, with the same log,
evaluations and pictures, and leave nothing half-written. Prints a Markdown table and writes kills.json under --work.
"""

from __future__ import annotations

import argparse
import importlib
import json
import math
import mmap
import os
import shutil
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch
from accelerate.state import AcceleratorState, PartialState
from safetensors.torch import load_file

from erasediff_lora.errors import UserError
from erasediff_lora.recipe import Recipe
from erasediff_lora.training.loop import train

ROOT = Path(__file__).parent.parent.parent
ADAPTER = "pytorch_lora_weights.safetensors"
CHANGES = {
    *("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.chmod", "os.truncate", "os.utime", "os.link"),
    *("os.symlink", "shutil.rmtree"),
}
"""Audit events of what changes files, beside `open` and `fsync`."""
VOLATILE = {"samples_per_second", "peak_memory_bytes"}
"""What two logs of the same run may differ in."""
LONGEST = 300
"""Seconds after which a run counts as hung."""

SHORT: dict[str, Any] = {"training": {"steps": 4, "checkpoint_every": 2, "batch_size": 2, "threads": 1}}
RUNS: dict[str, dict[str, Any]] = {
    "plain": SHORT,
    "robust": {
        "preset": "robust",
        "forget": {"concepts": [{"name": "cat", "anchor": "dog"}], "count": 4},
        "retain": {"focus_every": 1, "focus_samples": 2},
        "adversary": {"pool": 2, "refresh_every": 2, "steps": 2, "batch_size": 2, "continued": 0.5},
        "training": SHORT["training"] | {"average_every": 1, "average": 3},
    },
    "evaluating": {"training": SHORT["training"] | {"evaluate_every": 2, "sample_every": 2}},
    "shared": SHORT,
}
"""Run -> what its recipe says; 'shared' is one of two processes."""


@dataclass(frozen=True)
class Outcome:
    """What became of one kill.

    Attributes:
        at: Which operation.
        operation: What it was.
        problems: What was wrong afterwards.
    """

    at: int
    operation: str
    problems: list[str]


class Killer:
    """Counts the file operations below a folder, and kills its process before one of them.

    Args:
        folder: The folder.
        at: Which one; 0: none.
    """

    def __init__(self, folder: Path, at: int) -> None:
        self.folder, self.at = str(folder), at
        self.shared = mmap.mmap(-1, 4096)
        self.count = 0

    def watch(self) -> None:
        """From here on, in this process."""
        sys.addaudithook(self._seen)
        sync = os.fsync

        def counted(handle: int) -> None:
            self._operation("fsync")
            sync(handle)

        os.fsync = counted  # type: ignore[assignment]

    @property
    def seen(self) -> tuple[int, str]:
        """How many there were, and the last one."""
        text = self.shared[:].rstrip(b"\0").decode()
        number, _, what = text.partition(" ")
        return int(number or 0), what

    def _seen(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, mode, flags = arguments
            writes = (flags or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) or set(mode or "") & set("wax+")
            if not writes or str(path).endswith(".lock"):
                return
        elif event not in CHANGES:
            return
        names = [str(one) for one in arguments if isinstance(one, str | os.PathLike)]
        if any(name.startswith(self.folder) for name in names):
            self._operation(f"{event} {Path(names[0]).relative_to(self.folder)}")

    def _operation(self, what: str) -> None:
        self.count += 1
        note = f"{self.count} {what}".encode()[:4000]
        self.shared[: len(note) + 1] = note + b"\0"
        self.shared[len(note) :] = bytes(4096 - len(note))
        if self.count == self.at:
            os.kill(os.getpid(), signal.SIGKILL)


def fork(work: Callable[[], object]) -> int:
    """Do something in a fork of this process; returns its id."""
    sys.stdout.flush()
    if pid := os.fork():
        return pid
    status = 1
    for state in (AcceleratorState, PartialState):  # of the job that this process is of, and the fork is not
        state._reset_state()
    try:
        work()
        status = 0
    except UserError as error:
        print(error, file=sys.stderr)
        status = 2
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


def ended(pids: list[int]) -> list[int | None]:
    """Exit codes of processes, None of those that hang: they are killed."""
    codes: list[int | None] = [None] * len(pids)
    until = time.monotonic() + LONGEST
    while None in codes and time.monotonic() < until:
        for index, pid in enumerate(pids):
            if codes[index] is None and (found := os.waitpid(pid, os.WNOHANG))[0]:
                codes[index] = os.waitstatus_to_exitcode(found[1])
        time.sleep(0.005)
    for index, pid in enumerate(pids):
        if codes[index] is None:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
    return codes


def run(values: Mapping[str, Any], root: Path, name: str, killer: Killer | None = None) -> list[int | None]:
    """Train in forks, the first of them watched; in two if the run is shared."""
    world = 2 if name == "shared" else 1
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]

    def work(rank: int) -> None:
        sys.stderr = (root / f"log-{rank}.txt").open("a")
        if world > 1:
            os.environ |= {
                **{"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world), "MASTER_PORT": str(port)},
                **{"LOCAL_WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "ACCELERATE_USE_CPU": "true"},
            }
        if killer is not None and rank == 0:
            killer.watch()
        train(Recipe.parse(values), resume=True)

    return ended([fork(partial(work, rank)) for rank in range(world)])


def differences(run: Path, whole: Path) -> list[str]:
    """In what a run differs from the undisturbed one."""
    found = []
    if not (run / ADAPTER).is_file():
        return ["no adapter"]
    one, two = load_file(run / ADAPTER), load_file(whole / ADAPTER)
    if one.keys() != two.keys() or not all(torch.equal(one[name], two[name]) for name in one):
        found.append("another adapter")
    if lines(run) != lines(whole):
        found.append("another log")
    for file in [*whole.rglob("*.png"), *whole.glob("selection.json")]:
        other = run / file.relative_to(whole)
        if not other.is_file() or other.read_bytes() != file.read_bytes():
            found.append(f"another {file.relative_to(whole)}")
    return found


def lines(run: Path) -> list[dict[str, Any]]:
    """The log, as far as it is of the run and not of the machine."""
    rows = [json.loads(line) for line in (run / "training_log.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if name not in VOLATILE} for row in rows]


class Bench:
    """One run, and what becomes of it when it is killed.

    Args:
        name: Of RUNS.
        values: Its recipe, without output and cache.
        work: A folder for it alone.
    """

    def __init__(self, name: str, values: Mapping[str, Any], work: Path) -> None:
        self.name, self.values, self.work = name, values, work
        shutil.rmtree(work, ignore_errors=True)
        killer = Killer(self._root("whole"), 0)
        codes = run(self._recipe("whole"), self._root("whole"), name, killer)
        if any(codes):
            raise RuntimeError(f"{name}: {codes}: {(work / 'whole/log-0.txt').read_text()}")
        self.operations = killer.seen[0]

    def killed_at(self, at: int) -> Outcome:
        """Kill, resume, compare."""
        root = self._root("killed")
        killer = Killer(root, at)
        run(self._recipe("killed"), root, self.name, killer)
        reached, operation = killer.seen
        problems = [] if reached == at else [f"it was not reached, only {reached}"]
        codes = run(self._recipe("killed"), root, self.name)
        if any(codes):
            last = [line for line in (root / "log-0.txt").read_text().splitlines() if line.strip()][-1:]
            problems.append(f"resumed with {codes}: {last}")
        problems += differences(root / "run", self.work / "whole/run")
        left = [path for folder in ("run", "cache") for path in (root / folder).rglob(".*")]
        problems += [f"{path.name} is left" for path in left]
        shutil.rmtree(root)
        return Outcome(at, operation, problems)

    def _root(self, name: str) -> Path:
        root = self.work / name
        root.mkdir(parents=True, exist_ok=True)
        return root

    def _recipe(self, name: str) -> dict[str, Any]:
        root = self.work / name
        return {**self.values, "output": str(root / "run"), "cache": str(root / "cache")}


def recipes(work: Path) -> dict[str, dict[str, Any]]:
    """The recipes of RUNS, on a base and with a judge that are made here."""
    sys.path.insert(0, str(ROOT / "tests"))
    from tiny import tiny_classifier, tiny_pipeline, tiny_values

    base, judge = work / "base", work / "judge"
    if not base.is_dir():
        tiny_pipeline().save_pretrained(base)
        tiny_classifier(judge, ["cat", "dog", "car"])
    found = {name: tiny_values(base, work, **sections) for name, sections in RUNS.items()}
    found["evaluating"]["evaluation"] |= {"judge": f"transformers:{judge}", "strength_sweep": {"samples": 2}}
    return found


def preload(name: str, values: Mapping[str, Any], work: Path) -> None:
    """Import here what a run imports, so that its forks need not: it is done once in a fork, which says what it had."""
    root = work / "preload"
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir(parents=True)

    def work_once() -> None:
        train(Recipe.parse({**values, "output": str(root / "run"), "cache": str(root / "cache")}))
        (root / "modules.json").write_text(json.dumps(list(sys.modules)))

    if ended([fork(work_once)]) != [0]:
        raise RuntimeError(f"{name} fails by itself")
    for module in json.loads((root / "modules.json").read_text()):
        with suppress(ImportError):
            importlib.import_module(module)
    shutil.rmtree(root)


def spread(count: int, every: int) -> list[int]:
    """Operations 1 to `count`, each `every`th, in an order whose beginnings are spread evenly as well."""
    return sorted(range(1, count + 1, every), key=lambda at: at * (math.sqrt(5) - 1) / 2 % 1)


def table(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """In Markdown."""
    lines = ["| run | file operations | killed at | resumed runs that differ |", "|---|---|---|---|"]
    lines += [
        f"| {name} | {row['operations']} | {len(row['tried'])} | {len(row['wrong'])} |" for name, row in rows.items()
    ]
    return "\n".join(lines)


def main() -> None:
    """Kill, resume, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("build/kills"))
    parser.add_argument("--only", nargs="+", choices=RUNS, default=list(RUNS), metavar="RUN")
    parser.add_argument("--every", type=int, default=1, help="kill at every so many operations")
    parser.add_argument("--seconds", type=float, default=math.inf, help="end after these; another call goes on")
    arguments = parser.parse_args()
    until = time.monotonic() + arguments.seconds
    work = arguments.work.absolute()
    work.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    benches = {}
    for name, values in recipes(work).items():
        if name in arguments.only:
            preload(name, values, work)
            benches[name] = Bench(name, values, work / name)
    file = work / "kills.json"
    rows: dict[str, dict[str, Any]] = json.loads(file.read_text()) if file.is_file() else {}
    points = {}
    for name, bench in benches.items():
        row = rows.setdefault(name, {"operations": bench.operations, "tried": [], "wrong": []})
        points[name] = [at for at in spread(bench.operations, arguments.every) if at not in row["tried"]]
    for turn in zip_longest(*points.values()):  # by turns, so that one that is stopped has tried something of each
        for (name, bench), at in zip(benches.items(), turn, strict=True):
            if at is None or time.monotonic() > until:
                continue
            outcome = bench.killed_at(at)
            rows[name]["tried"].append(at)
            if outcome.problems:
                rows[name]["wrong"].append(vars(outcome))
                print(name, vars(outcome), flush=True)
            file.write_text(json.dumps(rows, indent=2) + "\n")
    print(table(rows))


if __name__ == "__main__":
    main()
