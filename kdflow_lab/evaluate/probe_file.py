"""The file of one inspection: per-token arrays on the probe texts. Needs no torch to be read.

P counts the tokens that predict a next one, over all n probe rows, one row behind the other: all
but each row's last. K most likely tokens are listed. Values are at temperature 1, in nats.

    input_ids            int32[P]        the token that predicts
    labels               int32[P]        the one that really comes next
    response             bool[P]         whether that next token is a trained one
    cu_seqlens           int32[n + 1]    where each row starts, and P
    row_index            int32[n]        the row of the data that each came from
    forward_kl           float32[P]      KL(teacher || student)
    reverse_kl           float32[P]      KL(student || teacher)
    jsd                  float32[P]      Jensen-Shannon divergence, equal weights
    student_entropy      float32[P]      and teacher_entropy
    student_logprob      float32[P]      of the label; and teacher_logprob
    student_logit        float32[P]      of the label, as the model gives it; and teacher_logit
    student_rank         int32[P]        of the label, 1 if it is the most likely; and teacher_rank
    student_topk_ids     int32[P, K]     most likely first; and teacher_topk_ids
    student_topk_logprobs float32[P, K]  and teacher_topk_logprobs
    student_logprobs_of_teacher_topk     float32[P, K]  of the tokens in teacher_topk_ids
    teacher_logprobs_of_student_topk     float32[P, K]  of the tokens in student_topk_ids

A run without a teacher leaves out everything that compares with one. Where the teacher reads other
ids, only `forward_kl` compares, 0 at tokens without a counterpart and NaN outside the answers.
Files of earlier versions have no logits and no log-probabilities of the other model's list.

The metadata, all strings: `schema` "1", `step`, `temperature` "1", `k`, and `texts`, a JSON object
from each id in the arrays to its text, so that a reader needs no tokenizer (not in earlier files).
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kdflow_lab.errors import DataError

Arrays = Mapping[str, np.ndarray]
SCHEMA = "1"
ID_ARRAYS = ("input_ids", "labels", "student_topk_ids", "teacher_topk_ids")
"""The arrays that hold token ids."""


@dataclass(frozen=True, slots=True, eq=False)
class ProbeFile:
    """What stands in a probe file.

    Attributes:
        arrays: By name, as this module describes them.
        texts: Token id -> its text; empty in a file of an earlier version.
        step: Steps that the student had learnt.
    """

    arrays: dict[str, np.ndarray]
    texts: dict[int, str]
    step: int


def ids_in(arrays: Arrays) -> list[int]:
    """Return every token id that the arrays hold, sorted, each once."""
    named = [arrays[name].ravel() for name in ID_ARRAYS if name in arrays]
    return np.unique(np.concatenate(named)).tolist() if named else []


def save(
    path: Path,
    arrays: dict[str, np.ndarray],
    *,
    step: int,
    k: int,
    texts: Mapping[int, str] | None = None,
) -> None:
    """Write a file that is there whole or not at all; an older one of that name is replaced.

    Args:
        path: Of the file.
        arrays: By name, as this module describes them.
        step: Steps that the student had learnt.
        k: Most likely tokens that are listed.
        texts: Token id -> its text, of every id in the arrays; None if they are not known.

    Raises:
        OSError: The disk is full, or the folder cannot be written.
    """
    from safetensors.numpy import save as to_bytes

    metadata = {"schema": SCHEMA, "step": str(step), "temperature": "1", "k": str(k)}
    if texts is not None:
        metadata["texts"] = json.dumps({str(one): text for one, text in texts.items()})
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.tmp")
    try:
        unfinished.write_bytes(to_bytes(arrays, metadata=metadata))
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def read(path: str | Path) -> dict[str, np.ndarray]:
    """Read the arrays of an inspection; this module says what they are.

    Raises:
        DataError: There is no such file, or it is no probe file of this version.
    """
    return read_file(path).arrays


def read_file(path: str | Path) -> ProbeFile:
    """Read everything in a probe file.

    Raises:
        DataError: There is no such file, or it is no probe file of this version.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            names = list(file.keys())
            arrays = {name: file.get_tensor(name) for name in names}
    except FileNotFoundError:
        raise DataError(
            f"There are no probes at {path}. A run writes them when it is inspected: run.inspect()."
        ) from None
    except SafetensorError as error:
        raise DataError(
            f"{path} is no probe file ({error}). Expected probes/<step>.safetensors of a run."
        ) from None
    schema = metadata.get("schema")
    if schema != SCHEMA:
        raise DataError(
            f"{path} has schema {schema!r}; this version of kdflow-lab reads schema {SCHEMA!r}. "
            "Read it with the version that wrote it."
        )
    texts = json.loads(metadata.get("texts", "{}"))
    return ProbeFile(
        arrays,
        {int(token_id): text for token_id, text in texts.items()},
        int(metadata.get("step", 0)),
    )
