"""What a step says of its alignment, counted by hand."""

from __future__ import annotations

import numpy as np

from kdflow_lab.align.pairing import Pairing, span_counts


def _pairing(teacher: list[list[int]], student: list[list[int]]) -> Pairing:
    """Rows of token widths; each row begins one place behind the longest side of the one before."""
    sides: dict[str, list[np.ndarray]] = {"teacher": [], "student": []}
    samples: dict[str, list[np.ndarray]] = {"teacher": [], "student": []}
    base = 0
    for number, (theirs, ours) in enumerate(zip(teacher, student, strict=True)):
        for name, widths in (("teacher", theirs), ("student", ours)):
            ends = base + np.cumsum(widths, dtype=np.int64)
            sides[name].append(np.stack([ends - np.array(widths, np.int64), ends]))
            samples[name].append(np.full(len(widths), number))
        base += max(sum(theirs), sum(ours)) + 1
    t, s = (np.concatenate(sides[name], axis=1) for name in ("teacher", "student"))
    return Pairing(
        student_start=s[0],
        student_end=s[1],
        teacher_start=t[0],
        teacher_end=t[1],
        student_sample=np.concatenate(samples["student"]),
        teacher_sample=np.concatenate(samples["teacher"]),
        teacher_labels=np.zeros(t.shape[1], np.int64),
    )


def test_spans_of_every_kind_are_counted_by_the_students_tokens() -> None:
    teacher = [[1, 4, 2, 2, 2, 3], [5]]
    student = [[1, 2, 2, 4, 3, 2], [5]]
    # 1|1, 4|2+2, 2+2|4, 2+3|3+2, and 5|5
    assert span_counts(_pairing(teacher, student)) == {
        "places": 19,
        "covered": 19,
        "one_to_one": 2,
        "one_to_many": 2,
        "many_to_one": 1,
        "many_to_many": 2,
    }


def test_what_one_side_alone_wrote_is_not_covered() -> None:
    counts = span_counts(_pairing([[2, 3]], [[2]]))
    assert (counts["places"], counts["covered"], counts["one_to_one"]) == (5, 2, 1)


def test_nothing_counts_nothing() -> None:
    empty = np.zeros(0, np.int64)
    assert set(span_counts(Pairing(*[empty] * 7)).values()) == {0}
