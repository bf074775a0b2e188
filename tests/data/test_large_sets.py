"""Sets that are too large for memory: kept batch by batch, read from the disk, from folders and tar files."""

from __future__ import annotations

import io
import json
import os
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from bench_faults import same_adapter
from encoded import Prepare, captions, folder_of, noise, preparer, shown
from fixtures import Cli, RecipeFile
from PIL import Image
from refusals import refused

from erasediff_lora.data import encoding, picture_index, streaming
from erasediff_lora.data.shards import Shards, StoredConditions
from erasediff_lora.denoisers.stable_diffusion import StableDiffusion
from erasediff_lora.errors import UserError
from erasediff_lora.recipe import Model, Recipe
from erasediff_lora.training.loop import train


@pytest.fixture
def prepare(tiny_base: Path, tmp_path: Path) -> Prepare:
    return preparer(tiny_base, tmp_path)


@pytest.fixture
def on_disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As if every set were a large one."""
    monkeypatch.setattr(encoding, "SMALL", 0)
    yield


@pytest.mark.parametrize(
    "sections",
    [
        {},
        {
            "forget": {"concepts": [{"name": "cat", "anchor": "dog"}], "count": 8},
            "retain": {"focus": 0.5, "focus_every": 1, "contrast": 0.5},
            "adversary": {"pool": 2, "refresh_every": 2, "steps": 2, "batch_size": 2},
            "objective": {"picture_guidance": 0.85},
        },
        {"training": {"steps": "auto", "max_steps": 4}, "forget": {"count": 8}},
    ],
)
def test_a_set_on_the_disk_trains_like_one_in_memory(
    sections: Any, recipe_file: RecipeFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = recipe_file(**{"sampling": {"batch_size": 2}} | sections)
    in_memory = train(Recipe.load(file, {"output": str(tmp_path / "memory")}))
    monkeypatch.setattr(encoding, "SMALL", 0)
    assert same_adapter(train(Recipe.load(file, {"output": str(tmp_path / "disk")})), in_memory)


def test_rows_on_the_disk_are_those_of_the_tensor(prepare: Prepare, tmp_path: Path, on_disk: None) -> None:
    """Pictures of several shapes lie in shards of one shape each; they are indexed as one padded tensor is."""
    pictures = folder_of(tmp_path / "pictures", a=noise(1, (64, 32)), b=noise(2), c=noise(3, (32, 64)), d=noise(4))
    images = {"folder": str(pictures), "aspect_buckets": True}
    on_the_disk = prepare(forget={"images": images})
    assert isinstance(on_the_disk.latents, Shards) and isinstance(on_the_disk.embeddings, StoredConditions)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(encoding, "SMALL", 2**30)
        whole = prepare(forget={"images": images}).latents
    assert isinstance(whole, torch.Tensor)
    assert torch.equal(on_the_disk.latents[:], whole)
    for rows in ([2, 0], torch.tensor([3, 3, 1]), slice(1, 3)):
        found = on_the_disk.latents[rows]
        assert torch.equal(found, whole[rows][:, :, : found.shape[2], : found.shape[3]])
    chosen = on_the_disk.select(torch.tensor([3, 1])).latents
    assert isinstance(chosen, Shards) and torch.equal(chosen[[1]], on_the_disk.latents[[1]])


def test_drawn_batches_are_kept(prepare: Prepare, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped in the third of five batches: two are not drawn again, and the set is what it would have been."""
    options: Any = {"forget": {"count": 10}, "sampling": {"batch_size": 2}}
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0}, raising=False)  # one after the other
    whole = prepare(**options, cache=str(tmp_path / "other")).latents[:]
    drawn: list[list[int]] = []
    real = StableDiffusion.generate

    def generate(self: Any, prompts: Any, seeds: Any, *arguments: Any, **more: Any) -> Any:
        drawn.append(list(seeds))
        if len(drawn) == 3:
            raise KeyboardInterrupt
        return real(self, prompts, seeds, *arguments, **more)

    monkeypatch.setattr(StableDiffusion, "generate", generate)
    with pytest.raises(KeyboardInterrupt):
        prepare(**options)
    found = prepare(**options).latents[:]
    assert drawn == [[0, 1], [2, 3], [4, 5], [4, 5], [6, 7], [8, 9]]
    assert torch.equal(found, whole)


def test_a_damaged_part_is_made_anew_alone(prepare: Prepare, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options: Any = {"forget": {"count": 6}, "sampling": {"batch_size": 2}}
    whole = prepare(**options).latents[:]
    parts = sorted((tmp_path / "cache").glob("forget-*/latents-*"))
    content = bytearray(parts[1].read_bytes())
    content[-3] ^= 0xFF
    parts[1].write_bytes(content)
    others = [part.stat().st_mtime_ns for part in (parts[0], parts[2])]
    assert torch.equal(prepare(**options).latents[:], whole)
    assert [part.stat().st_mtime_ns for part in (parts[0], parts[2])] == others
    os.utime(parts[0])
    prepare(**options)
    assert parts[0].stat().st_mtime_ns != others[0], "written at another time, and otherwise the same: taken as it is"


def test_pictures_are_looked_at_once(prepare: Prepare, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cached set does not decode its pictures to know them again; one that has changed is seen to have."""
    pictures = folder_of(tmp_path / "pictures", a=noise(1))
    noise(2).save(pictures / "b.bmp")
    options: Any = {"forget": {"images": {"folder": str(pictures)}}}
    first = prepare(**options)
    opened: list[Any] = []
    real = Image.open

    def counted(source: Any, *arguments: Any, **more: Any) -> Any:
        opened.append(source)
        return real(source, *arguments, **more)

    monkeypatch.setattr(Image, "open", counted)
    again = prepare(**options)
    assert not opened and again.fingerprint == first.fingerprint
    assert again.report.to_dict() == first.report.to_dict()
    before = (pictures / "b.bmp").stat()
    noise(3).save(pictures / "b.bmp")
    os.utime(pictures / "b.bmp", ns=(before.st_atime_ns, before.st_mtime_ns))  # as rsync -t and cp -p do
    assert (pictures / "b.bmp").stat().st_size == before.st_size
    assert prepare(**options).fingerprint != first.fingerprint and opened


def test_a_damaged_index_is_left_out(prepare: Prepare, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pictures = folder_of(tmp_path / "pictures", a=noise(1), b=noise(2))
    options: Any = {"forget": {"images": {"folder": str(pictures)}}}
    first = prepare(**options)
    (tmp_path / "cache" / picture_index.NAME).write_bytes(b"no database" * 500)
    assert prepare(**options).fingerprint == first.fingerprint
    assert "pictures are looked at anew" in caplog.text


def tar_of(file: Path, **samples: dict[str, bytes]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(file, "w") as tar:
        for name, parts in samples.items():
            for suffix, content in parts.items():
                member = tarfile.TarInfo(f"./{name}.{suffix}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return file


def png(seed: int) -> bytes:
    stream = io.BytesIO()
    noise(seed).save(stream, format="PNG")
    return stream.getvalue()


def test_webdataset(prepare: Prepare, tmp_path: Path) -> None:
    """The same pictures and captions as in a folder make the same set."""
    folder = folder_of(tmp_path / "plain", a=noise(1), b=noise(2), c=noise(3), d=noise(4))
    for name, text in (("a", "a cat asleep"), ("b", "my dog"), ("c", "a cat by day")):
        (folder / f"{name}.txt").write_text(text + "\n")
    rows = [{"file_name": "b.png", "text": "my dog", "concept": "dog"}]
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "d.png").unlink()
    tar_of(
        tmp_path / "tars/00.tar",
        a={"png": png(1), "txt": b"a cat asleep\n"},
        b={"png": png(2), "json": json.dumps({"text": "my dog", "concept": "dog"}).encode()},
    )
    tar_of(tmp_path / "tars/01.tar", c={"txt": b"a cat by day", "png": png(3), "npy": b"?"}, d={"txt": b"alone"})
    plain = prepare("retain", retain={"images": {"folder": str(folder)}})
    tars = prepare("retain", retain={"images": {"folder": str(tmp_path / "tars")}})
    assert captions(tars) == captions(plain) == ["a cat asleep", "my dog", "a cat by day"] or shown(tars)
    assert torch.equal(tars.latents[:], plain.latents[:])
    assert {"no_picture", "unused_captions"} <= {*tars.report.to_dict()["left_out"], *tars.report.to_dict()["noted"]}
    one = prepare("retain", retain={"images": {"folder": str(tmp_path / "tars/00.tar")}})
    assert captions(one) == ["a cat asleep", "my dog"]


@pytest.mark.parametrize("damage", ["truncated", "gzip", "none"])
def test_damaged_tars_are_refused(damage: str, recipe_file: RecipeFile, cli: Cli, tmp_path: Path) -> None:
    tar = tar_of(tmp_path / "set.tar", a={"png": png(1)}, b={"png": png(2)})
    match damage:
        case "truncated":
            tar.write_bytes(tar.read_bytes()[:1500])
        case "gzip":
            with tarfile.open(tar, "w:gz") as packed:
                packed.add(__file__, "a.png")
        case "none":
            tar.write_bytes(b"?" * 2000)
    images = {"folder": str(tar), "caption": "a photo of a cat"}
    result = cli("prepare", recipe_file(forget={"images": images}))
    refused(result, "forget.images")


def long_name(tar: Path, kind: bytes) -> None:
    """A name of 4 GB, in a file that takes no room."""
    notes = tarfile.TarInfo("././@LongLink")
    notes.type, notes.size = kind, 4 * 2**30
    tar.write_bytes(notes.tobuf(tarfile.USTAR_FORMAT))
    os.truncate(tar, notes.size + 2048)


SPOILED_TARS: dict[str, tuple[Callable[[Path], object], str]] = {
    "a name of 4 GB": (lambda tar: long_name(tar, tarfile.GNUTYPE_LONGNAME), "a name in it has 4294967296 bytes"),
    "notes of 4 GB": (lambda tar: long_name(tar, tarfile.XHDTYPE), "a name in it has 4294967296 bytes"),
    "a pipe": (os.mkfifo, "holds no readable picture"),
    "a folder": (Path.mkdir, "holds no readable picture"),
}


@pytest.mark.parametrize("name", SPOILED_TARS)
def test_tars_that_never_end(name: str, recipe_file: RecipeFile, cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    spoil, told = SPOILED_TARS[name]
    spoil(tmp_path / "set/0.tar")
    refused(cli("prepare", recipe_file(forget={"images": {"folder": str(tmp_path / "set")}})), told)


CHANGED_MODEL: dict[str, Any] = {
    "prediction_type": "v_prediction", "vae_tiling": True, "variant": "fp16", "allow_pickle": True, "quantize": "nf4",
    "config": "{folder}", "quantize_encoders": "nf4",
}  # fmt: skip
SAME_MODEL = {
    "guidance": "told to the network in training alone: pictures are drawn with that of the sampling",
    "offload": "where the networks wait changes nothing that they compute",
    "network": "a file of its own, whose content counts: see below",
    "parts": "likewise",
    "revision": "the weights of another revision have another hash",
    "family": "a base of another family is refused",
    "base": "the weights of another base have another hash",
    "dtype": "part of the key by itself",
    "device": "part of the key by itself",
}


@pytest.mark.parametrize("name", Model.model_fields)
def test_every_field_of_the_base_counts(name: str, tiny_base: Path) -> None:
    """By default the fingerprint is that of the files; each field that changes what comes of them changes it."""
    if name in SAME_MODEL:
        return
    plain = StableDiffusion(Model(base=str(tiny_base)))
    changed = StableDiffusion(Model(base=str(tiny_base)))
    value = CHANGED_MODEL[name]
    changed.model = changed.model.model_copy(update={name: tiny_base if value == "{folder}" else value})
    assert changed.fingerprint != plain.fingerprint


def test_files_of_their_own_count_by_their_content(tiny_base: Path, tmp_path: Path) -> None:
    file = tmp_path / "part.safetensors"
    seen = {StableDiffusion(Model(base=str(tiny_base))).fingerprint}
    for content in (b"one", b"two"):
        file.write_bytes(content)
        for changes in ({"network": file}, {"parts": {"vae": file}}):
            seen.add(StableDiffusion(Model(base=str(tiny_base), **changes)).fingerprint)
    assert len(seen) == 5


CHANGES: dict[str, Any] = {
    "forget.count": 5, "forget.templates": ["a {concept}"], "forget.concepts": ["tree"],
    "sampling.resolution": 64, "sampling.steps": 3, "sampling.guidance": 3.0, "sampling.batch_size": 3,
    "sampling.seed": 1, "model.dtype": "bfloat16", "model.prediction_type": "v_prediction", "model.vae_tiling": True,
}  # fmt: skip


@pytest.mark.parametrize("field", CHANGES)
def test_every_field_that_a_drawn_set_depends_on_counts(
    field: str, recipe_file: RecipeFile, cli: Cli, tmp_path: Path
) -> None:
    file = recipe_file()
    for flags in ((), (f"--{field}", json.dumps(CHANGES[field]))):
        assert cli("prepare", file, *flags).status == 0
    assert len(list((tmp_path / "cache").glob("forget-*"))) == 2


def dataset_folder(folder: Path, count: int = 5) -> Path:
    """Parquet, as sets on the hub are."""
    datasets = pytest.importorskip("datasets")
    rows = {
        "image": [{"bytes": png(number), "path": None} for number in range(count)],
        "text": [f"number {number}" for number in range(count)],
        "concept": [number % 2 for number in range(count)],
    }
    features = datasets.Features(
        image=datasets.Image(), text=datasets.Value("string"), concept=datasets.ClassLabel(names=["dog", "car"])
    )
    folder.mkdir()
    datasets.Dataset.from_dict(rows, features=features).to_parquet(folder / "train.parquet")
    return folder


def test_a_streamed_set_is_the_set(prepare: Prepare, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against the same set loaded whole; it is read once, and what broke off goes on."""
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "hf"))
    monkeypatch.setattr(streaming, "A_PART", 2)
    source = {"dataset": str(dataset_folder(tmp_path / "set"))}
    whole = prepare("retain", retain={"images": source})
    real, written = streaming._write, []

    def write(file: Path, first: int, *arguments: Any) -> None:
        written.append(first)
        if len(written) == 2:
            raise ConnectionError("gone")
        real(file, first, *arguments)

    monkeypatch.setattr(streaming, "_write", write)
    streamed = {"images": source | {"streaming": True}}
    with pytest.raises(UserError, match="breaks off after 2 pictures, which are kept: ConnectionError: gone Run it"):
        prepare("retain", retain=streamed)
    found = prepare("retain", retain=streamed)
    assert written == [0, 2, 2, 4]
    assert captions(found) == captions(whole) and shown(found) == shown(whole)
    assert torch.equal(found.latents[:], whole.latents[:])
    assert captions(prepare("retain", retain=streamed)) == captions(whole) and len(written) == 4
    some = prepare("retain", retain={"images": source | {"streaming": True, "limit": 3}})
    assert captions(some) == captions(whole)[:3]


@pytest.mark.parametrize(("images", "said"), [
    ({"folder": "{folder}", "streaming": True}, "images.streaming = True: is of a dataset, and there is a folder."),
    ({"dataset": "{folder}", "limit": 3}, "images.limit = 3: is of a streamed dataset."),
    ({"dataset": "{folder}/nowhere", "streaming": True}, "images.dataset"),
])  # fmt: skip
def test_streams_that_are_none(
    images: dict[str, Any], said: str, recipe_file: RecipeFile, cli: Cli, tmp_path: Path
) -> None:
    given = {key: value.format(folder=tmp_path) if isinstance(value, str) else value for key, value in images.items()}
    refused(cli("prepare", recipe_file(retain={"images": given})), said)
