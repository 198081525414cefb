"""What an inspection is asked for, checked before anything is computed; imports no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from kdflow_lab.errors import DataError
from kdflow_lab.evaluate.inspection import Inspection, check_quantity
from kdflow_lab.evaluate.run_probes import note_of
from kdflow_lab.evaluate.sandbox_ask import MOST_ROWS, checked_data, checked_number

Block = tuple[np.ndarray, dict[str, np.ndarray]]
MOST_TOP = 100
MOST_LENGTH = 8192
"""Tokens of a row."""
MOST_TOKENS = 65_536
"""Of all rows: each of them has a line of its own, and both models' lists."""


@dataclass(frozen=True, slots=True, eq=False)
class InspectPart:
    """What one rank found; plain arrays, which travel without torch.

    Attributes:
        said: What the rows say: the arrays of `probe_file` up to `row_index`, of all rows.
        blocks: Each Int64[T], where T tokens of this rank stand among the P of all; and some of the
            other arrays of `probe_file`, of those tokens.
        texts: Token id -> its text, of every id in them.
        note: What could not be compared, and why; mostly empty.
    """

    said: dict[str, np.ndarray]
    blocks: list[Block]
    texts: dict[int, str]
    note: str = ""


@dataclass(frozen=True, slots=True)
class AskedTexts:
    """One call of `Lab.inspect`, with everything in it that does not depend on the model.

    Attributes:
        name: Name or path of data; empty for rows.
        given: Rows of data, or of `rollouts.jsonl`; None for a name.
        rows: Rows taken of data that has a name.
        split: Of that data.
        seed: Of data that is generated.
        top: Tokens listed.
        max_length: Most tokens of a row.
    """

    name: str
    given: list[dict[str, Any]] | None
    rows: int
    split: str
    seed: int
    top: int
    max_length: int

    @classmethod
    def checked(
        cls,
        texts: Any,
        *,
        quantity: str | None,
        top: int,
        rows: int,
        split: str,
        seed: int,
        max_length: int,
    ) -> AskedTexts:
        """Check the arguments of `Lab.inspect`.

        Raises:
            ConfigError: One of them does not fit.
            DataError: There is no text, no such data, or a rollout without its tokens.
        """
        check_quantity(quantity)
        checked_number("top", top, most=MOST_TOP)
        checked_number("rows", rows, most=MOST_ROWS)
        checked_number("max_length", max_length, most=MOST_LENGTH)
        data = checked_data(texts, split, rows)
        if isinstance(data, str):
            return cls(data, None, rows, split, seed, top, max_length)
        are_sampled = [is_sampled(row) for row in data]
        if any(are_sampled):
            if not all(are_sampled):
                raise DataError(
                    f"Row {are_sampled.index(False)} has no 'ids', but row "
                    f"{are_sampled.index(True)} has. Pass either lines of rollouts.jsonl or rows "
                    "of data."
                )
            data = [_checked_sample(number, row) for number, row in enumerate(data)]
        return cls("", data, rows, split, seed, top, max_length)

    def fields(self) -> dict[str, Any]:
        """Return the fields of a `SubjectJob` that this call decides, but for `data`."""
        options = {"given": self.given, "top": self.top, "max_length": self.max_length}
        return {"rows": self.rows, "seed": self.seed, "options": options}


def is_sampled(row: Mapping[str, Any]) -> bool:
    """Tell whether a row is one of `rollouts.jsonl`: it has the ids of its answer."""
    return "ids" in row and "messages" not in row


def merged(parts: Sequence[InspectPart], *, name: str, step: int | None) -> Inspection:
    """Put together what the ranks found.

    Args:
        parts: One a rank, in any order.
        name: Of the model.
        step: Steps that it had learnt; None for a model that is no run's.
    """
    said = parts[0].said
    arrays: dict[str, np.ndarray] = dict(said)
    total = len(said["labels"])
    for places, found in [block for part in parts for block in part.blocks]:
        for key, values in found.items():
            if key not in arrays:
                arrays[key] = np.zeros((total, *values.shape[1:]), values.dtype)
            arrays[key][places] = values
    texts = {token_id: text for part in parts for token_id, text in part.texts.items()}
    return Inspection(arrays, texts, name=name, step=step, note=parts[0].note or note_of(arrays))


def _checked_sample(number: int, row: Mapping[str, Any]) -> dict[str, Any]:
    """What is needed of a line of `rollouts.jsonl`."""
    sample: dict[str, Any] = {}
    for name in ("prompt_ids", "ids"):
        ids = row.get(name)
        if name == "prompt_ids" and ids is None:
            continue
        array = np.asarray(ids)
        if array.ndim != 1 or array.dtype.kind not in "iu" or array.size == 0 or array.min() < 0:
            raise DataError(
                f"Rollout {number}: {name!r} is {_short(ids)}; expected a list of token ids, at "
                "least one."
            )
        sample[name] = array.astype(np.int32).tolist()
    if "prompt_ids" not in sample:
        if not isinstance(row.get("prompt"), str):
            raise DataError(
                f"Rollout {number}: 'prompt' is {_short(row.get('prompt'))}; expected the text "
                "that stood before the sampled tokens, special tokens included, as rollouts.jsonl "
                "has it."
            )
        sample["prompt"] = row["prompt"]
    return sample


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:39]}…"
