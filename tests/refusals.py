"""What the command line does with bad input."""

from __future__ import annotations

from typing import Any


def refused(result: Any, *messages: str) -> None:
    assert result.status == 2, result.err
    assert "Traceback" not in result.err
    for message in messages:
        assert message in result.err
