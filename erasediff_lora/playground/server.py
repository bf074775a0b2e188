"""Starting a playground: on this machine only, and nothing of it leaves it."""

from __future__ import annotations

import importlib.util
import logging
import os
import socket
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from erasediff_lora.errors import Problem, UserError
from erasediff_lora.playground.facts import Facts
from erasediff_lora.playground.studio import Studio

if TYPE_CHECKING:
    from erasediff_lora.recipe import Recipe

log = logging.getLogger(__name__)
HOST = "127.0.0.1"
LATER = 1.0
"""Seconds that the page has for itself before the weights are read."""


def require_gradio() -> None:
    """Say how to get it.

    Raises:
        UserError: If it is not installed.
    """
    if importlib.util.find_spec("gradio") is None:
        remedy = 'Install it: pip install "erasediff-lora[play]".'
        raise UserError(Problem("play", "gradio", "is not installed.", remedy))


def free_port(port: int) -> int:
    """The port, or any that is free for 0.

    Raises:
        UserError: If it is in use, or there is no such port.
    """
    if not 0 <= port < 2**16:
        raise UserError(Problem("--port", port, "must be 0 to 65535.", "0 takes any that is free."))
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            what = f"cannot be used: {error.strerror or error}."
            raise UserError(Problem("--port", port, what, "Choose another, or 0 for any that is free.")) from None
        return int(probe.getsockname()[1])


def start(recipe: Recipe, adapters: Sequence[Path], *, port: int, share: bool = False) -> tuple[Any, str]:
    """Serve the page from threads of this process, and read the weights meanwhile.

    Args:
        recipe: Of the first run.
        adapters: Runs' folders or adapter files.
        port: Of this machine.
        share: Also through a public link of Gradio's, which leads through its servers.

    Returns:
        The page, whose `close` ends it, and its address.

    Raises:
        UserError: If Gradio is not installed, or the port cannot be used.
    """
    require_gradio()
    port = free_port(port)
    from erasediff_lora.playground.looks import SHOWN
    from erasediff_lora.playground.page import page

    studio = Studio(recipe, adapters)
    blocks = page(studio, Facts.of(recipe, adapters))
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    options = {"footer_links": [], "enable_monitoring": False, "ssr_mode": False, "max_file_size": "16mb"}
    try:
        _, address, public = blocks.launch(
            server_name=HOST,
            server_port=port,
            share=share,
            prevent_thread_lock=True,
            quiet=True,
            **SHOWN,
            **options,
        )
    except OSError as error:
        raise UserError(Problem("--port", port, f"cannot be used: {error}.", "Choose another.")) from None
    loading = threading.Timer(LATER, _load, [studio])
    loading.daemon = True
    loading.start()
    return blocks, str(public or address)


def _load(studio: Studio) -> None:
    """Ahead of the first request; what goes wrong is said there as well."""
    try:
        studio.load()
        log.info("the base and the adapters are loaded")
    except UserError as error:
        log.error("%s", error)
