"""The numbers of the README and of the pages are those of the results beside them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent.parent
README = (ROOT / "README.md").read_text()
METHODS = (ROOT / "docs/methods.md").read_text()
MEASUREMENTS = (ROOT / "docs/measurements.md").read_text()
GIB = 2**30


def results(name: str) -> Any:
    return json.loads((ROOT / f"docs/results/{name}.json").read_text())


def rows(text: str, head: str) -> Iterator[list[str]]:
    """The cells of the first table whose head begins so, without marks of emphasis."""
    for line in text[text.index(f"\n{head}") + 1 :].splitlines()[2:]:
        if not line.startswith("|"):
            return
        yield [cell.strip().replace("**", "") for cell in line.strip("|").split("|")]


def percents(*shares: float) -> list[str]:
    return [f"{share:.1%}" for share in shares]


def robust() -> list[str]:
    """The preset's row: the first restart of inversion counts, as for the others."""
    runs = [run for run in results("robust")["rows"] if run["name"] in ("cat", "clock", "car")]
    return percents(
        fmean(run["unlearning_accuracy"] for run in runs),
        fmean(run["retain_accuracy"] for run in runs),
        fmean(run["attacks"]["inversion"]["tries"]["restart 1"] for run in runs),
    )


def compared(method: str, mode: str = "adapter") -> list[str]:
    (row,) = (row for row in results("methods_demo")["summary"] if (row["method"], row["mode"]) == (method, mode))
    return percents(row["unlearning_accuracy"], row["retain_accuracy"], row["inversion"])


def test_the_readme_compares_methods_as_measured() -> None:
    measured = {
        "EraseDiff, robust preset, trained against words alone (300 steps)": robust(),
        "EraseDiff, fast setting (80 steps)": compared("erasediff"),
        "concept ablation": compared("concept_ablation"),
        "SalUn": compared("saliency"),
        "ESD": compared("esd"),
    }
    assert {name: cells for name, *cells in rows(README, "| method")} == measured


def test_the_page_of_methods_has_the_same_numbers() -> None:
    found = {(row[0], row[1]): (row[4], row[5], row[7]) for row in rows(METHODS, "| method")}
    for row in results("methods_demo")["summary"]:
        name = row["method"], row["mode"]
        assert found.pop(name) == tuple(compared(*name)), name
    ((name, cells),) = found.items()
    assert "robust" in name[0]
    assert [cells[0], cells[1].partition(" ")[0], cells[2]] == robust()


def test_every_erasure_of_the_embedded_model() -> None:
    """With attention alone, the last column, of which the results are kept."""
    erased = results("demo_concepts")
    shown = {(row[0], row[1]): row for row in rows(MEASUREMENTS, "| erased | seed")}
    for run in erased:
        row = shown[(run["erased"], str(run["seed"]))]
        base = f"{run['retain_accuracy_base']:.1%}"
        assert row[5] == " / ".join(percents(run["unlearning_accuracy"], run["retain_accuracy"]))
        assert row[2] == f"{run['forget_samples']} + {run['retain_samples']}" and f"({base})" in row[4]


@pytest.mark.parametrize(("name", "label"), [
    ("sd15-512", "Stable Diffusion 1.5, 512 px, one picture at a time, on an H100"),
    ("sdxl-1024-checkpointing", "Stable Diffusion XL, 1024 px, checkpointing, on an H100"),
])  # fmt: skip
def test_what_the_readme_says_of_memory_and_time(name: str, label: str) -> None:
    measured = results("gpu")
    memory, seconds = {row[0]: row[1:] for row in rows(README, "| model | memory")}[label]
    assert f"{measured['memory']['rows'][name]['measured_bytes'] / GIB:.1f} GiB to train" in memory
    steps = [row["step"] for row in measured["step"]["rows"] if row["configuration"].startswith(name)]
    assert any(f"{step:.2f} s" in seconds or f"{step:.1f} s" in seconds for step in steps)


def test_what_drawing_and_searching_take() -> None:
    measured = []
    for row in results("evaluation")["rows"]:
        apart = row.get("largest_difference", 0.0)
        told = f"{apart} of 255" if "pictures" in row else f"{apart:.0e} of {row['largest_value']:.2f}" if apart else ""
        ratio = f"{row['after'] / row['before']:.2f}"
        measured.append([row["work"], f"{row['before']:.2f} s", f"{row['after']:.2f} s", ratio, told])
        assert row.get("judged_alike", True)
    assert list(rows(MEASUREMENTS, "| work | before")) == measured
    (drawn,) = (row for row in results("evaluation")["rows"] if "pictures" in row)
    assert "One value of 20,000" in " ".join(MEASUREMENTS.split())
    assert round(1 / drawn["share_of_values_that_differ"], -4) == 20_000


def test_what_blocks_of_a_transformer_take() -> None:
    measured = [
        [
            name.replace("z_image", "Z-Image"),
            *(f"{row[key] / GIB:.2f} GiB" for key in ("predicted_bytes", "measured_bytes")),
            f"{row['predicted_bytes'] / row['measured_bytes'] - 1:+.1%}",
        ]
        for name, row in results("blocks").items()
    ]
    assert list(rows(MEASUREMENTS, "| two blocks of each kind")) == measured


def test_what_searches_in_either_space_find() -> None:
    page = (ROOT / "docs/robust.md").read_text()
    measured = []
    for row in results("search_spaces")["rows"]:
        found = [
            f"{max(row[space]['erased'].values()):.1%} ({max(row[space]['base'].values()):.1%})"
            for space in ("tokens", "outputs")
        ]
        shares = percents(row["unlearning_accuracy"], row["retain_accuracy"])
        distance = f"{row['frechet']['erased']:.1f} ({row['frechet']['base']:.1f})"
        pictures = "{forget} + {retain}, {restart}".format(**row["pictures"])
        cost = f"{row['processor_seconds']:.0f}"
        measured.append([row["concept"], row["trained"], pictures, cost, *shares, distance, *found])
    assert list(rows(page, "| erased | trained | pictures")) == measured
    cat, clock, style = (
        {space: max(row[space]["erased"].values()) for space in ("tokens", "outputs")}
        for row in results("search_spaces")["rows"]
        if row["trained"] == "robust, both"
    )
    told = f"words find it in {cat['tokens']:.1%}, embeddings that no word has in {cat['outputs']:.1%}"
    others = f'("clock" {clock["outputs"]:.1%}, a style {style["outputs"]:.1%})'
    assert f"{told} {others}" in " ".join(README.split())
