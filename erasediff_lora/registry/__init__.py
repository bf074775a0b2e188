"""All that a recipe or a command can name, and where it is: one line each.

A new part is a file and a line here. Other packages add theirs without a line of ours, by entry points of the same
names: `[project.entry-points."erasediff_lora.objectives"]` and so on.

A part that has options in a recipe brings them as `Settings`, a `recipe.Section`: fields with their descriptions, which
become YAML keys and flags, and a `check(sections)` that returns `Problem`s between them and the recipe's other tables.
"""

from __future__ import annotations

from erasediff_lora.registry.lookup import Registry

_OBJECTIVES = "erasediff_lora.objectives"
_EXTRAS = "erasediff_lora.data.extras"
_LAYOUTS = "erasediff_lora.data.layouts"
_TRAINABLES = "erasediff_lora.training.trainables"
_FAMILIES = "erasediff_lora.families"
_FORMATS = "erasediff_lora.adapter.formats"
_KINDS = "erasediff_lora.adapter.kinds"
_PROGRAMS = "erasediff_lora.adapter.programs"
_METRICS = "erasediff_lora.evaluation.metrics"
_ATTACKS = "erasediff_lora.evaluation.attacks"
_JUDGES = "erasediff_lora.evaluation.judges"
_FEATURES = "erasediff_lora.evaluation.features"
_LAUNCHERS = "erasediff_lora.sweeps.launchers"
_SURVIVAL = "erasediff_lora.evaluation.survival"
_PROTOCOLS = "erasediff_lora.evaluation.protocols"

OBJECTIVES = Registry(
    "objectives",
    {
        "erasediff": f"{_OBJECTIVES}.erasediff:EraseDiff",
        "finetune": f"{_OBJECTIVES}.finetune:Finetune",
        "negative_gradient": f"{_OBJECTIVES}.negative_gradient:NegativeGradient",
        "saliency": f"{_OBJECTIVES}.saliency:Saliency",
        "selective_amnesia": f"{_OBJECTIVES}.selective_amnesia:SelectiveAmnesia",
        "esd": f"{_OBJECTIVES}.esd:Esd",
        "concept_ablation": f"{_OBJECTIVES}.concept_ablation:ConceptAblation",
        "blindspot": f"{_OBJECTIVES}.blindspot:Blindspot",
        "spm": f"{_OBJECTIVES}.spm:Spm",
        "uce": f"{_OBJECTIVES}.uce:Uce",
        "rece": f"{_OBJECTIVES}.rece:Rece",
    },
)
"""Erasure methods: classes that are an `objectives.Objective`."""

EXTRAS = Registry(
    "extras",
    {
        "anchors": f"{_EXTRAS}:Anchors",
        "empty": f"{_EXTRAS}:Empty",
        "scattered": f"{_EXTRAS}:Scattered",
        "uniform": f"{_EXTRAS}:Uniform",
        "shift": f"{_EXTRAS}:Shift",
        "noise_surrogate": f"{_EXTRAS}:NoiseSurrogate",
        "anchor_surrogate": f"{_EXTRAS}:AnchorSurrogate",
    },
)
"""What objectives may need of a forget batch: classes that are a `data.extras.Extra`."""

LAYOUTS = Registry(
    "layouts",
    {"fashion_mnist": f"{_LAYOUTS}.fashion_mnist:FashionMnist", "cifar10": f"{_LAYOUTS}.cifar10:Cifar10"},
)
"""Labelled image sets as their authors distribute them: classes that are a `data.layouts.Layout`."""

TRAINABLES = Registry(
    "trainables",
    {"lora": f"{_TRAINABLES}.lora:LowRank", "none": f"{_TRAINABLES}.full:FullWeights"},
)
"""What is trained of a network: classes that are a `training.trainables.Trainable`."""

FAMILIES = Registry(
    "families",
    {
        name: f"{_FAMILIES}.{name}:FAMILY"
        for name in (
            "stable_diffusion",
            "stable_diffusion_xl",
            "stable_diffusion_3",
            "flux",
            "flux_2_klein",
            "z_image",
            "qwen_image",
            "lumina_2",
            "class_conditional",
        )
    },
)
"""Base models: a `families.Family` each."""

FORMATS = Registry(
    "formats",
    {"diffusers": f"{_FORMATS}.diffusers", "kohya": f"{_FORMATS}.kohya", "peft": f"{_FORMATS}.peft"},
)
"""Adapter files: modules or objects that are an `adapter.formats.Format`."""

KINDS = Registry(
    "kinds",
    {
        "loha": f"{_KINDS}.loha:KIND",
        "lokr": f"{_KINDS}.lokr:KIND",
        "tucker": f"{_KINDS}.tucker:KIND",
        "full": f"{_KINDS}.full:KIND",
    },
)
"""Updates other than LoRA in adapter files: an `adapter.kinds.Kind` each."""

PROGRAMS = Registry(
    "programs",
    {
        name: f"{_PROGRAMS}.{name}:PROGRAM"
        for name in ("diffusers", "comfyui", "a1111", "forge", "invokeai", "kohya", "peft")
    },
)
"""What loads adapter files: an `adapter.programs.Program` each."""

METRICS = Registry(
    "metrics",
    {
        "accuracy": f"{_METRICS}.accuracy:Accuracy",
        "distances": f"{_METRICS}.distances:Distances",
        "drift": f"{_METRICS}.drift:Drift",
        "clip_score": f"{_METRICS}.clip_score:ClipScore",
        "nudity": f"{_METRICS}.nudity:Nudity",
        "negative_prompt": f"{_METRICS}.negative_prompt:NegativePrompt",
        "quality": f"{_METRICS}.quality:Quality",
        "safe_latent_diffusion": f"{_METRICS}.safe_latent_diffusion:SafeLatentDiffusion",
        "strength_sweep": f"{_METRICS}.strength_sweep:StrengthSweep",
    },
)
"""What an evaluation measures: classes that are an `evaluation.metrics.Metric`."""

ATTACKS = Registry(
    "attacks",
    {
        "paraphrases": f"{_ATTACKS}.paraphrases:Paraphrases",
        "other_words": f"{_ATTACKS}.other_words:OtherWords",
        "listed_prompts": f"{_ATTACKS}.listed_prompts:ListedPrompts",
        "inversion": f"{_ATTACKS}.inversion:Inversion",
        "output_inversion": f"{_ATTACKS}.output_inversion:OutputInversion",
        "adversarial_prompt": f"{_ATTACKS}.adversarial_prompt:AdversarialPrompt",
        "ring_a_bell": f"{_ATTACKS}.ring_a_bell:RingABell",
        "p4d": f"{_ATTACKS}.p4d:P4D",
        "guidance_attack": f"{_ATTACKS}.guidance:GuidanceAttack",
        "latent_start": f"{_ATTACKS}.latent_start:LatentStart",
        "picture_start": f"{_ATTACKS}.picture_start:PictureStart",
        "null_text": f"{_ATTACKS}.null_text:NullText",
        "linear_probe": f"{_ATTACKS}.linear_probe:LinearProbe",
        "relearning": f"{_ATTACKS}.relearning:Relearning",
    },
)
"""Ways to make an erased model draw the concept: classes that are an `evaluation.attacks.Attack`."""

JUDGES = Registry(
    "judges",
    {
        "demo": f"{_JUDGES}.classifier:DemoJudge",
        "classifier": f"{_JUDGES}.classifier:ClassifierJudge",
        "clip": f"{_JUDGES}.clip:ClipJudge",
        "transformers": f"{_JUDGES}.transformers:TransformersJudge",
        "torchvision": f"{_JUDGES}.torchvision:TorchvisionJudge",
        "unlearncanvas": f"{_JUDGES}.unlearncanvas:UnlearnCanvasJudge",
        "vqa": f"{_JUDGES}.vqa:VqaJudge",
        "nudenet": f"{_JUDGES}.nudenet:NudeNet",
        "opennsfw": f"{_JUDGES}.opennsfw:OpenNsfw",
    },
)
"""What names the content of a picture: classes that are an `evaluation.judges.Judge`."""

FEATURES = Registry(
    "features",
    {
        "judge": f"{_FEATURES}.judge:JudgeFeatures",
        "efficientnet-lite0": f"{_FEATURES}.efficientnet:EfficientNetFeatures",
        "inception": f"{_FEATURES}.inception:InceptionFeatures",
        "clip": f"{_FEATURES}.clip:ClipFeatures",
    },
)
"""What pictures are compared in: classes that are `evaluation.features.Features`."""

DETECTORS = Registry("detectors", {"nudenet": f"{_JUDGES}.nudenet:NudeNet", "opennsfw": f"{_JUDGES}.opennsfw:OpenNsfw"})
"""What finds nudity in a picture: judges that are an `evaluation.judges.nudity.NudityJudge`."""

LAUNCHERS = Registry(
    "launchers",
    {
        "processes": f"{_LAUNCHERS}.processes:Processes",
        "submitit": f"{_LAUNCHERS}.submitit:Submitit",
        "ray": f"{_LAUNCHERS}.ray:Ray",
    },
)
"""What starts the runs of a sweep: classes that are a `sweeps.launchers.Launcher`."""

SURVIVAL = Registry(
    "survival",
    {
        "finetune": f"{_SURVIVAL}.finetune:Finetune",
        "finetune_full": f"{_SURVIVAL}.finetune_full:FinetuneFull",
        "quantise": f"{_SURVIVAL}.quantise:Quantise",
        "merge": f"{_SURVIVAL}.merge:Merge",
        "stack": f"{_SURVIVAL}.stack:Stack",
        "other_base": f"{_SURVIVAL}.other_base:OtherBase",
    },
)
"""What an erasure may have to outlive: classes that are an `evaluation.survival.Hardship`."""

PROTOCOLS = Registry(
    "protocols",
    {
        name: f"{_PROTOCOLS}.{name}:PROTOCOL"
        for name in (
            *("i2p_nudity", "diffusion_mu_attack", "ring_a_bell", "p4d", "mma"),
            *("coco_30k", "artists", "imagenette", "unlearncanvas", "hub", "spqr"),
        )
    },
)
"""Settings of well-known benchmarks: an `evaluation.protocols.NamedProtocol` each."""

__all__ = [
    "ATTACKS",
    "DETECTORS",
    "FEATURES",
    "FORMATS",
    "JUDGES",
    "KINDS",
    "LAUNCHERS",
    "METRICS",
    "OBJECTIVES",
    "PROGRAMS",
    "PROTOCOLS",
    "SURVIVAL",
    "TRAINABLES",
    "Registry",
]
