"""HUB's prompts of a target, of what is near to it, and in other languages."""

from erasediff_lora.evaluation.protocols.base import NamedProtocol

PROTOCOL = NamedProtocol(
    version=1,
    source="Moon et al., Holistic Unlearning Benchmark, 2024 (lists: prompts/target_image, pinpoint_ness, "
    "multilingual_robustness, attack_robustness). It asks vision-language models; the judge is the "
    "recipe's.",
    values={"metrics": ["accuracy", "clip_score"], "steps": 50, "guidance": 7.5},
)
