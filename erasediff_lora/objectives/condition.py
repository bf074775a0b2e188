"""What a network is told of prompts: one type for all families, whatever they make of a prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Condition:
    """What a network is told of N prompts.

    Attributes:
        tokens: (N, L, D), filled up with zeros behind the shorter ones.
        mask: Which of the tokens are there, (N, L) bool; None: all.
        pooled: A vector for each prompt besides, (N, P); None: there is none.
    """

    tokens: Tensor
    mask: Tensor | None = None
    pooled: Tensor | None = None

    @property
    def parts(self) -> dict[str, Tensor]:
        """Name -> tensor of those that there are: `Condition(**parts)` is the same again."""
        found = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: tensor for name, tensor in found.items() if tensor is not None}

    @property
    def required_pooled(self) -> Tensor:
        """`pooled`, of a family whose conditions have it."""
        assert self.pooled is not None, "the family has a vector for each prompt"
        return self.pooled

    @property
    def lengths(self) -> list[int]:
        """How many tokens each prompt has."""
        return [self.tokens.shape[1]] * len(self) if self.mask is None else self.mask.sum(dim=1).tolist()

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, rows: slice | Tensor | Sequence[int]) -> Condition:
        """Of these prompts."""
        return Condition(**{name: tensor[rows] for name, tensor in self.parts.items()})

    def to(self, like: Any) -> Condition:
        """On a device, in a dtype, or in those of another tensor; a mask stays one."""
        device = like.device if isinstance(like, Tensor) else like
        moved = {name: tensor.to(like) for name, tensor in self.parts.items() if tensor is not self.mask}
        if self.mask is not None:
            moved["mask"] = self.mask if isinstance(device, torch.dtype) else self.mask.to(device)
        return Condition(**moved)

    def split(self, size: int) -> list[Condition]:
        """So many prompts in each."""
        return [self[start : start + size] for start in range(0, len(self), size)]

    def padded(self, length: int) -> Condition:
        """Filled up to so many tokens."""
        more = length - self.tokens.shape[1]
        if more <= 0:
            return self
        return replace(self, tokens=F.pad(self.tokens, (0, 0, 0, more)), mask=F.pad(_mask(self), (0, more)))

    def masked(self, length: int) -> Condition:
        """Of so many tokens at least, with a mask."""
        return replace(self, mask=_mask(self)).padded(length)

    def trimmed(self) -> Condition:
        """Without the places behind the longest prompt."""
        if self.mask is None:
            return self
        length = max(self.lengths)
        return replace(self, tokens=self.tokens[:, :length], mask=self.mask[:, :length])

    def replaced(self, rows: Tensor, by: Condition) -> Condition:
        """With others in the place of the prompts of these rows, (R,) int64; in this one's dtype."""
        there, new = _alike([self, by])
        return Condition(
            **{name: tensor.index_copy(0, rows, new.parts[name].to(tensor)) for name, tensor in there.parts.items()}
        )

    def with_more(self, more: Tensor, steps: Tensor | None = None) -> Condition:
        """With further tokens, (N, V, D), and the pooled vectors moved, (N, P), where there are any.

        They stand behind each prompt's own, without a mask in the place of the last ones, so that the length stays.
        """
        count, width = more.shape[1], self.tokens.shape[1]
        whole = self if self.mask is None else self.trimmed().padded(max(self.lengths) + count)
        first = [width - count] * len(self) if self.mask is None else self.lengths
        places = torch.tensor(first, device=more.device)[:, None] + torch.arange(count, device=more.device)
        rows = torch.arange(len(self), device=more.device)[:, None].expand_as(places)
        tokens = whole.tokens.index_put((rows, places), more.to(whole.tokens))
        mask = None if whole.mask is None else torch.arange(tokens.shape[1], device=more.device) <= places[:, -1:]
        pooled = whole.pooled if steps is None or whole.pooled is None else whole.pooled + steps.to(whole.pooled)
        return Condition(tokens, mask, pooled)

    @classmethod
    def of(cls, tokens: Sequence[Tensor]) -> Condition:
        """Of prompts whose tokens, (L, D) each, are of different lengths."""
        return cls.cat([cls(own[None]) for own in tokens])

    @classmethod
    def cat(cls, several: Sequence[Condition]) -> Condition:
        """The prompts of all, one below the other, filled up to the longest."""
        alike = _alike(several)
        return cls(**{name: torch.cat([one.parts[name] for one in alike]) for name in alike[0].parts})


def _alike(several: Sequence[Condition]) -> list[Condition]:
    """All of one length, with masks if any of them needs one."""
    padded = [one.padded(max(other.tokens.shape[1] for other in several)) for one in several]
    if all(one.mask is None for one in padded):
        return padded
    return [replace(one, mask=_mask(one)) for one in padded]


def _mask(condition: Condition) -> Tensor:
    """The mask, all true where there is none."""
    if condition.mask is not None:
        return condition.mask
    return torch.ones(condition.tokens.shape[:2], dtype=torch.bool, device=condition.tokens.device)
