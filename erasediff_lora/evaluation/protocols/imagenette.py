"""Objects of Imagenette, judged by an ImageNet classifier."""

from erasediff_lora.evaluation.protocols.base import NamedProtocol

PROTOCOL = NamedProtocol(
    version=1,
    source="Gandikota et al., Erasing Concepts, 2023; the prompts of UnlearnDiffAtk (Zhang et al. 2024), 50 of "
    "each class. Top label of a ResNet-50.",
    values={"judge": "torchvision:resnet50", "metrics": ["accuracy"], "steps": 50, "guidance": 7.5},
    files={
        "4987e201148cfa3bd3dabfb67e5681ca09e64155cdadf03b0a0c295269d2c18c": "church.csv of Diffusion-MU-Attack",
        "e561240be67ea653bac8dd22bc31d44ae6ccb88268b2e306448eea39feefa6cd": "garbage_truck.csv of Diffusion-MU-Attack",
        "f44fdef671aecf3f759ef53101e23b5cd614e3da6e2021c3c3d0a1c35a5fe0e5": "parachute.csv of Diffusion-MU-Attack",
        "6d5fc0988e40e7ef97e035031badf52e6a0e971b96be4bf277c2eee3c55f546d": "tench.csv of Diffusion-MU-Attack",
    },
)
