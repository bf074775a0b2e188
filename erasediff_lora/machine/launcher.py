"""What a launcher, such as torchrun, tells each process of a job in the environment."""

from __future__ import annotations

import os

from erasediff_lora.errors import Problem, UserError

VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_PORT")


def told(variable: str, otherwise: int) -> int:
    """The number in a variable of VARIABLES.

    Args:
        variable: Its name.
        otherwise: Where it is not set.

    Raises:
        UserError: If it is none.
    """
    value = os.environ.get(variable) or str(otherwise)
    if not (value.isascii() and value.isdigit()):
        what = "is no number, and stands in the environment, where a launcher would write one."
        raise UserError(Problem(variable, value, what, "Unset it, or start by torchrun or accelerate launch."))
    return int(value)


def check() -> None:
    """See that the environment is as a launcher would leave it.

    Raises:
        UserError: If it is not.
    """
    for variable in VARIABLES:
        told(variable, 0)
