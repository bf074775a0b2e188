"""A single file alone, with the network away: configurations and CLIP's vocabulary are here, parts lie beside it."""

from __future__ import annotations

import json
import math
import shutil
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from architectures import SD_1_5
from diffusers import UNet2DConditionModel
from fixtures import Cli, RecipeFile
from refusals import refused
from safetensors.torch import load_file, save_file
from single_file import pack, pack_sd3, unet_blocks, unet_key, vae
from tiny import tiny_pipeline, tiny_sd3_pipeline, tiny_xl_pipeline
from tiny_transformers import tiny_t5
from torch import Tensor, nn
from transformers import CLIPTextConfig

from erasediff_lora import denoisers
from erasediff_lora.denoisers import on_meta, published
from erasediff_lora.families.names import sizes
from erasediff_lora.recipe import Model, Recipe
from erasediff_lora.registry import FAMILIES

ADAPTER = "pytorch_lora_weights.safetensors"
FEW: dict[str, Any] = {
    "forget": {"count": 2},
    "retain": {"count": 2},
    "sampling": {"steps": 1, "guidance": 2.0, "batch_size": 4},
}
PROMPTS = ["a photo of a cat", ""]


@dataclass(frozen=True)
class Kind:
    """A tiny model that stands for a published one: its folder, its single file, and what tells the file."""

    family: str
    folder: Path
    file: Path
    told_by: dict[str, list[int]]

    def model(self, **changes: Any) -> Model:
        return Model(**{"base": str(self.file), "family": self.family} | changes)

    def values(self, base: Path, **changes: Any) -> dict[str, Any]:
        return {"model": {"base": str(base), "family": self.family} | changes} | FEW


def reading_clip(pipe: Any) -> Any:
    """The pipeline with CLIP's own tokenizer, and text encoders that have an embedding for each token."""
    torch.manual_seed(9)
    for number in ("", "_2"):
        encoder = getattr(pipe, f"text_encoder{number}", None)
        if encoder is None:
            continue
        own = {"vocab_size": 49408, "max_position_embeddings": 77, "eos_token_id": 2}
        setattr(pipe, f"text_encoder{number}", type(encoder)(CLIPTextConfig(**encoder.config.to_dict() | own)))
        setattr(pipe, f"tokenizer{number}", published.clip_tokenizer("!" if number else "<|endoftext|>"))
    return pipe


def sd3_with_t5() -> Any:
    """CLIP-L's projection is the identity, as in the published one."""
    pipe = reading_clip(tiny_sd3_pipeline())
    nn.init.eye_(pipe.text_encoder.text_projection.weight)
    tokenizer, encoder = tiny_t5()
    wide = encoder.config.to_dict() | {"d_model": 64}
    pipe.register_modules(text_encoder_3=type(encoder)(type(encoder.config)(**wide)), tokenizer_3=tokenizer)
    return pipe


def whole_sd3(folder: Path, file: Path) -> Path:
    """Transformer, autoencoder and all three text encoders as ComfyUI keeps them in one file."""
    weights = load_file(pack_sd3(folder, file)) | vae(folder)
    t5 = load_file(folder / "text_encoder_3/model.safetensors")
    save_file(weights | {f"text_encoders.t5xxl.transformer.{key}": one for key, one in t5.items()}, file)
    return file


MAKERS: dict[str, tuple[str, Callable[[], Any], Callable[[Path, Path], Path], str]] = {
    "1": ("stable_diffusion", tiny_pipeline, pack, "unet.conv_in"),
    "2": ("stable_diffusion", tiny_pipeline, lambda *paths: pack(*paths, is_version_2=True), "unet.conv_in"),
    "xl": ("stable_diffusion_xl", tiny_xl_pipeline, pack, "unet.add_embedding.linear_1"),
    "3": ("stable_diffusion_3", sd3_with_t5, whole_sd3, "transformer.context_embedder"),
}


@pytest.fixture(scope="module")
def kinds(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Kind]:
    found = {}
    for name, (family, make, write, tells) in MAKERS.items():
        root = tmp_path_factory.mktemp(f"sd{name}")
        (make() if name == "3" else reading_clip(make())).save_pretrained(root / "folder")
        part, _, path = tells.partition(".")
        weights = load_file(root / "folder" / part / "diffusion_pytorch_model.safetensors")
        file = write(root / "folder", root / "model.safetensors")
        found[name] = Kind(family, root / "folder", file, {tells: list(weights[f"{path}.weight"].shape)})
    return found


@pytest.fixture(scope="module")
def configurations(kinds: dict[str, Kind], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny models as if they were the published ones; version 1 stands for both of its family."""
    folder = tmp_path_factory.mktemp("configurations")
    shutil.copy(published.FOLDER / published.MERGES, folder)
    for name in ("1", "xl", "3"):
        kind = kinds[name]
        index = json.loads((kind.folder / "model_index.json").read_text())
        model: dict[str, Any] = {"told_by": kind.told_by}
        model |= {key: index[key] for key in index if key.startswith("force_")}
        for part in [key for key, entry in index.items() if isinstance(entry, list) and entry[1]]:
            if part.startswith("tokenizer") and part != "tokenizer_3":
                model[part] = {"pad_token": "!" if part == "tokenizer_2" else "<|endoftext|>"}
            for file in (kind.folder / part).glob("*config.json"):
                if not part.startswith("tokenizer") and file.name != "generation_config.json":
                    model[part] = json.loads(file.read_text())
        (folder / f"{kind.family}.yaml").write_text(yaml.safe_dump({"models": {f"tiny-{name}": model}}))
    return folder


@pytest.fixture
def asked(configurations: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """Hosts that were looked up: the network is away, as in a cellar."""
    hosts: list[Any] = []

    def away(host: Any, *rest: Any, **options: Any) -> Any:
        hosts.append(host)
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(published, "FOLDER", configurations)
    monkeypatch.setattr(socket, "getaddrinfo", away)
    yield hosts


@pytest.mark.parametrize("name", ["1", "xl", "3"])
def test_a_single_file_alone_trains_what_its_folder_trains(
    name: str, kinds: dict[str, Kind], asked: list[Any], recipe_file: RecipeFile, cli: Cli, tmp_path: Path
) -> None:
    kind, found = kinds[name], []
    with_t5 = {"parts": {"tokenizer_3": str(kind.folder / "tokenizer_3")}} if name == "3" else {}
    for base, changes in ((kind.folder, {}), (kind.file, with_t5)):
        output = tmp_path / base.stem
        file = recipe_file(**kind.values(base, **changes), output=str(output))
        result = cli("train", file, "--training.steps", "1")
        assert result.status == 0, result.err
        found.append(load_file(output / ADAPTER))
    assert asked == []
    assert all(torch.equal(tensor, found[1][key]) for key, tensor in found[0].items())
    assert cli("plan", file).status == 0


def same_tokens(one: Any, other: Any) -> None:
    ours, theirs = one.encode_prompts(PROMPTS).parts, other.encode_prompts(PROMPTS).parts
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]), name


def test_version_2_by_its_text_encoder_and_by_what_it_predicts(
    kinds: dict[str, Kind], configurations: Path, asked: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A UNet that predicts v is told by how far one of its biases spreads."""
    kind, norm = kinds["2"], "model.diffusion_model.output_blocks.3.1.transformer_blocks.0.norm1.bias"
    (plain,) = yaml.safe_load((configurations / "stable_diffusion.yaml").read_text())["models"].values()
    of_v = plain | {"scheduler": plain["scheduler"] | {"prediction_type": "v_prediction"}}
    of_v["spread"] = {"unet.up_blocks.1.attentions.1.transformer_blocks.0.norm1.bias": 0.09}
    shutil.copy(published.FOLDER / published.MERGES, tmp_path)
    (tmp_path / "stable_diffusion.yaml").write_text(
        yaml.safe_dump({"models": {"v": of_v, "epsilon": plain}}, sort_keys=False)
    )
    monkeypatch.setattr(published, "FOLDER", tmp_path)
    for spread, predicts in ((0.01, "epsilon"), (0.2, "v_prediction")):
        file = tmp_path / f"{spread}.safetensors"
        weights = load_file(kind.file)
        save_file(weights | {norm: torch.linspace(-1, 1, len(weights[norm])) * spread}, file)
        base = denoisers.load(kind.model(base=str(file)))
        assert base.noise_scheduler.config.prediction_type == predicts
        same_tokens(base, denoisers.load(kind.model(base=str(kind.folder))))
    assert asked == []


def test_parts_beside_the_file(
    kinds: dict[str, Kind], asked: list[Any], recipe_file: RecipeFile, cli: Cli, tmp_path: Path
) -> None:
    """ComfyUI's split files: the network alone, text encoders by transformers' names, the autoencoder by its own."""
    for name in ("1", "xl", "3"):
        kind, whole = kinds[name], load_file(kinds[name].file)
        alone = tmp_path / f"{name}.safetensors"
        save_file({key: one for key, one in whole.items() if key.startswith("model.diffusion_model.")}, alone)
        encoders = FAMILIES[kind.family].encoders[:2]
        result = cli("train", recipe_file(**kind.values(alone)))
        refused(result, f"model.base = '{alone}': has no weights of {' and none of '.join([*encoders, 'vae'])}")
        assert f"Add --model.parts '{{text_encoder: FILE, {'text_encoder_2: FILE, ' * (name != '1')}vae: FILE}}'." in (
            result.err
        )
        parts = {}
        for encoder in encoders:
            weights = load_file(kind.folder / encoder / "model.safetensors")
            if name == "3" and encoder == "text_encoder":
                weights["text_projection.weight"] = weights["text_projection.weight"] * 3  # CLIP's, which is unused
            parts[encoder] = tmp_path / f"{name}-{encoder}.safetensors"
            save_file({f"text_model.{key}".replace("text_model.text_p", "text_p"): w for key, w in weights.items()},
                      parts[encoder])  # fmt: skip
        parts["vae"] = tmp_path / f"{name}-vae.safetensors"
        save_file({key.removeprefix("first_stage_model."): one for key, one in vae(kind.folder).items()}, parts["vae"])
        if name == "3":
            parts["text_encoder_3"] = kind.folder / "text_encoder_3/model.safetensors"
            parts["tokenizer_3"] = kind.folder / "tokenizer_3"
        given = denoisers.load(kind.model(base=str(alone), parts=parts))
        folder = denoisers.load(kind.model(base=str(kind.folder)))
        same_tokens(given, folder)
        pixels = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
        assert torch.equal(given.encode_images(pixels), folder.encode_images(pixels))
    assert asked == []


def test_t5_is_left_out_without_its_tokenizer(
    kinds: dict[str, Kind],
    asked: list[Any],
    recipe_file: RecipeFile,
    cli: Cli,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    kind = kinds["3"]
    plain = Path(shutil.copytree(kind.folder, tmp_path / "plain"))
    for name in ("text_encoder_3", "tokenizer_3"):
        shutil.rmtree(plain / name)
    same_tokens(denoisers.load(kind.model()), denoisers.load(kind.model(base=str(plain))))
    assert "nothing here has T5's tokenizer: prompts are read by CLIP alone. Give the folder" in caplog.text
    without = tmp_path / "without.safetensors"
    whole = load_file(kind.file)
    save_file({key: one for key, one in whole.items() if not key.startswith("text_encoders.t5xxl.")}, without)
    parts: dict[str, Any] = {"tokenizer_3": str(kind.folder / "tokenizer_3")}
    same_tokens(denoisers.load(kind.model(base=str(without), parts=parts)), denoisers.load(kind.model(base=str(plain))))
    assert "without.safetensors has no T5: prompts are read by CLIP alone." in caplog.text
    given = {"text_encoder_3": str(kind.folder / "text_encoder_3/model.safetensors")}
    refused(
        cli("train", recipe_file(**kind.values(without, parts=given))),
        "model.parts.tokenizer_3 = None: is needed: nothing here has T5's tokenizer.",
        "--model.parts '{tokenizer_3: FOLDER}'",
    )
    for folder, words in ((tmp_path / "gone", "there is no such folder."), (plain / "vae", "holds no tokenizer:")):
        file = recipe_file(**kind.values(kind.file, parts={"tokenizer_3": str(folder)}))
        refused(cli("train", file), f"model.parts.tokenizer_3 = '{folder}': {words}", "tokenizer.json")
    assert asked == []


def test_weights_in_8_bits_with_scales(kinds: dict[str, Kind], asked: list[Any], tmp_path: Path) -> None:
    """As in `sd3.5_large_fp8_scaled`: transformer and T5; diffusers' own reader leaves the scales out."""
    kind, small = kinds["3"], tmp_path / "scaled.safetensors"
    tensors: dict[str, Tensor] = {"scaled_fp8": torch.empty(2, dtype=torch.float8_e4m3fn)}
    for key, one in load_file(kind.file).items():
        is_scaled = key.endswith(".weight") and one.ndim == 2 and ("t5xxl" in key or "joint_blocks" in key)
        scale = one.abs().max() / 400
        tensors[key] = (one / scale).to(torch.float8_e4m3fn) if is_scaled else one
        if is_scaled and "shared" not in key:
            tensors[f"{key.removesuffix('weight')}scale_weight"] = scale
        elif is_scaled:
            tensors[key] = one
    save_file(tensors, small)
    parts = {"tokenizer_3": kind.folder / "tokenizer_3"}
    ours = denoisers.load(kind.model(base=str(small), parts=parts))
    theirs = denoisers.load(kind.model(base=str(kind.folder)))
    for part in ("transformer", "text_encoder_3"):
        exact = getattr(theirs.pipeline, part).state_dict()
        for name, one in getattr(ours.pipeline, part).state_dict().items():
            torch.testing.assert_close(one, exact[name], rtol=2**-4, atol=float(exact[name].abs().max()) * 2e-3)


def test_a_file_of_full_size_is_described(cli: Cli, tmp_path: Path) -> None:
    """Stable Diffusion 1.5 by names and shapes: its two gigabytes are a hole in the file."""
    with torch.device("meta"):
        unet = UNet2DConditionModel(**SD_1_5)
    blocks = unet_blocks(dict(unet.config))
    shapes = {unet_key(key, blocks): list(one.shape) for key, one in unet.state_dict().items()}
    header, end = {}, 0
    for key, shape in shapes.items():
        begin, end = end, end + 2 * math.prod(shape)
        header[key] = {"dtype": "F16", "shape": shape, "data_offsets": [begin, end]}
    words = json.dumps(header).encode()
    with (tmp_path / "v1-5.safetensors").open("wb") as stream:
        stream.write(len(words).to_bytes(8, "little") + words)
        stream.truncate(8 + len(words) + end)
    made = cli("init", "--object", "dog", "--base", tmp_path / "v1-5.safetensors", "--output", tmp_path / "mine.yaml")
    assert made.status == 0, made.err
    base = denoisers.load(Recipe.load(tmp_path / "mine.yaml").model)
    with torch.device("meta"):
        networks = base.without_weights()
    assert (base.architecture, base.resolution) == ("stable-diffusion-v1", 512)
    assert sum(one.numel() for one in networks["unet"].parameters()) == PARAMETERS["stable-diffusion-v1"]


def test_a_file_that_nobody_published(
    kinds: dict[str, Kind], asked: list[Any], recipe_file: RecipeFile, cli: Cli, tmp_path: Path
) -> None:
    """What is missing is said at once, without asking the hub again and again."""
    torch.manual_seed(0)
    reading_clip(tiny_pipeline()).save_pretrained(tmp_path / "other")
    other = pack(tmp_path / "other", tmp_path / "other.safetensors")
    weights = load_file(other)
    key = "model.diffusion_model.input_blocks.0.0.weight"
    save_file(weights | {key: torch.zeros(16, 9, 3, 3)}, other)  # made for inpainting
    for verb in ("train", "plan"):
        result = cli(verb, recipe_file(**kinds["1"].values(other)))
        refused(
            result, "model.config = None: is needed: other.safetensors is of no published model", "diffusers folder"
        )
        assert len(result.err.strip().splitlines()) == 2, result.err
    assert len(asked) <= 4, "not once more each few seconds"
    lacking = "model.diffusion_model.out.2.weight"
    save_file({name: one for name, one in load_file(kinds["1"].file).items() if name != lacking}, other)
    result = cli("train", recipe_file(**kinds["1"].values(other)))
    refused(result, f"model.base = '{other}': lacks 2 of", "such as conv_out.weight")


def layouts(parts: Any) -> Iterator[tuple[str, tuple[int, ...]]]:
    for part, mine in parts.items():
        yield from ((f"{part}.{path}", shape) for path, shape in mine.weights())


MODELS = [
    (family, name)
    for family in ("stable_diffusion", "stable_diffusion_xl", "stable_diffusion_3")
    for name in published._models(published.FOLDER / f"{family}.yaml")
]
PARAMETERS = {
    "stable-diffusion-v1": 859_520_964,
    "stable-diffusion-v2-768-v": 865_910_724,
    "stable-diffusion-v2-512": 865_910_724,
    "stable-diffusion-xl-v1-base": 2_567_463_684,
    "stable-diffusion-3-medium": 2_028_328_000,
    "stable-diffusion-3.5-medium": 2_243_171_520,
    "stable-diffusion-3.5-large": 8_056_627_520,
}
"""Of the network, as the models' papers and cards count them."""


@pytest.mark.parametrize(("family", "name"), MODELS, ids=[name for _, name in MODELS])
def test_the_published_numbers(family: str, name: str) -> None:
    """Each network has the modules and shapes of one size in the table of names; a file is told by its own alone."""
    file = published.FOLDER / f"{family}.yaml"
    with torch.device("meta"):
        networks = on_meta.networks(published._written(file, name), torch.float32)
    shapes = {
        f"{part}.{path.removeprefix('text_model.')}": tuple(module.weight.shape)
        for part, network in networks.items()
        for path, module in network.named_modules()
        if isinstance(getattr(module, "weight", None), Tensor) and path != "encoder.embed_tokens"
    }
    network = networks[FAMILIES[family].component]
    assert sum(one.numel() for one in network.parameters()) == PARAMETERS[name]
    known = [dict(layouts(size.layouts)) for size in sizes(FAMILIES[family])]
    assert any(all(shapes.get(module) == shape for module, shape in mine.items()) for mine in known)
    fitting = [
        other
        for other, model in published._models(file).items()
        if all(shapes.get(module) == tuple(shape) for module, shape in model["told_by"].items())
    ]
    assert name in fitting
    if "v2" not in name:
        assert fitting[0] == name
