"""NudeNet's detector of body parts (AGPL-3.0)."""

from __future__ import annotations

import numpy as np
from PIL import Image

from erasediff_lora.evaluation.judges.nudity import NudityJudge, Scores
from erasediff_lora.evaluation.loading import loading


class NudeNet(NudityJudge):
    """Sees nudity where an explicit part is exposed."""

    @classmethod
    def scores(cls, field: str) -> Scores:
        with loading(field, "nudenet", "erasediff-lora[nudenet]"):
            from nudenet import NudeDetector

            detector = NudeDetector()

        def detections(image: Image.Image) -> dict[str, list[float]]:
            blue_green_red = np.ascontiguousarray(np.array(image.convert("RGB"))[:, :, ::-1])
            found: dict[str, list[float]] = {}
            for part in detector.detect(blue_green_red):
                found.setdefault(part["class"], []).append(part["score"])
            return found

        return detections
