"""Three EraseDiff steps on the Stable Diffusion 1.5 architecture at 512 px, and the memory they take.

    python scripts/bench_sd15_memory.py [--dtype bfloat16] [--resolution 512]

The weights are random (shapes, not pictures, decide the memory). `prepare` and `train` run as separate processes, as
they may on a small machine: the caches are made in the first, the second never loads VAE and text encoder.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import yaml
from architectures import SD_1_5, SD_VAE
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from PIL import Image
from tokenizers import pre_tokenizers
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer


def random_weights(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Give a module built on the meta device small random weights."""
    module = module.to(dtype).to_empty(device="cpu")
    for name, parameter in module.named_parameters():
        if name.endswith("bias"):
            nn.init.zeros_(parameter)
        elif parameter.dim() == 1:
            nn.init.ones_(parameter)
        else:
            nn.init.normal_(parameter, std=0.02)
    for name, buffer in module.named_buffers():
        if "position_ids" in name:
            buffer.copy_(torch.arange(buffer.shape[-1]))
    return module


def build(folder: Path, dtype: torch.dtype) -> None:
    """Write a Stable Diffusion 1.5 pipeline with random weights."""
    torch.manual_seed(0)
    with torch.device("meta"):
        unet = UNet2DConditionModel(**SD_1_5)
        vae = AutoencoderKL(**SD_VAE)
    text_encoder = CLIPTextModel(
        CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_attention_heads=12, projection_dim=768)
    ).to(dtype)
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    pipeline = StableDiffusionPipeline(
        vae=random_weights(vae, dtype),
        text_encoder=text_encoder,
        tokenizer=CLIPTokenizer(vocab={p: i for i, p in enumerate(pieces)}, merges=[], model_max_length=77),
        unet=random_weights(unet, dtype),
        scheduler=DDIMScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, steps_offset=1
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder)


def main() -> None:
    """Build, prepare, train, report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"])
    parser.add_argument("--resolution", type=int, default=512)
    parser.add_argument("--checkpointing", default="true", choices=["true", "false"])
    parser.add_argument("--optimizer", default="adamw8bit")
    parser.add_argument("--build", type=Path, help="only write the random pipeline to this folder")
    arguments = parser.parse_args()
    if arguments.build:
        build(arguments.build, getattr(torch, arguments.dtype))
        return
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        subprocess.run([sys.executable, __file__, "--build", root / "base", "--dtype", arguments.dtype], check=True)
        for kind in ("forget", "retain"):
            (root / kind).mkdir()
            pixels = np.random.default_rng(0).integers(
                0, 255, (arguments.resolution, arguments.resolution, 3), np.uint8
            )
            Image.fromarray(pixels).save(root / kind / "picture.png")
        recipe = {
            "model": {"base": str(root / "base"), "dtype": arguments.dtype, "device": "cpu"},
            "forget": {
                "concepts": [{"name": "tench", "anchor": "church"}],
                "templates": ["a photo of a {concept}"],
                "images": {"folder": str(root / "forget")},
            },
            "retain": {
                "concepts": ["church"],
                "templates": ["a photo of a {concept}"],
                "images": {"folder": str(root / "retain"), "caption": "a photo of a church"},
            },
            "sampling": {"resolution": arguments.resolution},
            "adapter": {"rank": 8, "targets": "attention"},
            "objective": {"target": "anchor", "barrier": "gap"},
            "training": {
                "steps": 3,
                "batch_size": 1,
                "optimizer": arguments.optimizer,
                "gradient_checkpointing": arguments.checkpointing == "true",
                "checkpoint_every": 100,
            },
            "output": str(root / "run"),
            "cache": str(root / "cache"),
        }
        (root / "recipe.yaml").write_text(yaml.safe_dump(recipe))
        code = "import sys; from erasediff_lora.cli import main; sys.exit(main(sys.argv[1:]))"
        subprocess.run([sys.executable, "-c", code, "prepare", root / "recipe.yaml"], check=True)
        train_only = (
            "import sys, pathlib; from erasediff_lora.recipe import Recipe; from erasediff_lora.train import train;"
            "train(Recipe.load(pathlib.Path(sys.argv[1])))"
        )
        began = time.perf_counter()
        process = subprocess.Popen([sys.executable, "-c", train_only, root / "recipe.yaml"])
        _, status, usage = os.wait4(process.pid, 0)
        if status:
            raise SystemExit(f"training failed with status {status}")
        lines = [json.loads(line) for line in (root / "run/training_log.jsonl").read_text().splitlines()]
        adapter = (root / "run/pytorch_lora_weights.safetensors").stat().st_size
    report = {
        "architecture": "Stable Diffusion 1.5, random weights",
        "resolution": arguments.resolution,
        "dtype": arguments.dtype,
        "gradient_checkpointing": arguments.checkpointing == "true",
        "optimizer": arguments.optimizer,
        "threads": torch.get_num_threads(),
        "steps": len(lines),
        "seconds_per_step": [round(2 / line["samples_per_second"], 1) for line in lines],
        "peak_resident_gib": round(usage.ru_maxrss / 2**20, 2),
        "adapter_mb": round(adapter / 1e6, 2),
        "training_seconds": round(time.perf_counter() - began, 1),
    }
    for key, value in report.items():
        print(f"{key:24} {value}")
    Path("bench_sd15_memory.json").write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
