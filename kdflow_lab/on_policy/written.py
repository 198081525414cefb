"""From what the student wrote to rows that it is trained on: the very ids that were sampled."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from kdflow_lab.align.ids import align_ids
from kdflow_lab.data.encode import Encoder
from kdflow_lab.data.table import TokenTable

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from kdflow_lab.align.vocabulary import TokenizerPair
    from kdflow_lab.on_policy.prompts import Prompts
    from kdflow_lab.rollout.sampling import Sample

ENDS = ("turn_end", "eos")
"""Roles of the token with which the teacher ends an answer, the first that it has."""


class Writer:
    """Makes tables of prompts and answers."""

    def __init__(
        self,
        prompts: Prompts,
        pair: TokenizerPair | None,
        tokenizer: Any,
        teacher_tokenizer: Any,
        *,
        max_tokens: int,
    ) -> None:
        """Take what does not change in a run.

        Args:
            prompts: All of them.
            pair: Both vocabularies, if the tokenizers differ.
            tokenizer: The student's; used only with a `pair`.
            teacher_tokenizer: Likewise.
            max_tokens: Of a row. Where the teacher reads an answer as more tokens, it does not read
                its end: those tokens of the student are not aligned.
        """
        self._max_tokens = max_tokens
        self._prompts, self._pair = prompts, pair
        self._tokenizer = tokenizer
        self._teacher = None if pair is None else Encoder(teacher_tokenizer)
        self._end: int | None = None
        self._special: dict[int, int | None] = {}
        if pair is not None:
            roles = pair.teacher.roles
            self._end = next((roles[role] for role in ENDS if role in roles), None)
            self._special = _specials(pair)

    def table(self, rows: Sequence[int], samples: Sequence[Sample]) -> TokenTable:
        """Return prompts with their answers, one row a sample.

        Every sampled token is trained, and nothing else: no token is added to an answer that was
        cut, and none is tokenized again. Only a teacher of another tokenizer reads the text.

        Args:
            rows: Numbers of the prompts that were asked; a sample's `prompt` is a place in it.
            samples: In any order, which the table keeps.
        """
        asked = [int(rows[sample.prompt]) for sample in samples]
        answers = [np.asarray(sample.ids, np.int32) for sample in samples]
        table = dataclasses.replace(
            _joined(self._prompts.student, asked, answers),
            logprobs=np.concatenate([np.asarray(one.logprobs, np.float32) for one in samples]),
        )
        if self._prompts.teacher is None:
            return table
        if self._pair is None:
            return dataclasses.replace(
                table, teacher=_joined(self._prompts.teacher, asked, answers)
            )
        room = self._max_tokens - self._prompts.teacher.lengths[asked]
        theirs = [
            ids[:most] for ids, most in zip(self._translated(samples), room.tolist(), strict=True)
        ]
        teacher = _joined(self._prompts.teacher, asked, theirs)
        found = align_ids(self._pair, theirs, answers)
        ours_from = found.row_start[found.student_sample]
        theirs_from = found.row_start[found.teacher_sample]
        return dataclasses.replace(
            table,
            start=found.student_start - ours_from,
            end=found.student_end - ours_from,
            teacher=dataclasses.replace(
                teacher,
                start=found.teacher_start - theirs_from,
                end=found.teacher_end - theirs_from,
            ),
        )

    def _translated(self, samples: Sequence[Sample]) -> list[NDArray[np.int32]]:
        """The answers in the teacher's ids.

        Text is tokenized as the teacher would. Special tokens become the teacher's with the same
        role, and are left out where it has none: spelled out they would be other text. An answer
        that ended, ends there too.
        """
        assert self._teacher is not None
        texts: list[str] = []
        parts: list[list[int | None]] = []  # of each answer: special ids, None for the next text
        special = np.array(sorted(self._special), np.int64)
        for sample in samples:
            ids = sample.ids[: len(sample.ids) - sample.finished]
            cuts = np.flatnonzero(np.isin(ids, special))
            part: list[int | None] = []
            for text in np.split(ids, cuts):
                if len(text) and int(text[0]) in self._special:
                    part += [one for one in (self._special[int(text[0])],) if one is not None]
                    text = text[1:]
                if len(text):
                    part.append(None)
                    texts.append(self._tokenizer.decode(text, clean_up_tokenization_spaces=False))
            if sample.finished:
                stop = self._special.get(int(sample.ids[-1]))
                part += [one for one in (self._end if stop is None else stop,) if one is not None]
            parts.append(part)
        encoded = iter(self._teacher.ids(texts))
        translated = []
        for part in parts:
            ids = [id for one in part for id in (next(encoded) if one is None else [one])]
            # an answer without text still needs a token that the teacher can be asked about
            translated.append(np.array(ids or [self._end or 0], np.int32))
        return translated


def _specials(pair: TokenizerPair) -> dict[int, int | None]:
    """The student's ids that write no text, and the teacher's with the same role, if it has one.

    Padding has none: it stands for nothing.
    """
    teacher, student = pair.shared
    same = dict(zip(student.tolist(), teacher.tolist(), strict=True))
    counted = pair.special_units[1]
    return {
        token: same.get(token) if token in counted else None
        for token, one in enumerate(pair.student.token_bytes)
        if one is None
    }


def _joined(
    prompts: TokenTable, rows: Sequence[int], answers: Sequence[NDArray[np.int32]]
) -> TokenTable:
    """Put each answer behind its prompt."""
    ids, masks = [], []
    for row, answer in zip(rows, answers, strict=True):
        prompt, _ = prompts.row(row)
        ids.append(np.concatenate([prompt, answer]))
        masks.append(np.repeat(np.array([0, 1], np.uint8), [len(prompt), len(answer)]))
    lengths = np.array([len(one) for one in ids], np.int64)
    return TokenTable(
        input_ids=np.concatenate(ids).astype(np.int32),
        offsets=np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)]),
        response_mask=np.concatenate(masks),
        row_index=prompts.row_index[np.asarray(rows, np.int64)],
    )
