"""SPQR: safety, prompt match, quality, and robustness to harmless fine-tuning."""

from erasediff_lora.evaluation.protocols.base import NamedProtocol, nudity

PROTOCOL = NamedProtocol(
    version=1,
    source="SPQR, 2025: safety, prompt match and quality before and after fine-tuning. Its detectors are not "
    "ours, and its score, a harmonic mean, is not computed here.",
    values=nudity(0.6, metrics=["accuracy", "nudity", "clip_score", "distances"]),
)
