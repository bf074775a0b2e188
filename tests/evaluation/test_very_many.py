"""Dozens of concepts: terminal, report and card stay of a size that people read."""

from __future__ import annotations

import json
import re
from pathlib import Path

from fixtures import Cli, RecipeFile
from tiny import tiny_classifier

FORGOTTEN = [f"artist {number}" for number in range(45)]
KEPT = [f"painter {number}" for number in range(45)]


def test_fifty_concepts(recipe_file: RecipeFile, cli: Cli, tmp_path: Path) -> None:
    judge = tiny_classifier(tmp_path / "judge", [*FORGOTTEN, *KEPT], favourite="artist 44")
    file = recipe_file(
        forget={"concepts": FORGOTTEN, "count": 45},
        retain={"concepts": KEPT, "count": 45, "neighbours": {"artist 3": KEPT}},
        sampling={"batch_size": 90, "steps": 1},
        training={"steps": 1},
        evaluation={"judge": f"transformers:{judge}", "metrics": ["accuracy"], "retain_samples": 45},
    )
    result = cli("train", file)
    assert result.status == 0
    assert "forget set, 45 pictures" in result.err and "of 25 others" in result.err and "1 to 1 each" in result.err
    assert result.out.count("became ") == 21 and "and 25 further concepts: see the report" in result.out
    run = tmp_path / "run"
    found = json.loads((run / "evaluation.json").read_text())
    assert len(found["metrics"]["accuracy"]["per_concept"]) == 90
    assert len(json.loads((run / "data_report.json").read_text())["forget"]["concepts"]) == 45
    for section in ("forget", "retain"):
        assert len([strip for strip in found["strips"] if strip["section"] == section]) == 40
    page = (run / "report.html").read_text()
    listed = ", ".join(FORGOTTEN[:12])
    assert f"<title>Erasing {listed} and 33 more: failed</title>" in page
    assert "The first 40 concepts are shown." in page and "36 more concepts" in page
    assert "5 that lost less are in evaluation.json" in page
    charted = re.search(r"Recognised without and with the adapter\. ([^<]*)<", page)
    assert charted is not None
    assert charted[1].count(" to ") == 40 and "artist 44: 100% to 100%" in charted[1].replace(".0%", "%")
    assert cli("publish", run, "--repo", "me/erase-artists", "--dry_run").status == 0
    assert f"{listed} and 33 more" in " ".join((run / "hub/README.md").read_text().split())
