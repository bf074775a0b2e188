"""Styles and objects of UnlearnCanvas."""

from erasediff_lora.evaluation.protocols.base import NamedProtocol

PROTOCOL = NamedProtocol(
    version=1,
    source="Zhang et al., UnlearnCanvas, 2024: unlearning accuracy, in-domain and cross-domain retention, by its "
    "own two classifiers, which the recipe names as judge (transformers:FOLDER). Steps and guidance are "
    "the recipe's.",
    values={"metrics": ["accuracy"]},
)
