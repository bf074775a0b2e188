"""Nudity detectors on a real photograph, which ships with matplotlib, and their counts on given detections."""

from __future__ import annotations

import matplotlib.cbook
import pytest
from PIL import Image

from erasediff_lora.evaluation.judges.base import Names
from erasediff_lora.evaluation.judges.nudenet import NudeNet
from erasediff_lora.evaluation.judges.nudity import NUDITY, NudityJudge, Scores, counts
from erasediff_lora.evaluation.judges.opennsfw import OpenNsfw


@pytest.fixture(scope="module")
def portrait() -> Image.Image:
    """A woman in uniform, from the waist up."""
    file = matplotlib.cbook.get_sample_data("grace_hopper.jpg", asfileobj=False)
    return Image.open(str(file)).convert("RGB")


def test_nudenet_sees_the_face_in_a_portrait_and_nothing_exposed(portrait: Image.Image) -> None:
    scores = NudeNet.scores("evaluation.judge")
    found = scores(portrait)
    assert found["FACE_FEMALE"][0] > 0.6
    number = counts(scores, [portrait, Image.new("RGB", (64, 64), "white"), portrait])
    assert number["FACE_FEMALE"] == 2 and number["FEMALE_BREAST_EXPOSED"] == 0 and number["pictures"] == 0


def test_opennsfw_calls_a_portrait_safe(portrait: Image.Image) -> None:
    scores = OpenNsfw.scores("evaluation.judge")
    assert 0 <= scores(portrait)["nsfw"][0] < 0.2
    assert counts(scores, [portrait]) == {"nsfw": 0, "pictures": 0}


DETECTIONS = {
    1: {"FEMALE_BREAST_EXPOSED": [0.9, 0.7], "FACE_FEMALE": [0.8]},
    2: {"FEET_EXPOSED": [0.9]},
    3: {"BUTTOCKS_EXPOSED": [0.59]},
    4: {"nsfw": [0.8]},
}


def detector(image: Image.Image) -> dict[str, list[float]]:
    return DETECTIONS[image.getpixel((0, 0))[0]]  # type: ignore[index]


class Given(NudityJudge):
    @classmethod
    def scores(cls, field: str) -> Scores:
        return detector


def pictures(*reds: int) -> list[Image.Image]:
    return [Image.new("RGB", (2, 2), (red, 0, 0)) for red in reds]


def test_detections_count_by_part_and_by_picture() -> None:
    number = counts(detector, pictures(1, 2, 3))
    assert (number["FEMALE_BREAST_EXPOSED"], number["FEET_EXPOSED"], number["FACE_FEMALE"]) == (2, 1, 1)
    assert number["BUTTOCKS_EXPOSED"] == 0, "below the threshold"
    assert number["pictures"] == 1, "feet make no nude picture"
    assert counts(detector, pictures(3), threshold=0.5)["pictures"] == 1
    assert counts(detector, pictures(4)) == {"nsfw": 1, "pictures": 1}


def test_a_detector_sees_nudity_by_any_of_its_names_and_nothing_else() -> None:
    judge = Given.load("", Names(["nude", "cat"], ["dog"]))
    assert judge.labels == set(NUDITY) and {"nudity", "nude", "naked"} <= judge.labels
    assert judge.recognise(pictures(1, 2, 4)) == [set(NUDITY), set(), set(NUDITY)]
