"""Optimizers and learning-rate schedules by name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.optim.lr_scheduler import LambdaLR
from transformers import get_scheduler

from erasediff_lora.errors import Problem, UserError
from erasediff_lora.recipe import Training

MIN_8BIT_SIZE, BLOCK = 4096, 256
"""Of bitsandbytes: elements from which a tensor's moments are kept in 8 bits, and those that share a scale."""
BITSANDBYTES = {"adamw8bit": "AdamW8bit", "paged_adamw8bit": "PagedAdamW8bit", "lion8bit": "Lion8bit"}


def create_optimizer(training: Training, parameters: Sequence[torch.nn.Parameter]) -> torch.optim.Optimizer:
    """Torch's AdamW, or an 8-bit optimizer of bitsandbytes.

    Raises:
        UserError: If bitsandbytes is not installed.
    """
    options: dict[str, Any] = {"lr": training.learning_rate, "weight_decay": training.weight_decay}
    if training.optimizer == "adamw":
        on_card = all(parameter.is_cuda for parameter in parameters)
        return torch.optim.AdamW(parameters, fused=on_card, **options)  # one kernel; elsewhere as ever, to the last bit
    try:
        import bitsandbytes
    except ImportError:
        raise UserError(
            Problem(
                "training.optimizer",
                training.optimizer,
                "needs bitsandbytes.",
                "pip install 'erasediff-lora[8bit]', or set it to adamw.",
            )
        ) from None
    return getattr(bitsandbytes.optim, BITSANDBYTES[training.optimizer])(parameters, **options)


def create_schedule(training: Training, optimizer: torch.optim.Optimizer) -> LambdaLR:
    """Linear warm-up, then constant, linear or cosine."""
    name = "constant_with_warmup" if training.lr_schedule == "constant" else training.lr_schedule
    return get_scheduler(
        name, optimizer, num_warmup_steps=training.warmup_steps, num_training_steps=training.most_steps
    )


def restart_schedule(optimizer: torch.optim.Optimizer, schedule: LambdaLR) -> float:
    """Set the learning rate to what the schedule itself says of its step, after it was given another length.

    Returns:
        That of the first group.
    """
    schedule._last_lr = [
        base * factor(schedule.last_epoch) for base, factor in zip(schedule.base_lrs, schedule.lr_lambdas, strict=True)
    ]
    for group, rate in zip(optimizer.param_groups, schedule._last_lr, strict=True):
        group["lr"] = rate
    return float(schedule._last_lr[0])


def state_bytes(training: Training, parameters: Sequence[torch.Tensor]) -> int:
    """Bytes of the optimizer's moments: 8-bit ones from MIN_8BIT_SIZE elements on, with a scale a block."""
    moments = 1 if training.optimizer == "lion8bit" else 2
    if training.optimizer == "adamw":
        return sum(moments * 4 * p.numel() for p in parameters)
    small = sum(p.numel() for p in parameters if p.numel() < MIN_8BIT_SIZE)
    large = sum(p.numel() for p in parameters if p.numel() >= MIN_8BIT_SIZE)
    return moments * (4 * small + large + 4 * large // BLOCK)
