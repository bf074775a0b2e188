"""Files of token embeddings, as textual inversion leaves them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from erasediff_lora.errors import Problem, UserError
from erasediff_lora.storage.files import open_safetensors

if TYPE_CHECKING:
    from torch import Tensor

MOST_VECTORS = 75
FIELD = "embedding"


def read_embedding(file: Path, width: int) -> Tensor:
    """The vectors in a file, (V, E): of any key where there is one only, as diffusers and others write them.

    Args:
        file: A safetensors file.
        width: E of the base.

    Raises:
        UserError: If it holds none, or they are of another width.
    """
    import torch

    if file.suffix.lower() != ".safetensors":
        what = "is no safetensors file, the only kind that is opened: others can hold programs."
        raise UserError(Problem(FIELD, file.name, what, "Convert it to safetensors."))
    with open_safetensors(file, FIELD) as stored:
        shapes = {name: stored.get_slice(name).get_shape() for name in stored.keys()}  # noqa: SIM118
        fitting = [name for name, shape in shapes.items() if shape and len(shape) <= 2 and shape[-1] == width]
        if len(fitting) != 1:
            found = ", ".join(f"{name} {list(shape)}" for name, shape in list(shapes.items())[:4]) or "nothing"
            what = f"holds {found}; the base takes one tensor of vectors of {width} numbers."
            raise UserError(Problem(FIELD, file.name, what, "Give an embedding that was found for this base."))
        count = 1 if len(shapes[fitting[0]]) == 1 else shapes[fitting[0]][0]
        if not 0 < count <= MOST_VECTORS:
            what = f"holds {count:,} vectors; a prompt has room for {MOST_VECTORS}."
            raise UserError(Problem(FIELD, file.name, what, "Give a shorter one."))
        vectors = stored.get_tensor(fitting[0]).float().reshape(count, width)
    if not bool(torch.isfinite(vectors).all()):
        raise UserError(Problem(FIELD, file.name, "holds numbers that are not finite.", "Give another one."))
    return vectors
