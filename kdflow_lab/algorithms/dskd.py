"""Dual-space distillation: each model's hidden states seen through the other one's head."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from kdflow_lab.algorithms._attention import attend
from kdflow_lab.algorithms._crossing import Crossing
from kdflow_lab.algorithms._options import sizes
from kdflow_lab.algorithms._shared_ids import shared_ids
from kdflow_lab.algorithms._without_teacher import without_teacher
from kdflow_lab.algorithms.simple_ctkd import paired_rows
from kdflow_lab.errors import ConfigError
from kdflow_lab.losses import Adapter, LossOutput, chunked_kd_loss
from kdflow_lab.losses._columns import Shared, WholeMap
from kdflow_lab.losses._dual_space import DualProjectors, projections
from kdflow_lab.losses._inputs import check_paired_inputs
from kdflow_lab.losses._paired import paired_kd_loss
from kdflow_lab.losses._tops import top_tokens

if TYPE_CHECKING:
    from torch import Tensor

    from kdflow_lab.align.pairing import Pairing
    from kdflow_lab.config import DistillConfig
    from kdflow_lab.losses import Head


class Seen(NamedTuple):
    """Rows of both models as the other one's head is given them.

    Attributes:
        at_student: Float[m, d], the teacher's, in the student's space.
        student_rows: Int64[m], the student's tokens that they are at.
        targets: Int64[m], what the first term teaches `at_student` to say.
        at_teacher: Float[k, D], the student's, in the teacher's space.
        teacher_rows: Int64[k], the teacher's tokens that they are at.
        gated: Whether the second term counts only tokens where `at_student` says its target.
    """

    at_student: Tensor
    student_rows: np.ndarray
    targets: Tensor
    at_teacher: Tensor
    teacher_rows: np.ndarray
    gated: bool


class Parts(NamedTuple):
    """The terms, each a sum divided by `num_valid_tokens` and differentiable.

    Attributes:
        labels_and_t2s: (1 - kd_ratio) * cross-entropy + kd_ratio * the second term.
        t2s_ce: The first term.
        s2t_kd: The third term.
        counts: Tokens of the first and third, and of the second term.
    """

    labels_and_t2s: LossOutput
    t2s_ce: Tensor
    s2t_kd: Tensor
    counts: tuple[int, int]


class DSKD(Crossing):
    """kd = CE(t2s, target) + divergence(student, t2s) + divergence(s2t, teacher).

    t2s are the teacher's rows, projected and put through the student's head (as it is, without a
    gradient); s2t are the student's, projected and put through the teacher's. Which rows:

    - `token_align="eta"`: tokens that stand one against one, where the teacher's most likely token
      has a counterpart; that is the target, and the second term counts where t2s says it too.
    - `"cma"`: cross-model attention, all tokens; the target is the label.

    The projector of the teacher's rows is trained with `projector_lr`; both start from least
    squares on the heads' rows of ids with the same bytes, the first `topk_vocab` of the student's
    or all (-1). All sums are divided by all response tokens of the batch.

    Differs from KDFlow: ids and tokens are paired by bytes and role; shared ids are in the order of
    the student's ids; the student's head in t2s is the present one, not a copy of the first; the
    normaliser is that of the whole batch instead of three local ones; attention masks other
    answers, and cannot see the last token of the prompt.

    Held until backward: [T, Hs] and [U, Ht] of the projected rows, a copy of the teacher's rows,
    for `cma` the scores of each answer, and two gradients of the student's head while they are
    added. Logits are held by the chunk. Twelve head products instead of four.

    Source: DSKD v2, arXiv:2504.11426 (eta); DSKD, arXiv:2406.17328 (cma).
    """

    name = "dskd"

    def __init__(self, config: DistillConfig) -> None:
        """Keep the config; see `Algorithm`.

        Raises:
            ConfigError: An option means nothing here, or `topk_vocab` is 0.
        """
        super().__init__(config)
        if self.params["topk_vocab"] == 0:
            raise ConfigError("dskd: topk_vocab is 0; expected -1 for all shared ids, or a number.")
        self.beside_lr: float = float(self.params["projector_lr"])
        """Learning rate of what `beside` returns."""
        self.projectors: DualProjectors | None = None
        self._started = False

    def beside(self, student_width: int, teacher_width: int) -> DualProjectors:
        """Make the projectors; `init_beside` gives them what they start from."""
        attention = self.params["token_align"] == "cma"
        self.projectors = DualProjectors(
            student_width, teacher_width, attention=attention, seed=self.config.seed
        )
        return self.projectors

    def init_beside(self, student_head: Head, teacher_head: Head) -> None:
        """Start the projectors from both heads, whole; every rank calls it once.

        Raises:
            ConfigError: `meet` or `beside` was not called, or no id is shared.
        """
        student, teacher = _weight(student_head), _weight(teacher_head)
        shared = self._shared_of(student_head, teacher_head, student.device)
        order = shared.student_ids.argsort()
        if not self.pair.same:  # special tokens share a role, but say nothing of the two spaces
            widths = torch.from_numpy(self.pair.student.widths).to(student.device)
            order = order[widths[shared.student_ids[order]] > 0]
        if self.params["topk_vocab"] > 0:
            order = order[: self.params["topk_vocab"]]
        ours, theirs = shared.student_ids[order], shared.teacher_ids[order]
        found = projections(student[ours], teacher.to(student.device)[theirs])
        self._made().set_projections(*found)
        self._started = True

    def loss(
        self,
        student_hidden: Tensor,
        student_head: Head,
        teacher_hidden: Tensor | None,
        teacher_head: Head | None,
        labels: Tensor,
        *,
        num_valid_tokens: int,
        pairing: Pairing,
    ) -> LossOutput:
        """See `Algorithm.loss`; arguments as in `BytePrefix.loss`.

        Raises:
            ConfigError: `meet`, `beside` or `init_beside` was not called, or the teacher is
                missing.
            ShapeError: Rows, hidden sizes or ids do not fit.
        """
        config = self.config
        if teacher_hidden is None or teacher_head is None:
            return without_teacher(config, student_hidden, student_head, labels, num_valid_tokens)
        parts = self.parts(
            student_hidden, student_head, teacher_hidden, teacher_head, labels,
            num_valid_tokens=num_valid_tokens, pairing=pairing,
        )  # fmt: skip
        first = parts.labels_and_t2s
        loss = first.loss + config.kd_ratio * (parts.t2s_ce + parts.s2t_kd)
        t2s_ce, s2t_kd = parts.t2s_ce.detach(), parts.s2t_kd.detach()
        share = 1.0 / max(1, num_valid_tokens)
        extra = {
            "aligned": first.ce.new_tensor(share * parts.counts[0]),
            "t2s_agreement": first.ce.new_tensor(share * parts.counts[1]),
            "t2s_ce": t2s_ce,
            "t2s_kd": first.kd,
            "s2t_kd": s2t_kd,
        }
        return LossOutput(loss, first.ce, first.kd + t2s_ce + s2t_kd, first.agreement, extra)

    def parts(
        self,
        student_hidden: Tensor,
        student_head: Head,
        teacher_hidden: Tensor,
        teacher_head: Head,
        labels: Tensor,
        *,
        num_valid_tokens: int,
        pairing: Pairing,
    ) -> Parts:
        """The terms one by one; arguments and errors as in `loss`."""
        config = self.config
        shared = self._shared_of(student_head, teacher_head, student_hidden.device)
        check_paired_inputs(
            student_hidden, student_head, teacher_hidden, teacher_head, labels, sizes(pairing)
        )
        if not self._started:
            raise ConfigError("The algorithm 'dskd' needs both heads: call `init_beside` first.")
        # copied: backward needs the teacher's rows after their slot of the ring was given back
        theirs = teacher_hidden.clone()
        frozen = _frozen(student_head)
        if self.params["token_align"] == "cma":
            seen = self._attended(student_hidden, frozen, theirs, teacher_head, labels, pairing)
        else:
            seen = self._exact(student_hidden, theirs, teacher_head, pairing, shared)
        common = {"num_valid_tokens": num_valid_tokens, "chunk_tokens": config.chunk_tokens}
        divergence = {
            "divergence": config.loss,
            "temperature": config.kd_temperature,
            "temperature_squared": config.temperature_squared,
            **common,
        }
        t2s_ce = chunked_kd_loss(
            seen.at_student, frozen, None, None, seen.targets, kd_ratio=0.0, **common
        ).loss
        counted = np.ones(len(seen.student_rows), bool)
        if seen.gated:
            said = top_tokens(seen.at_student.detach(), frozen, config.chunk_tokens)
            counted = (said == seen.targets).cpu().numpy()
        rows = np.full(len(labels), -1, np.int64)
        rows[seen.student_rows[counted]] = np.flatnonzero(counted)
        labels_and_t2s = paired_kd_loss(
            student_hidden, student_head, seen.at_student.detach(), frozen, labels,
            teacher_rows=rows, map_target=WholeMap(_same(student_head, labels.device)),
            params=config.loss_params, kd_ratio=config.kd_ratio, **divergence,
        )  # fmt: skip
        at = torch.from_numpy(seen.teacher_rows).to(theirs.device)
        s2t_kd = chunked_kd_loss(
            seen.at_teacher.to(student_hidden.dtype), teacher_head, theirs[at], teacher_head, None,
            kd_ratio=1.0, **divergence, **config.loss_params,
        ).loss  # fmt: skip
        return Parts(labels_and_t2s, t2s_ce, s2t_kd, (len(seen.student_rows), int(counted.sum())))

    def _exact(
        self,
        student_hidden: Tensor,
        teacher_hidden: Tensor,
        teacher_head: Head,
        pairing: Pairing,
        shared: Shared,
    ) -> Seen:
        """Tokens one against one, where the teacher's choice has a counterpart."""
        tops = top_tokens(teacher_hidden, teacher_head, self.config.chunk_tokens)
        targets = shared.counterpart[tops]
        rows = paired_rows(pairing)
        says = targets.cpu().numpy() >= 0
        ours = np.flatnonzero(rows >= 0)
        ours = ours[says[rows[ours]]]
        theirs = rows[ours]
        at = torch.from_numpy(theirs).to(teacher_hidden.device)
        projectors = self._made()
        students = student_hidden[torch.from_numpy(ours).to(student_hidden.device)]
        return Seen(
            projectors.teacher_seen(teacher_hidden[at]).to(student_hidden.dtype),
            ours,
            targets[at],
            projectors.student_seen(students),
            theirs,
            gated=True,
        )

    def _attended(
        self,
        student_hidden: Tensor,
        student_head: Head,
        teacher_hidden: Tensor,
        teacher_head: Head,
        labels: Tensor,
        pairing: Pairing,
    ) -> Seen:
        """All tokens of answers that both sides have."""
        theirs = torch.from_numpy(pairing.teacher_labels).to(labels.device)
        at_student, at_teacher, ours, others = attend(
            self._made(),
            (student_hidden, student_head, labels),
            (teacher_hidden, teacher_head, theirs),
            pairing,
        )
        targets = labels[torch.from_numpy(ours).to(labels.device)]
        return Seen(at_student, ours, targets, at_teacher, others, gated=False)

    def _made(self) -> DualProjectors:
        if self.projectors is None:
            raise ConfigError("The algorithm 'dskd' trains projectors: call `beside` first.")
        return self.projectors

    def _shared_of(self, student: Head, teacher: Head, device: torch.device) -> Shared:
        key = student.width, teacher.width, device
        return self.kept(key, lambda: shared_ids(self.pair, *key))


def _frozen(head: Head) -> Head:
    """The head as it is, without gradients."""
    adapter = head.adapter
    if adapter is not None:
        adapter = Adapter(adapter.a.detach(), adapter.b.detach())
    bias = None if head.bias is None else head.bias.detach()
    return dataclasses.replace(head, weight=head.weight.detach(), bias=bias, adapter=adapter)


def _weight(head: Head) -> Tensor:
    """The head's rows, its adapter included, Float[V, H]."""
    weight = head.weight.detach()[: head.width]
    if head.adapter is not None:
        weight = weight + head.adapter.b.detach()[: head.width] @ head.adapter.a.detach()
    return weight


def _same(head: Head, device: torch.device) -> Tensor:
    """Every id is its own counterpart, Int64[V]."""
    return torch.arange(head.width, device=device)
