"""Which row of the teacher each student token is compared with by `byte_prefix`, and at what depth.

Shape suffixes: T the student's response tokens.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from kdflow_lab.align.pairing import covering

if TYPE_CHECKING:
    from kdflow_lab.algorithms._prefixes import PrefixTable
    from kdflow_lab.align.pairing import Pairing
    from kdflow_lab.align.vocabulary import TokenizerPair


class PrefixRows(NamedTuple):
    """The rows of a micro-batch.

    Attributes:
        teacher: Int64[T], the teacher's row, -1 for none.
        written: By token with a row: the bytes of the teacher's token that are written before it;
            None where there are none.
        exact: Bool[T], whether a token ends within the teacher's token that it begins in.
        whitespace: Bool[T], tokens left out since they are white space that the teacher splits in
            another way.
        resegmented: Bool[T], tokens left out since the target would have them written in another
            way.
    """

    teacher: NDArray[np.int64]
    written: list[bytes | None]
    exact: NDArray[np.bool_]
    whitespace: NDArray[np.bool_]
    resegmented: NDArray[np.bool_]


def prefix_rows(
    pair: TokenizerPair,
    pairing: Pairing,
    labels: NDArray[np.int64],
    *,
    rows: str,
    blank: NDArray[np.bool_] | None,
) -> PrefixRows:
    """Find each token's row.

    A token may write fewer bytes into the text than its spelling has: the first one of a text loses
    a space that its tokenizer puts in front. Those bytes count as written. Where the two spellings
    then contradict each other, the token has no row.

    Args:
        pair: What the ids write.
        pairing: Where the tokens lie.
        labels: Int64[T], the student's tokens.
        rows: `one_to_one`, `exact` or `all`.
        blank: Bool[V], by the student's id whether it writes white space alone: such a token is
            left out where it is not one token on both sides. None: it is not.
    """
    teacher, depth, exact = covering(pairing)
    theirs = np.maximum(teacher, 0)
    if not len(pairing.teacher_labels):
        nothing = np.zeros(len(teacher), bool)
        return PrefixRows(teacher, [None] * len(teacher), exact, nothing, nothing)
    labels_of_theirs = pairing.teacher_labels[theirs]
    depth, spelled = _spelled_depth(pair, pairing, labels, labels_of_theirs, theirs, depth)
    kept = (teacher >= 0) & spelled
    written: list[bytes | None] = [None] * len(teacher)
    trimmed = depth != pairing.student_start - pairing.teacher_start[theirs]
    for token in np.flatnonzero(kept & ((depth > 0) | trimmed)):
        spelling = pair.teacher.token_bytes[labels_of_theirs[token]] or b""
        ours = pair.student.token_bytes[labels[token]] or b""
        rest = spelling[depth[token] :]
        if rest.startswith(ours) or ours.startswith(rest):
            written[token] = spelling[: depth[token]] or None
        else:
            kept[token] = False
    exact = exact & kept
    starts_alike = pairing.student_start == pairing.teacher_start[theirs]
    single = kept & starts_alike & (pairing.student_end == pairing.teacher_end[theirs])
    if rows == "one_to_one":
        kept &= single
    elif rows == "exact":
        kept &= exact
    whitespace = np.zeros(len(teacher), bool)
    if blank is not None:
        whitespace = kept & ~single & blank[labels]
        kept &= ~whitespace
    nothing = np.zeros(len(teacher), bool)
    return PrefixRows(np.where(kept, teacher, -1), written, exact, whitespace, nothing)


def resegmented(
    table: PrefixTable,
    found: PrefixRows,
    teacher_labels: NDArray[np.int64],
    labels: NDArray[np.int64],
) -> NDArray[np.bool_]:
    """Find tokens that the target would have written in another way than they are.

    What the teacher gives to the very token that came next goes to one token of the student. If
    that is not the one that the student's tokenizer has there, the target asks for a segmentation
    that the student never sees.

    Args:
        table: Where the teacher's mass goes.
        found: The rows.
        teacher_labels: Int64[U], the teacher's tokens.
        labels: Int64[T], the student's.

    Returns:
        Bool[T], among the tokens with an exact row.
    """
    exact = (found.teacher >= 0) & found.exact
    goes_to = np.full(len(labels), -1, np.int64)
    goes_to[exact] = table.from_start(teacher_labels[found.teacher[exact]])
    for token, written in enumerate(found.written):
        if written is not None and exact[token]:
            goes_to[token] = table.behind(int(teacher_labels[found.teacher[token]]), written)
    return (goes_to >= 0) & (goes_to != labels)


def _spelled_depth(
    pair: TokenizerPair,
    pairing: Pairing,
    labels: NDArray[np.int64],
    labels_of_theirs: NDArray[np.int64],
    theirs: NDArray[np.int64],
    depth: NDArray[np.int64],
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Depths in bytes of the teacher's spelling, and whether there can be such a depth."""
    ours = pair.student.widths[labels].astype(np.int64)
    other = pair.teacher.widths[labels_of_theirs].astype(np.int64)
    # a special token has a place, but no bytes
    lost_by_us = np.where(ours > 0, ours - (pairing.student_end - pairing.student_start), 0)
    lost = np.where(
        other > 0, other - (pairing.teacher_end[theirs] - pairing.teacher_start[theirs]), 0
    )
    found = depth + lost - lost_by_us
    possible = (found >= 0) & ((ours > 0) == (other > 0)) & (found < np.maximum(other, 1))
    return np.where(possible, found, 0), possible
