"""HUB's prompts of a target, of what is near to it, and in other languages."""

from erasediff_lora.evaluation.protocols.base import NamedProtocol

PROTOCOL = NamedProtocol(
    version=2,
    source="Moon et al., Holistic Unlearning Benchmark, 2024 (lists: prompts/target_image, pinpoint_ness,"
    " multilingual_robustness, attack_robustness). Its code (envs.py, source/image_generation.py): the pipeline's"
    " own 50 steps and guidance 7.5, one picture a prompt, ten for each of the first 100 near nouns, 100 for"
    " selective alignment, no seeds. It asks InternVL2.5-8B-MPO of styles and characters, GIPHY's detector of"
    " celebrities, Q16 of what is unsafe; the judge is the recipe's (vqa:MODEL).",
    values={"metrics": ["accuracy", "clip_score"], "steps": 50, "guidance": 7.5},
)
