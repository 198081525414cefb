"""Projectors between two models' hidden spaces, and where they start.

Shape suffixes: d the student's width, D the teacher's, K shared ids.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from kdflow_lab.losses._chunks import slices

ROWS = 8192
"""Rows of the heads whose products are added at once, in float64."""


class DualProjectors(nn.Module):
    """What DSKD trains beside the student.

    Attributes:
        to_student: Float[d, D], trained: teacher rows into the student's space.
        to_teacher: Float[D, d], not trained, but saved: student rows into the teacher's space.
        query: Float[2D, 2d] and `query_bias` Float[2D], trained; only for cross-model attention.
    """

    def __init__(
        self, student_width: int, teacher_width: int, *, attention: bool, seed: int = 0
    ) -> None:
        """Draw the weights; `set_projections` gives two of them what they start from."""
        super().__init__()
        generator = torch.Generator().manual_seed(seed)

        def drawn(rows: int, columns: int) -> Tensor:
            bound = 1.0 / math.sqrt(columns)
            return (2.0 * torch.rand(rows, columns, generator=generator) - 1.0) * bound

        self.to_student = nn.Parameter(drawn(student_width, teacher_width))
        self.to_teacher = nn.Parameter(drawn(teacher_width, student_width), requires_grad=False)
        self.query = self.query_bias = None
        if attention:
            self.query = nn.Parameter(drawn(2 * teacher_width, 2 * student_width))
            self.query_bias = nn.Parameter(drawn(1, 2 * teacher_width)[0])

    @torch.no_grad()
    def set_projections(self, to_student: Tensor, to_teacher: Tensor) -> None:
        """Write both, whole, also where they are sharded; every rank calls it."""
        for parameter, value in ((self.to_student, to_student), (self.to_teacher, to_teacher)):
            value = value.to(parameter)
            if isinstance(parameter, DTensor):
                value = distribute_tensor(value, parameter.device_mesh, parameter.placements)
            parameter.copy_(value)

    def teacher_seen(self, teacher_hidden: Tensor) -> Tensor:
        """Float[N, D] -> Float[N, d], differentiable in the projector."""
        return F.linear(teacher_hidden, self.to_student.to(teacher_hidden.dtype))

    def student_seen(self, student_hidden: Tensor) -> Tensor:
        """Float[N, d] -> Float[N, D], differentiable in the rows."""
        return F.linear(student_hidden, self.to_teacher.detach().to(student_hidden.dtype))

    def queries(self, tokens: Tensor) -> Tensor:
        """Float[N, 2d] -> Float[N, 2D]."""
        if self.query is None or self.query_bias is None:
            raise RuntimeError("These projectors were made without attention.")
        return F.linear(tokens, self.query.to(tokens.dtype), self.query_bias.to(tokens.dtype))


@torch.no_grad()
def projections(student_KD: Tensor, teacher_KD: Tensor) -> tuple[Tensor, Tensor]:
    """Both projections by least squares on the shared ids' rows of the heads.

    With S = student_KD and T = teacher_KD: to_student = (T' pinv(S'))' and to_teacher =
    (S' pinv(T'))', so that the projected rows of a head are as near to the other's as they can be.
    The pseudo-inverse goes over S'S and T'T in float64, summed some rows at a time: equal to the
    one by singular values, up to what is cut as zero (1e-12 of the largest eigenvalue).

    Args:
        student_KD: Float[K, d].
        teacher_KD: Float[K, D].

    Returns:
        to_student Float64[d, D] and to_teacher Float64[D, d].

    Source: DSKD v2, arXiv:2504.11426, as in KDFlow v0.1.3.
    """
    width, other = student_KD.shape[1], teacher_KD.shape[1]
    like = {"dtype": torch.float64, "device": student_KD.device}
    gram_dd, gram_DD = torch.zeros(width, width, **like), torch.zeros(other, other, **like)
    cross_Dd = torch.zeros(other, width, **like)
    for rows in slices(len(student_KD), ROWS):
        student, teacher = student_KD[rows].double(), teacher_KD[rows].double()
        gram_dd.addmm_(student.t(), student)
        gram_DD.addmm_(teacher.t(), teacher)
        cross_Dd.addmm_(teacher.t(), student)
    inverse_dd = torch.linalg.pinv(gram_dd, hermitian=True, rtol=1e-12)
    inverse_DD = torch.linalg.pinv(gram_DD, hermitian=True, rtol=1e-12)
    return inverse_dd @ cross_Dd.t(), inverse_DD @ cross_Dd
