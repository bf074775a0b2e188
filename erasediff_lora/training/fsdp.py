"""The frozen weights split among processes (FSDP2); the adapter stays whole on each."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard


def shard(network: nn.Module, whole: Iterable[nn.Parameter], world: int, device: torch.device) -> None:
    """Split the weights of `network`, block by block; a block is put together for the time that it computes.

    Args:
        network: A diffusers network; changed in place.
        whole: Parameters that every process keeps.
        world: Processes.
        device: Where it computes.
    """
    network.to("cpu")  # no device ever holds it whole: each block moves when it is split
    mesh = init_device_mesh(device.type, (world,))
    kept = set(whole)
    for block in [*blocks(network), network]:
        # Also of the outermost: what a process gathers must not depend on what it did before.
        fully_shard(block, mesh=mesh, ignored_params=kept, reshard_after_forward=True)
    for parameter in kept:
        parameter.data = parameter.data.to(device)


def blocks(network: nn.Module) -> list[nn.Module]:
    """What diffusers keeps on one device, inner ones first."""
    names = getattr(network, "_no_split_modules", None) or ()
    return [module for module in reversed(list(network.modules())) if type(module).__name__ in names]


def largest_group(network: nn.Module) -> int:
    """Bytes of the block with the most weights of its own, without those of blocks in it."""
    seen: set[nn.Parameter] = set()
    sizes = []
    for block in [*blocks(network), network]:
        own = set(block.parameters()) - seen
        sizes.append(sum(parameter.nbytes for parameter in own))
        seen |= own
    return max(sizes)
