"""Train a class-conditional base in pixel space, and a judge of its classes, on Fashion-MNIST or CIFAR-10.

    export OMP_NUM_THREADS=1
    python scripts/base_models/train_ddpm_base.py --data /usr/share/datasets/fashion-mnist --work build/fashion

--data is a folder with Fashion-MNIST's idx.gz files, which Debian's package dataset-fashion-mnist has, or with
CIFAR-10's binary version. Writes judge.safetensors and the pipeline folder `model` under --work; what is there already
is kept. Prints the judge's accuracy on the test split and writes it to judge.json.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import time
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler, DDPMScheduler, UNet2DModel
from torch import Tensor, nn

from erasediff_lora.data import layouts
from erasediff_lora.denoisers.class_conditional import ClassConditionalPipeline
from erasediff_lora.evaluation.judges.classifier import Classifier
from erasediff_lora.storage.files import write_text

FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
PACKAGE = "dataset-fashion-mnist"
JUDGE_SIZE = 32
UNCONDITIONAL_SHARE = 0.1


def find_data(folder: Path) -> None:
    """Look for a labelled set.

    Raises:
        SystemExit: With what to do, if there is no data.
    """
    if layouts.find(folder) is None:
        raise SystemExit(
            f"--data = {folder}: there is no data set. Run: sudo apt-get install {PACKAGE}, or give a folder with "
            "Fashion-MNIST's four idx.gz files, or with the .bin files of CIFAR-10's binary version."
        )


def tensors(data: layouts.Labelled) -> tuple[Tensor, Tensor]:
    """Pixels (N, C, H, W) uint8 and labels (N,)."""
    return torch.tensor(data.pixels).permute(0, 3, 1, 2).contiguous(), torch.tensor(data.labels)


def unit(pixels: Tensor) -> Tensor:
    """uint8 to [-1, 1]."""
    return pixels.float() / 127.5 - 1


def batches(count: int, size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Endless shuffled index batches."""
    size = min(size, count)
    while True:
        yield from torch.randperm(count, generator=generator)[: count // size * size].split(size)


def seen_by_judge(pixels: Tensor) -> Tensor:
    """(N, 3, JUDGE_SIZE, JUDGE_SIZE) in [-1, 1]."""
    sized = F.interpolate(unit(pixels), size=(JUDGE_SIZE, JUDGE_SIZE), mode="bilinear", antialias=True)
    return sized.expand(-1, 3, -1, -1)


def train_judge(pixels: Tensor, labels: Tensor, names: list[str], steps: int) -> Classifier:
    """A classifier on flipped, shifted pictures."""
    judge = Classifier(names, [], JUDGE_SIZE)
    optimizer = torch.optim.AdamW(judge.parameters(), lr=2e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=steps)
    generator = torch.Generator().manual_seed(1)
    for step, rows in zip(range(steps), batches(len(pixels), 128, generator), strict=False):
        shown = seen_by_judge(pixels[rows])
        shift = torch.randint(-2, 3, (2,), generator=generator).tolist()
        flipped = torch.where(torch.rand(len(rows), 1, 1, 1, generator=generator) < 0.5, shown.flip(3), shown)
        loss = F.cross_entropy(judge(flipped.roll(shift, dims=(2, 3)))[0], labels[rows], label_smoothing=0.05)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        if (step + 1) % 200 == 0:
            print(f"judge {step + 1}/{steps} loss {float(loss.detach()):.3f}", flush=True)
    return judge.eval()


@torch.no_grad()
def accuracy(judge: Classifier, pixels: Tensor, labels: Tensor) -> float:
    """Share of pictures whose class it names."""
    hits = [
        judge(seen_by_judge(chunk))[0].argmax(dim=1) == wanted
        for chunk, wanted in zip(pixels.split(500), labels.split(500), strict=True)
    ]
    return float(torch.cat(hits).float().mean())


def new_unet(channels: int, side: int, classes: int) -> UNet2DModel:
    """A small network that attends at a quarter of the resolution; the last class is none."""
    return UNet2DModel(
        sample_size=side,
        in_channels=channels,
        out_channels=channels,
        layers_per_block=1,
        block_out_channels=(32, 64, 128),
        down_block_types=("DownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
        attention_head_dim=32,
        norm_num_groups=8,
        num_class_embeds=classes + 1,
    )


def train_unet(
    pixels: Tensor, labels: Tensor, names: list[str], folder: Path, steps: int, batch_size: int, learning_rate: float
) -> None:
    """Denoising with dropped classes; the average of the weights is what is kept."""
    unet = new_unet(pixels.shape[1], pixels.shape[2], len(names))
    average = copy.deepcopy(unet).requires_grad_(False)
    noising = DDPMScheduler()
    optimizer = torch.optim.AdamW(unet.parameters(), lr=learning_rate, weight_decay=1e-3, betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda s: min((s + 1) / 100, 0.5 + 0.5 * math.cos(math.pi * min(s / steps, 1)) + 0.01)
    )
    generator = torch.Generator().manual_seed(2)
    began, total = time.time(), 0.0
    for step, rows in zip(range(steps), batches(len(pixels), batch_size, generator), strict=False):
        clean = unit(pixels[rows])
        noise = torch.randn(clean.shape, generator=generator)
        timesteps = torch.randint(0, noising.config.num_train_timesteps, (len(rows),), generator=generator)
        dropped = torch.rand(len(rows), generator=generator) < UNCONDITIONAL_SHARE
        classes = torch.where(dropped, len(names), labels[rows])
        with torch.autocast("cpu", torch.bfloat16):
            prediction = unet(noising.add_noise(clean, noise, timesteps), timesteps, classes).sample
        loss = F.mse_loss(prediction.float(), noise)
        loss.backward()
        nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        decay = min(0.999, (step + 1) / (step + 10))
        with torch.no_grad():
            for slow, fast in zip(average.parameters(), unet.parameters(), strict=True):
                slow.lerp_(fast, 1 - decay)
        total += float(loss.detach())
        if (step + 1) % 100 == 0:
            pace = (time.time() - began) / (step + 1)
            print(f"diffusion {step + 1}/{steps} loss {total / 100:.4f} {pace:.3f} s/step", flush=True)
            total = 0.0
        if (step + 1) % 500 == 0 and step + 1 < steps:
            save(average, names, folder.with_name("model_so_far"))
    save(average, names, folder)


def save(unet: UNet2DModel, names: list[str], folder: Path) -> None:
    """The pipeline folder, with the DDIM sampler."""
    ClassConditionalPipeline(copy.deepcopy(unet), DDIMScheduler(), dict(enumerate(names))).save_pretrained(folder)


def main() -> None:
    """Judge, then base."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", type=Path, default=FASHION_MNIST)
    parser.add_argument("--work", type=Path, default=Path("build/fashion"))
    parser.add_argument("--judge-steps", type=int, default=3000)
    parser.add_argument("--steps", type=int, default=3500)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    arguments = parser.parse_args()
    find_data(arguments.data)
    torch.manual_seed(0)
    training = layouts.read(arguments.data, "train", "--data")
    pixels, labels = tensors(training)
    judge_file, model = arguments.work / "judge.safetensors", arguments.work / "model"
    if not model.exists():
        size = (arguments.steps, arguments.batch_size, arguments.learning_rate)
        train_unet(pixels, labels, training.names, model, *size)
    if not judge_file.exists():
        judge = train_judge(pixels, labels, training.names, arguments.judge_steps)
        reached = accuracy(judge, *tensors(layouts.read(arguments.data, "test", "--data")))
        print(f"judge: {reached:.1%} of the test pictures")
        judge.save(judge_file)
        write_text(arguments.work / "judge.json", json.dumps({"test_accuracy": reached}) + "\n")


if __name__ == "__main__":
    main()
