"""Prompts in a folder that `datasets` has written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from erasediff_lora.data.prompt_files.table import Malformed, Row, Table


def read(folder: Path) -> Table:
    """What `datasets.save_to_disk` wrote; its pictures, if there are any, stay unopened.

    Raises:
        Malformed: If it is another folder, or the package is not installed.
    """
    try:
        import datasets
    except ImportError:
        remedy = "Run: pip install 'erasediff-lora[datasets]'."
        raise Malformed(0, None, "is a folder, which takes the datasets package.", remedy) from None
    if not any((folder / name).is_file() for name in ("dataset_info.json", "dataset_dict.json")):
        remedy = "Give a file, or a folder that datasets.save_to_disk wrote."
        raise Malformed(0, None, "is a folder, and no dataset.", remedy)
    try:
        loaded: Any = datasets.load_from_disk(str(folder))
    except Exception as error:
        what = f"cannot be loaded: {' '.join(str(error).split())[:200]}."
        raise Malformed(0, None, what, "Save it again with datasets.save_to_disk.") from None
    parts = loaded if isinstance(loaded, datasets.DatasetDict) else {"": loaded}
    columns: dict[str, None] = {}
    rows: list[Row] = []
    for split, data in parts.items():
        plain = [name for name, kind in data.features.items() if type(kind).__name__ in ("Value", "ClassLabel")]
        named = {name: data.features[name] for name in plain if hasattr(data.features[name], "int2str")}
        columns |= dict.fromkeys(plain)
        for values in data.select_columns(plain):
            known = {name: values[name] for name in plain} | {
                name: kind.int2str(values[name]) for name, kind in named.items() if values[name] is not None
            }
            rows.append(Row(len(rows) + 1, known if not split else {"split": split} | known))
    if any("split" in row.values for row in rows):
        columns["split"] = None
    return Table(list(columns), rows)
