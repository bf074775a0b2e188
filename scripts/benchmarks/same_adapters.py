"""Train the same short runs with this checkout and with another, and compare the adapters to the last bit.

    python scripts/benchmarks/same_adapters.py OTHER_CHECKOUT [--only demo robust] [--work build/same] [--keep FOLDER]

The demo recipe (30 steps), the robust preset (10 steps) and tiny random Stable Diffusion XL and 3 bases. Prints a line
for every adapter file; the exit status is 1 if a tensor differs. Recipes are this checkout's: the other one has to read
them.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from diffusers import DiffusionPipeline
from safetensors import deserialize

ROOT = Path(__file__).parent.parent.parent
sys.path.insert(0, str(ROOT / "tests"))
from tiny import tiny_sd3_pipeline, tiny_values, tiny_xl_pipeline  # noqa: E402

EVALUATION = {"metrics": [], "attacks": [], "forget_samples": 1, "retain_samples": 1}


def demo(**sections: dict[str, Any]) -> dict[str, Any]:
    """The demo recipe with sections changed."""
    values: dict[str, Any] = yaml.safe_load((ROOT / "recipes/demo_concept.yaml").read_text())
    for section, changes in sections.items():
        values[section] = values.get(section, {}) | changes
    return values | {"evaluation": EVALUATION}


def tiny(make: Callable[[], DiffusionPipeline], family: str, bases: Path) -> dict[str, Any]:
    """A recipe of a few steps on a tiny base, which is made if it is not there."""
    base = bases / family
    if not base.exists():
        make().save_pretrained(base)
    return tiny_values(base, bases, model={"family": family}, evaluation=EVALUATION)


RUNS: dict[str, Callable[[Path], dict[str, Any]]] = {
    "demo": lambda _: demo(training={"steps": 30}),
    # As often measured and averaged as ten steps allow.
    "robust": lambda _: (
        demo(training={"steps": 10, "average_every": 3}, retain={"focus_every": 3}) | {"preset": "robust"}
    ),
    "sdxl": lambda bases: tiny(tiny_xl_pipeline, "stable_diffusion_xl", bases),
    "sd3": lambda bases: tiny(tiny_sd3_pipeline, "stable_diffusion_3", bases),
}
"""Name -> the recipe, given the folder of the tiny bases."""


def train(checkout: Path, values: dict[str, Any], folder: Path) -> Path:
    """Train with a checkout's package, once: the recipe beside the run says that it ended, and with which values."""
    run, done = folder / "run", folder / "done.yaml"
    recipe = yaml.safe_dump(values | {"output": str(run), "cache": str(folder.parent / "cache")})
    text = f"# {commit(checkout)}\n{recipe}"
    if done.exists() and done.read_text() == text:
        return run
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    file = folder / "recipe.yaml"
    file.write_text(recipe)
    environment = os.environ | {"PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    program = [sys.executable, str(checkout / "scripts/train_erase_lora.py"), str(file)]
    finished = subprocess.run(program, env=environment, cwd=folder, capture_output=True, text=True)
    if finished.returncode != 0:
        sys.exit(f"{checkout}, {folder.name}: exit status {finished.returncode}\n{finished.stderr[-4000:]}")
    done.write_text(text)
    return run


def commit(checkout: Path) -> str:
    """The checkout's commit and what was changed since, so that no stale run is taken for its."""
    told = [["rev-parse", "HEAD"], ["diff", "HEAD"], ["status", "--porcelain"]]
    outputs = [subprocess.run(["git", "-C", str(checkout), *a], capture_output=True).stdout for a in told]
    return f"{outputs[0].decode().strip()} {hashlib.sha256(b''.join(outputs[1:])).hexdigest()[:12]}"


def tensors(file: Path) -> dict[str, tuple[str, list[int], bytes]]:
    """Name -> type, shape and bytes."""
    return {name: (t["dtype"], t["shape"], bytes(t["data"])) for name, t in deserialize(file.read_bytes())}


def differences(one: Path, two: Path) -> list[str]:
    """What is not the same in the adapter files of two runs; a line for every file is printed."""
    found = []
    names = sorted({file.name for run in (one, two) for file in run.glob("*.safetensors")})
    for name in names or ["an adapter"]:
        missing = [str(run) for run in (one, two) if not (run / name).exists()]
        if missing:
            bad = [f"missing in {', '.join(missing)}"]
            total = 0
        else:
            a, b = tensors(one / name), tensors(two / name)
            total = len(a.keys() | b.keys())
            bad = sorted(key for key in a.keys() | b.keys() if a.get(key) != b.get(key))
        told = f"{total} tensors the same" if not bad else f"DIFFERENT: {len(bad)} of {total}: {', '.join(bad[:3])}"
        print(f"{one.parent.name:8} {name}: {told}", flush=True)
        found += [f"{name}: {key}" for key in bad]
    return found


def main() -> None:
    """Train in both, compare, say."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("other", type=Path, metavar="OTHER_CHECKOUT")
    parser.add_argument("--only", nargs="+", choices=RUNS, default=list(RUNS))
    parser.add_argument("--work", type=Path, default=Path("build/same"))
    parser.add_argument("--keep", type=Path, help="folder of the other checkout's runs, which are used again")
    arguments = parser.parse_args()
    work, other = arguments.work.resolve(), arguments.other.resolve()
    keep = (arguments.keep or work / "other").resolve()
    shutil.rmtree(work / "cache", ignore_errors=True)  # its drawings may be by code that has changed since
    bad = []
    for name in arguments.only:
        values = RUNS[name](keep / "bases")
        theirs = train(other, values, keep / name)
        bad += differences(train(ROOT, values, work / name), theirs)
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
