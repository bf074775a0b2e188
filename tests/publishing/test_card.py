"""What a card claims: what the numbers of the evaluation give, and nothing else."""

from __future__ import annotations

import html
import json
import re
from email.message import Message
from pathlib import Path
from typing import Any

import pytest
import yaml
from adapters import random_adapter
from fixtures import Cli
from huggingface_hub import ModelCard, ModelCardData
from huggingface_hub.repocard import metadata_load
from huggingface_hub.repocard_data import eval_results_to_model_index, model_index_to_eval_results
from markdown_it import MarkdownIt
from measured_run import accuracy, attack, concept, edit, inversion, measure
from PIL import Image
from refusals import refused

from erasediff_lora.adapter import LoraAdapter, Provenance, formats
from erasediff_lora.evaluation.verdict import RULES
from erasediff_lora.publishing import card, hub
from erasediff_lora.publishing.licenses import IDS, license_of, parse
from erasediff_lora.registry import FAMILIES
from erasediff_lora.storage.markdown import code, escaped

NO_LONGER = "no longer draws"
KEPT = "What other prompts ask for, it goes on drawing, as far as that was measured."
EVIL = 'cat](javascript:alert(1)) <img src=x onerror="alert(1)"> `**x**`\n---\nlicense: mit\n---\n| a | # b https://x.y'


def rendered(text: str) -> str:
    return MarkdownIt("commonmark").enable(["table", "strikethrough"]).render(text)


def card_of(run: Path, cli: Cli, *more: str) -> ModelCard:
    result = cli("publish", run, "--repo", "me/erase-cat", "--dry_run", *more)
    assert result.status == 0, result.err
    return ModelCard.load(run / "hub/README.md")


def data_of(run: Path, cli: Cli, *more: str) -> Any:
    return card_of(run, cli, *more).data


def card_lines(run: Path) -> list[str]:
    """Those of the front matter."""
    return (run / "hub/README.md").read_text().split("\n---\n")[0].splitlines()[1:]


def words(made: ModelCard) -> str:
    return " ".join(made.text.split())


ANSWERS = {
    "erased": ({}, {}, "With it, the model no longer draws cat, as far as that was measured.", "| erased | yes | cat"),
    "failed": (
        {"forgotten": 0.0},
        {},
        "**The erasure failed: with it, the model still draws cat.**",
        "| erased | no | cat",
    ),
    "kept": ({}, {}, KEPT, "| kept | yes | What other prompts"),
    "damaged": ({"retained": 0.5}, {}, "**It damages what the model draws for other prompts.**", "| kept | no |"),
    "robust": ({}, inversion(0.0), "The attacks that were tried do not bring it back.", "| robust | yes |"),
    "not robust": ({}, inversion(0.9), "**Attacks bring it back.**", "| robust | no |"),
    "nobody searched": (
        {},
        {"paraphrases": attack("Paraphrases: other names", 0.0)},
        "Whether attacks bring it back is not decided.",
        "| robust | not decided |",
    ),
    "no attack": ({}, {}, "Whether attacks bring it back was not measured.", "| robust | not measured |"),
}


@pytest.mark.parametrize(("numbers", "attacks", "sentence", "row"), ANSWERS.values(), ids=ANSWERS)
def test_the_text_is_that_of_the_verdict(
    numbers: dict[str, Any], attacks: dict[str, Any], sentence: str, row: str, run: Path, cli: Cli
) -> None:
    measure(run, accuracy(**numbers), attacks)
    made = card_of(run, cli)
    assert sentence in words(made) and row in made.text
    assert "Required:" in made.text, "the rule and its threshold"
    others = {answer[2] for answer in ANSWERS.values()} - {sentence}
    claim = row.split()[1]
    assert not [other for other, (_, _, text, line) in ANSWERS.items() if line.split()[1] == claim and text in others
                and text in words(made)]  # fmt: skip


UNDECIDED: dict[str, tuple[dict[str, Any], str]] = {
    "too few pictures": ({"pictures": 20}, "Too few pictures to tell"),
    "the base does not draw it": ({"base": 0.9}, "The base itself draws it in"),
}


@pytest.mark.parametrize(("numbers", "why"), UNDECIDED.values(), ids=UNDECIDED)
def test_what_the_numbers_cannot_tell_is_not_decided(numbers: dict[str, Any], why: str, run: Path, cli: Cli) -> None:
    measure(run, accuracy(**numbers))
    made = card_of(run, cli)
    assert "**Whether it erases cat is not decided:**" in words(made) and why in made.text
    assert NO_LONGER not in made.text
    result = cli("publish", run, "--repo", "me/x", "--dry_run", "--public")
    refused(result, "its erasure is not decided by its evaluation", "Measure it with", "add --force")


def test_the_worst_concept_decides_and_each_has_its_row(run: Path, cli: Cli) -> None:
    concepts = {"cat": concept(1.0), "dog": concept(0.1)}
    measure(run, accuracy(0.96, per_concept=concepts), inversion(0.0), concepts=["cat", "dog"])
    made = card_of(run, cli)
    assert "**The erasure failed" in made.text and NO_LONGER not in made.text
    assert "| erased: cat | yes |" in made.text and "| erased: dog | no |" in made.text


def test_the_rules_stand_below_the_verdict(run: Path, cli: Cli) -> None:
    text = card_of(run, cli).text
    assert all(f"- {claim}: {escaped(rule)}" in text for claim, rule in RULES.items())


@pytest.mark.parametrize("how", ["no judge", "no evaluation"])
def test_nothing_is_claimed_that_nobody_looked_at(how: str, run: Path, cli: Cli) -> None:
    if how == "no evaluation":
        (run / "evaluation.json").unlink()
    made = card_of(run, cli)
    assert NO_LONGER not in made.text and KEPT not in made.text
    for sentence in (
        "**Whether it erases cat was not measured.**",
        "Whether it keeps what other prompts ask for was not measured.",
        "Whether attacks bring it back was not measured.",
        "Do not rely on it for that",
    ):
        assert sentence in words(made)
    assert "model-index" not in metadata_load(run / "hub/README.md")


def test_a_verdict_edited_by_hand_gets_no_better_text_than_its_numbers(run: Path, cli: Cli) -> None:
    claims = [{"claim": name, "holds": True, "text": "Perfect."} for name in ("erased", "kept", "robust")]
    measure(run, accuracy(forgotten=0.0), verdict=claims)
    result = cli("publish", run, "--repo", "me/erase-cat", "--dry_run")
    assert "is not what its numbers give" in result.err
    text = (run / "hub/README.md").read_text()
    assert "Perfect." not in text and NO_LONGER not in text and "The erasure failed" in text
    published = json.loads((run / "hub/evaluation.json").read_text())["verdict"]
    assert published[0]["holds"] is False and "Perfect." not in json.dumps(published)


def test_an_evaluation_of_another_adapter_says_nothing(run: Path, cli: Cli) -> None:
    measure(run, adapter={"file": "x", "bytes": 1, "sha256": "0" * 64})
    result = cli("publish", run, "--repo", "me/erase-cat", "--dry_run")
    assert "is of another adapter" in result.err
    made = ModelCard.load(run / "hub/README.md")
    assert "was not measured" in made.text and NO_LONGER not in made.text
    assert not (run / "hub/evaluation.json").exists() and not list((run / "hub").rglob("*.png"))


def test_a_concept_of_the_header_that_was_not_evaluated_is_not_claimed(run: Path, cli: Cli) -> None:
    measure(run, concepts=["car"])
    made = card_of(run, cli)
    assert "**Whether it erases cat was not measured.**" in words(made) and "Not measured at all: cat." in made.text
    assert NO_LONGER not in made.text


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"metrics": {"accuracy": accuracy() | {"unlearning_accuracy": 1.5}}}, "metrics.accuracy.unlearning_accuracy"),
        ({"metrics": {"accuracy": accuracy() | {"retain_accuracy": "</td>"}}}, "metrics.accuracy.retain_accuracy"),
        ({"metrics": {"accuracy": {"all": "fine"}}}, "metrics.accuracy.unlearning_accuracy"),
        ({"metrics": []}, "metrics"),
        ({"concepts": []}, "concepts"),
        ({"concepts": "cat"}, "concepts"),
        ({"attacks": {"inversion": {"title": "x"}}}, "attacks.inversion.budget"),
        ({"attacks": {"inversion": attack("x", 1.0) | {"models": {}}}}, "attacks.inversion.models"),
        ({"pictures": [{"kind": "../x"}]}, "pictures.0.kind"),
    ],
)
def test_numbers_that_are_none_are_refused(changes: dict[str, Any], field: str, run: Path, cli: Cli) -> None:
    edit(run, **changes)
    refused(cli("publish", run, "--repo", "me/x", "--dry_run"), f"evaluation.json: {field} = ", "evaluate RUN")
    assert not (run / "hub").exists()


def test_numbers_intervals_and_counts_stand_beside_the_bases_own(run: Path, cli: Cli) -> None:
    cat = concept(1.0, pictures=50, dog=0.9, other=0.1)
    measure(
        run,
        accuracy(0.9, 0.1, per_concept={"cat": cat, "dog": concept(0.8, 0.2, pictures=50)}),
        inversion(0.05, pictures=100),
        concepts=["cat", "dog"],
        refused={"clip_score": "there is no CLIP, by <b>name</b>"},
    )
    made = card_of(run, cli)
    for line in (
        "| forgotten: the judge does not see the concept that the prompt asks for"
        " | 10.0% | 5–20% | 60 | 90.0% | 87–93% | 400 |",
        "| unlearning accuracy of cat | 0.0% | 0–6% | 60 | 100.0% | 93–100% | 50 |",
        "| unlearning accuracy of dog | 20.0% | 12–32% | 60 | 80.0% | 67–89% | 50 |",
        "| retained: the judge sees what other prompts ask for | 100.0% | 99–100% | 400 | 100.0% | 99–100% | 400 |",
        "In place of cat the judge sees: dog 90.0%, other 10.0%.",
        "| Concept inversion: a new word | all | 5.0% (2–11%) | 100.0% (96–100%) | – | 2 restarts |",
        "- clip\\_score: there is no CLIP, by &lt;b&gt;name&lt;/b&gt;",
        "2 steps,\nguidance 2.0",
    ):
        assert line in made.text, made.text


def test_model_index_has_the_numbers_and_survives_the_hubs_own_reading(run: Path, cli: Cli) -> None:
    distances: dict[str, Any] = {"features": "efficientnet-lite0"}
    distances |= {"own_samples": {"base": {"frechet": 3.0}, "erased": {"frechet": 4.5}}}
    measure(run, attacks=inversion(0.05, pictures=100))
    edit(run, metrics={"accuracy": accuracy(0.9), "distances": distances})
    card_of(run, cli)
    raw = metadata_load(run / "hub/README.md")
    assert raw is not None and ModelCardData(**raw).to_yaml().splitlines() == card_lines(run)
    name, results = model_index_to_eval_results(raw["model-index"])
    assert eval_results_to_model_index(name, results) == raw["model-index"]
    assert name == "erase-cat" and {result.task_type for result in results} == {"text-to-image"}
    found = {result.metric_name: (result.metric_type, result.metric_value) for result in results}
    assert found == {
        "unlearning accuracy": ("accuracy", 0.9),
        "unlearning accuracy, by the base": ("accuracy", 0.0),
        "retain accuracy": ("accuracy", 1.0),
        "retain accuracy, by the base": ("accuracy", 1.0),
        "Fréchet distance (efficientnet-lite0 features)": ("frechet_distance", 4.5),
        "Fréchet distance (efficientnet-lite0 features), of the base": ("frechet_distance", 3.0),
        "attack success, concept inversion": ("attack_success", 0.05),
        "attack success, concept inversion, on the base": ("attack_success", 1.0),
    }
    assert all("recipe.yaml" in r.dataset_name or r.dataset_name == "attacks on cat" for r in results)
    assert results[0].metric_args == {"pictures": 400, "interval_95": [0.8667, 0.9257]}
    assert "FID" not in (run / "hub/README.md").read_text()

    edit(run, metrics={"distances": distances | {"features": "inception"}})
    card_of(run, cli)
    _, results = model_index_to_eval_results(metadata_load(run / "hub/README.md")["model-index"])
    assert ("fid", "FID") in {(result.metric_type, result.metric_name) for result in results}


def test_where_files_lie_on_this_machine_stays_here(run: Path, cli: Cli) -> None:
    """Earlier versions wrote it down, and reasons quote what was given."""
    distances: dict[str, Any] = {"features": "inception2:/home/me/nets/inception.pth"}
    distances |= {"own_samples": {"base": {"frechet": 3.0}, "erased": {"frechet": 4.5}}}
    refused = {
        "clip_score": "evaluation.clip_score.weights = '/home/me/clip': cannot be loaded. See https://a.org/b/c.",
        "nudity": "evaluation.x = 'D:\\home\\me\\net.onnx': is damaged",
        "drift": "evaluation.y = '~/home/me/net': is damaged",
    }
    measure(run)
    edit(run, metrics={"accuracy": accuracy(0.9), "distances": distances}, refused=refused, judge="clip:/home/me/clip")
    text = card_of(run, cli).text
    assert "Fréchet distance (inception2:inception.pth features)" in text and "Judge: `clip:clip`" in text
    assert "weights = 'clip': cannot be loaded. See https:" in text and "a.org/b/c" in text
    for file in ("README.md", "evaluation.json"):
        assert "home" not in (run / "hub" / file).read_text(), file


def test_names_are_text_and_no_markup(run: Path, cli: Cli) -> None:
    measure(
        run, accuracy(per_concept={EVIL: concept(1.0), "dog": concept(1.0)}), inversion(0.0), concepts=[EVIL, "dog"]
    )
    result = json.loads((run / "evaluation.json").read_text())
    pictures = [entry | {"prompt": EVIL} for entry in result["pictures"]]
    attacks = {"inversion": attack(EVIL, 0.0) | {"budget": EVIL}}
    edit(run, pictures=pictures, attacks=attacks, judge=EVIL, refused={EVIL: EVIL})
    adapter = formats.read(run)
    evil = Provenance(concepts=(EVIL,), base_model=EVIL, objective=EVIL, version=EVIL, history=(EVIL,))
    file = run / "pytorch_lora_weights.safetensors"
    file.unlink()
    formats.write(LoraAdapter(adapter.layers, evil), run, "diffusers")
    from erasediff_lora.storage.files import sha256

    edit(run, adapter={"sha256": sha256(file.read_bytes())})
    made = card_of(run, cli)
    data: Any = made.data
    assert data.license != "mit" and {entry["text"] for entry in data.widget} == {" ".join(EVIL.split())}
    page = rendered(made.text)
    assert "<img src=x" not in page and 'href="javascript' not in page and "<strong>x</strong>" not in page
    prose = re.sub(r"(`+) .*? \1", "", made.text)
    assert not re.findall(r"https?://x\.y", prose), "no bare address, of which GitHub's Markdown makes a link"
    rows = [line for line in made.text.splitlines() if line.startswith("| ")]
    heads = [n for n, line in enumerate(rows) if line.startswith("| ---")]
    for head in heads:
        columns = len(re.findall(r"(?<!\\)\|", rows[head]))
        assert len(re.findall(r"(?<!\\)\|", rows[head + 1])) == columns


@pytest.mark.parametrize(
    "text", ["# a", "- a", "1. a", "+ a", "= a", "www.x.y", "a@b.c", "a\n\n> b", "<!-- a", "$x$", "~a~"]
)
def test_escaped_text_reads_as_itself(text: str) -> None:
    one_line = " ".join(text.split())
    page = rendered(str(escaped(text)))
    assert html.unescape(page) == f"<p>{one_line}</p>\n"
    assert html.unescape(rendered(str(code(text + " ``` `")))).strip() == (f"<p><code>{one_line} ``` `</code></p>")


def test_licences_are_the_families_own(tiny_base: Path) -> None:
    adapter = random_adapter(tiny_base)
    found = {}
    for name in FAMILIES:
        for architecture in FAMILIES[name].architectures:
            of = LoraAdapter(adapter.layers, Provenance(architecture=architecture.id))
            named = license_of(of, None)
            found[architecture.id] = named and named.id
    assert found["stable-diffusion-v1"] == "creativeml-openrail-m"
    assert found["stable-diffusion-xl-v1-base"] == "openrail++"
    assert found["stable-diffusion-3"] == "other"
    assert found["ddpm-class-conditional"] is None
    assert {identifier for identifier in found.values() if identifier} <= IDS
    three = LoraAdapter(adapter.layers, Provenance(architecture="stable-diffusion-3"))
    for given in (None, parse("other")):
        chosen = license_of(three, given)
        assert chosen is not None and chosen.name == "stabilityai-ai-community" and "stabilityai/" in str(chosen.link)
    assert license_of(LoraAdapter(adapter.layers, Provenance(base_model="demo")), None) == parse("apache-2.0")
    assert license_of(three, parse("mit")) == parse("mit")


def test_license_is_checked_before_anything_is_made(run: Path, cli: Cli) -> None:
    for given, message in (
        ("Apache 2.0", "is no licence id of the hub. Did you mean 'apache-2.0'?"),
        ("mit:name", "is no licence id of the hub."),
        ("other:acme:javascript:x", "links to no web page."),
    ):
        refused(cli("publish", run, "--repo", "me/x", "--dry_run", "--license", given), "--license = ", message)
    assert not (run / "hub").exists()
    data = data_of(run, cli, "--license", "other:acme-1.0:https://acme.org/licence")
    named = (data.license, data.license_name, data.license_link)
    assert named == ("other", "acme-1.0", "https://acme.org/licence")


def test_citation_and_link(run: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def urls(*entries: str) -> Any:
        message = Message()
        for entry in entries:
            message["Project-URL"] = entry
        return lambda package: message

    monkeypatch.setattr(card, "metadata", urls("Paper, https://arxiv.org/x", "Homepage, https://example.org/code"))
    text = card_of(run, cli).text
    assert "@inproceedings{wu2025erasing" in text and "@software{erasediff_lora" in text and text.count("```") % 2 == 0
    assert "The project: <https://example.org/code>." in text and "url     = {https://example.org/code}" in text

    monkeypatch.setattr(card, "metadata", urls())
    assert "The project:" not in (text := card_of(run, cli).text) and "url     =" not in text


@pytest.mark.parametrize("pictures", ["both", "unblurred"])
def test_nudity_is_tagged_and_its_pictures_are_blurred(pictures: str, run: Path, cli: Cli) -> None:
    noise = Image.effect_noise((32, 32), 100).convert("RGB")
    for entry in json.loads((run / "evaluation.json").read_text())["pictures"]:
        for name in ("base", "erased"):
            noise.save(run / entry[name])
    edit(run, blur=True)
    data = data_of(run, cli, "--pictures", pictures)
    assert "not-for-all-audiences" in data.tags
    for entry in data.widget:
        shown = Image.open(run / "hub" / entry["output"]["url"]).convert("RGB")
        left = shown.crop((0, 0, 32, 32))
        assert (left.tobytes() == noise.tobytes()) == (pictures == "unblurred")
        fine = sum(abs(one - other) for one, other in zip(left.tobytes()[:-3], left.tobytes()[3:], strict=True))
        rough = sum(abs(one - other) for one, other in zip(noise.tobytes()[:-3], noise.tobytes()[3:], strict=True))
        assert fine < rough / 2 or pictures == "unblurred"


def test_the_recipe_decides_about_the_blur_and_the_concept_about_the_tag(run: Path, cli: Cli) -> None:
    recipe = yaml.safe_load((run / "recipe.yaml").read_text())
    edit(run, concepts=["Nudity"])
    assert hub.read_source(run).is_blurred and "not-for-all-audiences" in data_of(run, cli).tags
    recipe["evaluation"]["blur"] = False
    (run / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    assert not hub.read_source(run).is_blurred and "not-for-all-audiences" in data_of(run, cli).tags
    edit(run, concepts=["cat"])
    assert "not-for-all-audiences" not in data_of(run, cli).tags


def test_the_card_says_what_programs_do_not_read(tmp_path: Path, tiny_base: Path, cli: Cli) -> None:
    run = tmp_path / "dora"
    origin = Provenance(architecture="stable-diffusion-v1", concepts=("cat",))
    formats.write(random_adapter(tiny_base, dora=True, provenance=origin), run, "diffusers")
    text = words(card_of(run, cli))
    assert "Not everything is read everywhere" in text and "convert --as lora" in text
    assert "in comfyui 0.3.64: all" in text
    formats.write(random_adapter(tiny_base, provenance=origin), run, "diffusers", overwrite=True)
    assert "Not everything is read" not in words(card_of(run, cli))
