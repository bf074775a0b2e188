"""Loading what may not be there: packages and weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

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
            Problem(field, value, f"needs a package: {error}.", f"Run: pip install '{extra or error.name}'.")
        ) from error
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            Problem(
                field,
                value,
                f"cannot be loaded: {type(error).__name__}: {reason}",
                "Point it at a local folder or file with the weights, or at a hub id within reach.",
            )
        ) from error
