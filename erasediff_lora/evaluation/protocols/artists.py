"""Styles of artists, by CLIP score."""

from erasediff_lora.evaluation.protocols.base import NamedProtocol

PROTOCOL = NamedProtocol(
    version=1,
    source="Lu et al., MACE, 2024: CLIP score with the erased artists' prompts (the lower, the better) and with "
    "the others'.",
    values={"metrics": ["clip_score"], "steps": 50, "guidance": 7.5},
    files={
        "a6fdba811c03e165bc9c886cb23ba21a1c1fa0e1ed42895567a5b6532b6d5873": "art_100_concepts.csv of MACE",
        "9d0b141b6674b5ef93be5a38c4d220ec56ca1ec096cdfdb5baf0932deca72362": "vangogh.csv of Diffusion-MU-Attack",
    },
)
