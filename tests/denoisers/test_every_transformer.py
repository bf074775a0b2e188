"""What every transformer family does alike on a tiny random base; how its pipeline differs is in its own file."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from refusals import refused
from safetensors.torch import load_file, save_file
from tiny import tiny_base_recipe, tiny_classifier
from torch import Tensor
from transformer_family import ADAPTER, CASES, SIDE, WEIGHTS, Case

from erasediff_lora import denoisers
from erasediff_lora.adapter import Checkpoint, LoraAdapter, LoraLayer, Provenance, fingerprint, formats
from erasediff_lora.recipe import Model, Recipe
from erasediff_lora.recipe.public import public_recipe
from erasediff_lora.registry import FAMILIES


@pytest.fixture(scope="module", params=CASES)
def case(request: Any) -> Case:
    return CASES[request.param]


@pytest.fixture(scope="module")
def base(case: Case, tmp_path_factory: Any) -> Path:
    folder = tmp_path_factory.mktemp(case.family) / "base"
    case.make().save_pretrained(folder)
    return Path(folder)


@pytest.fixture(scope="module")
def denoiser(case: Case, base: Path) -> Any:
    return denoisers.load(Model(base=str(base), family=case.family))


@pytest.fixture
def recipe(case: Case, base: Path, tmp_path: Path) -> Callable[..., Path]:
    def write(**sections: Any) -> Path:
        model = {"base": str(base), "family": case.family}
        return tiny_base_recipe(base, tmp_path, **({"model": model} | sections))

    return write


def test_slots_are_words(denoiser: Any) -> None:
    """A word's own embeddings in its place: all tokens of it are what they were, and they can be searched for."""
    word = denoiser.embed_word("cat").detach().requires_grad_()
    told = denoiser.encode_slots(["a photo of a <*>"], word)
    plain = denoiser.encode_prompts(["a photo of a cat"])
    assert told.parts.keys() == plain.parts.keys()
    torch.testing.assert_close(told.tokens, plain.tokens)
    (gradient,) = torch.autograd.grad(told.tokens.square().sum(), [word])
    assert bool((gradient.abs().sum(dim=1) > 0).all())
    assert denoiser.token_embeddings.shape[1] == word.shape[1]
    assert denoiser.embed_words(["cat", "a dog"]).shape[0] == 2
    assert denoiser.decode_tokens([5, 6])


def test_every_verb(case: Case, base: Path, recipe: Any, cli: Any, tmp_path: Path) -> None:
    """prepare, plan, train, resume, evaluate, convert, stack, merge, extract, publish."""
    robust = {"preset": "robust", "adversary": {"refresh_every": 2, "steps": 1, "batch_size": 2}}
    sampling = {"steps": 2, "guidance": 2.0, "batch_size": 4, "resolution": SIDE}
    file = recipe(sampling=sampling, **robust)
    run, other = tmp_path / "run", tmp_path / "other"
    for verb in ("prepare", "plan"):
        result = cli(verb, file)
        assert result.status == 0, result.err
    result = cli("train", file, "--evaluation.metrics", "[drift]")
    assert result.status == 0, result.err
    adapter = load_file(run / ADAPTER)
    assert all(name.startswith("transformer.") for name in adapter)
    assert "drift" in json.loads((run / "evaluation.json").read_text())["metrics"]
    assert cli("train", file, "--output", other, "--training.steps", "2").status == 0
    assert cli("train", file, "--output", other, "--resume").status == 0
    resumed = load_file(other / ADAPTER)
    assert all(torch.equal(adapter[name], resumed[name]) for name in adapter), "resumed, to the last bit"

    search = "{steps: 1, restarts: 1, samples: 2, batch_size: 2}"
    judge = tiny_classifier(tmp_path / "judge", ["cat", "dog", "car"], favourite="cat")
    few = ("--evaluation.forget_samples", "2", "--evaluation.retain_samples", "2", "--evaluation.metrics", "[accuracy]")
    late = ("--evaluation.latent_start", "{samples: 1}", "--evaluation.adversarial_prompt", search)
    attacks = (
        "--evaluation.attacks",
        "[inversion, output_inversion, latent_start, adversarial_prompt]",
        "--evaluation.inversion",
        search,
    )
    result = cli(
        "evaluate", run, "--evaluation.judge", f"transformers:{judge}", *few, *attacks, *late, "--name", "more"
    )
    assert result.status == 0, result.err
    assert "output_inversion is left out" in result.err and "is what inversion does for this family" in result.err
    (found,) = run.rglob("inversion-cat.safetensors")
    assert load_file(found).keys() == {"encoder_outputs"}, "no text encoder is differentiated through"
    closed = recipe(sampling=sampling, objective={"name": "uce"}, adapter={"rank": 4}, output=str(tmp_path / "uce"))
    result = cli("train", closed)
    assert result.status == 0, result.err
    assert any(bool(tensor.any()) for name, tensor in load_file(tmp_path / "uce" / ADAPTER).items() if "lora_B" in name)
    result = cli("stack", run, f"{other}:0.5", "--output", tmp_path / "both")
    assert result.status == 0, result.err
    result = cli("merge", base, tmp_path / "both", "--output", tmp_path / "merged")
    assert result.status == 0, result.err
    pipe = case.pipeline.from_pretrained(base)
    pipe.load_lora_weights(tmp_path / "both")
    pipe.fuse_lora()
    fused = {name.replace(".base_layer", ""): tensor for name, tensor in pipe.transformer.state_dict().items()}
    merged = load_file(tmp_path / "merged" / WEIGHTS)
    for name, tensor in merged.items():
        torch.testing.assert_close(fused[name], tensor, atol=1e-6, rtol=1e-5)
    result = cli("extract", base, tmp_path / "merged", "--output", tmp_path / "found", "--rank", "8")
    assert result.status == 0, result.err
    kept = formats.read(tmp_path / "found")
    both = formats.read(tmp_path / "both")
    for name, layer in kept.layers.items():
        torch.testing.assert_close(layer.delta(), both.layers[name].delta(), atol=1e-5, rtol=1e-4)
    _names(case, run, cli, tmp_path, adapter)
    assert cli("publish", run, "--repo", "me/it", "--dry_run").status == 0
    card = (run / "hub/README.md").read_text()
    assert case.license in card and case.pipeline.__name__ in card


def _names(case: Case, run: Path, cli: Any, tmp_path: Path, adapter: dict[str, Tensor]) -> None:
    """diffusers' names, peft's and kohya's, there and back."""
    result = cli("convert", run, tmp_path / "peft", "--format", "peft")
    assert result.status == 0, result.err
    assert cli("convert", tmp_path / "peft", tmp_path / "back", "--format", "diffusers").status == 0
    back = load_file(tmp_path / "back" / ADAPTER)
    assert back.keys() == adapter.keys() and all(torch.equal(back[name], adapter[name]) for name in back)
    (kohya,) = run.glob("erase-*.safetensors")
    theirs = load_file(kohya)
    assert case.fused is None or theirs[f"{case.fused}.lora_down.weight"].shape[0] == 6, "three of rank 2"
    before, after = formats.read(run / ADAPTER), formats.read(kohya)
    for name, layer in after.layers.items():
        if name in before.layers:
            assert torch.equal(layer.delta(), before.layers[name].delta()), name
        else:
            assert not bool(layer.delta().any()), "what lies in the same weight stays as it was"
    assert before.layers.keys() <= after.layers.keys()
    assert cli("convert", kohya, tmp_path / "again.safetensors", "--format", "kohya").status == 0
    again = load_file(tmp_path / "again.safetensors")
    assert all(again[name].shape == tensor.shape for name, tensor in theirs.items()), "it does not grow"


def test_packed_bases_are_refused(case: Case, base: Path, cli: Any, tmp_path: Path) -> None:
    """As bitsandbytes writes them, in 4 and in 8 bits: the folder and the single file."""
    weights = load_file(base / WEIGHTS)
    formats.write(on_every_layer(case, weights), tmp_path / "a.safetensors", "diffusers")
    folder, file = tmp_path / "packed/transformer", tmp_path / "packed.safetensors"
    folder.mkdir(parents=True)
    for bits in (4, 8):
        save_file(_packed(weights, bits), folder / Path(WEIGHTS).name)
        theirs = {f"model.diffusion_model.{key}": tensor for key, tensor in native(case, weights).items()}
        save_file(_packed(theirs, bits), file)
        for model in (folder.parent, file):
            result = cli("merge", model, tmp_path / "a.safetensors", "--output", tmp_path / "out")
            refused(result, f"model = '{model}", "is quantised:", "Take the model before it was quantised.")
            assert not (tmp_path / "out").exists()


def _packed(weights: dict[str, Tensor], bits: int) -> dict[str, Tensor]:
    """One of the matrices as bitsandbytes keeps it."""
    name = next(key for key, tensor in weights.items() if key.endswith(".weight") and tensor.ndim == 2)
    if bits == 8:
        beside = {f"{name.removesuffix('weight')}SCB": torch.ones(len(weights[name]))}
        return weights | {name: weights[name].to(torch.int8)} | beside
    packed = {name: torch.zeros(8, 1, dtype=torch.uint8), f"{name}.absmax": torch.ones(1)}
    return weights | packed | {f"{name}.quant_map": torch.ones(16)}


def native(case: Case, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The transformer by the authors' names, of which diffusers' own translation must make it again."""
    names = FAMILIES[case.family].native
    found: dict[str, Tensor] = {}
    for key in weights:
        path, _, leaf = key.rpartition(".")
        held = names.holding(path)
        if held is None:
            found[key] = weights[key]
            continue
        parts = [weights[f"{ours}.{leaf}"] for ours in held.modules]
        whole = torch.cat(parts)
        whole = torch.cat(whole.chunk(2)[::-1]) if held.swapped else whole
        is_scale = leaf == "weight" and held.name.endswith(("query_norm", "key_norm"))
        found[f"{held.name}.{'scale' if is_scale else leaf}"] = whole.contiguous()
    return found


def test_a_single_file(case: Case, base: Path, cli: Any, tmp_path: Path) -> None:
    """An adapter of every layer, merged into the authors' file, alone and whole, against the folder's."""
    weights = load_file(base / WEIGHTS)
    theirs = native(case, weights)
    assert case.to_diffusers is not None
    _same(case.to_diffusers(dict(theirs)), weights)
    adapter = on_every_layer(case, weights)
    formats.write(adapter, tmp_path / "a.safetensors", "diffusers")
    assert cli("merge", base, tmp_path / "a.safetensors", "--output", tmp_path / "folder").status == 0
    expected = load_file(tmp_path / "folder" / WEIGHTS)
    for prefix in ("", "model.diffusion_model."):
        file, out = tmp_path / f"{prefix}in.safetensors", tmp_path / f"{prefix}out.safetensors"
        save_file({prefix + key: tensor for key, tensor in theirs.items()}, file)
        assert fingerprint(Checkpoint(file)) == fingerprint(Checkpoint(base))
        result = cli("merge", file, tmp_path / "a.safetensors", "--output", out)
        assert result.status == 0, result.err
        merged = {key.removeprefix(prefix): tensor for key, tensor in load_file(out).items()}
        _same(case.to_diffusers(merged), expected)
        result = cli("extract", file, out, "--output", tmp_path / f"{prefix}found", "--rank", "2")
        assert result.status == 0, result.err


def test_merges_in_8_bits(case: Case, base: Path, cli: Any, tmp_path: Path) -> None:
    """The authors' file as ComfyUI keeps it, plain and scaled: widened, added, and rounded once, fused rows too."""
    weights = {name: tensor.double() for name, tensor in load_file(base / WEIGHTS).items()}
    adapter = on_every_layer(case, load_file(base / WEIGHTS))
    formats.write(adapter, tmp_path / "a.safetensors", "diffusers")
    moved = dict(weights)
    for name, layer in adapter.layers.items():
        key = f"{name.removeprefix('transformer.')}.weight"
        moved[key] = weights[key] + layer.delta().double()
    before, after = native(case, weights), native(case, moved)
    for scaled in (False, True):
        tensors: dict[str, Tensor] = {"scaled_fp8": torch.empty(2, dtype=torch.float8_e4m3fn)} if scaled else {}
        scales = {}
        for key, tensor in before.items():
            is_matrix = key.endswith(".weight") and tensor.ndim == 2
            scales[key] = after[key].abs().max() / 200 if scaled and is_matrix else torch.tensor(1.0)
            dtype = torch.float8_e4m3fn if is_matrix else torch.float32
            tensors[f"model.diffusion_model.{key}"] = (tensor / scales[key]).to(dtype)
            if scaled and is_matrix:
                tensors[f"model.diffusion_model.{key.removesuffix('weight')}scale_weight"] = scales[key].float()
        file, out = tmp_path / f"{scaled}.safetensors", tmp_path / f"{scaled}-out.safetensors"
        save_file(tensors, file)
        result = cli("merge", file, tmp_path / "a.safetensors", "--output", out)
        assert result.status == 0, result.err
        merged = load_file(out)
        assert {name: (one.dtype, one.shape) for name, one in merged.items()} == {
            name: (one.dtype, one.shape) for name, one in tensors.items()
        }
        for key, tensor in after.items():
            name = f"model.diffusion_model.{key}"
            stored = tensors[name].double() * scales[key].float().double()
            exact = stored + tensor - before[key]
            found = merged[name].double() * scales[key].float().double()
            limit = exact.abs() / 16 + 2**-9 * scales[key] if merged[name].dtype == torch.float8_e4m3fn else 1e-6
            assert bool(((found - exact).abs() <= limit).all()), key


def test_a_network_of_its_own(case: Case, base: Path, recipe: Any, cli: Any, tmp_path: Path) -> None:
    """The transformer from a file as ComfyUI keeps it, all else from a folder."""
    weights, rest = load_file(base / WEIGHTS), tmp_path / "rest"
    shutil.copytree(base, rest)
    (rest / WEIGHTS).unlink()
    in_8_bits = {
        name: one.to(torch.float8_e4m3fn).float() if name.endswith(".weight") and one.ndim == 2 else one
        for name, one in weights.items()
    }
    file = tmp_path / "16.safetensors"
    save_file(native(case, weights), file)
    loaded = denoisers.load(Model(base=str(rest), family=case.family, network=file)).network.state_dict()
    _same({name: one for name, one in loaded.items() if name in weights}, weights)
    folder, file, adapters = tmp_path / "folder", tmp_path / "8.safetensors", []
    shutil.copytree(base, folder)
    save_file(in_8_bits, folder / WEIGHTS)
    theirs = native(case, in_8_bits)
    matrices = [key for key, one in theirs.items() if key.endswith(".weight") and one.ndim == 2]
    theirs |= {key: theirs[key].to(torch.float8_e4m3fn) for key in matrices}
    save_file({f"model.diffusion_model.{key}": one for key, one in theirs.items()}, file)
    for given in ({"base": str(folder)}, {"base": str(rest), "network": str(file)}):
        out = tmp_path / f"run-{len(given)}"
        sets = {"forget": {"count": 2}, "retain": {"count": 2}, "sampling": {"steps": 2, "resolution": SIDE}}
        model = {"model": given | {"family": case.family}, "output": str(out)}
        result = cli("train", recipe(**model, **sets), "--training.steps", "1")
        assert result.status == 0, result.err
        adapters.append(load_file(out / ADAPTER))
    assert all(torch.equal(tensor, adapters[1][name]) for name, tensor in adapters[0].items())
    told = formats.read(tmp_path / "run-2").provenance
    assert (told.base_model, told.base_fingerprint) == (file.name, fingerprint(Checkpoint(file)))
    assert str(tmp_path) not in json.dumps(public_recipe(Recipe.load(tmp_path / "run-2/recipe.yaml")))
    file = tmp_path / "part.safetensors"
    save_file(dict(list(native(case, weights).items())[:-2]), file)
    model = {"base": str(rest), "family": case.family, "network": str(file)}
    refused(cli("train", recipe(model=model)), "model.network", "lacks", "such as", "Give a file of the whole network")


def test_text_encoders_of_their_own(case: Case, base: Path, recipe: Any, cli: Any, tmp_path: Path) -> None:
    """Text encoders as ComfyUI's files have them, in 8 bits: what a folder with those values encodes."""
    rest, folder = tmp_path / "rest", tmp_path / "folder"
    for copy in (rest, folder):
        shutil.copytree(base, copy)
    files = {}
    for name in FAMILIES[case.family].encoders:
        (rest / name / "model.safetensors").unlink()
        weights = load_file(folder / name / "model.safetensors")
        small = {key: one.to(torch.float8_e4m3fn) if one.ndim == 2 else one for key, one in weights.items()}
        save_file(
            {key: one.float() for key, one in small.items()}, folder / name / "model.safetensors", {"format": "pt"}
        )
        files[name] = tmp_path / f"{name}.safetensors"
        save_file(small, files[name])
    files["vae"] = tmp_path / "vae.safetensors"
    weights = load_file(base / "vae" / Path(WEIGHTS).name)
    save_file({key: one * 1.1 if one.ndim == 4 else one for key, one in weights.items()}, files["vae"])
    shutil.copy(files["vae"], folder / "vae" / Path(WEIGHTS).name)
    prompts = ["a photo of a cat", ""]
    theirs = denoisers.load(Model(base=str(folder), family=case.family)).encode_prompts(prompts)
    own = Model(base=str(rest), family=case.family, parts=files)
    ours = denoisers.load(own)
    for name, tensor in ours.encode_prompts(prompts).parts.items():
        assert torch.equal(tensor, theirs.parts[name]), name
    pixels = torch.rand(1, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    plain = denoisers.load(Model(base=str(folder), family=case.family))
    assert torch.equal(ours.encode_images(pixels), plain.encode_images(pixels))
    save_file({"nothing.weight": torch.ones(2, 2)}, tmp_path / "other.safetensors")
    for name, words in (("text_encoder", "lacks"), ("nose", "is no part of")):
        model = {"base": str(rest), "family": case.family, "parts": {name: str(tmp_path / "other.safetensors")}}
        refused(cli("prepare", recipe(model=model)), f"model.parts.{name}", words)
    gone = tmp_path / "gone.safetensors"
    for name, value in (("network", str(gone)), ("parts", f"{{vae: {gone}}}")):
        refused(cli("prepare", recipe(), f"--model.{name}", value), f"model.{name}", "there is no such file.")


def on_every_layer(case: Case, weights: dict[str, Tensor], rank: int = 2) -> LoraAdapter:
    generator = torch.Generator().manual_seed(3)
    layers = {}
    for key, tensor in sorted(weights.items()):
        if key.endswith(".weight") and tensor.ndim == 2:
            down = torch.randn(rank, tensor.shape[1], generator=generator) * 0.1
            up = torch.randn(tensor.shape[0], rank, generator=generator)
            layers[f"transformer.{key.removesuffix('.weight')}"] = LoraLayer(down, up, float(rank))
    return LoraAdapter(layers, Provenance(architecture=FAMILIES[case.family].architectures[0].id))


def _same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name
