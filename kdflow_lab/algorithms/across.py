"""How evaluations compare models of two tokenizers, whatever the run's own algorithm is."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kdflow_lab.algorithms.byte_prefix import BytePrefix
from kdflow_lab.config import DistillConfig

if TYPE_CHECKING:
    from kdflow_lab.align.vocabulary import TokenizerPair


def make_across(
    pair: TokenizerPair | None, student_width: int, teacher_width: int
) -> BytePrefix | None:
    """Return what compares tokens by forward KL at temperature 1, on exact rows.

    Args:
        pair: Both vocabularies; None where there is one tokenizer, and nothing to cross.
        student_width: Columns of the student's head.
        teacher_width: Columns of the teacher's head.
    """
    if pair is None:
        return None
    across = BytePrefix(DistillConfig.parse(algorithm="byte_prefix"))
    across.meet(pair, student_width, teacher_width)
    return across
