"""Loading rows from wherever they are: the zoo, files, folders, the hub, a notebook's variables."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from kdflow_lab.data.readers import SourcedRow, read_csv, read_json, read_jsonl, row_or_reason
from kdflow_lab.data.rows import SOURCE
from kdflow_lab.errors import DataError, nearest

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

LoadedT = TypeVar("LoadedT")
READERS: dict[str, Callable[[Path], Iterator[SourcedRow]]] = {
    ".jsonl": read_jsonl,
    ".json": read_json,
    ".csv": read_csv,
}
SUFFIXES = (*READERS, ".parquet")
"""Endings of the files that can be read."""


def load(data: Any, *, split: str = "train", rows: int | None = None, seed: int = 0) -> Dataset:
    """Return the rows of `data`.

    Args:
        data: One of
            - `zoo/tasks` or `zoo/prose`: data that ships with the package;
            - a file: `.jsonl`, `.json`, `.csv` (every value a text) or `.parquet`;
            - a folder: files named after their split (`train.jsonl`, `test-0-of-2.parquet`), or
              what `save_to_disk` wrote;
            - a hub id;
            - a `datasets.Dataset` or `DatasetDict`, a pandas DataFrame, or a list of dicts.
        split: Which part. A single file, a `Dataset`, a DataFrame and a list have no parts: each
            is taken whole, whatever the split. Rows held out of the training belong into a file of
            their own, or into a folder with `train.jsonl` and `test.jsonl`.
        rows: Only the first so many, or all if there are fewer; of `zoo/tasks`, how many are made.
        seed: Draws the rows of `zoo/tasks`.

    Returns:
        The rows. Those of text files and lists have a column `_source` (`train.jsonl:7`); lines
        that could not be read are rows of nulls with the reason in the column `_bad`, so that
        `tokenize` can raise or skip. Both survive `to_parquet`.

    Raises:
        DataError: There is no such data or split, it cannot be read, or it holds no row.
        ConfigError: An unknown zoo data set or split of one.
    """
    if rows is not None and rows < 1:
        raise DataError(f"rows is {rows}; expected 1 or more, or None for all.")
    if isinstance(data, os.PathLike):
        data = os.fspath(data)
    dataset = _load(data, split, rows, seed)
    if len(dataset) == 0:
        raise DataError(f"{_name(data)} holds no row in split {split!r}. Expected at least one.")
    return dataset if rows is None else dataset.select(range(min(rows, len(dataset))))


def _load(data: Any, split: str, rows: int | None, seed: int) -> Dataset:
    if isinstance(data, str):
        return _load_name(data, split, rows, seed)
    if isinstance(data, list | tuple):
        from kdflow_lab.data.arrow import build

        return build((f"row {place}", row_or_reason(row)) for place, row in enumerate(data))
    if hasattr(data, "to_records") and hasattr(data, "columns"):
        return _from_frame(data)
    from datasets import Dataset, DatasetDict

    if isinstance(data, Dataset):
        return data
    if isinstance(data, DatasetDict):
        return _split_of(data, split, "The DatasetDict")
    raise DataError(
        f"Cannot load data from {type(data).__name__}. Expected a name or a path, a list of dicts, "
        "a pandas DataFrame, or a datasets.Dataset. A stream can be cut: list(stream.take(1000))."
    )


def _load_name(name: str, split: str, rows: int | None, seed: int) -> Dataset:
    if name.startswith("zoo/"):
        from kdflow_lab import zoo

        return zoo.dataset(name, split=split, rows=rows, seed=seed)
    found = locate(name, split)
    if isinstance(found, list):
        return _load_files(found, rows)
    return _load_hub(name, split) if found is None else found


def locate(name: str, split: str) -> list[Path] | Dataset | None:
    """Find what a name stands for that is not of the zoo.

    Returns:
        Files of one kind; or what `save_to_disk` wrote, mapped into memory; or None where only the
        hub can know it.

    Raises:
        DataError: It looks like a path, and there is none; or there is no such split, or its files
            cannot be read.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        return _locate_in_folder(path, split)
    if path.is_file():
        return _of_one_kind([path])
    looks_like_path = path.suffix in SUFFIXES or path.is_absolute() or name.startswith((".", "~"))
    if looks_like_path or name.count("/") > 1:
        raise DataError(
            f"There is no file or folder {name!r}.{_neighbour(path)} Expected a path from "
            f"{Path.cwd()}, or an absolute one."
        )
    return None


def _locate_in_folder(folder: Path, split: str) -> list[Path] | Dataset:
    """Find the files of one split, or what `save_to_disk` wrote."""
    if (folder / "dataset_dict.json").exists() or (folder / "dataset_info.json").exists():
        from datasets import Dataset, load_from_disk

        saved = load_from_disk(str(folder))
        return saved if isinstance(saved, Dataset) else _split_of(saved, split, str(folder))
    files = sorted(path for path in folder.iterdir() if path.suffix in SUFFIXES)
    if not files and (folder / "data").is_dir():  # as hub repositories lay it out
        files = sorted(path for path in (folder / "data").iterdir() if path.suffix in SUFFIXES)
    chosen = [path for path in files if _split_name(path) == split]
    if chosen:
        return _of_one_kind(chosen)
    splits = list(dict.fromkeys(_split_name(path) for path in files))
    found = f"it has {', '.join(splits)}" if splits else "it has no file of those kinds at all"
    raise DataError(
        f"The folder {folder} has no split {split!r}: {found}.{nearest(split, splits)} Expected a "
        f"file named after the split, such as {split}.jsonl ({', '.join(SUFFIXES)})."
    )


def _split_name(path: Path) -> str:
    """`train` of `train.jsonl` and of `train-00000-of-00002.parquet`."""
    return path.stem.partition("-")[0]


def _of_one_kind(files: list[Path]) -> list[Path]:
    kinds = sorted({path.suffix for path in files})
    if len(kinds) > 1:
        raise DataError(
            f"{', '.join(path.name for path in files)} belong to one split, but are of different "
            "kinds. Expected one kind of file a split: remove or rename the others."
        )
    if kinds[0] not in SUFFIXES:
        raise DataError(
            f"Cannot read {files[0]}.{nearest(kinds[0], SUFFIXES)} Expected one of "
            f"{', '.join(SUFFIXES)}."
        )
    return files


def _load_files(files: list[Path], rows: int | None) -> Dataset:
    """Read files of one kind, one after the other."""
    if files[0].suffix == ".parquet":
        return _read_parquet(files)
    from kdflow_lab.data.arrow import build

    lines = (line for path in files for line in READERS[files[0].suffix](path))
    return build(islice(lines, rows))


def _read_parquet(files: list[Path]) -> Dataset:
    import pyarrow as pa
    import pyarrow.parquet as pq
    from datasets import concatenate_datasets

    from kdflow_lab.data.arrow import dataset_of

    parts = []
    for path in files:
        try:
            part = dataset_of(pq.read_table(path))
        except (pa.ArrowException, OSError) as error:
            reason = str(error).splitlines()[0]
            raise DataError(
                f"{path} cannot be read as Parquet: {reason} Write it again, or check its ending."
            ) from None
        if SOURCE not in part.column_names:
            names = [f"{path.name} row {number}" for number in range(len(part))]
            part = part.add_column(SOURCE, names)  # type: ignore[arg-type]
        parts.append(part)
    if len(parts) == 1:
        return parts[0]
    try:
        return concatenate_datasets(parts)
    except (pa.ArrowException, ValueError) as error:
        names = ", ".join(path.name for path in files)
        raise DataError(
            f"The files {names} do not have the same columns: {str(error).splitlines()[0]} "
            "Write them with one schema."
        ) from None


def _from_frame(frame: Any) -> Dataset:
    """Read a DataFrame; its index is not kept, rows are counted from 0."""
    from datasets import Dataset

    try:
        return Dataset.from_pandas(frame, preserve_index=False)
    except Exception:
        # Arrow refuses mixed types; the walk row by row can say where they are.
        return _load(frame.to_dict(orient="records"), "", None, 0)


def _load_hub(name: str, split: str) -> Dataset:
    from datasets import load_dataset

    return from_hub(name, split, lambda: load_dataset(name, split=split))


def from_hub(name: str, split: str, load: Callable[[], LoadedT]) -> LoadedT:
    """Load from the hub, and say in words why it does not work.

    Raises:
        DataError: It does not.
    """
    try:
        return load()
    except Exception as error:  # the hub's errors have no common root, and offline is the usual one
        lines = str(error).strip().splitlines() or [type(error).__name__]
        reason = " ".join(line.strip() for line in lines[:3]).removesuffix(".")
        raise DataError(
            f"There is no file or folder {name!r}.{_neighbour(Path(name))} The hub cannot give "
            f"split {split!r} of a data set of that name either: {reason}. Pass a path, "
            "a hub id, or 'zoo/tasks'."
        ) from None


def _split_of(splits: DatasetDict, split: str, what: str) -> Dataset:
    if split not in splits:
        names = [str(name) for name in splits]
        raise DataError(
            f"{what} has no split {split!r}.{nearest(split, names)} It has: {', '.join(names)}."
        )
    return splits[split]


def _neighbour(path: Path) -> str:
    """Offer the file or folder beside it with the nearest name."""
    if not path.parent.is_dir():
        return ""
    return nearest(path.name, [other.name for other in path.parent.iterdir()])


def _name(data: Any) -> str:
    return repr(data) if isinstance(data, str) else f"The {type(data).__name__}"
