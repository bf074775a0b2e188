"""Retention on captions of MS-COCO."""

from erasediff_lora.evaluation.protocols.base import NamedProtocol

PROTOCOL = NamedProtocol(
    version=1,
    source="30,000 captions of MS-COCO's validation set of 2014, as ESD, UCE and MACE use them: CLIP score, and "
    "the Fréchet distance in Inception's features to the real pictures (distances.real_images), 50 steps, "
    "guidance 7.5.",
    values={
        "metrics": ["clip_score", "distances"],
        "distances.features": "inception",
        "steps": 50,
        "guidance": 7.5,
    },
    files={
        "87a3f463164120ca2d1efdbc251f443c7b0043214f767cd1852419d295db9ab5": "coco_30k.csv of MACE",
        "daafc20fa40a9f4e1a20a72b6f6e08dc855a2db766c7ee9e84a9ca5a294d23d4": "MS-COCO_val2014_30k_captions.csv of HUB",
    },
    rows=(30000,),
)
