"""What every sample of a step is aimed at, and that the base is asked for no more than that."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from toy import Toy, batch, network

from erasediff_lora.objectives import Batch, aim
from erasediff_lora.registry import OBJECTIVES

CONTRASTED = torch.tensor([False, True, False, True])


def aimed(toy: Toy, retain: Batch, *, is_split: bool = False, name: str = "erasediff", **options: Any) -> list[Batch]:
    method = OBJECTIVES[name]
    objective = method(method.Settings(name=name, **options), replace(network(toy), is_split=is_split))
    return aim(objective, [], [retain])[1]


def base(toy: Toy, data: Batch) -> Tensor:
    return toy.forward_base(data.noisy, data.timesteps, data.prompts)


def test_retained_samples_keep_their_true_target() -> None:
    toy, data = Toy(), batch(1)
    assert aimed(toy, data) == [data] and toy.calls == 0


def test_contrasted_samples_are_aimed_at_the_base() -> None:
    toy, data = Toy(), replace(batch(1), contrasted=CONTRASTED)
    (found,) = aimed(toy, data)
    assert toy.calls == 1
    torch.testing.assert_close(found.target[CONTRASTED], base(toy, data)[CONTRASTED])
    assert torch.equal(found.target[~CONTRASTED], data.target[~CONTRASTED])


def test_the_base_is_asked_once_where_all_are_aimed_at_it() -> None:
    toy, data = Toy(), replace(batch(1), contrasted=CONTRASTED)
    (found,) = aimed(toy, data, retain_target="base")
    assert toy.calls == 1
    assert torch.equal(found.target, base(toy, data))


@pytest.mark.parametrize("is_split", [False, True])
def test_without_contrasted_samples_the_base_is_asked_only_beside_other_processes(is_split: bool) -> None:
    toy, data = Toy(), replace(batch(1), contrasted=torch.zeros(4, dtype=torch.bool))
    (found,) = aimed(toy, data, is_split=is_split)
    assert torch.equal(found.target, data.target) and toy.calls == is_split


def test_without_a_retain_loss_nothing_is_aimed() -> None:
    toy, data = Toy(), replace(batch(1), contrasted=CONTRASTED)
    assert aimed(toy, data, name="esd") == [] and toy.calls == 0
    assert len(aimed(toy, data, name="esd", retain_weight=0.5)) == 1


def test_a_method_without_a_forget_loss_gets_no_forget_batches() -> None:
    method, toy, data = OBJECTIVES["finetune"], Toy(), batch(1)
    assert aim(method(method.Settings(), network(toy)), [data], [data]) == ([], [data])
