"""Files that a stranger could publish to break who opens them. Made here, opened by the tests and bench_hostile.py."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

KEY = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"


def safetensors(header: bytes | dict[str, Any], data: bytes = b"", length: int | None = None) -> bytes:
    """A file with a header as given, true or not."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def tensor(shape: list[int], start: int = 0, size: int | None = None, dtype: str = "F32") -> dict[str, Any]:
    """A header's entry; by default with the offsets that the shape asks for."""
    count = 4
    for side in shape:
        count *= side
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, start + (count if size is None else size)]}


def pair(down: list[int], up: list[int], **more: Any) -> bytes:
    """An adapter of one module, filled with zeros."""
    first = tensor(down)
    middle = first["data_offsets"][1]
    second = tensor(up, middle)
    header = {f"{KEY}.lora_A.weight": first, f"{KEY}.lora_B.weight": second} | more
    return safetensors(header, bytes(second["data_offsets"][1]))


class _RunsCode:
    """Leaves a mark when it is unpickled."""

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return exec, ("open('pwned', 'w').close()",)


def many_keys() -> bytes:
    """A million tensors without content."""
    entry = ':{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'
    return safetensors(("{" + ",".join(f'"unet.k{i}"{entry}' for i in range(10**6)) + "}").encode())


ADAPTERS: dict[str, Callable[[], bytes]] = {
    "empty": lambda: b"",
    "seven bytes": lambda: b"\x01\x02\x03\x04\x05\x06\x07",
    "header longer than the file": lambda: safetensors({}, length=2**40),
    "header of 2^63 bytes": lambda: safetensors({}, length=2**63),
    "header that is no JSON": lambda: safetensors(b"{" * 100),
    "header nested 100,000 deep": lambda: safetensors(b'{"a":' * 100_000),
    "a million keys": many_keys,
    "100 MB of metadata": lambda: safetensors({"__metadata__": {"erasediff.base_model": "x" * 10**8}}),
    "shape of an exabyte in a small file": lambda: safetensors(
        {f"{KEY}.lora_A.weight": tensor([2**20, 2**40], size=64)}, bytes(64)
    ),
    "shape that overflows 64 bits": lambda: safetensors(
        {f"{KEY}.lora_A.weight": tensor([2**33, 2**33], size=0)}, b""
    ),
    "overlapping tensors": lambda: safetensors(
        {f"{KEY}.lora_A.weight": tensor([2, 4]), f"{KEY}.lora_B.weight": tensor([4, 2])}, bytes(32)
    ),
    "negative offsets": lambda: safetensors(
        {f"{KEY}.lora_A.weight": {"dtype": "F32", "shape": [1], "data_offsets": [-4, 0]}}, bytes(8)
    ),
    "unknown dtype": lambda: safetensors({f"{KEY}.lora_A.weight": tensor([2, 4], dtype="F31")}, bytes(32)),
    "rank of a million": lambda: pair([10**6, 1], [1, 10**6]),
    "ranks that differ": lambda: pair([2, 4], [4, 3]),
    "rank 0": lambda: pair([0, 4], [4, 0]),
    "names that climb out of the folder": lambda: safetensors(
        {"../../../../etc/passwd.lora_A.weight": tensor([2, 4]),
         "../../../../etc/passwd.lora_B.weight": tensor([4, 2], 32)}, bytes(64),
    ),
    "names with control characters": lambda: safetensors({"unet.\x1b[2J\x00\n.lora_A.weight": tensor([1])}, bytes(4)),
    "alpha that is infinite": lambda: pair(
        [2, 4], [4, 2], __metadata__={"lora_adapter_metadata": '{"unet.r": 2, "unet.lora_alpha": Infinity}'}
    ),
    "NaN weights": lambda: pair([2, 4], [4, 2])[:-64] + b"\xff" * 64,
    "a pickle": lambda: pickle.dumps(_RunsCode()),
    "a pickle in a zip": lambda: b"PK\x03\x04" + pickle.dumps(_RunsCode()),
}  # fmt: skip
"""What it is -> the content of an adapter file."""

_LAUGH = "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" if i else "a0: &a0 [ha]\n" for i in range(12))
RECIPES: dict[str, Callable[[], bytes]] = {
    "a billion laughs": lambda: _LAUGH.encode(),
    "laughs in a field": lambda: _LAUGH.encode() + b"forget: {concepts: *a11, templates: ['{concept}']}\n",
    "a tag that runs code": lambda: b"forget: !!python/object/apply:os.system ['touch pwned']\n",
    "nested 100,000 deep": lambda: b"[" * 100_000,
    "nested 3,000 deep in a field": lambda: b"forget: " + b"[" * 3000 + b"]" * 3000,
    "a key that is no text": lambda: b"1: 2\n? [a]\n: 3\n",
    "binary": lambda: bytes(range(256)),
    "a number of a million digits": lambda: b"training: {steps: " + b"9" * 10**6 + b"}",
    "a number that is not one": lambda: b"training: {learning_rate: .nan, steps: .inf}",
    "a name of a million letters": lambda: b"model: {base: " + b"x" * 10**6 + b"}",
    "a pattern that never ends": lambda: b"adapter: {targets: ['(a+)+$']}\nforget: {concepts: [cat]}",
}
"""What it is -> the content of a recipe."""


def _png(width: int, height: int, data: bytes) -> bytes:
    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def _zeros(count: int) -> bytes:
    """Zeros as zlib packs them, made without holding them."""
    packer, out = zlib.compressobj(9), io.BytesIO()
    for _ in range(count // 10**6):
        out.write(packer.compress(bytes(10**6)))
    out.write(packer.flush())
    return out.getvalue()


PICTURES: dict[str, Callable[[], bytes]] = {
    "50,000 pixels a side": lambda: _png(50_000, 50_000, _zeros(10**8)),
    "13,000 pixels a side": lambda: _png(13_000, 13_000, _zeros(13_000 * 39_001)),
    "two thousand million pixels a side": lambda: _png(2**31 - 1, 2**31 - 1, b""),
    "no pixels": lambda: _png(0, 0, b""),
    "a picture that ends early": lambda: _png(64, 64, zlib.compress(bytes(range(256)) * 48)[:20]),
    "no picture": lambda: b"GIF89a",
    "a PostScript program": lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(x) run\n",
}
"""What it is -> the content of a picture."""


def _changed(name: str, change: Callable[[Any], Any]) -> Callable[[Path], None]:
    """Rewrites a JSON file of a run."""

    def spoil(run: Path) -> None:
        (run / name).write_text(json.dumps(change(json.loads((run / name).read_text()))))

    return spoil


def _evaluation(**entries: Any) -> Callable[[Path], None]:
    return _changed("evaluation.json", lambda result: result | entries)


def _written(name: str, content: bytes) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        (folder / name).write_bytes(content)

    return spoil


def _linked(name: str, target: str) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(target)

    return spoil


def _pipe(name: str) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        os.mkfifo(folder / name)

    return spoil


def _sparse(name: str, size: int) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        with (folder / name).open("wb") as stream:
            stream.truncate(size)

    return spoil


_MARKUP = "<script>alert(1)</script><img src=x onerror=alert(1)>"
RUNS: dict[str, Callable[[Path], None]] = {
    "an evaluation that is a link out": _linked("evaluation.json", "../secret.json"),
    "an evaluation that is a pipe": _pipe("evaluation.json"),
    "an evaluation of 10 GB": _sparse("evaluation.json", 10 * 2**30),
    "an evaluation nested 100,000 deep": _written("evaluation.json", b"[" * 10**5),
    "an evaluation that is a list": _written("evaluation.json", b"[]"),
    "an evaluation of millions of lists": _written("evaluation.json", b"[" + b"[]," * (5 * 2**20) + b"[]]"),
    "an evaluation of bytes": _written("evaluation.json", bytes(range(256))),
    "a number of 5,000 digits": _written("evaluation.json", b'{"metrics": ' + b"9" * 5000 + b"}"),
    "metrics that are a list": _evaluation(metrics=[]),
    "metrics of another kind": _evaluation(metrics={"accuracy": {"unlearning_accuracy": "x"}}),
    "a metric that is a list": _evaluation(metrics={"accuracy": [1]}),
    "shares beyond one": _evaluation(metrics={"accuracy": {"unlearning_accuracy": 1e308, "counted": {"forget": 1}}}),
    "shares that are no numbers": _evaluation(metrics={"accuracy": {"unlearning_accuracy": float("nan")}}),
    "attacks that are a list": _evaluation(attacks=[[]]),
    "attacks without models": _evaluation(attacks={"inversion": {"title": "x", "budget": "y", "models": {}}}),
    "an attack of another kind": _evaluation(attacks={"inversion": "x"}),
    "strips that are a number": _evaluation(strips=3),
    "strips that are names": _evaluation(strips=["evaluation.json"]),
    "a strip that lies on another disk": _evaluation(strips=[{"section": "forget", "file": "C:secret.png"}]),
    "a strip behind backslashes": _evaluation(strips=[{"section": "forget", "file": "..\\secret.txt"}]),
    "a strip without a file": _evaluation(strips=[{"section": "forget"}]),
    "concepts that are numbers": _evaluation(concepts=[1, 2]),
    "no concepts": _evaluation(concepts=[]),
    "concepts of markup": _evaluation(concepts=[_MARKUP]),
    "a concept of a formula": _evaluation(concepts=["$\\frac{"]),
    "an adapter that is a list": _evaluation(adapter=[]),
    "an adapter of text": _evaluation(adapter={"file": _MARKUP, "bytes": "many", "sha256": 3}),
    "a recipe that is a number": _evaluation(recipe=3),
    "a judge that is a table": _evaluation(judge={"a": {}}),
    "a log of markup": _written("training_log.jsonl", f'{{"step": "{_MARKUP}"}}\n'.encode() * 3),
    "a recipe that is a link out": _linked("recipe.yaml", "../secret.json"),
    "a recipe that is a pipe": _pipe("recipe.yaml"),
    "a recipe of 10 GB": _sparse("recipe.yaml", 10 * 2**30),
    "a recipe of laughs": _written("recipe.yaml", _LAUGH.encode()),
}
"""What it is -> spoils a run's folder, beside which lie secret.txt and secret.json."""

_ROW = b'{"file_name": "0.png", "text": "a"}\n'
SETS: dict[str, Callable[[Path], None]] = {
    "rows that name files outside": _written("metadata.jsonl", b'{"file_name": "../secret.txt", "text": "a"}\n'),
    "rows that name files from the root": _written("metadata.jsonl", b'{"file_name": "/etc/passwd", "text": "a"}\n'),
    "rows that name files by zero": _written("metadata.jsonl", b'{"file_name": "\\u0000", "text": "a"}\n'),
    "rows nested 100,000 deep": _written("metadata.jsonl", _ROW + b'{"file_name":' * 10**5),
    "rows of numbers": _written("metadata.jsonl", _ROW + b"9" * 5000),
    "rows whose captions are tables": _written("metadata.jsonl", b'{"file_name": "0.png", "text": {"a": []}}\n'),
    "a listing that is a pipe": _pipe("metadata.jsonl"),
    "a listing that never ends": _linked("metadata.jsonl", "/dev/zero"),
    "a table of bytes": _written("metadata.csv", bytes(range(256))),
    "a table of one endless cell": _written("metadata.csv", b'file_name,text\n0.png,"' + b"x" * 10**6),
    "a table of a million columns": _written("metadata.csv", b"file_name,text\n0.png" + b"," * 10**6 + b"\n"),
    "a caption that is no text": _written("0.txt", b"\xff\xfe\x00\x01"),
    "a caption of 2 MiB": _sparse("0.txt", 2**21),
    "a picture that is a link to a text": _linked("0.png", "../secret.txt"),
    "a picture that is a text": _written("0.png", b"xyzzy-the-password"),
    "a picture of 10 GB": _sparse("0.png", 10 * 2**30),
    "a picture that is a link to itself": _linked("0.png", "0.png"),
    "a picture that is a link to nothing": _linked("0.png", "gone.png"),
    "a caption of half a character": _written("metadata.jsonl", b'{"file_name": "0.png", "text": "a \\ud800"}\n'),
    "a label of half a character": _written("metadata.jsonl", b'{"file_name": "0.png", "concept": "\\udfff"}\n'),
}
"""What it is -> spoils a folder of two pictures, beside which lies secret.txt."""
