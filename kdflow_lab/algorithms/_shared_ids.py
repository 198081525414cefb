"""The ids that both heads have, as tensors."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from kdflow_lab.errors import ConfigError
from kdflow_lab.losses._columns import Shared

if TYPE_CHECKING:
    from torch import Tensor

    from kdflow_lab.align.vocabulary import TokenizerPair


def shared_ids(
    pair: TokenizerPair, student_width: int, teacher_width: int, device: torch.device
) -> Shared:
    """The ids of equal bytes or equal role that both heads have, in the order of the teacher's.

    Raises:
        ConfigError: There are none.
    """
    teacher, student, found = _shared(pair, student_width, teacher_width)
    if not len(teacher):
        raise ConfigError(
            "The two tokenizers share no token, neither by its bytes nor by its role, so there is "
            "nothing to compare. Use algorithm='byte_prefix' or 'alm', which need none."
        )
    return Shared(*(torch.from_numpy(one).to(device) for one in (teacher, student, found)))


def counterparts(
    pair: TokenizerPair, student_width: int, teacher_width: int, device: torch.device
) -> Tensor:
    """Int64[X]: the student's id of each of the teacher's, -1 for none."""
    return torch.from_numpy(_shared(pair, student_width, teacher_width)[2]).to(device)


def _shared(
    pair: TokenizerPair, student_width: int, teacher_width: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """The fields of `Shared`."""
    teacher, student = pair.shared
    if pair.same:
        teacher = student = np.arange(min(student_width, teacher_width))
    there = (teacher < teacher_width) & (student < student_width)
    teacher, student = teacher[there], student[there]
    found = np.full(teacher_width, -1, np.int64)
    found[teacher] = student
    return teacher, student, found
