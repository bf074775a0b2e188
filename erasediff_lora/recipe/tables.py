"""The recipe's tables: one class each, whose fields are the YAML keys and the command-line flags."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BeforeValidator, Field, field_validator, model_validator

from erasediff_lora.recipe.names import folded
from erasediff_lora.recipe.schema import Section, Variant, one_of
from erasediff_lora.registry import FAMILIES, OBJECTIVES, TRAINABLES, Registry
from erasediff_lora.storage.paths import at_home

PredictionType = Literal["epsilon", "v_prediction", "sample"]


class Model(Section):
    """The base model, which stays frozen."""

    base: str = Field("demo", description="'demo', a diffusers folder, a hub id, or a single-file checkpoint")
    family: Annotated[str, one_of(FAMILIES)] = Field("stable_diffusion", description="model family")
    dtype: Literal["auto", "float32", "bfloat16", "float16", "float64"] = Field(
        "auto",
        description="of the base's weights; auto: bfloat16 on a GPU, float16 on one that has none, float32 on a CPU and"
        " where they are trained; float64: to compare arithmetic",
    )
    device: Literal["auto", "cpu", "cuda", "mps", "xpu"] = Field(
        "auto", description="where to train: cuda (also AMD's cards), mps (Apple's), xpu (Intel's); auto: what there is"
    )
    quantize: Literal["nf4", "int8"] | None = Field(
        None, description="hold the frozen network in 4 or 8 bits (bitsandbytes, on a GPU)"
    )
    quantize_encoders: Literal["nf4", "int8"] | None = Field(
        None, description="hold the text encoders in 4 or 8 bits while prompts are encoded (bitsandbytes, on a GPU)"
    )
    offload: bool = Field(
        False, description="to draw, each network waits in main memory for its turn on the GPU: slower, smaller cards"
    )
    prediction_type: PredictionType | None = Field(
        None, description="what the network predicts; omit for what the base's configuration, or its checkpoint, says"
    )
    guidance: float = Field(
        3.5, ge=0, description="strength of guidance that a network distilled from it is told in training: FLUX.1 dev"
    )
    vae_tiling: bool = Field(False, description="encode and decode pictures in tiles: less memory, slightly different")
    network: Path | None = Field(
        None,
        description="single file with the transformer, alone or among others, by the authors' names or diffusers', in"
        " 16 or 8 bits: it takes the place of the base's own",
    )
    parts: dict[str, Path] = Field(
        default_factory=dict,
        description="files of text encoders and the autoencoder, as in ComfyUI's folders, and folders of tokenizers,"
        " that take the places of the base's own: {text_encoder_2: FILE, vae: FILE, tokenizer_2: FOLDER}",
    )
    config: Path | None = Field(
        None,
        description="local diffusers folder that describes a single file; omit it for a published Stable Diffusion or a"
        " model of its shape",
    )
    revision: str | None = Field(None, description="hub revision")
    variant: str | None = Field(None, description="hub weight variant, such as fp16")
    allow_pickle: bool = Field(False, description="open pickled weights; they can run code: only if you trust them")

    @field_validator("base")
    @classmethod
    def _at_home(cls, value: str) -> str:
        return at_home(value, "model.base")

    @property
    def is_hub_id(self) -> bool:
        """Whether `base` names a model on the hub rather than a local path."""
        return re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", self.base) is not None and not Path(self.base).exists()

    @property
    def public_name(self) -> str:
        """The base's name without this machine's folders; the file's that its network comes from, if there is one."""
        if self.network is not None:
            return self.network.name
        return self.base if self.is_hub_id or self.base == "demo" else Path(self.base).name


class Images(Section):
    """Pictures from disk. Exactly one of `folder` and `dataset`."""

    @field_validator("dataset", check_fields=False)
    @classmethod
    def _at_home(cls, value: str | None) -> str | None:
        return value if value is None else at_home(value, "images.dataset")

    folder: Path | None = Field(
        None,
        description="imagefolder (pictures with metadata.jsonl, metadata.csv or .txt captions, or one folder a concept,"
        " or one caption for all), tar files in the WebDataset format, or a labelled set: Fashion-MNIST's idx.gz files,"
        " CIFAR-10's binary version",
    )
    dataset: str | None = Field(None, description="`datasets` name or folder written by save_to_disk")
    split: str = Field("train", description="split of the dataset or the labelled set")
    streaming: bool = Field(
        False, description="read a dataset once as it comes, into the cache, instead of having `datasets` download it"
    )
    limit: int | None = Field(None, ge=1, description="pictures that are taken of a streamed dataset; omit for all")
    per_concept: int | None = Field(None, ge=1, description="pictures a class of a labelled set; omit for all")
    image_column: str = Field("image", description="dataset column with the pictures")
    caption_column: str = Field("text", description="dataset column or metadata.jsonl key with the captions")
    concept_column: str = Field("concept", description="column or key that names the concept of a picture")
    concept: str | None = Field(
        None, description="the concept that all pictures show, whatever they are labelled with; omit to go by labels"
    )
    caption: str | None = Field(
        None, description="prompt for every picture without a caption of its own; may contain {concept}"
    )
    background: str = Field("white", description="colour behind transparent pictures: a name, or '#rrggbb'")
    aspect_buckets: bool = Field(
        False, description="train on pictures of their own aspect ratio, a batch of one ratio; false: crop to squares"
    )
    on_error: Literal["fail", "skip"] = Field(
        "fail", description="what an unreadable picture does, and metadata without its picture"
    )


def _as_concept(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


AUTO = "auto"
"""In the place of an anchor: the text encoder chooses it."""

Placeholders = dict[str, list[str]]
Templates = Annotated[list[str], Field(min_length=1, description="prompts; {concept} is filled in")]


class Concept(Section):
    """A concept to forget, and what to draw instead."""

    name: str = Field(min_length=1, description="the concept, as prompts name it")
    anchor: str | None = Field(
        None,
        description="anchor concept that takes its place (objective.target: anchor); auto, or none where there must be"
        " one: the retained concept that is nearest to it in the text encoder",
    )
    templates: Templates | None = Field(None, description="prompts of this concept; omit for those of the set")
    placeholders: Placeholders | None = Field(None, description="their further {names}, beside those of the set")

    @field_validator("name")
    @classmethod
    def _is_name(cls, value: str) -> str:
        if not value.strip():
            raise ValueError("is no name. Write what prompts call it.")
        return value


class ForgetSet(Section):
    """D_f: what the model must no longer draw."""

    concepts: list[Annotated[Concept, BeforeValidator(_as_concept)]] = Field(
        min_length=1,
        description="names, or {name, anchor, paraphrases, templates, placeholders}; or a file of them: CSV, TSV,"
        " JSONL, YAML, or a name a line",
    )
    templates: list[str] = Field(
        description="prompts; {concept} is filled in; omit where every concept has templates of its own"
    )
    placeholders: Placeholders = Field(default_factory=dict, description="values of further {names} in templates")
    images: Images | None = Field(None, description="pictures from disk; omit to let the base draw them")
    count: int = Field(
        64, ge=1, le=10_000_000, description="pictures that the base draws; where pictures are given, of their anchors"
    )

    @model_validator(mode="before")
    @classmethod
    def _without_templates(cls, values: Any) -> Any:
        """The set's own templates may be left out where no concept needs them."""
        concepts = values.get("concepts") if isinstance(values, dict) else None
        own = isinstance(concepts, list) and all(isinstance(c, dict) and c.get("templates") for c in concepts)
        return {"templates": []} | values if concepts and own else values


def _as_neighbours(value: Any) -> Any:
    is_count = isinstance(value, int) and not isinstance(value, bool) and value >= 0
    if is_count or (isinstance(value, dict) and all(_is_names(words) for words in value.values())):
        return value
    raise ValueError("must be a number from 0 on, or {concept: [word, …]}.")


def _is_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) and name.strip() for name in value)


class RetainSet(Section):
    """D_r: what the model must go on drawing."""

    concepts: list[str] = Field(
        default_factory=list, description="concepts that fill the templates; or a file with their names"
    )
    templates: Templates
    placeholders: Placeholders = Field(default_factory=dict, description="values of further {names} in templates")
    images: Images | None = Field(None, description="pictures from disk; omit to let the base draw them")
    count: int = Field(160, ge=1, le=10_000_000, description="pictures that the base draws")
    neighbours: Annotated[int | dict[str, list[str]], BeforeValidator(_as_neighbours)] = Field(
        0,
        description="how many of the words nearest to each forgotten concept in the text encoder are retained as well,"
        " and measured apart; or the words themselves: {concept: [word, …]}",
    )
    vocabulary: str | None = Field(
        None, description="where they are looked for: artists, imagenet, nouns, or a file of words; omit for all three"
    )
    empty_prompt_share: float = Field(
        0.1, ge=0, lt=1, description="share trained under the empty prompt, as the base was for guidance"
    )
    contrast: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="share of the batch that shows forget pictures under retain prompts and under none, held to the"
        " base's prediction",
    )
    high_noise: float = Field(
        0.0,
        ge=0,
        le=1,
        description="share of the batch that is noised to the last 40% of the schedule, where it is decided what a"
        " picture becomes",
    )
    focus: float = Field(
        0.0, ge=0, le=1, description="share of the batch that is drawn from what the erasure disturbs most"
    )
    focus_every: int = Field(10, ge=1, description="outer steps between measurements of the disturbance")
    focus_samples: int = Field(32, ge=1, description="retain pictures that a measurement looks at")

    @model_validator(mode="after")
    def _retain_neighbours(self) -> Self:
        self.concepts = [*self.concepts, *(word for word in self.near if word not in self.concepts)]
        return self

    @property
    def near(self) -> dict[str, list[str]]:
        """Neighbour -> the forgotten concepts that it is near to; empty as long as the words are not known."""
        spelled = {folded(name): name for name in reversed(self.concepts)}
        found: dict[str, list[str]] = {}
        for concept, words in self.neighbours.items() if isinstance(self.neighbours, dict) else ():
            for word in words:
                found.setdefault(spelled.setdefault(folded(word), word), []).append(concept)
        return found


class Sampling(Section):
    """How the base draws pictures, for the data sets and the evaluation alike."""

    resolution: int | None = Field(None, ge=8, le=16_384, multiple_of=8, description="pixels; omit for the model's own")
    steps: int = Field(20, ge=1, description="denoising steps")
    guidance: float = Field(4.0, ge=0, description="classifier-free guidance scale")
    batch_size: int = Field(32, ge=1, le=65_536, description="pictures drawn at once")
    seed: int = Field(0, ge=0, description="seed of the first picture")


class AdapterSettings(Variant):
    """What is trained; each kind has a class of its own."""

    parts: ClassVar[Registry] = TRAINABLES
    selector: ClassVar[str] = "kind"
    trains_base: ClassVar[bool] = False
    """Whether it is the base's own weights, which are float32 then if `model.dtype` leaves it open."""

    kind: str = Field("lora", description="lora, or none to train the base's own weights")
    targets: str | list[str] = Field("attention", description="preset of the model family, or regexes of module paths")
    start: Literal["zero", "closed_form"] = Field(
        "zero", description="zero: as the base; closed_form: the concepts' names are forgotten before the first step"
    )
    start_preserve: float = Field(1.0, gt=0, description="closed form: weight of a preserved token beside a moved one")
    start_ridge: float = Field(0.1, gt=0, description="closed form: what keeps it from changing more than it must")

    @property
    def starts_from_closed_form(self) -> bool:
        return self.start == "closed_form"


class ObjectiveSettings(Variant):
    """Options of an objective; each has a class of its own."""

    parts: ClassVar[Registry] = OBJECTIVES
    selector: ClassVar[str] = "name"
    presets: ClassVar[dict[str, dict[str, Any]]] = {"default": {}}
    """Preset -> values that the fields start from."""

    closed_form: ClassVar[bool] = False
    """Whether the adapter is the closed form and nothing else: no steps are taken."""

    falls: ClassVar[bool] = True
    """Whether the forget loss falls as the concept goes: `training.steps: auto` ends by it."""

    gradients_apart: ClassVar[bool] = False
    """Whether the method needs the gradients of both sets apart, and can take them from one pass."""

    repeats: ClassVar[tuple[str, ...]] = ()
    """Fields that say how often `prepare` repeats what takes as much memory when done once."""

    name: str = Field("erasediff", description="the method")
    preset: str = Field("default", description="starting point of the fields below")

    @model_validator(mode="before")
    @classmethod
    def _start_from_preset(cls, values: Any) -> Any:
        preset = values.get("preset", "default") if isinstance(values, dict) else None
        return cls.presets.get(preset, {}) | values if isinstance(preset, str) else values

    @property
    def anchors(self) -> Literal["named", "any"] | None:
        """Which concepts may stand in for a forgotten one: the anchor named beside it, any retained one, or none."""
        return None

    @property
    def wants_anchors(self) -> tuple[str, str]:
        """The option that asks for anchors, as the recipe writes it; what to do where a concept has none."""
        return f"objective.name: {self.name}", "Name an anchor."

    @property
    def closed_form_search(self) -> tuple[int, float]:
        """How often the closed form is followed by a search for what still reads as the concept; the search's ridge."""
        return 0, 0.0

    @property
    def counterparts(self) -> bool:
        """Whether every forgotten picture is to have its counterpart: its anchor, drawn by the base from its seed."""
        return False

    @property
    def needs(self) -> tuple[str, ...]:
        """What forget batches are to hold besides x_t, t, c and their target: names of the registry's EXTRAS."""
        return ()


def _number_or_auto(least: int) -> Callable[[Any], int | str]:
    def checked(value: Any) -> int | str:
        if value == "auto" or (isinstance(value, int) and not isinstance(value, bool) and value >= least):
            return value
        raise ValueError(f"must be a valid integer, {least} or more, or auto")

    return checked


class Training(Section):
    """The outer optimisation."""

    steps: Annotated[int | str, BeforeValidator(_number_or_auto(0))] = Field(
        300,
        description="outer steps; 0: where the adapter starts is where it ends; auto: until every concept is gone",
    )
    max_steps: int = Field(300, ge=1, description="steps: auto: the most that are taken")
    gone: float = Field(
        0.25, gt=0, lt=1, description="steps: auto: share of the base's own forget loss at which a concept is gone"
    )
    batch_size: int = Field(16, ge=1, le=65_536, description="samples of each set a step, over all processes")
    gradient_accumulation: Annotated[int | str, BeforeValidator(_number_or_auto(1))] = Field(
        1, description="micro-batches that a batch is cut into; auto: as few as memory allows"
    )
    optimizer: Literal["adamw", "adamw8bit", "paged_adamw8bit", "lion8bit"] = Field(
        "adamw", description="torch AdamW, or bitsandbytes 8-bit"
    )
    learning_rate: float = Field(1e-3, gt=0, description="peak learning rate")
    weight_decay: float = Field(0.0, ge=0, description="decoupled weight decay")
    lr_schedule: Literal["constant", "linear", "cosine"] = Field("constant", description="after the warm-up")
    warmup_steps: int = Field(0, ge=0, description="linear warm-up steps")
    max_grad_norm: float = Field(1.0, gt=0, description="clip of the direction, as one vector")
    non_finite: Literal["stop", "skip"] = Field(
        "stop", description="what NaN or Inf in a step does: end the run, or leave the step out, up to ten in a row"
    )
    timesteps: Literal["uniform", "logit_normal"] = Field(
        "uniform", description="how those of a model of flow matching are drawn: alike, or mostly from the middle"
    )
    timestep_shift: float = Field(
        1.0, gt=0, description="moves them towards noise, s σ / (1 + (s − 1) σ): 3 is usual at 1024 pixels"
    )
    min_snr_gamma: float | None = Field(None, gt=0, description="min-SNR weighting of the retain loss")
    gradient_checkpointing: bool = Field(False, description="trade time for activation memory")
    shard: bool = Field(False, description="split the frozen weights among the processes (FSDP2)")
    one_pass: bool = Field(
        False,
        description="retained and forgotten samples go through the network together: faster, the fewer they are, for "
        "twice the activations",
    )
    compile: bool = Field(False, description="compile the network's blocks with torch.compile")
    channels_last: bool = Field(False, description="lay pictures out as convolutions on a GPU like them")
    seed: int = Field(0, ge=0, description="seed of the adapter, the batches, the noise")
    threads: int | None = Field(None, ge=1, le=4096, description="CPU threads; small models are fastest with 1")
    check_memory: bool = Field(True, description="refuse in advance what `plan` says does not fit")
    checkpoint_every: int = Field(100, ge=1, description="steps between checkpoints")
    keep_checkpoints: int = Field(2, ge=1, description="newest checkpoints kept")
    sample_every: int | None = Field(None, ge=1, description="steps between sample pictures")
    evaluate_every: int | None = Field(
        None, ge=1, description="steps between evaluations, of which the best adapter is kept; omit for the last one"
    )
    average: int = Field(
        1, ge=1, description="adapters whose mean is written: the last step's and earlier ones; not with evaluate_every"
    )
    average_every: int = Field(100, ge=1, description="steps between them")
    log_with: list[Literal["tensorboard", "wandb"]] = Field(
        default_factory=list, description="trackers beside the JSONL log"
    )

    @property
    def most_steps(self) -> int:
        """Steps that are taken; of `auto` the most."""
        return self.max_steps if isinstance(self.steps, str) else self.steps
