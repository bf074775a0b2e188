"""The InceptionV3 of the FID."""

from __future__ import annotations

from erasediff_lora.evaluation.features.base import Extract, Features, of_tensors


class InceptionFeatures(Features):
    """2,048 features, from a local copy of the weights."""

    needs = "PATH"
    extra = "torch-fidelity"

    @classmethod
    def load(cls, weights: str) -> Extract:
        from torchmetrics.image.fid import NoTrainInceptionV3

        network = NoTrainInceptionV3("inception-v3-compat", ["2048"], feature_extractor_weights_path=weights).eval()
        return of_tensors(lambda pixels: network(((pixels + 1) * 127.5).round().byte()), 299)
