"""Retention on captions of MS-COCO."""

from erasediff_lora.evaluation.protocols.base import NamedProtocol

PROTOCOL = NamedProtocol(
    version=2,
    source="30,000 captions of MS-COCO's validation set of 2014, as ESD, UCE and MACE use them: CLIP score (MACE's:"
    " openai/clip-vit-base-patch32, metrics/evaluate_clip_score.py), and the Fréchet distance in Inception's features"
    " to the real pictures (distances.real_images; clean-fid in MACE and SPM, which resizes otherwise), 50 steps,"
    " guidance 7.5.",
    values={
        "metrics": ["clip_score", "distances"],
        "distances.features": "inception",
        "steps": 50,
        "guidance": 7.5,
    },
    files={
        "87a3f463164120ca2d1efdbc251f443c7b0043214f767cd1852419d295db9ab5": "coco_30k.csv of MACE, UCE, RECE, SAFREE",
        "42c57b188c8f1f8a77cddfa11cde89e83fcbdd4dcd4fc6c840fb4e046d395383": "coco_30k.csv of ESD",
        "afa3bdcbc3684f66b9d3a48a9a1fc41ef2a6f0bc2f12e175e0400956e52dd0f3": "coco_30k.csv of SPM and EraseEval",
        "d022a59b16fe837969ff8f5974eaa64f00b68862600ec58ffd2efbf1ffdf0d38": "coco_30k.csv of Receler",
        "daafc20fa40a9f4e1a20a72b6f6e08dc855a2db766c7ee9e84a9ca5a294d23d4": "MS-COCO_val2014_30k_captions.csv of HUB",
    },
    rows=(30000,),
    reference="MS-COCO's validation set of 2014",
)
