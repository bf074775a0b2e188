"""The report and the comparison, as files and in a real browser."""

from __future__ import annotations

import base64
import csv
import io
import json
import re
import shutil
from pathlib import Path

import pytest
import yaml
from browser import axe, visit
from fixtures import Cli
from refusals import refused
from test_attacks import ATTACKS, evaluation
from tiny import tiny_base_recipe, tiny_classifier, tiny_clip

from erasediff_lora.cli import main
from erasediff_lora.evaluation.charts import pareto_front
from erasediff_lora.evaluation.report import write_report

EVIL = '<script>document.title="owned"</script>\u202e\x1b[31m'


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> Path:
    """A tiny run with everything in its report."""
    root = tmp_path_factory.mktemp("report")
    judge = tiny_classifier(root / "judge", ["cat", "dog", "car"])
    tiny_clip(root / "clip")
    values = evaluation(
        judge,
        metrics=["accuracy", "distances", "drift", "strength_sweep", "clip_score", "nudity"],
        nudity={"detector": "opennsfw"},
        clip_score={"weights": str(root / "clip")},
        forget_samples=4,
        retain_samples=6,
        strength_sweep={"samples": 4, "strengths": [0.5, 1.5]},
    )
    file = tiny_base_recipe(tiny_base, root, evaluation=values, training={"learning_rate": 0.05})
    assert main(["train", str(file)]) == 0
    return root / "run"


def test_what_is_impossible_is_refused_with_the_reason_and_the_rest_is_made(run: Path) -> None:
    result = json.loads((run / "evaluation.json").read_text())
    assert list(result["metrics"]) == ["accuracy", "distances", "drift", "strength_sweep", "nudity"]
    assert set(result["refused"]) == {"clip_score"}
    assert "means nothing for pictures of 32 px" in result["refused"]["clip_score"]
    assert "means nothing for pictures of 32 px" in (run / "report.html").read_text()


def test_the_report_needs_nothing_but_itself(run: Path) -> None:
    page = (run / "report.html").read_text()
    assert not re.findall(r"""(?:src|href|url\()\s*=?\s*["']?(?:https?:|//|/|\.|file:|[a-z]+/)""", page)
    assert "<script" not in page
    assert str(run.parent) not in page and str(Path.home()) not in page, "nothing of where it was made"
    assert page.index("Erasing cat:") < page.index("Pictures that ask for cat") < page.index("Numbers")
    for heading in (
        "Attacks",
        "Provenance",
        "Strength of the adapter",
        "Training",
        "What is drawn in its place",
    ):
        assert heading in page
    for fact in ("Concept inversion", "Relearning", "never 0 apart", "structural similarity", "opennsfw", "float32"):
        assert fact in page


@pytest.mark.parametrize(("width", "scheme", "opened"), [
    (390, "light", True), (390, "dark", False), (768, "light", False), (1280, "dark", True), (1920, "light", True)
])  # fmt: skip
def test_the_report_in_a_browser(run: Path, width: int, scheme: str, opened: bool) -> None:
    seen = visit(run / "report.html", width, scheme, opened=opened)
    assert seen.console == []
    assert seen.facts["inner"] == width, "the window is as wide as asked for"
    assert seen.facts["scroll"] <= width and seen.facts["wide"] == []
    assert seen.facts["images"] >= 6 and seen.facts["broken"] == [] and seen.facts["noAlt"] == 0

    def light(colour: str) -> bool:
        return sum(int(part) for part in re.findall(r"\d+", colour)[:3]) > 380

    assert light(seen.facts["page"]) == (scheme == "light") != light(seen.facts["ink"])
    assert set(seen.facts["blur"]) == {"none"}


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_report_is_accessible(run: Path, scheme: str) -> None:
    seen = visit(run / "report.html", 390 if scheme == "dark" else 1280, scheme, script=axe())
    assert seen.facts["checks"] > 20 and seen.facts["violations"] == []


def test_a_page_that_is_not_accessible_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text(
        '<html lang="en"><body><img src="data:,"><p style="color:#ddd">pale words</p></body>'
    )
    found = " ".join(visit(tmp_path / "page.html", 400, script=axe()).facts["violations"])
    assert "image-alt" in found and "color-contrast" in found


def test_every_picture_has_its_prompt_its_seed_and_what_the_judge_says(run: Path) -> None:
    page, result = (run / "report.html").read_text(), json.loads((run / "evaluation.json").read_text())
    strips = {strip["section"] for strip in result["strips"]}
    assert strips == {"forget", "retain", "strength_sweep", *ATTACKS}
    for strip in result["strips"]:
        for column in strip["pictures"]:
            assert list(column["seen"]) == strip["rows"]
            assert f"“{column['prompt']}”, seed {column['seed']}" in page
    assert page.count('role="img"') == sum(len(s["rows"]) * len(s["pictures"]) for s in result["strips"])
    assert "at 0: " in page and "at 1.5: " in page, "pictures of every strength"


def test_numbers_and_recipe_can_be_saved(run: Path, tmp_path: Path) -> None:
    page, result = (run / "report.html").read_text(), json.loads((run / "evaluation.json").read_text())
    links = re.findall(r'download="([^"]+)" href="data:[^,]+;base64,([^"]+)"', page)
    saved = {name: base64.b64decode(data).decode("utf-8-sig") for name, data in links}
    assert len(saved) == len(links) and {"attacks.csv", "provenance.csv", "all-numbers.csv"} <= set(saved)
    numbers = dict(csv.reader(io.StringIO(saved["all-numbers.csv"])))
    accuracy = result["metrics"]["accuracy"]
    assert float(numbers["metrics/accuracy/unlearning_accuracy"]) == accuracy["unlearning_accuracy"]
    assert numbers["metrics/strength_sweep/rows/1/strength"] == "0.5"
    assert yaml.safe_load(saved["recipe.yaml"]) == result["recipe"]


def test_the_command_measures_it_again(run: Path, tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """As printed, but for the folders: of those the recipe has names only."""
    result = json.loads((run / "evaluation.json").read_text())
    (command,) = re.findall(
        r"^erasediff-lora (evaluate .*)$", (run / "report.html").read_text().replace("<", "\n<"), re.M
    )
    monkeypatch.chdir(tmp_path)
    own = yaml.safe_load((run / "recipe.yaml").read_text())
    recipe = result["recipe"] | {name: own[name] for name in ("model", "evaluation", "cache")}
    Path("recipe.yaml").write_text(yaml.safe_dump(recipe))
    shutil.copy(run / result["adapter"]["file"], tmp_path)
    done = cli(*command.split())
    assert done.status == 0, done.err
    again = json.loads((tmp_path / "again/evaluation.json").read_text())
    assert again["metrics"]["accuracy"] == result["metrics"]["accuracy"]


def test_a_cell_is_no_formula(run: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(run, tmp_path / "run"))
    text = (copy / "evaluation.json").read_text().replace('"cat"', json.dumps("=HYPERLINK(1)"))
    (copy / "evaluation.json").write_text(text)
    write_report(copy)
    links = re.findall(r'download="[^"]+csv" href="data:[^,]+;base64,([^"]+)"', (copy / "report.html").read_text())
    cells = [cell for data in links for row in csv.reader(io.StringIO(base64.b64decode(data).decode())) for cell in row]
    assert "'=HYPERLINK(1)" in cells and not any(cell.startswith("=") for cell in cells)


def test_nudity_is_blurred(run: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(run, tmp_path / "run"))
    result = json.loads((copy / "evaluation.json").read_text())
    (copy / "evaluation.json").write_text(json.dumps(result | {"blur": True}))
    write_report(copy)
    filters = visit(copy / "report.html", 1280).facts["blur"]
    assert filters and all(value.startswith("blur(") for value in filters)


def test_names_cannot_run_scripts_in_the_report(run: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(run, tmp_path / "run"))
    text = (copy / "evaluation.json").read_text()
    result = json.loads(text.replace('"cat"', json.dumps(EVIL)))
    result["strips"] = [strip | {"title": EVIL, "alt": EVIL} for strip in result["strips"]]
    (copy / "evaluation.json").write_text(json.dumps(result))
    write_report(copy)
    seen = visit(copy / "report.html", 390)
    assert seen.facts["scripts"] == 1, "the probe's own"
    assert "<script>" in seen.facts["text"] and seen.console == []


def test_compare(run: Path, tmp_path: Path, cli: Cli) -> None:
    other = Path(shutil.copytree(run, tmp_path / "other"))
    result = json.loads((other / "evaluation.json").read_text())
    result["metrics"]["accuracy"] |= {"unlearning_accuracy": 0.875, "retain_accuracy": 0.125}
    result["seeds"]["forget"] = [5, 6]
    (other / "evaluation.json").write_text(json.dumps(result))
    page = tmp_path / "page.html"
    done = cli("compare", run, other, "--output", page)
    assert done.status == 0, done.err
    rows = dict(re.findall(r"^\| ([^|]+) \| (.*) \|$", done.out, re.M))
    assert "| 87.5% (" in rows["unlearning accuracy"] and "| 12.5% (" in rows["retain accuracy"]
    assert "attack success, inversion" in rows and "relearning, steps" in rows
    seen = visit(page, 390)
    assert seen.console == [] and seen.facts["scroll"] <= 390 and seen.facts["noAlt"] == 0 == len(seen.facts["broken"])
    assert "different seeds" in seen.facts["text"] and "Erasure against retention" in seen.facts["text"]
    assert "Robustness against damage" in seen.facts["text"] and seen.facts["images"] >= 2
    assert visit(page, 1280, script=axe()).facts["violations"] == []
    refused(cli("compare", run, other, "--output", page), "exists already", "--overwrite")
    assert cli("compare", run, other, "--output", page, "--overwrite").status == 0


@pytest.mark.parametrize(("attack", "success", "shown"), [
    ("paraphrases", 0.0, False), ("paraphrases", 0.5, True), ("inversion", 0.0, True)
])  # fmt: skip
def test_a_run_that_nobody_attacked_in_earnest_is_on_no_front(
    attack: str, success: float, shown: bool, run: Path, tmp_path: Path, cli: Cli
) -> None:
    other = Path(shutil.copytree(run, tmp_path / "other"))
    result = json.loads((other / "evaluation.json").read_text())
    models = {name: {"success": share, "tries": {"1": share}, "pictures": 60, "per_concept": {}}
              for name, share in (("erased", success), ("base", 1.0))}  # fmt: skip
    result["attacks"] = {attack: {"title": "Some: attack", "budget": "", "models": models}}
    (other / "evaluation.json").write_text(json.dumps(result))
    answers = cli("compare", other, "--output", tmp_path / "page.html").out
    assert "| to be erased | cat |" in answers and "| erased | no |" in answers
    assert ("Robustness against damage" in (tmp_path / "page.html").read_text()) is shown


def test_compare_refuses(run: Path, tmp_path: Path, cli: Cli) -> None:
    page = tmp_path / "page.html"
    refused(cli("compare", run, tmp_path, "--output", page), "has no evaluation.json", "erasediff-lora evaluate RUN")
    refused(cli("compare", run, run, "--output", page), "names a run twice")
    old = tmp_path / "old"
    old.mkdir()
    (old / "evaluation.json").write_text('{"unlearning_accuracy": 1.0}')
    refused(cli("compare", run, old, "--output", page), "older version", "erasediff-lora evaluate RUN")
    (old / "evaluation.json").write_text("{")
    refused(cli("compare", old, "--output", page), "is damaged")
    assert not page.exists()


def test_pareto_front() -> None:
    points = {"a": (1.0, 0.5), "b": (0.9, 0.9), "c": (0.9, 0.8), "d": (0.5, 1.0), "e": (0.9, 0.9)}
    assert pareto_front(points) == ["a", "b", "d", "e"]
