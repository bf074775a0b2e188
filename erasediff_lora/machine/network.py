"""What leaves the machine: with --offline nothing does, whatever a library tries."""

from __future__ import annotations

import errno
import ipaddress
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

OURS = "ERASEDIFF_OFFLINE"
VARIABLES = {
    **{OURS: "1", "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"},
    "WANDB_MODE": "offline",
    **{"NO_PROXY": "*", "no_proxy": "*"},  # a proxy on this machine would pass on what asks it
}
"""How libraries are told, which then look into what is on the disk, or write there; and processes that are started."""
_LOADED = {
    "huggingface_hub.constants": ("HF_HUB_OFFLINE",),
    "datasets.config": ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"),
    "diffusers.utils.constants": ("HF_HUB_OFFLINE",),
}
"""Where a library that is imported already has read them."""
_shut = 0
_watched = False


def is_asked_by_parent() -> bool:
    """Whether a process that is offline started this one, or the user's environment asks for it."""
    return os.environ.get(OURS) == "1"


@contextmanager
def offline(is_asked: bool = True) -> Iterator[None]:
    """Shut the network for this process: Python code reaches no other machine, and names are not looked up.

    Processes of one training on this machine still talk to each other, and so they do to other machines, by way of
    torch's own sockets.
    """
    global _shut
    if not is_asked:
        yield
        return
    _watch()
    before = {name: os.environ.get(name) for name in VARIABLES}
    told = [(module, name) for module, names in _LOADED.items() if module in sys.modules for name in names]
    values = [(sys.modules[module], name, getattr(sys.modules[module], name, False)) for module, name in told]
    os.environ.update(VARIABLES)
    for module, name, _ in values:
        setattr(module, name, True)
    _shut += 1
    try:
        yield
    finally:
        _shut -= 1
        for name, value in before.items():
            os.environ.pop(name, None) if value is None else os.environ.update({name: value})
        for module, name, was in values:
            setattr(module, name, was)


def _watch() -> None:
    global _watched
    if not _watched:
        sys.addaudithook(_refuse)  # for good: Python has no way to remove one
        _watched = True


def _refuse(event: str, arguments: tuple[Any, ...]) -> None:
    """Stop what reaches for another machine, before it does."""
    if not _shut or not event.startswith("socket."):
        return
    host: object = None
    if event in ("socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr"):
        host = arguments[0]
    elif event in ("socket.connect", "socket.sendto", "socket.sendmsg") and isinstance(arguments[1], tuple):
        host = arguments[1][0]
    if host is not None and not _is_here(host):
        raise OSError(errno.ENETUNREACH, f"--offline: {_text(host)} was not asked")


def _is_here(host: object) -> bool:
    name = _text(host)
    try:
        address = ipaddress.ip_address(name)
    except ValueError:  # a name, such as 127.example.com
        return name in ("", "localhost")
    return address.is_loopback or address.is_unspecified


def _text(host: object) -> str:
    return host.decode("ascii", "replace") if isinstance(host, bytes | bytearray) else str(host)
