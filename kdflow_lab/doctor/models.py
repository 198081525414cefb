"""Whether a lab's models fit: ids and heads, what ends an answer, dtypes. No weight is read."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdflow_lab.align.roles import render, turn_markers
from kdflow_lab.doctor.findings import Finding
from kdflow_lab.plan.sizes import ModelSize, model_size

SIDES = ("teacher", "student")
QUOTED = 90


@dataclass(frozen=True, slots=True)
class Side:
    """One model, as far as it is read.

    Attributes:
        name: `teacher` or `student`.
        path: Its folder.
        tokenizer: Its tokenizer.
        size: Its counts.
    """

    name: str
    path: Path
    tokenizer: Any
    size: ModelSize

    @classmethod
    def read(cls, name: str, path: str, tokenizer: Any) -> Side:
        """Read a model's sizes."""
        return cls(name, Path(path), tokenizer, model_size(path))

    @property
    def stop_ids(self) -> list[int]:
        """Ids that end an answer: the generation config's, and the tokenizer's own."""
        found: set[int] = set()
        with contextlib.suppress(OSError, ValueError):  # not every model has one
            said = json.loads((self.path / "generation_config.json").read_text(encoding="utf-8"))
            ids = said.get("eos_token_id")
            found |= {one for one in (ids if isinstance(ids, list) else [ids]) if one is not None}
        if self.tokenizer.eos_token_id is not None:
            found.add(self.tokenizer.eos_token_id)
        return sorted(found)

    @property
    def written_ids(self) -> set[int]:
        """Special ids that the chat template writes; empty without a template."""
        return set(turn_markers(self.tokenizer).values())

    def spelled(self, ids: Sequence[int]) -> str:
        """Tokens as they are written."""
        return ", ".join(str(self.tokenizer.convert_ids_to_tokens(one)) for one in ids) or "none"


def examine_models(
    teacher: Side, student: Side, *, on_gpu: bool, teacher_dtype: str
) -> list[Finding]:
    """Look at both models.

    Args:
        teacher: One side.
        student: The other.
        on_gpu: Where they compute.
        teacher_dtype: As asked of the lab.
    """
    return [
        _heads(teacher, student),
        _templates(teacher, student),
        *(_stops(side) for side in (teacher, student)),
        _same_stops(teacher, student),
        _dtypes(teacher, student, on_gpu=on_gpu, asked=teacher_dtype),
    ]


def _heads(teacher: Side, student: Side) -> Finding:
    """Rows of the heads against the ids of the tokenizers."""
    words: list[str] = []
    advice: list[str] = []
    fits = True
    for side in (teacher, student):
        rows, ids = side.size.vocabulary, _ids(side.tokenizer)
        words.append(f"{side.name}: {ids:,} ids, {rows:,} rows")
        if ids > rows:
            fits = False
            advice.append(
                f"the {side.name}'s tokenizer has {ids - rows:,} ids that its head and embedding "
                "lack: rows with them are refused; call model.resize_token_embeddings and save it"
            )
        elif rows > ids:
            advice.append(
                f"{rows - ids:,} rows of the {side.name}'s head are padding and are left out"
            )
    return Finding("heads", "; ".join(words), fits, "; ".join(advice))


def _ids(tokenizer: Any) -> int:
    """One more than the highest id."""
    return 1 + max(tokenizer.get_vocab().values())


def _templates(teacher: Side, student: Side) -> Finding:
    """Where the two renders of one conversation part."""
    texts = [render(side.tokenizer) for side in (teacher, student)]
    missing = [
        side.name for side, text in zip((teacher, student), texts, strict=True) if text is None
    ]
    if missing:
        return Finding(
            "conversation",
            f"not rendered by the {' and the '.join(missing)}",
            False,
            "set tokenizer.chat_template and save it with the model, or give rows with prompt and "
            "completion",
        )
    ours, theirs = str(texts[1]), str(texts[0])
    if ours == theirs:
        return Finding("conversation", "both templates write the same")
    place = next(
        (at for at, (a, b) in enumerate(zip(theirs, ours, strict=False)) if a != b),
        min(len(ours), len(theirs)),
    )
    first = max(theirs.rfind("\n", 0, place) + 1, place - QUOTED // 2)
    found = (
        f"differs from character {place} on: teacher {theirs[first : first + QUOTED]!r}, student "
        f"{ours[first : first + QUOTED]!r}"
    )
    advice = (
        "each model reads prompts by its own template, and only answers are compared; give the "
        "student the teacher's template if it has none of its own to keep"
    )
    return Finding("conversation", found, True, advice)


def _stops(side: Side) -> Finding:
    """What ends an answer in generation, against what the template writes behind one."""
    stops, markers = side.stop_ids, turn_markers(side.tokenizer)
    name = f"{side.name} stops at"
    text = side.spelled(stops)
    if not stops:
        return Finding(
            name,
            "nothing",
            False,
            "no answer could end: set tokenizer.eos_token and generation_config.eos_token_id",
        )
    beyond = [one for one in stops if not 0 <= one < side.size.vocabulary]
    if beyond:
        return Finding(
            name,
            f"{stops}",
            False,
            f"its head has no row {beyond[0]}: correct eos_token_id in generation_config.json",
        )
    end = markers.get("turn_end")
    if end is not None and end not in stops:
        return Finding(
            name,
            text,
            False,
            f"its template ends an answer with {side.spelled([end])} (id {end}), at which "
            "generation would not stop: add it to eos_token_id in generation_config.json",
        )
    never = [one for one in stops if markers and one not in side.written_ids]
    advice = ""
    if never:
        advice = (
            f"its template never writes {side.spelled(never)}: a student taught by it learns to "
            f"stop at {side.spelled([end]) if end is not None else 'none of them'} alone"
        )
    return Finding(name, text, True, advice)


def _same_stops(teacher: Side, student: Side) -> Finding:
    """Whether both sides end at the same tokens, by their spelling."""
    theirs, ours = (set(side.spelled(side.stop_ids).split(", ")) for side in (teacher, student))
    if theirs == ours:
        return Finding("same stops", "both end at the same tokens")
    only = [
        f"only the {name} at {', '.join(sorted(found))}"
        for name, found in (("teacher", theirs - ours), ("student", ours - theirs))
        if found
    ]
    advice = (
        "answers are aligned by what ends them; in generation each stops at its own: make "
        "eos_token_id in both generation_config.json agree if the models shall be exchanged"
    )
    return Finding("same stops", "; ".join(only), True, advice)


def _dtypes(teacher: Side, student: Side, *, on_gpu: bool, asked: str) -> Finding:
    """What the checkpoints hold and what they are computed in."""
    dtype = asked if asked != "auto" else teacher.size.dtype if on_gpu else "float32"
    text = (
        f"teacher {teacher.size.dtype}, computed in {dtype}; student {student.size.dtype}, trained "
        f"in float32{' and computed in bfloat16' if on_gpu else ''}"
    )
    if dtype == "float16":
        return Finding(
            "dtype",
            text,
            True,
            "hidden states of some models overflow float16: teacher_dtype='bfloat16' does not",
        )
    if not on_gpu and dtype != "float32":
        return Finding(
            "dtype", text, True, "most CPUs are slower in it: leave teacher_dtype out for float32"
        )
    return Finding("dtype", text)
