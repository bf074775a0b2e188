"""Loading what may not be there: packages and weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from erasediff_lora.errors import Problem, UserError


@contextmanager
def loading(field: str, value: str, extra: str | None = None) -> Iterator[None]:
    """Turn what a loader raises into an error that says which package or which weights are missing.

    Args:
        field: The recipe's field that asked for it.
        value: What stands there.
        extra: What `pip install` brings the package.
    """
    try:
        yield
    except UserError:
        raise
    except ImportError as error:
        raise UserError(
            Problem(
                field,
                value,
                f"needs a package: {str(error).rstrip('. ')}.",
                f"Run: pip install '{extra or error.name}'.",
            )
        ) from error
    except Exception as error:
        remedy = "Point it at a local folder or file with the weights, or at a hub id within reach."
        what = f"cannot be loaded: {type(error).__name__}: {' '.join(str(error).split())[:200].rstrip('. ')}."
        if _is_missing_path(value.partition(":")[2] or value):
            what = "there is no such file or folder."
        raise UserError(Problem(field, value, what, remedy)) from error


def local(weights: str) -> str:
    """The weights as loaders take them: a path of this machine without '~', or a hub id as it is."""
    path = Path(weights).expanduser()
    return str(path) if path.exists() else weights


class Rehearsed(Protocol):
    """What looks at pictures, and tells `plan` how much memory that takes."""

    @classmethod
    def rehearse(cls, weights: str) -> object:
        """Look at a batch of pictures without weights, where tensors have shapes only, so that it can be counted.

        Args:
            weights: What follows its name in the recipe.

        Returns:
            What stays in memory; by default as many bytes as the file or folder of the weights has.
        """
        import torch

        path = Path(local(weights)) if weights else None
        files = [] if path is None else [path] if path.is_file() else path.rglob("*.safetensors")
        return torch.empty(sum(file.stat().st_size for file in files), dtype=torch.uint8)


def _is_missing_path(weights: str) -> bool:
    """Whether it can only be a path, and nothing is there: a hub id has one slash, inside."""
    is_path = weights.startswith(("/", "./", "../", "~")) or weights.count("/") > 1 or "\\" in weights
    return is_path and not Path(weights).expanduser().exists()
