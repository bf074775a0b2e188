"""Conditions of different lengths in one batch, against the rows they were made from."""

from __future__ import annotations

import torch

from erasediff_lora.objectives.condition import Condition


def condition(length: int, count: int = 1, *, pooled: bool = True) -> Condition:
    return Condition(torch.randn(count, length, 3), pooled=torch.randn(count, 2) if pooled else None)


def test_the_shorter_ones_are_filled_up_and_cut_off_again() -> None:
    short, long = condition(2), condition(5, 2)
    both = Condition.cat([short, long])
    assert both.lengths == [2, 5, 5] and len(both) == 3
    assert torch.equal(both.tokens[0, :2], short.tokens[0]) and not bool(both.tokens[0, 2:].any())
    assert torch.equal(both[[0]].trimmed().tokens, short.tokens)
    assert torch.equal(both[1:].tokens, long.tokens) and torch.equal(both[1:].pooled, long.pooled)
    assert [len(part) for part in both.split(2)] == [2, 1]


def test_rows_are_replaced_by_longer_ones() -> None:
    there, by = condition(2, 3), condition(4)
    mixed = there.replaced(torch.tensor([1]), by)
    assert mixed.lengths == [2, 4, 2]
    assert torch.equal(mixed.tokens[1], by.tokens[0]) and torch.equal(mixed.pooled[1], by.pooled[0])
    assert torch.equal(mixed[[0, 2]].trimmed().tokens, there.tokens[[0, 2]])


def test_without_a_mask_it_stays_without_one() -> None:
    alike = Condition.cat([condition(3, pooled=False), condition(3, pooled=False)])
    assert set(alike.parts) == {"tokens"}
    assert set(Condition(**alike.parts).parts) == {"tokens"}


def test_a_mask_stays_a_mask_in_any_dtype() -> None:
    moved = condition(2).padded(3).to(torch.float64)
    assert moved.mask.dtype == torch.bool and moved.tokens.dtype == moved.pooled.dtype == torch.float64
    assert moved.to(torch.device("meta")).mask.device.type == "meta"


def test_further_tokens_stand_behind_each_prompts_own() -> None:
    both, more = Condition.cat([condition(2), condition(5)]), torch.randn(2, 2, 3)
    longer = both.with_more(more, torch.ones(2, 2))
    assert longer.lengths == [4, 7]
    for row, length in enumerate((2, 5)):
        assert torch.equal(longer.tokens[row, :length], both.tokens[row, :length])
        assert torch.equal(longer.tokens[row, length : length + 2], more[row])
        assert not bool(longer.tokens[row, length + 2 :].any())
    assert torch.equal(longer.pooled, both.pooled + 1)


def test_without_a_mask_they_stand_in_the_place_of_the_last() -> None:
    told, more = condition(5, 2, pooled=False), torch.randn(2, 1, 3).requires_grad_()
    longer = told.with_more(more)
    assert longer.mask is None and torch.equal(longer.tokens[:, :4], told.tokens[:, :4])
    assert torch.equal(longer.tokens[:, 4:], more)
    longer.tokens.sum().backward()
    assert bool((more.grad == 1).all())
