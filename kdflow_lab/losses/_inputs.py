"""What every function on hidden states and heads checks first."""

from __future__ import annotations

from torch import Tensor

from kdflow_lab.errors import ConfigError, ShapeError
from kdflow_lab.losses.head import Head


def check_inputs(
    student_hidden: Tensor,
    student_head: Head,
    teacher_hidden: Tensor | None,
    teacher_head: Head | None,
    labels: Tensor | None,
    kd_ratio: float,
) -> None:
    """Refuse what cannot be computed, in the caller's words.

    Raises:
        ConfigError: A teacher or labels are missing.
        ShapeError: Rows, hidden sizes or vocabularies do not fit.
    """
    num_tokens = student_hidden.shape[0]
    if kd_ratio > 0.0 and (teacher_hidden is None or teacher_head is None):
        raise ConfigError(
            f"kd_ratio is {kd_ratio}, which needs the teacher's hidden states and head. Pass both, "
            "or kd_ratio=0."
        )
    if kd_ratio < 1.0 and labels is None:
        raise ConfigError(
            f"kd_ratio is {kd_ratio}, which needs labels for the cross-entropy. Pass them, or "
            "kd_ratio=1."
        )
    student_head.check(student_hidden)
    if labels is not None and labels.shape != (num_tokens,):
        raise ShapeError(f"labels are {tuple(labels.shape)}; expected ({num_tokens},), one a row.")
    if labels is not None and num_tokens and int(labels.max()) >= student_head.width:
        raise ShapeError(
            f"A label is {int(labels.max())}, but the heads share only {student_head.width} ids. "
            "The data holds tokens that one of the two models does not have."
        )
    if teacher_hidden is None or teacher_head is None:
        return
    teacher_head.check(teacher_hidden)
    if teacher_hidden.shape[0] != num_tokens:
        raise ShapeError(
            f"The student has {num_tokens} rows, the teacher {teacher_hidden.shape[0]}; expected "
            "one teacher row for each student row."
        )
    if teacher_head.width != student_head.width:
        raise ShapeError(
            f"The student's head is {student_head.width} wide, the teacher's {teacher_head.width}. "
            "Cut both to the ids that the two tokenizers share: Head.cut(vocab_size)."
        )


def check_paired_inputs(
    student_hidden: Tensor,
    student_head: Head,
    teacher_hidden: Tensor,
    teacher_head: Head,
    labels: Tensor,
    paired: tuple[int, int],
) -> None:
    """Refuse what cannot be computed where rows are paired by number, in the caller's words.

    Args:
        student_hidden: Float[T, Hs].
        student_head: Of the student.
        teacher_hidden: Float[U, Ht].
        teacher_head: Of the teacher.
        labels: Int64[T].
        paired: Tokens of the student and of the teacher that the pairing is of.

    Raises:
        ShapeError: Rows or hidden sizes do not fit, or a label is out of range.
    """
    num_tokens, num_rows = student_hidden.shape[0], teacher_hidden.shape[0]
    student_head.check(student_hidden)
    teacher_head.check(teacher_hidden)
    if labels.shape != (num_tokens,):
        raise ShapeError(f"labels are {tuple(labels.shape)}; expected ({num_tokens},), one a row.")
    if num_tokens and int(labels.max()) >= student_head.width:
        raise ShapeError(
            f"A label is {int(labels.max())}, but the student's head has {student_head.width} ids. "
            "Expected labels in the student tokenizer's ids."
        )
    sides = (("student", paired[0], num_tokens), ("teacher", paired[1], num_rows))
    for side, tokens, rows in sides:
        if tokens != rows:
            raise ShapeError(
                f"The pairing is of {tokens} tokens of the {side}, but the {side} has {rows} rows. "
                "Pair the tokens of this micro-batch."
            )
