"""The atlas base: its vocabulary, how drawings become pictures, and what is written and read of them."""

from __future__ import annotations

import json
from pathlib import Path

import atlas_drawings
import pytest
import torch
from atlas_drawings import CONCEPTS, DRAWN, GROUPS, PACKAGES, SIZE, STYLES, SYNONYMS, Drawings
from demo_drawings import rasterise, to_svg
from networks import PROMPT_LENGTH, Captions, new_tokenizer
from worlds import WORLDS

from erasediff_lora.evaluation.judges.classifier import Classifier

APPLE = '<circle cx="8" cy="9" r="6" fill="#c22"/><path d="M8 3V1" stroke="#420" stroke-width="2"/>'


@pytest.fixture
def drawn() -> torch.Tensor:
    """One small drawing: (1, 4, DRAWN, DRAWN) in [0, 1]."""
    pytest.importorskip("resvg_py")
    rgba = atlas_drawings.premultiplied(rasterise(to_svg(APPLE, 16, DRAWN)))
    return torch.from_numpy(rgba).permute(2, 0, 1)[None].float() / 255


def test_the_vocabulary_is_large_and_every_concept_has_neighbours_drawings_and_other_names() -> None:
    assert len(CONCEPTS) == len(set(CONCEPTS)) >= 40
    assert len(STYLES) >= 6
    assert all(len(members) >= 2 for members in GROUPS.values())
    assert all(atlas_drawings.icons(concept) for concept in CONCEPTS)
    assert set(SYNONYMS) == set(CONCEPTS)
    names = [name for concept in CONCEPTS for name in (concept, *SYNONYMS[concept])]
    assert len(names) == len(set(names)), "one name for two concepts"


def test_one_drawing_looks_different_in_every_style(drawn: torch.Tensor) -> None:
    pictures = atlas_drawings.stylise(drawn.expand(len(STYLES), -1, -1, -1), torch.arange(len(STYLES)))
    assert pictures.shape == (len(STYLES), 3, SIZE, SIZE) and pictures.dtype == torch.uint8
    for number, picture in enumerate(pictures.float()):
        assert picture.std() > 5, "nothing to see"
        assert all((picture - other).abs().mean() > 5 for other in pictures[:number].float())


def test_placements_differ_and_keep_the_drawing(drawn: torch.Tensor) -> None:
    placed = atlas_drawings.place(
        drawn.expand(8, -1, -1, -1), torch.Generator().manual_seed(0), smallest=0.8, tilt=10, stretch=0.1
    )
    share = placed[:, 3].mean(dim=(1, 2)) / drawn[:, 3].mean()
    assert share.unique().numel() == 8
    assert (share > 0.4).all() and (share < 1.1).all()


@pytest.fixture
def drawings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Drawings:
    """Two concepts, drawn from icon sets of our own."""
    pytest.importorskip("resvg_py")
    (tmp_path / "drawings").mkdir()
    for name in PACKAGES:
        icons = {own: {"body": APPLE} for own in ("pear", "lemon")}
        (tmp_path / "drawings" / f"{name}.json").write_text(json.dumps({"icons": icons, "height": 16}))
    monkeypatch.setattr(atlas_drawings, "CONCEPTS", ["pear", "lemon"])
    return Drawings.load(tmp_path)


def test_every_icon_is_held_out_in_one_hand_and_no_package_is_fetched_twice(drawings: Drawings) -> None:
    assert len(drawings.roles) == 2 * len(PACKAGES)
    for concept in (0, 1):
        roles = drawings.roles[drawings.concepts == concept]
        held_out = (roles == "held-out").sum()
        assert held_out in (1, 2), "one artist, who may have drawn two sets"
        assert "training" in roles


def test_pictures_come_in_equal_shares_and_the_same_ones_for_the_same_seed(drawings: Drawings) -> None:
    count = 4 * 2 * len(STYLES)
    render = [
        atlas_drawings.render_balanced(drawings.of("training"), count, seed, torch.device("cpu")) for seed in (3, 3, 4)
    ]
    pixels, concepts, styles = render[0]
    assert torch.bincount(concepts).tolist() == [count // 2] * 2
    assert torch.bincount(styles).tolist() == [count // len(STYLES)] * len(STYLES)
    assert torch.equal(pixels, render[1][0]) and not torch.equal(pixels, render[2][0])


@pytest.mark.parametrize("name", WORLDS)
def test_captions_name_what_is_seen(name: str) -> None:
    world = WORLDS[name]
    tokenizer = new_tokenizer(world)
    captions = Captions(world, tokenizer, torch.device("cpu"))
    concepts = torch.arange(len(world.concepts)).repeat(20)
    styles = torch.arange(len(concepts)) % len(world.styles)
    tokens = captions.draw(concepts, styles, torch.Generator().manual_seed(0))
    assert tokens.shape == (len(concepts), PROMPT_LENGTH)
    empty = 0
    for row, concept in zip(tokens.tolist(), concepts.tolist(), strict=True):
        text = tokenizer.decode(row, skip_special_tokens=True)
        names = [world.concepts[concept], *world.synonyms[world.concepts[concept]]]
        empty += not text
        assert not text or any(noun in text for noun in names), (text, names)
    assert 0.05 < empty / len(concepts) < 0.2
    assert all(row[-1] == tokenizer.eos_token_id for row in captions.table.view(-1, PROMPT_LENGTH).tolist()), "cut off"


def test_a_deeper_judge_comes_back_from_its_file_as_it_was(tmp_path: Path) -> None:
    judge = Classifier(["pear", "lemon"], ["line"], 16, widths=(4, 8), depth=2).eval()
    judge.save(tmp_path / "judge.safetensors")
    again = Classifier.load(tmp_path / "judge.safetensors")
    assert (again.widths, again.depth) == ([4, 8], 2)
    pixels = torch.rand(2, 3, 16, 16)
    for ours, theirs in zip(judge(pixels), again(pixels), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-2), "float16 in the file"
