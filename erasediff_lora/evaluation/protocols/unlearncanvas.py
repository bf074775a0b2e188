"""Styles and objects of UnlearnCanvas."""

from erasediff_lora.evaluation.protocols.base import NamedProtocol

PROTOCOL = NamedProtocol(
    version=2,
    source="Zhang et al., UnlearnCanvas, 2024: unlearning accuracy, in-domain and cross-domain retention. Its code"
    " (machine_unlearning/evaluation: sampling_unlearned_models, quantitative/accuracy.py): 'A {object} image in"
    " {style} style.', 100 steps of DDIM, guidance 9, 512 pixels, seeds 188, 288, 588, 688 and 888, and two"
    " ViT-L/16, which the recipe names as judge (unlearncanvas:FOLDER). Seeds and prompts come with a file, or are"
    " the recipe's.",
    values={"metrics": ["accuracy"], "steps": 100, "guidance": 9.0},
)
