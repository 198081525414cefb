"""What `uld` and `gold` have in common: which rows are compared, and TRL's way of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from kdflow_lab.algorithms._options import check_options, sizes
from kdflow_lab.algorithms._trl_groups import answers
from kdflow_lab.algorithms._without_teacher import without_teacher
from kdflow_lab.losses import LossOutput, chunked_kd_loss
from kdflow_lab.losses._columns import WholeMap
from kdflow_lab.losses._inputs import check_paired_inputs
from kdflow_lab.losses._paired import paired_kd_loss
from kdflow_lab.losses._trl import Hybrid, grouped_distance, merged_rows

if TYPE_CHECKING:
    from torch import Tensor

    from kdflow_lab.algorithms._crossing import Crossing
    from kdflow_lab.align.pairing import Pairing
    from kdflow_lab.align.vocabulary import TokenizerPair
    from kdflow_lab.config import DistillConfig
    from kdflow_lab.losses import Head


def first_rows(
    pair: TokenizerPair,
    pairing: Pairing,
    labels: np.ndarray,
    *,
    align: str,
    skip_eos: bool,
) -> np.ndarray:
    """Int64[T]: the teacher's row that a student token is compared with, -1 for none.

    Args:
        pair: For the ids of the end of an answer.
        pairing: Where the tokens lie.
        labels: Int64[T].
        align: `spans`: the first tokens of the smallest spans that both sides delimit; `position`:
            the n-th token of an answer with the n-th, up to the shorter.
        skip_eos: Leave the end of the answer out.
    """
    ours = np.ones(len(labels), bool)
    theirs = np.ones(len(pairing.teacher_labels), bool)
    if skip_eos:
        ours = labels != pair.student.roles.get("eos", -1)
        theirs = pairing.teacher_labels != pair.teacher.roles.get("eos", -1)
    rows = np.full(len(labels), -1, np.int64)
    if align == "spans":
        found = pairing.spans
        found = found[ours[found[:, 2]] & theirs[found[:, 0]]]
        student = pair.student.widths[labels], pairing.student_start, pairing.student_end
        spelled = pair.teacher.widths[pairing.teacher_labels]
        teacher = spelled, pairing.teacher_start, pairing.teacher_end
        rows[_with_silent(found[:, 2], *student)] = _with_silent(found[:, 0], *teacher)
        return rows
    for sample in np.unique(pairing.student_sample):
        student = np.flatnonzero((pairing.student_sample == sample) & ours)
        teacher = np.flatnonzero((pairing.teacher_sample == sample) & theirs)
        shorter = min(len(student), len(teacher))
        rows[student[:shorter]] = teacher[:shorter]
    return rows


def _with_silent(
    first: np.ndarray, widths: np.ndarray, start: np.ndarray, end: np.ndarray
) -> np.ndarray:
    """First tokens of spans; a token before one that spells bytes but writes none is in its span.

    Such is the space that a tokenizer puts in front of a text, where it is a token by itself.
    """
    silent = (end == start) & (widths > 0)
    before = np.maximum(first - 1, 0)
    return np.where((first > 0) & silent[before] & (start[before] == start[first]), before, first)


def ranked_loss(
    algorithm: Crossing,
    function: Callable[[Tensor, Tensor], Tensor],
    counterpart: Tensor,
    hybrid: Hybrid | None,
    *,
    student: tuple[Tensor, Head],
    teacher: tuple[Tensor | None, Head | None],
    labels: Tensor,
    num_valid_tokens: int,
    pairing: Pairing,
) -> LossOutput:
    """The loss of `uld` or `gold`.

    Args:
        algorithm: Which of them; its options, parameters and vocabularies are read.
        function: Of the student's and the teacher's logits, to one value a token.
        counterpart: Int64[X], the student's id of each of the teacher's, -1 for none.
        hybrid: For TRL's variant of `gold`.
        student: Rows and head.
        teacher: Rows and head.
        labels: Int64[T].
        num_valid_tokens: Of the whole global batch.
        pairing: Where the tokens lie.
    """
    config, params = algorithm.config, algorithm.params
    check_options(algorithm.name, config)
    (student_hidden, student_head), (teacher_hidden, teacher_head) = student, teacher
    if teacher_hidden is None or teacher_head is None:
        return without_teacher(config, student_hidden, student_head, labels, num_valid_tokens)
    check_paired_inputs(
        student_hidden, student_head, teacher_hidden, teacher_head, labels, sizes(pairing)
    )
    if params["variant"] == "trl":
        return _as_trl(
            config, params, hybrid, (student_hidden, student_head), (teacher_hidden, teacher_head),
            labels, num_valid_tokens, pairing,
        )  # fmt: skip
    rows = first_rows(
        algorithm.pair,
        pairing,
        labels.cpu().numpy(),
        align=params["align"],
        skip_eos=params["skip_eos"],
    )
    output = paired_kd_loss(
        student_hidden,
        student_head,
        teacher_hidden,
        teacher_head,
        labels,
        teacher_rows=rows,
        map_target=WholeMap(counterpart),
        function=function,
        kd_ratio=config.kd_ratio,
        temperature=config.kd_temperature,
        temperature_squared=config.temperature_squared,
        num_valid_tokens=num_valid_tokens,
        chunk_tokens=config.chunk_tokens,
    )
    aligned = float((rows >= 0).sum()) / max(1, num_valid_tokens)
    return output._replace(extra={"aligned": output.kd.new_tensor(aligned)})


def _as_trl(
    config: DistillConfig,
    params: dict[str, Any],
    hybrid: Hybrid | None,
    student: tuple[Tensor, Head],
    teacher: tuple[Tensor, Head],
    labels: Tensor,
    num_valid_tokens: int,
    pairing: Pairing,
) -> LossOutput:
    """TRL's variant, whose rows are products over tokens: it holds [T, V] until backward."""
    device = labels.device
    share = 1.0 / max(1, num_valid_tokens)
    output = chunked_kd_loss(
        *student, None, None, labels,
        kd_ratio=0.0, num_valid_tokens=num_valid_tokens, chunk_tokens=config.chunk_tokens,
    )  # fmt: skip
    distances: list[Tensor] = []
    covered = 0
    teacher_labels = torch.from_numpy(pairing.teacher_labels).to(device)
    position = params["align"] == "position"
    for answer in answers(pairing, strategy=params["strategy"], by_position=position):
        merged = []
        for (hidden, head), rows, tokens, ids, side in (
            (student, answer.student, answer.student_tokens, labels, 0),
            (teacher, answer.teacher, answer.teacher_tokens, teacher_labels, 1),
        ):
            at = torch.from_numpy(rows).to(device)
            logits = head.logits(hidden[at]) / config.kd_temperature
            realised = ids[torch.from_numpy(tokens).to(device)]
            groups = [group[side] for group in answer.groups]
            merged.append(merged_rows(logits.softmax(-1), realised, groups, params["strategy"]))
        distances.append(grouped_distance(merged[0], merged[1].detach(), hybrid).sum())
        covered += sum(group[0].stop - group[0].start for group in answer.groups)
    factor = config.kd_temperature**2 if config.temperature_squared else 1.0
    kd = share * factor * sum(distances, output.ce.new_zeros(()))
    loss = (1.0 - config.kd_ratio) * output.loss + config.kd_ratio * kd
    aligned = output.ce.new_tensor(share * covered)
    return LossOutput(loss, output.ce, kd.detach(), output.agreement, {"aligned": aligned})
