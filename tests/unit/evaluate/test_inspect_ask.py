"""What `Lab.inspect` is asked for: refused before anything starts; and how parts come together."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from inspections import random_arrays

from kdflow_lab.errors import ConfigError, DataError
from kdflow_lab.evaluate.inspect_ask import AskedTexts, InspectPart, merged
from kdflow_lab.evaluate.inspect_table import places

GOOD: dict[str, Any] = {
    "quantity": "forward_kl",
    "top": 20,
    "rows": 4,
    "split": "test",
    "seed": 1,
    "max_length": 2048,
}
SAMPLE = {"prompt": "<|im_start|>user", "ids": [5, 6], "text": "ab", "kl": None, "row": 9}


def test_texts_rows_names_and_rollouts_are_told_apart(tmp_path: Path) -> None:
    def given(texts: Any) -> Any:
        return AskedTexts.checked(texts, **GOOD).given

    assert given(["a", "b"]) == [{"text": "a"}, {"text": "b"}]
    rows = [{"messages": [{"role": "user", "content": "x"}]}]
    assert given(rows) == rows
    assert given([SAMPLE]) == [{"ids": [5, 6], "prompt": SAMPLE["prompt"]}]
    assert given([{**SAMPLE, "prompt_ids": np.arange(3)}]) == [
        {"prompt_ids": [0, 1, 2], "ids": [5, 6]}
    ]
    named = AskedTexts.checked("zoo/tasks", **GOOD)
    assert (named.name, named.given) == ("zoo/tasks", None)
    assert named.fields()["options"] == {"given": None, "top": 20, "max_length": 2048}


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"quantity": "reverse"}, "Did you mean 'reverse_kl'"),
        ({"top": 101}, "top is 101; expected a whole number from 1 to 100"),
        ({"top": 0}, "top is 0"),
        ({"rows": 0}, "rows is 0"),
        ({"max_length": 8193}, "max_length is 8193; expected a whole number from 1 to 8192"),
        ({"texts": "Some text."}, "A text to look at stands in a list"),
        ({"texts": [3]}, "Cannot look at int"),
    ],
)
def test_wrong_arguments_are_refused(wrong: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        AskedTexts.checked(**{"texts": ["a text"], **GOOD, **wrong})


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ([], "No text to look at"),
        ([{**SAMPLE, "ids": []}], "Rollout 0: 'ids' is \\[\\]; expected a list of token ids"),
        ([SAMPLE, {**SAMPLE, "ids": [1, -1]}], "Rollout 1: 'ids' is \\[1, -1\\]"),
        ([{**SAMPLE, "ids": [1.5]}], "Rollout 0: 'ids' is \\[1.5\\]"),
        ([{**SAMPLE, "ids": [[1], [2]]}], "Rollout 0: 'ids'"),
        ([{"ids": [1]}], "Rollout 0: 'prompt' is None; expected the text"),
        ([SAMPLE, {"text": "a"}], "Row 1 has no 'ids', but row 0 has"),
    ],
)
def test_wrong_texts_are_refused(wrong: list[Any], words: str) -> None:
    with pytest.raises(DataError, match=words):
        AskedTexts.checked(wrong, **GOOD)


def test_parts_of_ranks_make_the_whole() -> None:
    whole = random_arrays(((3, 4), (2, 5), (1, 1)))
    said_names = ("input_ids", "labels", "response", "cu_seqlens", "row_index")
    said = {name: whole.pop(name) for name in said_names}
    parts = []
    for number, rows in enumerate(((2, 0), (1,), ())):
        where = places(said["cu_seqlens"], rows)
        values = {name: array[where] for name, array in whole.items() if name != "forward_kl"}
        parts.append(InspectPart(said, [(where, values)] if rows else [], {number: str(number)}))
    # across tokenizers the rows are shared in another way
    for part, rows in zip(parts, ((0,), (1, 2), ()), strict=True):
        where = places(said["cu_seqlens"], rows)
        part.blocks.append((where, {"forward_kl": whole["forward_kl"][where]}))
    found = merged(parts, name="student", step=None)
    assert found.arrays.keys() == {*said, *whole}
    for name, values in whole.items():
        assert found.arrays[name].dtype == values.dtype
        np.testing.assert_array_equal(found.arrays[name], values)
    assert found.texts == {0: "0", 1: "1", 2: "2"} and found.note == ""


def test_a_kernel_asks_without_torch() -> None:
    code = """
import sys
import kdflow_lab.lab
from kdflow_lab.evaluate.inspect_ask import AskedTexts, merged
AskedTexts.checked(["a"], quantity="rank", top=5, rows=4, split="test", seed=1, max_length=9)
print([one for one in ("torch", "transformers", "datasets") if one in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
