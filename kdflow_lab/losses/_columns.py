"""Targets on the ids that two vocabularies share.

Shape suffixes: R tokens of a block, X the teacher's vocabulary, K shared ids.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from kdflow_lab.losses._target import Columns, Target


@dataclass(frozen=True, slots=True)
class Shared:
    """The shared ids, as tensors on the device of the loss.

    Attributes:
        teacher_ids: Int64[K].
        student_ids: Int64[K].
        counterpart: Int64[X], the student's id of each of the teacher's, -1 for none.
    """

    teacher_ids: Tensor
    student_ids: Tensor
    counterpart: Tensor


class SharedMap:
    """Compares the shared ids alone, each side renormalised on them; a `TargetMap`."""

    def __init__(self, shared: Shared) -> None:
        """Take the shared ids."""
        self._shared = shared

    def __call__(self, t_RX: Tensor, tokens: slice, kept_R: Tensor) -> Target:
        """See `TargetMap`: the teacher's logits of the shared ids, Float[R, K]."""
        shared = self._shared
        return Target(
            t_RX.index_select(1, shared.teacher_ids),
            kept_R,
            view=Columns(shared.student_ids),
            top=shared.counterpart[t_RX.argmax(dim=-1)],
        )


class WholeMap:
    """Hands on the teacher's logits as they are, for a function of two vocabularies."""

    def __init__(self, counterpart: Tensor) -> None:
        """Take Int64[X], the student's id of each of the teacher's, -1 for none."""
        self._counterpart = counterpart

    def __call__(self, t_RX: Tensor, tokens: slice, kept_R: Tensor) -> Target:
        """See `TargetMap`: Float[R, X]."""
        top_R = self._counterpart[t_RX.argmax(dim=-1)]
        return Target(t_RX, kept_R, top=top_R)
