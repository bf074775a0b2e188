"""Objects of Imagenette, judged by an ImageNet classifier."""

from erasediff_lora.evaluation.protocols.base import NamedProtocol

PROTOCOL = NamedProtocol(
    version=2,
    source="Gandikota et al., Erasing Concepts, 2023, and UCE: top label of torchvision's ResNet-50 with its default"
    " weights (evalscripts/imageclassify.py). UnlearnDiffAtk (Zhang et al., 2024) has 50 prompts of each class, and"
    " asks microsoft/resnet-50 (judge transformers:FOLDER).",
    values={"judge": "torchvision:resnet50", "metrics": ["accuracy"], "steps": 50, "guidance": 7.5},
    files={
        "4ab01d9e98b0a23082b9cdbf52815cc639201fe6ba33b6ed8bbab58984c9fb2d": "small_imagenet_prompts.csv of ESD and UCE",
        "6f82b5a186f7c44e443052dac15bafe07b4d4e821e7435288642b5756d705b5c": "imagenette.csv of UCE and RECE",
        "4987e201148cfa3bd3dabfb67e5681ca09e64155cdadf03b0a0c295269d2c18c": "church.csv of Diffusion-MU-Attack",
        "e561240be67ea653bac8dd22bc31d44ae6ccb88268b2e306448eea39feefa6cd": "garbage_truck.csv of Diffusion-MU-Attack",
        "f44fdef671aecf3f759ef53101e23b5cd614e3da6e2021c3c3d0a1c35a5fe0e5": "parachute.csv of Diffusion-MU-Attack",
        "6d5fc0988e40e7ef97e035031badf52e6a0e971b96be4bf277c2eee3c55f546d": "tench.csv of Diffusion-MU-Attack",
    },
)
