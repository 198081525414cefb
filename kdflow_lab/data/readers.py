"""Reading rows from text files line by line, so that a bad line is known by its number."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kdflow_lab.data.rows import BadRow, kind
from kdflow_lab.errors import DataError

SourcedRow = tuple[str, dict[str, Any] | BadRow]
"""Where a row came from, and the row, or why there is none."""

_MAX_CSV_FIELD = 2**31 - 1


def read_jsonl(path: Path) -> Iterator[SourcedRow]:
    """Yield every line of a JSONL file that is not blank; a bad one comes as its reason."""
    return ((source, json_row(line)) for source, line in jsonl_lines(path))


def jsonl_lines(path: Path) -> Iterator[tuple[str, bytes]]:
    """Yield name and text of every line of a JSONL file that is not blank."""
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if number == 1:
                line = line.removeprefix(b"\xef\xbb\xbf")  # editors on Windows put it there
            if line.strip():
                yield f"{path.name}:{number}", line


def is_json_array(path: Path) -> bool:
    """Tell a JSON file that is one array from one of lines."""
    with path.open("rb") as file:
        start = file.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip()
    return start.startswith(b"[")


def read_json(path: Path) -> Iterator[SourcedRow]:
    """Yield the rows of a JSON file: one array of objects, or lines as in JSONL.

    Raises:
        DataError: The array is not JSON.
    """
    if not is_json_array(path):
        yield from read_jsonl(path)
        return
    try:
        rows = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{path} is not JSON: {error}. Correct it, or write one object a line (JSONL)."
        ) from None
    for number, row in enumerate(rows):
        yield f"{path.name} row {number}", row_or_reason(row)


def read_csv(path: Path) -> Iterator[SourcedRow]:
    """Yield the rows of a CSV file with a header; every value is a text, "42" and "" included.

    Raises:
        DataError: The file is not UTF-8, or has no header.
    """
    # The default limit of 128 kB a field is less than a long document. It is one for the process.
    csv.field_size_limit(max(csv.field_size_limit(), _MAX_CSV_FIELD))
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file)
        try:
            header = next(reader, [])
            if not header or len(set(header)) < len(header):
                raise DataError(
                    f"{path}:1: expected a header with different names, got {header}. "
                    "Write the column names into the first line."
                )
            line = reader.line_num + 1
            for fields in reader:
                source, line = f"{path.name}:{line}", reader.line_num + 1
                if len(fields) == len(header):
                    yield source, dict(zip(header, fields, strict=True))
                elif fields:
                    reason = f"it has {len(fields)} fields, but the header has {len(header)}"
                    yield source, BadRow(reason)
        except (UnicodeDecodeError, csv.Error) as error:
            raise DataError(
                f"{path}, near line {reader.line_num + 1}: {error}. Expected CSV in UTF-8."
            ) from None


def row_or_reason(row: Any) -> dict[str, Any] | BadRow:
    """Return the row if it is an object, else why it is none."""
    if isinstance(row, dict):
        return row
    return BadRow(f"it is {kind(row)}; expected an object")


def json_row(line: bytes) -> dict[str, Any] | BadRow:
    """Return the object that a line of JSONL holds, or why there is none."""
    try:
        text = line.rstrip(b"\r\n").decode("utf-8")
    except UnicodeDecodeError as error:
        return BadRow(f"not UTF-8: byte 0x{line[error.start]:02x} at position {error.start}")
    try:
        row = json.loads(text)
        if "\\u" in text:
            # Half of a surrogate pair is a Python string, but no text that Arrow can hold.
            json.dumps(row, ensure_ascii=False).encode("utf-8")
    except json.JSONDecodeError as error:
        return BadRow(f"not JSON: {error.msg} at column {error.colno}")
    except UnicodeEncodeError:
        return BadRow("it holds half of a surrogate pair (\\ud800 … \\udfff), which is no text")
    except (ValueError, RecursionError) as error:
        return BadRow(f"not JSON that can be read: {error}")
    return row_or_reason(row)
