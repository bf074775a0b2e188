"""The training program as a user runs it, on a tiny base with random weights."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from fixtures import Cli, RecipeFile
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from tiny import tiny_pipeline, tiny_values

from erasediff_lora.training import loop, setup

ROOT = Path(__file__).parent.parent.parent
LOGGED = {
    "step", "retain_loss", "forget_loss", "gap", "lambda", "retain_gradient_norm", "constraint_gradient_norm",
    "gradient_cosine", "direction_norm", "learning_rate", "samples_per_second", "peak_memory_bytes",
}  # fmt: skip
CONVOLUTIONS = "attention_feed_forward_convolutions"


def log_of(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "training_log.jsonl").read_text().splitlines()]


def adapter_of(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "pytorch_lora_weights.safetensors")


def same(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def test_a_run_leaves_everything_a_user_needs(recipe_file: RecipeFile, cli: Cli, tmp_path: Path) -> None:
    result = cli(
        "train", recipe_file(), "--training.sample_every", "2", "--training.log_with", "[tensorboard]",
        "--objective.barrier", "gap", "--retain.concepts", "[dog]",
    )  # fmt: skip
    assert result.status == 0, result.err
    run = tmp_path / "run"
    for name in (
        "pytorch_lora_weights.safetensors", "erase-cat.safetensors", "adapter_model.safetensors",
        "adapter_config.json", "recipe.yaml", "pictures/forget-1-base.png", "pictures/retain-2-erased.png",
        "training_log.jsonl", "before_after.png", "evaluation.json", "report.html", "forget_set.png", "retain_set.png",
        "samples/step-000002.png", "samples/step-000004.png", "checkpoints/step-000004/trainer.pt",
    ):  # fmt: skip
        assert (run / name).stat().st_mode & 0o777 == 0o644, name
    assert not [file for file in run.rglob("*") if file.name.startswith(".")]
    assert list(run.rglob("events.out.tfevents*"))
    assert {frozenset(line) for line in log_of(run)} == {frozenset(LOGGED)}
    assert [line["step"] for line in log_of(run)] == [1, 2, 3, 4]
    assert all(line["gap"] is not None for line in log_of(run))
    recipe = yaml.safe_load((run / "recipe.yaml").read_text())
    assert recipe["retain"]["concepts"] == ["dog"] and recipe["objective"]["barrier"] == "gap"
    assert json.loads((run / "evaluation.json").read_text())["forget_samples"] == 2
    assert str(run / "before_after.png") in result.out
    assert any(value.abs().sum() > 0 for name, value in adapter_of(run).items() if "lora_B" in name)


def test_the_three_files_hold_one_adapter_and_say_where_it_comes_from(
    recipe_file: RecipeFile, tiny_base: Path, cli: Cli, tmp_path: Path
) -> None:
    from erasediff_lora import __version__
    from erasediff_lora.adapter import Checkpoint, Provenance, fingerprint, formats

    assert cli("train", recipe_file(adapter={"rank": 2, "alpha": 4.0})).status == 0
    run = tmp_path / "run"
    (run / "peft").mkdir()
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        (run / name).rename(run / "peft" / name)
    adapters = [
        formats.read(run / name) for name in ("pytorch_lora_weights.safetensors", "erase-cat.safetensors", "peft")
    ]
    trained = load_file(sorted((run / "checkpoints").iterdir())[-1] / "adapter.safetensors")
    for adapter in adapters:
        assert {f"unet.{key.rsplit('.', 2)[0]}" for key in trained} == adapter.layers.keys()
        for name, layer in adapter.layers.items():
            path = name.removeprefix("unet.")
            assert torch.equal(layer.down, trained[f"{path}.lora_A.weight"])
            # A power of two times the rank: exact also where B takes it up, for readers of diffusers files without it.
            assert torch.equal(layer.up * layer.scale, trained[f"{path}.lora_B.weight"] * 2)
            assert layer.rank == 2
        assert adapter.provenance == Provenance(
            base_model="tiny",
            base_fingerprint=fingerprint(Checkpoint(tiny_base)),
            architecture="stable-diffusion-v1",
            prediction_type="epsilon",
            resolution=32,
            concepts=("cat",),
            objective="erasediff",
            recipe_sha256=adapters[0].provenance.recipe_sha256,
            version=__version__,
        )
    assert len(adapters[0].provenance.recipe_sha256) == 64
    assert cli("train", recipe_file(adapter={"rank": 2, "alpha": 4.0}), "--output", tmp_path / "again").status == 0
    again = formats.read(tmp_path / "again").provenance.recipe_sha256
    assert again == adapters[0].provenance.recipe_sha256, "where it is written is no part of the recipe"


def test_inert_inner_steps_are_said_so(recipe_file: RecipeFile, cli: Cli) -> None:
    result = cli("train", recipe_file(), "--objective.barrier", "grad_norm", "--objective.inner_steps", "3")
    assert "The 3 inner step(s) are skipped" in result.err


@pytest.mark.parametrize("optimizer", ["adamw", "adamw8bit", "paged_adamw8bit", "lion8bit"])
def test_a_resumed_run_ends_bit_equal(tiny_base: Path, tmp_path: Path, cli: Cli, optimizer: str) -> None:
    def run(name: str, steps: int, *more: str) -> dict[str, torch.Tensor]:
        training = {
            "steps": 4, "batch_size": 4, "gradient_accumulation": 2, "threads": 1, "checkpoint_every": 2,
            "optimizer": optimizer, "warmup_steps": 3, "gradient_checkpointing": True,
        }  # fmt: skip
        values = tiny_values(
            tiny_base, tmp_path, output=str(tmp_path / name), training=training,
            adapter={"rank": 32, "targets": "attention", "dropout": 0.1}, objective={"barrier": "gap"},
        )  # fmt: skip
        file = tmp_path / f"{name}.yaml"
        file.write_text(yaml.safe_dump(values))
        assert cli("train", file, "--training.steps", str(steps), *more).status == 0
        return adapter_of(tmp_path / name)

    whole = run("whole", 4)
    half = run("cut", 2)
    assert not same(whole, half)
    assert same(whole, run("cut", 4, "--resume"))
    assert [line["step"] for line in log_of(tmp_path / "cut")] == [1, 2, 3, 4]


def test_resuming_with_another_recipe_is_refused(recipe_file: RecipeFile, cli: Cli) -> None:
    assert cli("train", recipe_file()).status == 0
    result = cli("train", recipe_file(), "--resume", "--adapter.rank", "8", "--training.learning_rate", "0.1")
    assert result.status == 2
    assert "adapter.rank = 8: was 2 when the run was started." in result.err
    assert "training.learning_rate = 0.1: was 0.001" in result.err


def test_seeds_decide_the_adapter(recipe_file: RecipeFile, cli: Cli, tmp_path: Path) -> None:
    adapters = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        cli("train", recipe_file(output=str(tmp_path / name)), "--training.seed", seed)
        adapters.append(adapter_of(tmp_path / name))
    assert same(adapters[0], adapters[1])
    assert not same(adapters[0], adapters[2])


FRESH = """
import sys, torch
from diffusers import StableDiffusionPipeline
torch.set_num_threads(1)
pipe = StableDiffusionPipeline.from_pretrained(sys.argv[1], safety_checker=None)
pipe.load_lora_weights(sys.argv[2])
images = pipe(["a photo of a cat"] * 2, num_inference_steps=2, guidance_scale=2.0, height=32, width=32,
              generator=[torch.Generator("cpu").manual_seed(s) for s in (1000000, 1000001)]).images
for i, image in enumerate(images):
    image.save(f"{sys.argv[3]}/{i}.png")
"""


@pytest.mark.parametrize(
    "adapter",
    [
        {"targets": CONVOLUTIONS, "rank": 4, "alpha": 6.0},
        {"targets": [r".*attn2\.to_[qkv]"], "rank": 3, "alpha": 2.0, "rslora": True},
        {"targets": "cross_attention", "rank": 2, "dora": True},
    ],
    ids=["convolutions", "regex-rslora", "dora"],
)
def test_fresh_diffusers_draws_what_the_trainer_showed(
    tiny_base: Path, recipe_file: RecipeFile, cli: Cli, tmp_path: Path, adapter: Any
) -> None:
    """Bit for bit, in a process that knows nothing of this package."""
    file = recipe_file(adapter=adapter, training={"learning_rate": 0.05, "sample_every": 4})
    assert cli("train", file).status == 0
    run = tmp_path / "run"
    subprocess.run([sys.executable, "-c", FRESH, tiny_base, run, tmp_path], check=True, cwd=tmp_path)

    from erasediff_lora import denoisers
    from erasediff_lora.adapter import load
    from erasediff_lora.evaluation.pictures import forget_prompts, generate, painter
    from erasediff_lora.recipe import Recipe

    recipe = Recipe.load(run / "recipe.yaml")
    denoiser = denoisers.load(recipe.model)
    prompts = forget_prompts(recipe) * 2
    plain = generate(painter(denoiser), recipe, prompts, 1000000, "base")
    load(denoiser.pipeline, run, strict=True)
    shown = generate(painter(denoiser), recipe, prompts, 1000000, "erased")
    for index, (erased, base) in enumerate(zip(shown, plain, strict=True)):
        fresh = Image.open(tmp_path / f"{index}.png")
        assert fresh.tobytes() == erased.image.tobytes()
        assert fresh.tobytes() != base.image.tobytes()


def test_trained_network_and_saved_adapter_predict_the_same(
    tiny_base: Path, recipe_file: RecipeFile, cli: Cli, tmp_path: Path
) -> None:
    """The network in training, diffusers' loader and peft's own loader agree to the bit."""
    from diffusers import UNet2DConditionModel
    from peft import LoraConfig, inject_adapter_in_model, set_peft_model_state_dict

    adapter = {"targets": CONVOLUTIONS, "rank": 4, "alpha": 8.0}
    cli("train", recipe_file(adapter=adapter, training={"learning_rate": 0.05}))
    run = tmp_path / "run"
    inputs = (torch.randn(2, 4, 4, 4), torch.tensor([5, 700]), torch.randn(2, 7, 32))

    def unet() -> UNet2DConditionModel:
        return UNet2DConditionModel.from_pretrained(tiny_base, subfolder="unet").eval()

    trained = unet()
    trained.add_adapter(LoraConfig(r=4, lora_alpha=8, target_modules=modules_of(run)))
    checkpoint = load_file(run / "checkpoints/step-000004/adapter.safetensors")
    set_peft_model_state_dict(trained, checkpoint)

    through_diffusers = unet()
    through_diffusers.load_lora_adapter(
        adapter_of(run), prefix="unet", metadata=json.loads(header_of(run)["lora_adapter_metadata"])
    )
    through_peft = inject_adapter_in_model(LoraConfig.from_pretrained(str(run)), unet())
    bare = {
        name.removeprefix("base_model.model."): t for name, t in load_file(run / "adapter_model.safetensors").items()
    }
    set_peft_model_state_dict(through_peft, bare)
    with torch.no_grad():
        expected = trained(*inputs).sample
        assert torch.equal(through_diffusers(*inputs).sample, expected)
        assert torch.equal(through_peft(*inputs).sample, expected)
        assert not torch.equal(unet()(*inputs).sample, expected)


def header_of(run: Path) -> dict[str, str]:
    with safe_open(run / "pytorch_lora_weights.safetensors", framework="pt") as file:
        return file.metadata()


def modules_of(run: Path) -> list[str]:
    return json.loads((run / "adapter_config.json").read_text())["target_modules"]


def test_v_prediction_follows_the_schedulers_velocity(tmp_path: Path, cli: Cli) -> None:
    """The batch's target is sqrt(a) ε − sqrt(1 − a) x0, and the whole program runs on such a base."""
    from erasediff_lora import denoisers
    from erasediff_lora.data import sets
    from erasediff_lora.data.batches import RetainSampler, Setting
    from erasediff_lora.data.micro_batches import MicroBatches
    from erasediff_lora.recipe import Recipe

    base = tmp_path / "v"
    tiny_pipeline("v_prediction").save_pretrained(base)
    file = tmp_path / "v.yaml"
    file.write_text(yaml.safe_dump(tiny_values(base, tmp_path)))
    assert cli("train", file, "--training.min_snr_gamma", "5").status == 0

    recipe = Recipe.load(file)
    denoiser = denoisers.load(recipe.model)
    data = sets.prepare(recipe, denoiser, "retain")
    scheduler = denoiser.noise_scheduler
    assert scheduler.config.prediction_type == "v_prediction"
    setting = Setting(scheduler, 16, MicroBatches(16), 0, denoiser.device, denoiser.dtype)
    (batch,) = RetainSampler(data, setting, data, empty_prompt_share=0.5, min_snr_gamma=5.0).draw(3)
    a = scheduler.alphas_cumprod[batch.timesteps].view(-1, 1, 1, 1)
    # x_t and v determine x0 and ε: x0 = sqrt(a) x_t − sqrt(1 − a) v, ε = sqrt(1 − a) x_t + sqrt(a) v
    clean = a.sqrt() * batch.noisy - (1 - a).sqrt() * batch.target
    noise = (1 - a).sqrt() * batch.noisy + a.sqrt() * batch.target
    distances = (clean.flatten(1)[:, None] - data.latents[:].flatten(1)[None]).abs().amax(dim=2)
    assert distances.amin(dim=1).max() < 1e-4
    torch.testing.assert_close(batch.target, scheduler.get_velocity(clean, noise, batch.timesteps), atol=1e-4, rtol=0)
    snr = (a / (1 - a)).flatten()
    torch.testing.assert_close(batch.weights, snr.clamp_max(5) / (snr + 1))
    empty = (batch.prompts.tokens == data.embeddings[:].tokens[0]).all(dim=(1, 2))
    assert 0 < int(empty.sum()) < 16


def test_bfloat16_base_keeps_the_adapter_in_float32(recipe_file: RecipeFile, cli: Cli, tmp_path: Path) -> None:
    assert cli("train", recipe_file(model={"dtype": "bfloat16"})).status == 0
    assert {tensor.dtype for tensor in adapter_of(tmp_path / "run").values()} == {torch.float32}


def test_a_stopped_run_saves_a_checkpoint_and_says_how_to_go_on(
    recipe_file: RecipeFile, cli: Cli, tmp_path: Path
) -> None:
    whole = recipe_file(output=str(tmp_path / "whole"), training={"steps": 40})
    assert cli("train", whole).status == 0
    file = recipe_file(training={"steps": 40})
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "scripts/train_erase_lora.py"), str(file)],
        stderr=subprocess.PIPE, text=True, env=environment,
    )  # fmt: skip
    log = tmp_path / "run/training_log.jsonl"
    deadline = time.monotonic() + 120
    while not (log.exists() and log.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    assert "stopped by SIGTERM after step" in errors and "--resume" in errors and "Traceback" not in errors
    assert not (tmp_path / "run/pytorch_lora_weights.safetensors").exists()
    assert cli("train", file, "--resume").status == 0
    assert same(adapter_of(tmp_path / "run"), adapter_of(tmp_path / "whole"))


def test_accelerate_launch_runs_the_same_program(recipe_file: RecipeFile, cli: Cli, tmp_path: Path) -> None:
    file = recipe_file()
    subprocess.run(
        [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "1",
         str(ROOT / "scripts/train_erase_lora.py"), str(file), "--output", str(tmp_path / "launched")],
        check=True, env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}, capture_output=True,
    )  # fmt: skip
    assert cli("train", file).status == 0
    assert same(adapter_of(tmp_path / "launched"), adapter_of(tmp_path / "run"))


FULL_DISK = """
mount -t tmpfs -o size=$2 tmpfs "$1"
"$3" -m erasediff_lora.cli train "$4" --output "$1/run"
test "$?" = 2 || exit 9
test -z "$(find "$1" -name '.*' -not -path "$1")" || exit 8
test -d "$1/run/checkpoints/step-000002" || exit 7
mount -o remount,size=20m "$1"
"$3" -m erasediff_lora.cli train "$4" --output "$1/run" --resume || exit 6
cp "$1/run/pytorch_lora_weights.safetensors" "$5"
"""


def test_a_full_disk_costs_nothing_but_the_last_steps(recipe_file: RecipeFile, cli: Cli, tmp_path: Path) -> None:
    """On a tmpfs that has room for one checkpoint and not for two, in a mount namespace of its own."""
    if shutil.which("unshare") is None or subprocess.run(["unshare", "-rm", "true"], capture_output=True).returncode:
        pytest.skip("no user namespaces here")
    file = recipe_file(training={"steps": 6})
    assert cli("train", file, "--output", tmp_path / "whole").status == 0
    (checkpoint, *_) = sorted((tmp_path / "whole/checkpoints").iterdir())
    room = sum(part.stat().st_size for part in checkpoint.iterdir()) * 3 // 2 // 1024 + 40
    (tmp_path / "disk").mkdir()
    done = subprocess.run(
        ["unshare", "-rm", "bash", "-c", FULL_DISK, "bash", tmp_path / "disk", f"{room}k", sys.executable, file,
         tmp_path / "resumed.safetensors"],
        capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "cannot be written: No space left on device." in done.stderr and "Traceback" not in done.stderr
    assert same(load_file(tmp_path / "resumed.safetensors"), adapter_of(tmp_path / "whole"))


@pytest.mark.parametrize("option", ["channels_last", "compile"])
def test_layout_and_compilation_change_the_time_only(
    option: str, recipe_file: RecipeFile, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The compiler proper takes minutes; here it traces and runs what it traced."""
    took_effect = []
    compiled, set_up = torch.nn.Module.compile, setup.set_up

    def compile_quickly(module: Any, *arguments: Any, **options: Any) -> None:
        took_effect.append("compile")
        compiled(module, *arguments, backend="aot_eager", **options)

    def look(*arguments: Any, **options: Any) -> Any:
        run = set_up(*arguments, **options)
        if run.denoiser.network.conv_in.weight.is_contiguous(memory_format=torch.channels_last):
            took_effect.append("channels_last")
        return run

    monkeypatch.setattr(torch.nn.Module, "compile", compile_quickly)
    monkeypatch.setattr(loop, "set_up", look)
    file = recipe_file(model={"dtype": "float64"}, training={"steps": 2})
    assert cli("train", file).status == 0
    assert not took_effect
    assert cli("train", file, "--output", tmp_path / "other", f"--training.{option}", "true").status == 0
    assert set(took_effect) == {option}
    for name, tensor in adapter_of(tmp_path / "run").items():
        torch.testing.assert_close(adapter_of(tmp_path / "other")[name], tensor, rtol=0, atol=1e-9)
    torch._dynamo.reset()
