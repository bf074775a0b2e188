"""Files of prompts, shaped like those that evaluations of the field are run on."""

from __future__ import annotations

import csv
import io
import itertools
import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from erasediff_lora.data.prompt_files import FilePrompts, describe, file_prompts
from erasediff_lora.data.prompts import Prompt
from erasediff_lora.errors import UserError
from erasediff_lora.recipe import Recipe


def recipe(files: Any, concepts: tuple[str, ...] = ("cat",)) -> Recipe:
    return Recipe.parse(
        {
            "model": {"base": "owner/name"},
            "forget": {
                "concepts": [{"name": name, "anchor": "dog"} for name in concepts],
                "templates": ["a {concept}"],
            },
            "retain": {"concepts": ["dog", "car"], "templates": ["a {concept}"]},
            "evaluation": {"prompts": files},
        }
    )


@pytest.fixture
def read(tmp_path: Path) -> Callable[..., FilePrompts]:
    def read(content: str | bytes, name: str = "prompts.csv", *concepts: str, **options: Any) -> FilePrompts:
        file = tmp_path / name
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
        return file_prompts(recipe([{"file": str(file), **options}], concepts or ("cat",)))

    return read


Read = Callable[..., FilePrompts]


def prompt(text: str, **values: Any) -> Prompt:
    return Prompt(text, **{"concept": "cat", "case": ""} | values)


I2P = """,prompt,lexica_url,categories,hard,inappropriate_percentage,nudity_percentage,sd_safety,{seed},{scale},\
sd_image_width,sd_image_height,sd_model
0,"a woman, ""nude"", by someone",https://x,"sexual, shocking",0,62.5,10.0,0.0,{one},7,512,640,SD1.4
1,another,https://y,hate,1,10,0,0,4294967295,8.5,768,512,SD1.4
"""


def test_rows_that_erase_what_this_recipe_does_not(read: Read, caplog: pytest.LogCaptureFixture) -> None:
    """A list of many celebrities, held against a recipe that forgets one: the others say nothing about that one."""
    rows = "id,type,concept,text\n1,erase,Cat,a cat\n2,erase,owl,an owl\n3,Erase,owl,owls\n4,retain,dog,a dog\n"
    found = read(rows)
    assert [one.text for one in found.forget] == ["a cat"] and [one.text for one in found.retain] == ["a dog"]
    assert found.files[0]["others"] == {"rows": 2, "concepts": ["owl"]}
    caplog.set_level("INFO")
    describe(found)
    assert "of concepts that the recipe does not forget, and left out: 2 rows (owl)" in caplog.text
    with pytest.raises(UserError) as refused:
        read("type,concept,text\nerase,owl,an owl\n")
    assert "column 'concept': names owl, which the recipe does not forget, and nothing else" in str(refused.value)
    assert len(read(rows, use="forget").forget) == 4, "as the user says"
    assert [one.concept for one in read(rows, concept="cat").forget] == ["cat"] * 3


def test_visu_as_spqr_has_it(read: Read) -> None:
    """Harmless and unsafe prompts in one row, with the number of a picture that belongs to the harmless one."""
    row = {
        "incremental_id": 0,
        "safe": "a man eats",
        "nsfw": "a man bleeds",
        "coco_id": 19,
        "tag": "gore",
        "prompt_id": 3,
    }
    found = read(json.dumps([row]), "visu.json")
    assert [one.text for one in found.forget] == ["a man bleeds"] and not found.retain
    kept = read(json.dumps([row]), "visu.json", columns={"prompt": "safe"})
    assert [one.text for one in kept.retain] == ["a man eats"] and not kept.forget
    scored = read("text,nsfw\na cat,0.3\n", "scored.csv")
    assert [one.text for one in scored.forget] == ["a cat"]


@pytest.mark.parametrize(
    ("seed", "scale"), [("evaluation_seed", "evaluation_guidance"), ("sd_seed", "sd_guidance_scale")]
)
@pytest.mark.parametrize("one", ["4068188753", "4068188753.0"])
def test_i2p(read: Read, seed: str, scale: str, one: str) -> None:
    found = read(I2P.format(seed=seed, scale=scale, one=one))
    assert [one.case for one in found.forget] == ["0", "1"]
    assert [(one.text, one.seed, one.guidance, one.size) for one in found.forget] == [
        ('a woman, "nude", by someone', 4068188753, 7.0, (512, 640)),
        ("another", 4294967295, 8.5, (768, 512)),
    ]
    assert not found.retain and not found.attack


def test_i2p_has_a_row_without_a_prompt(read: Read, caplog: pytest.LogCaptureFixture) -> None:
    found = read(",prompt,sd_seed\n0,,4\n1,a cat,5\n")
    assert [one.seed for one in found.forget] == [5]
    describe(found)
    assert "without a prompt, and left out: line 2" in caplog.text


@pytest.mark.parametrize("case", ["case_number", "Unnamed: 0", ""])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_diffusion_mu_attack(read: Read, case: str, mark: str) -> None:
    found = read(f"{mark}{case},prompt,evaluation_seed,evaluation_guidance\n17,a church,2,7.5\n")
    assert found.forget == [prompt("a church", seed=2, guidance=7.5, case="17")]


def test_ring_a_bell(read: Read) -> None:
    found = read("sensitive prompt,normal prompt\nzx qv cat!,a dog\n")
    assert found.attack == [prompt("zx qv cat!")] and not found.forget
    found = read("prompt,case_number,evaluation_seed\nzx qv,3,9\n", use="attack")
    assert found.attack == [prompt("zx qv", seed=9, case="3")]


def test_mma(read: Read) -> None:
    file = "target_prompt,adv_prompt,sanitized_adv_prompt\na nude,wexy ﻅ tt,wxy\n"
    assert read(file).attack == [prompt("wexy ﻅ tt")]
    assert read(file, columns={"prompt": "sanitized_adv_prompt"}).forget == [prompt("wxy")]
    both = read(file, columns={"prompt": ["target_prompt", "adv_prompt"]}).attack
    assert [(one.text, one.attributes) for one in both] == [
        ("a nude", {"column": "target_prompt"}),
        ("wexy ﻅ tt", {"column": "adv_prompt"}),
    ]


def test_p4d(read: Read) -> None:
    found = read("prompt,evaluation_seed,evaluation_guidance,safe_model\nx y,1,7,sld\n")
    assert found.forget == [prompt("x y", seed=1, guidance=7.0)]


def test_artists_and_classes_go_by_what_is_to_be_forgotten(read: Read) -> None:
    head = "\ufeffcase_number,prompt,evaluation_seed,{}\n"
    rows = "0,Sky by Van Gogh,11,Vincent van Gogh\n1,Sky by Monet,12,Claude Monet\n"
    found = read(head.format("artist") + rows, "a.csv", "vincent van-gogh")
    assert [(one.text, one.concept, one.seed) for one in found.forget] == [("Sky by Van Gogh", "vincent van-gogh", 11)]
    assert [(one.text, one.concept) for one in found.retain] == [("Sky by Monet", "Claude Monet")]
    found = read(
        head.format("class") + "0,Image of a chain saw,5,chain saw\n1,Image of church,6,Church\n", "i.csv", "church"
    )
    assert [one.concept for one in found.forget] == ["church"] and [one.concept for one in found.retain] == [
        "chain saw"
    ]


@pytest.mark.parametrize(
    "file",
    ["case_number,source,prompt,evaluation_seed,coco_id\n0,coco,a dog runs,3,42\n", "image_id,text\n42,a dog runs\n"],
)
def test_coco_is_retained(read: Read, file: str) -> None:
    (kept,) = read(file).retain
    assert (kept.text, kept.concept, kept.case) == ("a dog runs", "dog", "42" if "text" in file else "0")


def test_celebrities_are_split_by_type(read: Read) -> None:
    file = "id,type,text,concept,seed\n1,erase,a face,Jane Doe,5\n2,retain,a face,John Roe,6\n3,erase,bust,Al Bo,7\n"
    found = read(file, "c.csv", "jane doe", "al bo")
    assert [(one.concept, one.seed) for one in found.forget] == [("jane doe", 5), ("al bo", 7)]
    assert [(one.concept, one.seed) for one in found.retain] == [("John Roe", 6)]
    assert len(read(file, "c.csv", "jane doe", "al bo", use="forget", rows=1).forget) == 1


def test_hub(read: Read) -> None:
    lines = "A cat, on a mat, in Rome\nOne cat\nportrait, text, logo of a cat\nthe 5'10\" cat\n"
    assert [one.text for one in read(lines).forget] == lines.splitlines()
    tongues = "Original,Spanish,French,German,Italian,Portuguese,Index\na cat,un gato,un chat,k,g,t,0\n"
    assert [one.text for one in read(tongues).forget] == ["a cat"]
    several = read(tongues, columns={"prompt": ["Spanish", "French"]}).forget
    assert [one.attributes["column"] for one in several] == ["Spanish", "French"]
    nouns = read("noun,similarity\ntiger,0.9\nlynx,0.8\n").retain
    assert [(one.text, one.concept) for one in nouns] == [("a tiger", "tiger"), ("a lynx", "lynx")]
    aligned = json.dumps([{"index": 3, "prompt": "a cat, asleep", "nouns": ["mat"]}], indent=1)
    assert read(aligned, "s.json").forget == [prompt("a cat, asleep", case="3")]
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 4\n"
    with pytest.raises(UserError, match=r"prompts.csv:1.*Git LFS pointer.*git lfs pull"):
        read(pointer)


def test_json_in_all_its_forms(read: Read) -> None:
    row = {"prompt": "a cat", "seed": 4, "tags": ["x"]}
    wanted = [prompt("a cat", seed=4)]
    forms = [
        ("p.json", json.dumps([row])),
        ("p.json", json.dumps({"name": "spqr", "prompts": [row]})),
        ("p.json", json.dumps({"prompt": ["a cat"], "seed": [4]})),
        ("p.json", json.dumps({"prompt": {"0": "a cat"}, "seed": {"0": 4}})),
        ("p.json", json.dumps(row)),
        ("p.jsonl", json.dumps(row) + "\n\n"),
        ("p.json", json.dumps(row, indent=2)),
        ("p", json.dumps([row])),
    ]
    for name, text in forms:
        assert read(text, name).forget == wanted, text
    assert read('["a cat", "two cats"]', "p.json").forget == [prompt("a cat"), prompt("two cats")]
    assert read('{"prompt": "a cat", "seed": NaN}\n{"prompt": "b", "seed": null}\n', "p.jsonl").forget == [
        prompt("a cat"),
        prompt("b"),
    ]


def test_plain_lines(read: Read) -> None:
    text = 'a cat\r\n\r\n# cats\n"a cat, in quotes"\n  #cats  \nlast\u2028cat'
    wanted = ["a cat", "# cats", "a cat, in quotes", "#cats", "last\u2028cat"]
    assert [one.text for one in read(text, "p.txt").forget] == wanted, "searched prompts may begin with anything"
    searched = "x" * 300 + " \0 cat"
    assert [one.text for one in read(searched + "\n", "p.csv").forget] == [searched]
    assert [one.text for one in read("prompt,x\na,b\n", columns={"prompt": "LINE"}).forget] == ["prompt,x", "a,b"]


@pytest.mark.parametrize(("mark", "name"), [("\t", "p.tsv"), (";", "p.csv"), ("\t", "p.txt")])
def test_other_separators(read: Read, mark: str, name: str) -> None:
    text = f'id{mark}prompt{mark}seed\n1{mark}"a cat, a{mark}b\nc"{mark}5\n'
    assert read(text, name).forget == [prompt(f"a cat, a{mark}b\nc", seed=5, case="1")]


def test_a_folder_of_datasets(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    label = datasets.ClassLabel(names=["cat", "dog"])
    features = datasets.Features({"prompt": datasets.Value("string"), "label": label, "seed": datasets.Value("int64")})
    rows = {"prompt": ["a cat", "a dog"], "label": [0, 1], "seed": [1, 2]}
    datasets.DatasetDict({"train": datasets.Dataset.from_dict(rows, features)}).save_to_disk(str(tmp_path / "set"))
    found = file_prompts(recipe([str(tmp_path / "set")]))
    assert found.forget == [prompt("a cat", seed=1)] and found.retain == [prompt("a dog", concept="dog", seed=2)]


def test_several_concepts_are_drawn_in_turn_and_told_apart(read: Read) -> None:
    found = read("prompt\na cat\ntwo cats\na bird\n", "p.csv", "cat", "bird")
    assert [(one.text, one.concept) for one in found.forget] == [
        ("a cat", "cat"),
        ("a bird", "bird"),
        ("two cats", "cat"),
    ]
    with pytest.raises(UserError, match=r"p.csv:3.*column 'prompt': names none of the concepts"):
        read("prompt\na cat\na thing\n", "p.csv", "cat", "bird")
    assert read("prompt\na thing\n", "p.csv", "cat", "bird", concept="bird").forget[0].concept == "bird"


def test_what_is_honoured_and_how_many_pictures(read: Read) -> None:
    file = "prompt,seed,guidance,size\na cat,5,3,64x32\n"
    assert read(file).forget == [prompt("a cat", seed=5, guidance=3.0, size=(64, 32))]
    assert read(file, honour=["seed"]).forget == [prompt("a cat", seed=5)]
    assert [one.seed for one in read(file, pictures=3).forget] == [5, 6, 7]


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        (
            "p.csv",
            "foo,bar\na cat sits,1\n",
            ["p.csv:1", "column 1: has none of the usual titles in foo, bar", "--columns prompt=foo"],
        ),
        ("p.csv", "prompt,prompt\na,b\n", ["p.csv:1", "column 1: has the title 'prompt' twice"]),
        ("p.csv", "", ["p.csv:1", "has no row"]),
        ("p.csv", "prompt\n", ["has no row"]),
        ("p.json", "[]", ["has no row"]),
        ("p.json", "{}", ["p.json:1", "holds no list of prompts"]),
        ("p.json", '{"a": ["x"], "b": ["y"]}', ["holds no list of prompts, or several"]),
        ("p.json", '{"prompt": ["a"], "seed": [1, 2]}', ["has columns of [1, 2] rows"]),
        ("p.json", "3", ["p.json:1", "is neither a prompt nor an object with one"]),
        ("p.json", '[{"prompt": "a"}\n "b"]', ["p.json:2", "column 2: is no JSON"]),
        ("p.json", '["a"] x', ["something follows the list"]),
        ("p.json", "[" * 100_000, ["p.json:1", "nests too deep"]),
        ("p.jsonl", '{"prompt": "a"}\n{"prompt": "b"\n', ["p.jsonl:2", "column 15: is no JSON"]),
        ("p.jsonl", '{"prompt": "a"}\n[1]\n', ["p.jsonl:2", "is neither a prompt nor an object"]),
        ("p.json", '[{"prompt": "a"}, "b"]', ["is a string among objects"]),
        ("p.xlsx", "PK\x03\x04", ["a zip archive or a spreadsheet"]),
        ("p.csv", "\n<!DOCTYPE html>\n<html>", ["is a web page", "Download the raw file"]),
        ("p.csv", "id,prompt\n1,a\x00b\n", ["p.csv:2", "column 4: is a NUL character"]),
        ("p.csv", "id,prompt\n1,\n2, \n", ["p.csv:2", "column 'prompt': is empty, as in every row"]),
        ("p.jsonl", '{"prompt": "a"}\n{"prompt": 5}\n', ["p.jsonl:2", "column 'prompt': 5 is no text"]),
        ("p.csv", 'id,prompt\n1,"a\n2,b\n', ["p.csv:2", "is no CSV"]),
        ("p.csv", "type,prompt\nerase,a\nothers,b\noops,c\n", ["p.csv:4", "column 'type': 'oops' is none of erase"]),
    ],
)
def test_files_that_are_something_else(read: Read, name: str, text: str, words: list[str]) -> None:
    with pytest.raises(UserError) as refused:
        read(text, name)
    for word in words:
        assert word in str(refused.value)


BAD_VALUES = {
    "seed": ["x", "-1", "1.5", "1e300", "inf", str(2**63)],
    "guidance": ["x", "-0.1", "inf", "1001"],
    "width": ["x", "13", "0", "-8", "9000", "8.5"],
    "prompt": ["y" * 20_001],
    "case": [],
}


def malformed() -> Iterator[tuple[str, str, int, str]]:
    """Name, content, line and column of tables with one bad cell, in each of the formats, at each of several places."""
    columns = ["case", "prompt", "seed", "guidance", "width"]
    for (column, bad), line, kind in itertools.product(
        [(column, bad) for column, values in BAD_VALUES.items() for bad in values],
        (2, 9, 12),
        ("csv", "tsv", "jsonl", "json"),
    ):
        rows = [{"case": n, "prompt": f"a cat, {n}", "seed": n, "guidance": 7.5, "width": 64} for n in range(11)]
        rows[line - 2][column] = bad
        if kind in ("csv", "tsv"):
            file = io.StringIO()
            writer = csv.DictWriter(file, columns, delimiter="," if kind == "csv" else "\t", lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
            yield f"p.{kind}", file.getvalue(), line, column
        else:
            lines = [json.dumps(row) for row in rows]
            text = "\n".join(lines) if kind == "jsonl" else "[" + ",\n".join(lines) + "]"
            yield f"p.{kind}", text, line - 1, column


def test_two_hundred_bad_cells_are_found_where_they_are(read: Read) -> None:
    cases = list(malformed())
    assert len(cases) >= 200
    for name, text, line, column in cases:
        with pytest.raises(UserError) as refused:
            read(text, name)
        assert len(refused.value.problems) == 1
        assert f"{name}:{line}': column '{column}'" in str(refused.value), (name, line, column, str(refused.value))


def test_bytes_that_are_no_text_are_refused_by_name_and_place(read: Read) -> None:
    """Random damage: no traceback, whatever it is."""
    chance = random.Random(0)
    whole = I2P.format(seed="evaluation_seed", scale="evaluation_guidance", one="1").encode()
    for _ in range(200):
        data = bytearray(whole)
        for _ in range(chance.randint(1, 4)):
            data[chance.randrange(len(data))] = chance.randrange(256)
        for name in ("p.csv", "p.json", "p.txt", "p.tsv"):
            try:
                read(bytes(data), name)
            except UserError as error:
                assert all(problem.field == "evaluation.prompts" for problem in error.problems)
    with pytest.raises(UserError, match=r"p.csv:2.*column 3: is no UTF-8"):
        read(b"prompt\nab\xff\n", "p.csv")


def test_missing_files_and_columns(read: Read, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no such file"):
        file_prompts(recipe([str(tmp_path / "no.csv")]))
    with pytest.raises(UserError, match="and no dataset"):
        file_prompts(recipe([str(tmp_path)]))
    with pytest.raises(UserError, match=r"there is no column 'promt'. Did you mean 'prompt'\?"):
        read("prompt,foo\na cat,b\n", columns={"prompt": "promt"})
    with pytest.raises(UserError, match=r"evaluation.prompts.concept = 'dog': is not to be forgotten"):
        read("prompt\na cat\n", concept="dog")
    assert read("foo,bar\n1,a cat\n", columns={"prompt": "bar"}).forget == [prompt("a cat")]


def test_what_is_there_twice(read: Read, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The same picture again is no further evidence."""
    with pytest.raises(UserError, match=r"evaluation.prompts.1 = .*a.txt': is named twice"):
        recipe([str(tmp_path / "a.txt")] * 2)
    assert recipe([{"file": "a.csv"}, {"file": "a.csv", "columns": {"prompt": "safe"}}]).evaluation.prompts
    caplog.set_level("INFO")
    describe(read("prompt,seed\na cat,1\na cat,2\na cat,1\na cat,\na cat,\n"))
    assert "there before, with prompt and seed, and so the same picture again: 1" in caplog.text


def test_a_recipe_with_files_comes_back_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a cat\n")
    given = recipe([str(tmp_path / "a.txt"), {"file": str(tmp_path / "a.txt"), "use": "retain"}])
    again = Recipe.parse(yaml.safe_load(given.to_yaml()))
    assert again == given and len(file_prompts(again).retain) == 1
    with pytest.raises(UserError, match=r"evaluation.prompts.0.columns.promt"):
        recipe([{"file": "a.txt", "columns": {"promt": "x"}}])


@pytest.mark.parametrize(
    ("name", "text", "wanted"),
    [
        ("p.csv", "CaseNumber,promptText,evaluationSeed\n1,a cat,3\n", [("a cat", 3, "1")]),
        ("p.csv", ",Unnamed: 0,prompt,seed\n0,7,a cat,3\n", [("a cat", 3, "7")]),
        ("p.csv", "sep=;\nprompt;seed\na cat;1\n", [("a cat", 1, "")]),
        ("p.csv", "# made by hand\nprompt,seed\na cat,1\n", [("a cat", 1, "")]),
        ("p.csv", "prompt|seed\na cat|1\n", [("a cat", 1, "")]),
        ("p.csv", "prompt,seed\na cat,9007199254740993.0\nb,4.26E+09\nc,<NA>\nd,N/A\n", None),
        ("p.csv", "Original,Spanish\na cat,un gato\n", [("a cat", None, "")]),
        ("p.csv", "id,unsafe_prompt,safe_prompt,seed\n4,a cat,a hat,2\n", [("a cat", 2, "4")]),
        ("p.csv", '[{"prompt": "a cat", "seed": 1}]', [("a cat", 1, "")]),
        ("p.txt", "[a cat] in the rain\n", [("[a cat] in the rain", None, "")]),
        ("p", "{masterpiece} a cat\n", [("{masterpiece} a cat", None, "")]),
        ("p.json", '[["prompt", "seed"], ["a cat", 3]]', [("a cat", 3, "")]),
        ("p.json", '[["a cat"], ["b"]]', [("a cat", None, ""), ("b", None, "")]),
        ("p.jsonl", '["prompt", "seed"]\n["a cat", 3]\n', [("a cat", 3, "")]),
        ("p.json", '{"data": {"prompts": ["a cat"]}}', [("a cat", None, "")]),
        ("p.json", '{"0": "a cat", "1": "b"}', [("a cat", None, ""), ("b", None, "")]),
        ("p.json", '{"x7": {"prompt": "a cat", "seed": 3}}', [("a cat", 3, "x7")]),
        ("p.json", '{"prompts": ["a cat"], "seeds": [1]}', [("a cat", 1, "")]),
        ("p.json", '{"prompts": [{"prompt": "a cat", "seed": 1}], "negative": ["x"]}', [("a cat", 1, "")]),
        ("p.json", '{"columns": ["prompt", "seed"], "index": [0], "data": [["a cat", 3]]}', [("a cat", 3, "")]),
        ("p.txt", "# a cat\nprompt, x\n", [("# a cat", None, ""), ("prompt, x", None, "")]),
        ("p.csv", "id,ID,prompt\n1,2,a cat\n", [("a cat", None, "1")]),
        (
            "p.json",
            '{"forget": ["a cat"], "attack": [{"prompt": "zq", "seed": 3}]}',
            [("a cat", None, ""), ("zq", 3, "")],
        ),
        (
            "p.json",
            '{"info": {}, "images": [{"id": 3}], "annotations": [{"image_id": 3, "id": 9, "caption": "a hat"}]}',
            [("a hat", None, "3")],
        ),
    ],
)
def test_the_same_said_otherwise(read: Read, name: str, text: str, wanted: list[tuple[str, int | None, str]]) -> None:
    found = read(text, name)
    rows = [(one.text, one.seed, one.case) for one in (*found.forget, *found.retain, *found.attack)]
    exact = [("a cat", 9007199254740993, ""), ("b", 4260000000, ""), ("c", None, ""), ("d", None, "")]
    assert rows == (wanted or exact)


@pytest.mark.parametrize("size", ["512*768", "(512, 768)", "512 x 768", "512×768"])
def test_sizes(read: Read, size: str) -> None:
    assert read(f'prompt,size\na cat,"{size}"\n').forget == [prompt("a cat", size=(512, 768))]
    assert read('[{"prompt": "a cat", "size": [512, 768]}]', "p.json").forget == [prompt("a cat", size=(512, 768))]
    with pytest.raises(UserError, match="column 'size': '0x512' is no size"):
        read("prompt,size\na cat,0x512\n")
    photographs = "image_id,source,prompt,evaluation_seed,width,height\n203564,coco-30k,a hat,4,428,640\n"
    assert [one.size for one in read(photographs).retain] == [None], "of the photograph, not of what is drawn"
    with pytest.raises(UserError, match=r"column 'width': '428' is no multiple of 8.*honour: \[seed, guidance\]"):
        read(photographs, columns={"width": "width"})


def test_columns_without_titles_are_counted(read: Read) -> None:
    rows = "0,a cat sits,5\n1,a cat, 6\n"
    with pytest.raises(UserError, match=r"prompts.csv:1.*column 1: holds numbers.*--columns prompt=1 seed=2"):
        read(rows)
    counted = read(rows, columns={"prompt": "2", "seed": "3"}).forget
    assert [(one.text, one.seed) for one in counted] == [("a cat sits", 5), ("a cat", 6)]
    listed = json.dumps([["0", "gore", "a cat"], ["1", "gore", "b"]])
    assert [one.text for one in read(listed, "t.json", columns={"prompt": "3"}).forget] == ["a cat", "b"]
    assert read("foo,bar\n1,a cat\n", columns={"prompt": "bar"}).forget == [prompt("a cat")]


def test_what_a_prompt_stands_for_may_be_in_one_of_several_columns(read: Read) -> None:
    crossed = "prompt,style,object,seed\nA cat in Monet style,Monet,Cats,188\nA dog in Monet style,Monet,Dogs,188\n"
    found = read(crossed)
    assert [one.concept for one in found.forget] == ["cat"] and [one.concept for one in found.retain] == ["Monet"]
    assert [one.concept for one in read(crossed, "p.csv", "monet").forget] == ["monet"] * 2
    benign = "case_number,evaluation_seed,target,prompt\n0,3,cat,cat, asleep\n".replace("cat, asleep", '"cat, asleep"')
    found = read(benign + "1,4,tench,tench on a mat\n")
    assert [one.text for one in found.forget] == ["cat, asleep"] and [one.concept for one in found.retain] == ["tench"]
    assert len(read(benign, "p.csv", "nudity").forget) == 1, "what a target is, such a list does not say"
    labels = ",case_number,evaluation_seed,prompt,label_idx,label_str\n0,0,4,image of cat,0,cat\n1,1,5,hat,1,hat\n"
    assert len(read(labels).forget) == len(read(labels).retain) == 1
    assert len(read("prompt,label\na cat,281\nb,2\n").forget) == 2, "numbers name nothing"
    found = read('prompt,concept\nx,"dog, cat"\ny,dog\n')
    assert [one.concept for one in found.forget] == ["cat"] and [one.concept for one in found.retain] == ["dog"]


def test_lists_of_names(read: Read) -> None:
    assert [one.text for one in read("artist\nVan Gogh\nMonet\n").retain] == ["a Van Gogh", "a Monet"]
    found = read("id,concept\n0,cat\n1,tabby_owl\n")
    assert [one.text for one in found.forget] == ["a cat"] and [one.text for one in found.retain] == ["a tabby owl"]


def test_splits_by_other_words(read: Read, caplog: pytest.LogCaptureFixture) -> None:
    found = read("type,prompt,artist\nerased,a cat,cat\npreserved,a dog,dog\nHold-out,hat,hat\nattack,zq,cat\n")
    assert [len(found.forget), len(found.retain), len(found.attack)] == [1, 2, 1]
    with pytest.raises(UserError, match=r"prompts.csv:2.*column 'type': 'erase; retain' is several of erase, retain"):
        read("type,prompt\nerase; retain,a cat\n")
    assert len(read("split,prompt\nforget_set,a cat\nRetain set,a dog\n").retain) == 1
    found = read("split,prompt\ntrain,a cat\n")
    assert "split" not in found.files[0]["columns"]
    caplog.set_level("INFO")
    describe(found)
    assert "left aside: column 'split'" in caplog.text
    describe(read("type,prompt\nerased,a cat\nerased,an owl\nretained,an elk\n"))
    assert "to forget, and without its name: 1" in caplog.text


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("p.txt", "a photo of {name}\nthe {name}\n", ["p.txt:1", "is a template, whose {name} is to be filled"]),
        ("p.csv", "Prompt,prompt\na,b\n", ["p.csv:1", "'Prompt' and 'prompt' are called alike", "--columns"]),
        ("p.csv", "en_prompt,de_prompt\na cat,b\n", ["p.csv:1", "en_prompt and de_prompt are columns of prompts"]),
        ("p.csv", 'id,name\n0,"To buy\n"\n1,"It is.\n"\n', ["p.csv:1", "none of the usual titles in id, name"]),
        ("p.csv", "Job,CA score\nwaiter,.5\ncashier,1e-1\n", ["p.csv:1", "none of the usual titles"]),
        ("p.tsv", "a cat\tun gato\na hat\tun x\n", ["p.tsv:1", "no column has a title"]),
        ("p.json", '[{"prompt": "a"},\n {"prompt": "b", "prompt": "c"}]', ["p.json:2", "the key 'prompt' twice"]),
        ("p.json", '[["a", 1], ["b"]]', ["p.json:1", "has 1 cells, and the first one 2"]),
        ("p.yaml", "- prompt: a cat\n", ["p.yaml:1", "is YAML"]),
        ("p.csv", "404: Not Found", ["p.csv:1", "is a server's answer"]),
        ("p.csv", '<?xml version="1.0"?>', ["is XML"]),
        ("p.csv.bz2", "BZh91AY&SY", ["is compressed"]),
        ("p.arrow", "ARROW1\0\0", ["is an Arrow file"]),
        ("p.csv", "version https://hawser.github.com/spec/v1\n", ["is a Git LFS pointer"]),
    ],
)
def test_what_would_be_misread(read: Read, name: str, text: str, words: list[str]) -> None:
    with pytest.raises(UserError) as refused:
        read(text, name)
    assert len(refused.value.problems) == 1
    for word in words:
        assert word in str(refused.value)
