"""Prompt embeddings that hold a pooled embedding as their last row."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def packed(tokens: Tensor, pooled: Tensor) -> Tensor:
    """(N, L, D) and (N, P) as (N, L + 1, D)."""
    return torch.cat([tokens, F.pad(pooled, (0, tokens.shape[2] - pooled.shape[1]))[:, None]], dim=1)
