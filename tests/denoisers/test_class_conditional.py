"""The class-conditional family, end to end on a tiny random base and a tiny labelled set."""

from __future__ import annotations

import gzip
import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from diffusers import DDIMScheduler, DDPMScheduler, UNet2DModel
from fixtures import Cli
from PIL import Image
from refusals import refused
from safetensors.torch import load_file
from tiny import tiny_class_pipeline
from torch.nn import functional as F

from erasediff_lora import denoisers
from erasediff_lora.data import layouts
from erasediff_lora.data.layouts import fashion_mnist
from erasediff_lora.denoisers.class_conditional import ClassConditionalPipeline
from erasediff_lora.evaluation.judges.classifier import Classifier
from erasediff_lora.recipe import Model, Recipe, Sampling

NAMES = fashion_mnist.NAMES
CLASSES = dict(enumerate(NAMES))
SIDE = 8


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A folder with a pipeline, a judge and a labelled set."""
    root = tmp_path_factory.mktemp("classes")
    pipeline = tiny_class_pipeline(CLASSES)
    pipeline.unet.save_pretrained(root / "plain")
    pipeline.save_pretrained(root / "model")
    Classifier(NAMES, [], 16).save(root / "judge.safetensors")
    write_idx(root / "data")
    return root


def write_idx(folder: Any, count: int = 40) -> None:
    folder.mkdir()
    rng = np.random.default_rng(0)
    for prefix in ("train", "t10k"):
        pixels = rng.integers(0, 256, (count, SIDE, SIDE), np.uint8)
        labels = np.arange(count, dtype=np.uint8) % 10
        header = np.array([0x803, count, SIDE, SIDE], ">u4").tobytes()
        with gzip.open(folder / f"{prefix}-images-idx3-ubyte.gz", "wb") as stream:
            stream.write(header + pixels.tobytes())
        with gzip.open(folder / f"{prefix}-labels-idx1-ubyte.gz", "wb") as stream:
            stream.write(np.array([0x801, count], ">u4").tobytes() + labels.tobytes())


@pytest.fixture
def recipe(base: Any, tmp_path: Path) -> Any:
    def write(**changes: Any) -> Any:
        images = {"folder": str(base / "data"), "per_concept": 3}
        values: dict[str, Any] = {
            "model": {"base": str(base / "model"), "family": "class_conditional"},
            "forget": {
                "concepts": [{"name": "bag", "anchor": "boot"}], "templates": ["{concept}"], "images": images,
            },
            "retain": {"concepts": ["boot", "coat"], "templates": ["{concept}"], "images": images},
            "sampling": {"steps": 2, "guidance": 2.0, "batch_size": 4},
            "adapter": {"rank": 2, "targets": "attention_convolutions"},
            "objective": {"target": "anchor"},
            "training": {"steps": 4, "batch_size": 2, "threads": 1, "checkpoint_every": 2},
            "evaluation": {
                "judge": f"classifier:{base / 'judge.safetensors'}", "forget_samples": 2, "retain_samples": 4,
                "metrics": ["accuracy"],
            },
            "output": str(tmp_path / "run"),
            "cache": str(tmp_path / "cache"),
        }  # fmt: skip
        for section, change in changes.items():
            values[section] = values.get(section, {}) | change if isinstance(change, dict) else change
        file = tmp_path / "recipe.yaml"
        file.write_text(yaml.safe_dump(values))
        return file

    return write


def test_prediction_and_drawing_are_those_of_the_plain_network(base: Any) -> None:
    """Against UNet2DModel with integer labels, and DDIM with guidance written out; in float64, of which guidance loses
    digits as well."""
    denoiser = denoisers.load(Model(base=str(base / "model"), family="class_conditional", dtype="float64"))
    plain = UNet2DModel.from_pretrained(base / "plain").double()
    prompts = ["bag", "", "boot"]
    labels = torch.tensor([NAMES.index("bag"), len(NAMES), NAMES.index("boot")])
    noisy, timesteps = torch.randn(3, 1, SIDE, SIDE, dtype=torch.float64), torch.tensor([3, 500, 900])
    with torch.no_grad():
        ours = denoiser.predict(noisy, timesteps, denoiser.encode_prompts(prompts))
        torch.testing.assert_close(ours, plain(noisy, timesteps, labels).sample)

        drawn = denoiser.generate(["bag", "boot"], [5, 6], Sampling(steps=4, guidance=3.0), output="latent")
        scheduler = DDIMScheduler()
        scheduler.set_timesteps(4)
        starts = [torch.Generator().manual_seed(seed) for seed in (5, 6)]
        sample = torch.cat([torch.randn(1, 1, SIDE, SIDE, generator=g) for g in starts]).double()
        for timestep in scheduler.timesteps:
            guided = plain(sample, timestep, labels[[0, 2]]).sample
            without = plain(sample, timestep, labels[[1, 1]]).sample
            sample = scheduler.step(without + 3 * (guided - without), timestep, sample).prev_sample
    torch.testing.assert_close(drawn, sample.clamp(-1, 1))


def test_a_class_embedding_can_be_given_and_learned(base: Any) -> None:
    denoiser = denoisers.load(Model(base=str(base / "model"), family="class_conditional"))
    word = denoiser.embed_word("coat").detach().requires_grad_()
    slots = denoiser.encode_slots(["<*>", "bag"], word)
    noisy, timesteps = torch.randn(2, 1, SIDE, SIDE), torch.tensor([30, 700])
    given = denoiser.predict(noisy, timesteps, slots)
    torch.testing.assert_close(given, denoiser.predict(noisy, timesteps, denoiser.encode_prompts(["coat", "bag"])))
    own = torch.stack([denoiser.embed_word("coat"), denoiser.embed_word("bag")])
    assert torch.equal(denoiser.encode_slots(["<*>", "<*>"], own).tokens[:, 0, -own.shape[-1] :], own[:, 0])
    (gradient,) = torch.autograd.grad(F.mse_loss(given, torch.zeros_like(given)), [word])
    assert float(gradient.abs().sum()) > 0


def test_ddpm_and_ddim_samplers(base: Any, tmp_path: Path) -> None:
    """The folder's scheduler is the one that draws; the same seeds give the same pictures."""
    pipeline = ClassConditionalPipeline.from_pretrained(base / "model")
    pictures = {}
    for scheduler in (DDIMScheduler(), DDPMScheduler()):
        ClassConditionalPipeline(pipeline.unet, scheduler, CLASSES).save_pretrained(tmp_path / "model")
        denoiser = denoisers.load(Model(base=str(tmp_path / "model"), family="class_conditional"))
        twice = [denoiser.generate(["bag"], [1], Sampling(steps=3, guidance=1.0), output="latent") for _ in range(2)]
        assert torch.equal(*twice)
        pictures[type(scheduler).__name__] = twice[0]
    assert not torch.equal(*pictures.values())


def test_a_picture_is_its_own_latent(base: Any) -> None:
    denoiser = denoisers.load(Model(base=str(base / "model"), family="class_conditional"))
    pixels = torch.randint(0, 256, (2, 1, SIDE, SIDE)) / 127.5 - 1
    images = denoiser.decode(pixels)
    back = torch.stack([torch.from_numpy(np.array(image)).permute(2, 0, 1) for image in images]) / 127.5 - 1
    torch.testing.assert_close(denoiser.encode_images(back.float()), pixels)
    close = denoiser.generate_from(images, 0.0, ["bag", "bag"], [1, 2], Sampling(steps=3, guidance=1.0))
    assert all(np.array_equal(np.array(a), np.array(b)) for a, b in zip(close, images, strict=True))


@pytest.mark.parametrize("kind", ["lora", "robust", "none"])
def test_train_resume_evaluate(kind: str, base: Any, recipe: Any, cli: Cli, tmp_path: Path) -> None:
    robust = {"preset": "robust", "adversary": {"refresh_every": 1, "steps": 1, "batch_size": 2}}
    file = recipe(
        adapter={"kind": "none", "targets": "all"} if kind == "none" else {}, **robust if kind == "robust" else {}
    )
    if kind == "none":
        values = yaml.safe_load(file.read_text()) | {"adapter": "none"}
        file.write_text(yaml.safe_dump(values))
    attacks = "[inversion, output_inversion, latent_start, relearning]"
    options = ("--evaluation.attacks", attacks, "--evaluation.inversion", "{steps: 2, restarts: 1, samples: 2}",
               "--evaluation.latent_start", "{strengths: [0.5], samples: 2}",
               "--evaluation.relearning", "{steps: [2], samples: 2, images: 2}")  # fmt: skip
    result = cli("train", file, *options)
    assert result.status == 0, result.err
    name = "pytorch_lora_weights.safetensors" if kind != "none" else "unet/diffusion_pytorch_model.safetensors"
    whole = load_file(tmp_path / "run" / name)
    assert cli("train", file, "--output", tmp_path / "cut", "--training.steps", "2").status == 0
    assert cli("train", file, "--output", tmp_path / "cut", "--resume").status == 0
    cut = load_file(tmp_path / "cut" / name)
    assert all(torch.equal(whole[key], cut[key]) for key in whole)

    found = json.loads((tmp_path / "run/evaluation.json").read_text())
    assert found["metrics"]["accuracy"]["counted"] == {"forget": 2, "forget_base": 2, "retain": 4}
    assert "inversion" in found["attacks"], found["refused"]
    assert "needs text encoders; this family has none." in found["refused"].pop("output_inversion")
    for attack, why in found["refused"].items():  # the random judge may see a bag nowhere
        assert attack in ("latent_start",) and "sees the concept in none" in why


def test_full_weights_are_read_by_diffusers_and_drawn_by_the_evaluation(
    base: Any, recipe: Any, cli: Cli, tmp_path: Path
) -> None:
    file = recipe(training={"learning_rate": 0.05})
    values = yaml.safe_load(file.read_text()) | {"adapter": {"kind": "none", "targets": [r".*class_embedding"]}}
    file.write_text(yaml.safe_dump(values))
    assert cli("train", file).status == 0
    trained = UNet2DModel.from_pretrained(tmp_path / "run/unet").state_dict()
    before = UNet2DModel.from_pretrained(base / "plain").state_dict()
    moved = {name for name in before if not torch.equal(before[name], trained[name])}
    assert moved == {"class_embedding.weight"}

    from erasediff_lora.evaluation.candidates import load_candidates
    from erasediff_lora.evaluation.erasures import locate

    recipe = Recipe.load(file)
    candidates = load_candidates(recipe, locate(tmp_path / "run", "unet"))
    table = {}
    for candidate in (candidates.erased, candidates.at(0.5), candidates.base):
        with candidate.active() as denoiser:
            table[candidate.strength] = denoiser.network.class_embedding.weight.detach().clone()
    torch.testing.assert_close(table[0], before["class_embedding.weight"])
    torch.testing.assert_close(table[1], trained["class_embedding.weight"])
    torch.testing.assert_close(table[0.5], (table[0] + table[1]) / 2)


def test_the_adapter_merges_into_the_base(base: Any, recipe: Any, cli: Cli, tmp_path: Path) -> None:
    assert cli("train", recipe()).status == 0
    assert cli("merge", base / "model", tmp_path / "run", "--output", tmp_path / "merged").status == 0
    denoiser = denoisers.load(Model(base=str(tmp_path / "merged"), family="class_conditional"))

    from erasediff_lora.evaluation.candidates import load_candidates

    candidates = load_candidates(
        Recipe.load(tmp_path / "recipe.yaml"), tmp_path / "run/pytorch_lora_weights.safetensors"
    )
    sampling = Sampling(steps=2, guidance=2.0)
    with candidates.erased.active() as erased:
        expected = erased.generate(["bag"], [1], sampling, output="latent")
    torch.testing.assert_close(
        denoiser.generate(["bag"], [1], sampling, output="latent"), expected, atol=1e-5, rtol=1e-5
    )


def test_only_the_classes_that_are_asked_for(base: Any) -> None:
    from erasediff_lora.data import images
    from erasediff_lora.recipe import Images, RetainSet

    source = Images(folder=base / "data", per_concept=2)
    pictures = images.read("retain", RetainSet(concepts=["coat", "bag"], templates=["a {concept}"], images=source))
    assert [picture.caption for picture in pictures] == ["a coat"] * 2 + ["a bag"] * 2
    data = layouts.read(base / "data")
    assert np.array_equal(np.array(pictures[0].image)[..., 0], data.pixels[NAMES.index("coat")][..., 0])


def test_cifar_in_its_binary_version(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    planes = rng.integers(0, 256, (4, 3, 32, 32), np.uint8)
    rows = np.concatenate([np.array([[9], [0], [3], [3]], np.uint8), planes.reshape(4, -1)], axis=1)
    for number in range(1, 6):
        rows.tofile(tmp_path / f"data_batch_{number}.bin")
    data = layouts.read(tmp_path)
    assert len(data.pixels) == 20 and data.names[data.labels[0]] == "truck" and data.names[data.labels[1]] == "airplane"
    assert np.array_equal(data.pixels[1], planes[1].transpose(1, 2, 0))


def test_the_base_of_a_data_set_is_trained_by_one_script(
    base: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import train_ddpm_base

    sizes = ["--steps", "2", "--judge-steps", "2", "--batch-size", "4"]
    work = tmp_path / "work"
    monkeypatch.setattr("sys.argv", ["x", "--data", str(base / "data"), "--work", str(work), *sizes])
    train_ddpm_base.main()
    assert "of the test pictures" in capsys.readouterr().out
    assert 0 <= json.loads((work / "judge.json").read_text())["test_accuracy"] <= 1
    denoiser = denoisers.load(Model(base=str(work / "model"), family="class_conditional"))
    drawn = denoiser.generate(["bag", ""], [1, 2], Sampling(steps=2, guidance=2.0), output="pil")
    assert [picture.size for picture in drawn] == [(SIDE, SIDE)] * 2
    assert len(Classifier.load(work / "judge.safetensors").classify(drawn)) == 2
    monkeypatch.setattr("sys.argv", ["x", "--data", str(tmp_path / "nowhere")])
    with pytest.raises(SystemExit, match=r"nowhere: there is no data set. Run: sudo apt-get install dataset-fashion"):
        train_ddpm_base.main()


def test_a_classlabel_column_of_datasets(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    from erasediff_lora.data import images
    from erasediff_lora.recipe import ForgetSet, Images

    features = datasets.Features({"img": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])})
    pictures = [Image.new("RGB", (8, 8), (shade, 0, 0)) for shade in (10, 20, 30)]
    rows = {"img": pictures, "label": [0, 1, 0]}
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(tmp_path / "set")
    source = Images(dataset=str(tmp_path / "set"), image_column="img", concept_column="label")
    found = images.read("forget", ForgetSet(concepts=["cat"], templates=["a {concept}"], images=source))
    assert [picture.caption for picture in found] == ["a cat", "a cat"]
    assert [np.asarray(picture.image)[0, 0, 0] for picture in found] == [10, 30]


def test_bad_input_is_named(base: Any, recipe: Any, cli: Cli, tmp_path: Path) -> None:
    purse = "--forget.concepts", "[{name: purse, anchor: boot}]"
    refused(cli("train", recipe(), *purse), "evaluation.judge = ", "has no label for 'purse'")
    refused(
        cli("train", recipe(), *purse, "--evaluation.judge", "null"),
        "forget.concepts = 'purse': is no class of the set",
    )
    refused(
        cli("train", recipe(), "--retain.templates", "['a {concept}']"), "prompt = 'a boot': is no class of the base"
    )
    refused(
        cli("train", recipe(), "--model.base", tmp_path),
        "model.base = ",
        "is no folder of a class-conditional pipeline",
    )
    (tmp_path / "cut").mkdir()
    for file in (base / "data").iterdir():
        (tmp_path / "cut" / file.name).write_bytes(file.read_bytes()[:40])
    images = f"{{folder: {tmp_path / 'cut'}}}"
    refused(
        cli("train", recipe(), "--forget.images", images), "forget.images.folder = ", "is not readable as fashion_mnist"
    )
    with gzip.open(tmp_path / "cut/train-images-idx3-ubyte.gz", "wb") as packed:  # some bytes that unpack to 4 GiB
        packed.write(struct.pack(">IIII", 0x803, 2**10, 2**11, 2**11))
    refused(cli("train", recipe(), "--forget.images", images), "has 1024 x 2048 x 2048 bytes, and 1073741824 are the")
    refused(cli("train", recipe(), "--forget.images.split", "dev"), "forget.images.folder = 'dev': is no split")
    refused(
        cli("train", recipe(), "--model.dtype", "bfloat16", "--adapter", "none"),
        "model.dtype = 'bfloat16': is too coarse for weights that are trained",
    )
    refused(cli("train", recipe(), "--adapter.kind", "dora"), "adapter.kind = 'dora': is unknown", "lora")
    refused(cli("evaluate", recipe(), "--evaluation.judge", "classifier"), "names no weights", "classifier:FILE")
